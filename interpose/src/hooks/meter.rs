//! The meter: what a volume's requests were and how long they took. It counts
//! from the moment the server knew the volume, and is never set to zero.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use block_core::{BlockError, Op};

use super::RequestFacts;
use super::histogram::Histogram;

/// What people call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Data from the volume.
    Read,
    /// Data to the volume, cached or through.
    Write,
    /// Everything answered becomes durable.
    Flush,
    /// Blocks that are not needed.
    Discard,
    /// Sectors that read as zero.
    Zero,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Flush, Self::Discard, Self::Zero];

    /// What an operation is called.
    #[must_use]
    pub const fn of(op: Op) -> Self {
        match op {
            Op::Read => Self::Read,
            Op::Write | Op::WriteThrough => Self::Write,
            Op::Flush => Self::Flush,
            Op::Discard => Self::Discard,
            Op::WriteZeroesUnmap | Op::WriteZeroes | Op::WriteZeroesThrough => Self::Zero,
        }
    }

    /// Its name, in a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::Zero => "zero",
        }
    }
}

/// The requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerKind {
    /// Bytes of the ranges that were asked for, whether or not it worked.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
    /// How long they took, from their arrival to their end, and how many ended.
    pub latency: Histogram,
}

/// What a meter has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    kinds: [PerKind; 5],
    /// Requests that have arrived and not ended.
    pub in_flight: u64,
}

impl Measured {
    /// The requests of a kind.
    #[must_use]
    pub fn kind(&self, kind: Kind) -> &PerKind {
        &self.kinds[kind as usize]
    }
}

/// A request that has arrived and not ended.
#[derive(Debug)]
pub(super) struct Running(Rc<Meter>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.go();
    }
}

/// Counts a volume's requests.
#[derive(Debug, Default)]
pub struct Meter {
    kinds: RefCell<[PerKind; 5]>,
    in_flight: Cell<u64>,
}

impl Meter {
    /// What was counted until now.
    #[must_use]
    pub fn measured(&self) -> Measured {
        Measured { kinds: self.kinds.borrow().clone(), in_flight: self.in_flight.get() }
    }

    /// A request has arrived; it runs until the answer is dropped.
    pub(super) fn arrive(self: &Rc<Self>) -> Running {
        self.come();
        Running(Rc::clone(self))
    }

    /// A request has arrived; it runs until [`Meter::go`].
    #[inline]
    pub(super) fn come(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// A request that has arrived runs no more.
    #[inline]
    pub(super) fn go(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    #[inline]
    pub(super) fn done(
        &self,
        facts: RequestFacts,
        latency: Duration,
        outcome: Result<(), BlockError>,
    ) {
        let mut kinds = self.kinds.borrow_mut();
        let kind = &mut kinds[Kind::of(facts.op) as usize];
        kind.bytes = kind.bytes.saturating_add(facts.range.map_or(0, |range| range.bytes()));
        kind.errors += u64::from(outcome.is_err());
        kind.latency.record(latency);
    }
}
