//! What a stage's own share costs, while others work in between.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Sums up the parts of the work that are measured.
#[derive(Debug, Default)]
pub struct Meter {
    /// How long they took.
    pub time: Duration,
    /// How often this thread asked for memory in them: always zero without
    /// [`allocations::Counting`].
    pub allocations: u64,
}

impl Meter {
    /// What callgrind collects during, and what it forgets all before.
    pub const COUNTED: &str = "*benches::meter::counted*";
    /// The same.
    pub const BEGIN: &str = "*benches::meter::begin*";

    /// A meter that has seen nothing; callgrind begins anew.
    #[must_use]
    pub fn begin() -> Self {
        begin();
        Self::default()
    }

    /// Does a part of the work, and measures it.
    #[inline]
    pub fn measure<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let allocated = allocations::of_this_thread();
        let begun = Instant::now();
        let result = counted(work);
        self.time += begun.elapsed();
        self.allocations += allocations::of_this_thread() - allocated;
        result
    }
}

/// Never inlined: callgrind knows it by its name.
#[inline(never)]
fn counted<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// The same.
#[inline(never)]
fn begin() {
    black_box(());
}
