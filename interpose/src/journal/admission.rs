//! Who may append: so that what a crash can undo stays bounded, and a full
//! ring makes writers wait before it is too full for the checkpoint.

use std::cell::Cell;

use tokio::sync::{Mutex, Notify};

use super::{Journal, JournalError};
use crate::layout::Record;

/// Bytes of a record that count as one.
const UNIT_BYTES: usize = 64;

/// Records that may be past the mark, for those who can wait.
pub(super) const MOST_PAST_MARK: u64 = 4096;

/// And what those who cannot wait for the others may add.
pub(super) const MOST_EXEMPT: u64 = 1024;

/// How many records a record counts as: a large [`Record::Control`] is many.
#[must_use]
pub fn weight(record: &Record) -> usize {
    weight_of(record.bytes())
}

/// The same of a record that has so many bytes.
pub(super) const fn weight_of(bytes: usize) -> usize {
    bytes.div_ceil(UNIT_BYTES)
}

/// How much may be under way at a time.
#[derive(Debug)]
pub(super) struct Gate {
    /// Records past the mark, admitted ones included.
    most: u64,
    reserved: Cell<u64>,
    /// Something went, or the ring has room.
    room: Notify,
    /// The one who waits for room; the others wait for this, in order.
    queue: Mutex<()>,
    /// How many wait, for either.
    waiting: Cell<u64>,
}

impl Gate {
    /// The gate of a ring: what is admitted at once never fills more than an
    /// eighth of it.
    pub(super) fn new(ring_blocks: u64) -> Self {
        let records_in_a_block = (super::BODY_BYTES / UNIT_BYTES) as u64;
        let eighth = (ring_blocks / 8).max(1).saturating_mul(records_in_a_block);
        Self {
            most: MOST_PAST_MARK.min(eighth),
            reserved: Cell::new(0),
            room: Notify::new(),
            queue: Mutex::new(()),
            waiting: Cell::new(0),
        }
    }

    /// There may be room. Looks first, because most often nobody waits, and
    /// telling nobody takes a lock too.
    pub(super) fn tell(&self) {
        if self.waiting.get() > 0 {
            self.room.notify_waiters();
        }
    }

    /// Records past the mark at which a flush begins without being asked for.
    pub(super) const fn flush_at(&self) -> u64 {
        self.most / 2
    }
}

/// The right to append so many records; it ends when this is dropped. Held
/// only as long as appending cannot have to wait for other admissions.
#[derive(Debug)]
#[must_use = "the admission ends when this is dropped"]
pub struct Admitted<'a> {
    gate: &'a Gate,
    records: u64,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.gate.reserved.set(self.gate.reserved.get() - self.records);
        self.gate.tell();
    }
}

/// How far an admission may go.
#[derive(Clone, Copy)]
struct Limits {
    past_mark: u64,
    used: u64,
}

/// One who waits.
struct Waiting<'a>(&'a Cell<u64>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<u64>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<D> Journal<D> {
    /// Waits, first come, first served, until so many records more may be
    /// appended: while 4096 are past the mark or 3/4 of the ring are in use,
    /// none may.
    ///
    /// # Errors
    /// When the journal has failed.
    pub async fn admit(&self, records: usize) -> Result<Admitted<'_>, JournalError> {
        if let Some(admitted) = self.try_admit(records) {
            return Ok(admitted);
        }
        let _waiting = Waiting::new(&self.gate.waiting);
        let _first = self.gate.queue.lock().await;
        self.wait_for_room(records as u64, self.common()).await
    }

    /// As [`Journal::admit`]; `None` when there is no room now or somebody
    /// waits for some.
    pub fn try_admit(&self, records: usize) -> Option<Admitted<'_>> {
        let has_room = self.gate.waiting.get() == 0 && self.has_room(records as u64, self.common());
        has_room.then(|| self.reserve(records as u64).ok()).flatten()
    }

    /// As [`Journal::admit`], for what must go on while others wait: controls
    /// that give room back. A record counts as its [`weight`].
    ///
    /// # Errors
    /// When the journal has failed.
    pub async fn admit_exempt(&self, records: usize) -> Result<Admitted<'_>, JournalError> {
        let _waiting = Waiting::new(&self.gate.waiting);
        self.wait_for_room(records as u64, self.exempt()).await
    }

    /// As [`Journal::admit_exempt`], for who cannot wait; `None` when there is
    /// no room now.
    pub fn admit_at_once(&self, records: usize) -> Option<Admitted<'_>> {
        let has_room = self.has_room(records as u64, self.exempt());
        has_room.then(|| self.reserve(records as u64).ok()).flatten()
    }

    fn common(&self) -> Limits {
        Limits { past_mark: self.gate.most, used: self.ring() / 4 * 3 }
    }

    fn exempt(&self) -> Limits {
        let used = self.ring() - self.ring() / 16;
        Limits { past_mark: self.gate.most + MOST_EXEMPT, used }
    }

    async fn wait_for_room(
        &self,
        records: u64,
        limits: Limits,
    ) -> Result<Admitted<'_>, JournalError> {
        while !self.has_room(records, limits) {
            self.flush_soon();
            self.gate.room.notified().await;
        }
        self.reserve(records)
    }

    /// Also true when there will never be room again.
    fn has_room(&self, records: u64, limits: Limits) -> bool {
        let under_way = self.past_mark() + self.gate.reserved.get();
        // A request larger than the limit goes when it is alone.
        let fits = under_way == 0 || under_way + records <= limits.past_mark;
        self.failed().is_some() || (fits && self.used() < limits.used)
    }

    fn reserve(&self, records: u64) -> Result<Admitted<'_>, JournalError> {
        if let Some(error) = self.failed() {
            return Err(error);
        }
        self.gate.reserved.set(self.gate.reserved.get() + records);
        Ok(Admitted { gate: &self.gate, records })
    }
}
