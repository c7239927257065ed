//! Looking at everything, while requests go on: does every page and every
//! block open, and does it all add up?
//!
//! Pages and counts have to be those of one checkpoint. What later ones free
//! meanwhile is held for the check, as far as there is room; the counts are
//! copied before the next checkpoint replaces them, as many as fit into the
//! memory for it, and there are as many passes as it takes. Guests' blocks
//! are looked at a few at a time, as the newest checkpoint has them.
//!
//! What is only in the journal and in memory is looked at by the next check.

mod data;
mod report;
mod survey;
mod tally;
#[cfg(test)]
mod tests;
mod view;

use std::num::NonZeroU32;
use std::rc::Rc;

use block_core::Device;

pub use report::{
    Fault, Incomplete, MOST_FAULTS, MOST_TOUCHED, Phase, Progress, Report, Touched, Wrong,
};

use crate::core::Core;
use crate::pace::Pacer;
use crate::pool::{Pool, PoolError};
use survey::{Overtaken, Survey};

/// How often a pass is made again that was overtaken.
const ATTEMPTS: usize = 3;

/// Blocks between two words about how far it is.
const TOLD_EVERY: u64 = 256;

/// How a pool is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// Whether guests' blocks are looked at too, not only the pool's pages.
    pub data: bool,
    /// Blocks a second; `None`: as fast as it goes.
    pub blocks_per_second: Option<NonZeroU32>,
    /// Memory for counts, in bytes: 2 for each block of the pool, or more
    /// passes are made.
    pub memory: usize,
}

impl Default for CheckOptions {
    /// Everything, as fast as it goes, in 8 MiB: 16 GiB of the pool a pass.
    fn default() -> Self {
        Self { data: true, blocks_per_second: None, memory: 8 << 20 }
    }
}

/// A check under way.
struct Check<'a, D> {
    core: &'a Rc<Core<D>>,
    memory: usize,
    pacer: Pacer<'a>,
    progress: &'a dyn Fn(Progress),
    at: Progress,
    report: Report,
}

impl<D: Device + 'static> Pool<D> {
    /// Looks at everything that the newest checkpoint has: one is made first.
    /// Requests go on. `progress` is called now and then.
    ///
    /// What is wrong is in the report. A pool that takes no changes is checked
    /// as it is.
    ///
    /// # Errors
    /// None but [`PoolError::Failed`], when the pool fails meanwhile.
    pub async fn check(
        &self,
        options: &CheckOptions,
        progress: &dyn Fn(Progress),
    ) -> Result<Report, PoolError> {
        let mut check = Check {
            core: &self.core,
            memory: options.memory,
            pacer: Pacer::new(&self.core.alarms, options.blocks_per_second),
            progress,
            at: Progress { phase: Phase::Pages, done: 0, total: 0 },
            report: Report::default(),
        };
        check.look_at_pages().await;
        if options.data {
            check.look_at_data().await;
        }
        check.tell();
        Ok(check.report)
    }
}

impl<D: Device + 'static> Check<'_, D> {
    async fn look_at_pages(&mut self) {
        let (mut from, mut attempts) = (Some(0), 0);
        while let Some(region) = from {
            let before = self.report.clone();
            match Survey::run(self, region).await {
                Ok(next) => (from, attempts) = (next, 0),
                Err(Overtaken) => {
                    self.report = before;
                    attempts += 1;
                    if attempts == ATTEMPTS {
                        self.report.incomplete = Some(Incomplete::Overtaken);
                        return;
                    }
                    // What was held for the pass is given back.
                    let _ = self.core.wait_for_checkpoint().await;
                }
            }
        }
    }

    fn begin(&mut self, phase: Phase, total: u64) {
        self.at = Progress { phase, done: 0, total };
        self.tell();
    }

    /// Blocks were looked at.
    async fn step(&mut self, blocks: u64) {
        let before = self.at.done;
        self.at.done += blocks;
        if before / TOLD_EVERY != self.at.done / TOLD_EVERY {
            self.tell();
        }
        self.pacer.spend(blocks).await;
    }

    fn tell(&self) {
        (self.progress)(self.at);
    }
}
