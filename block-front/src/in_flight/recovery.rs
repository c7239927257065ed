//! A ring that another front has served, and what that front left under way.

use std::sync::atomic::Ordering;

use thiserror::Error;

use super::{
    COUNTER_AT, ENTRIES_AT, IN_FLIGHT_AT, LAST_BATCH_AT, NEXT_AT, Record, USED_AT, VERSION,
    VERSION_AT, entry,
};

/// Why a record cannot be believed: no front has left it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Lie {
    #[error("it has version {0}, and {VERSION} is known")]
    Version(u16),
    #[error("it has {0} entries and was made for another number")]
    Entries(u16),
    #[error("its last batch is not what the used ring has gained")]
    Batch,
    #[error("entry {0} is neither in flight nor not, or lies past the ring")]
    Entry(u16),
    #[error("two chains in flight have the number {0}")]
    Counter(u64),
    #[error("{in_flight} chains are in flight, and the driver waits for {waiting}")]
    Count { in_flight: u16, waiting: u16 },
    #[error("its memory was taken away")]
    Lost,
}

/// What a record says about a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// Nobody has used it.
    Fresh,
    /// Another front has: these chains are in flight, the oldest last.
    InFlight(Vec<u16>),
}

impl Record {
    /// Reads the record of a ring that starts, whose used and available
    /// indices are given. A batch that was shown to the driver while its
    /// chains were still marked is finished first.
    pub(crate) fn recover(&mut self, used: u16, available: u16) -> Result<Recovered, Lie> {
        let recovered = match self.span.load16(VERSION_AT, Ordering::Acquire) {
            0 => Recovered::Fresh,
            VERSION => Recovered::InFlight(self.resume(used, available)?),
            other => return Err(Lie::Version(other)),
        };
        if self.has_failed() { Err(Lie::Lost) } else { Ok(recovered) }
    }

    /// Makes a record usable that nobody has used.
    pub(crate) fn begin_use(&mut self, used: u16) {
        self.span.store16(ENTRIES_AT, self.entries, Ordering::Release);
        self.span.store16(USED_AT, used, Ordering::Release);
        self.span.store16(VERSION_AT, VERSION, Ordering::Release);
    }

    fn resume(&mut self, used: u16, available: u16) -> Result<Vec<u16>, Lie> {
        let entries = self.span.load16(ENTRIES_AT, Ordering::Relaxed);
        if entries != self.entries {
            return Err(Lie::Entries(entries));
        }
        self.finish_batch(used)?;
        let mut chains = self.marked()?;
        let waiting = available.wrapping_sub(used);
        let in_flight = chains.len() as u16;
        if usize::from(waiting) > self.taken.len() || in_flight > waiting {
            return Err(Lie::Count { in_flight, waiting });
        }
        // The oldest comes last, where it is taken first.
        chains.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(pair) = chains.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Lie::Counter(pair[0].0));
        }
        self.counter = chains.first().map_or(0, |newest| newest.0.wrapping_add(1));
        for &(_, head) in &chains {
            self.taken[usize::from(head)] = true;
        }
        Ok(chains.into_iter().map(|(_, head)| head).collect())
    }

    /// What the used ring has gained since the record was last in step with
    /// it are the chains of the last batch: they have ended.
    fn finish_batch(&mut self, used: u16) -> Result<(), Lie> {
        let gained = used.wrapping_sub(self.span.load16(USED_AT, Ordering::Relaxed));
        if usize::from(gained) > self.taken.len() {
            return Err(Lie::Batch);
        }
        let mut head = self.span.load16(LAST_BATCH_AT, Ordering::Relaxed);
        self.last = head;
        let mut seen = vec![false; self.taken.len()];
        for _ in 0..gained {
            match seen.get_mut(usize::from(head)) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(Lie::Batch),
            }
            self.span.store8(entry(head) + IN_FLIGHT_AT, 0, Ordering::Release);
            head = self.span.load16(entry(head) + NEXT_AT, Ordering::Relaxed);
        }
        self.span.store16(USED_AT, used, Ordering::Release);
        Ok(())
    }

    /// The chains that are marked as in flight, with their numbers.
    fn marked(&self) -> Result<Vec<(u64, u16)>, Lie> {
        let mut chains = Vec::with_capacity(self.taken.len());
        for head in 0..self.entries {
            match self.span.load8(entry(head) + IN_FLIGHT_AT) {
                0 => {}
                1 if usize::from(head) < self.taken.len() => {
                    chains.push((self.span.load64(entry(head) + COUNTER_AT), head));
                }
                _ => return Err(Lie::Entry(head)),
            }
        }
        Ok(chains)
    }
}
