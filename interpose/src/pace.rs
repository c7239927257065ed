//! Background work at a bounded rate: how it waits for a moment.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use block_core::Time;
use tokio::sync::Notify;

/// Blocks in one go last so long: short enough that guests do not notice.
const BURST: Duration = Duration::from_millis(5);

/// Who waits for a moment. The pool has no clock: it is told the time when it
/// has asked to be.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    now: Cell<Time>,
    told: Cell<u64>,
    set: RefCell<BTreeSet<(Time, u64)>>,
    number: Cell<u64>,
    rung: Notify,
}

/// One that waits; taken out when it is dropped.
struct Alarm<'a> {
    alarms: &'a Alarms,
    entry: (Time, u64),
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.alarms.set.borrow_mut().remove(&self.entry);
    }
}

impl Alarms {
    /// Tells the time.
    pub(crate) fn tick(&self, now: Time) {
        self.now.set(now);
        self.told.set(self.told.get() + 1);
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.rung.notify_waiters();
        }
    }

    /// When [`Alarms::tick`] has something to wake.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.set.borrow().first().map(|(moment, _)| *moment)
    }

    /// Waits so long.
    pub(crate) async fn pause(&self, duration: Duration) {
        let now = self.wait(Time::ZERO).await;
        self.wait(now + duration).await;
    }

    /// Waits until a moment, and says when that was.
    async fn wait(&self, moment: Time) -> Time {
        let number = self.number.replace(self.number.get() + 1);
        let alarm = Alarm { alarms: self, entry: (moment, number) };
        self.set.borrow_mut().insert(alarm.entry);
        let told = self.told.get();
        // What was told before may be long ago.
        while self.told.get() == told || self.now.get() < moment {
            self.rung.notified().await;
        }
        self.now.get()
    }
}

/// How fast somebody may go.
pub(crate) struct Pacer<'a> {
    alarms: &'a Alarms,
    /// Blocks a second; as fast as it goes when there is none.
    rate: Option<NonZeroU32>,
    /// Since when so many blocks were looked at.
    since: Option<Time>,
    blocks: u64,
    /// Of them: since the last wait.
    burst: u64,
}

impl<'a> Pacer<'a> {
    pub(crate) const fn new(alarms: &'a Alarms, rate: Option<NonZeroU32>) -> Self {
        Self { alarms, rate, since: None, blocks: 0, burst: 0 }
    }

    /// Blocks were looked at: waits as long as they should have taken. Nothing
    /// that others wait for may be held.
    pub(crate) async fn spend(&mut self, blocks: u64) {
        let Some(rate) = self.rate.map(|rate| u64::from(rate.get())) else { return };
        let since = match self.since {
            Some(since) => since,
            None => self.alarms.wait(Time::ZERO).await,
        };
        self.since = Some(since);
        (self.blocks, self.burst) = (self.blocks + blocks, self.burst + blocks);
        if Duration::from_nanos(self.burst * 1_000_000_000 / rate) < BURST {
            return;
        }
        let due = since + Duration::from_nanos(self.blocks * 1_000_000_000 / rate);
        let now = self.alarms.wait(due).await;
        // What was missed because the device is slow is not made up for.
        (self.since, self.blocks, self.burst) = (Some(now), 0, 0);
    }
}
