//! One running queue: its ring, and the table of requests that are under way.
//!
//! Everything is made when the ring starts. A request takes a slot of the
//! table and gives it back; it allocates nothing.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use block_core::{BlockError, Op, SectorRange};

use crate::chain::{self, MAX_PIECES, Piece, TableCopy, walk};
use crate::command::{DONE, ID_BYTES, Limits, Status, Sweep};
use crate::guest_memory::{GuestMemory, NotThere};
use crate::parts::part_of;
use crate::prepare::{Prepared, Work, prepare};
use crate::ring::{BadHead, MAX_QUEUE_SIZE, Overrun, Ring, RingMemory};

/// Why a queue cannot go on, and with it the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the driver claims more requests than its ring has room for")]
    Overrun,
    #[error("the driver named a descriptor that its ring does not have")]
    Head,
    #[error("the driver offered a request again that is still under way")]
    Twice,
    #[error("the driver sent a request without a place for its status")]
    NoStatus,
    #[error("the guest's memory was taken away")]
    MemoryLost,
    #[error("the front-end changed the guest's memory too often while requests were under way")]
    TooManyTables,
}

impl From<Overrun> for Broken {
    fn from(_: Overrun) -> Self {
        Self::Overrun
    }
}

impl From<BadHead> for Broken {
    fn from(head: BadHead) -> Self {
        match head {
            BadHead::Outside => Self::Head,
            BadHead::Twice => Self::Twice,
        }
    }
}

impl From<NotThere> for Broken {
    fn from(_: NotThere) -> Self {
        Self::MemoryLost
    }
}

/// Names a part of a request that is under way in this queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) slot: u16,
    pub(crate) part: u16,
    /// Tells the slot's users apart.
    pub(crate) user: u16,
}

/// What the queue has to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// A part for the path.
    Part(Place, Op, Option<SectorRange>),
    /// A request was served on the spot.
    Served,
    /// Nothing now.
    Nothing,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Slot {
    work: Work,
    /// Where the driver wants the status.
    status_at: u64,
    /// Bytes before the data in its stream: the header's, for a write.
    skip: u64,
    /// All bytes that the device may write, status included.
    writable: u32,
    /// How many parts there are, were offered and taken, and have not ended.
    parts: u32,
    taken: u32,
    outstanding: u32,
    /// The data's pieces in the slot's part of the table.
    first: u16,
    end: u16,
    head: u16,
    user: u16,
    /// Under which memory table the request began.
    table: u8,
    /// The first status that is not success wins.
    status: u8,
}

impl Slot {
    /// A part of the request's data, and the bytes before it.
    #[inline]
    fn part(&self, range: SectorRange, part: u32) -> (SectorRange, u64) {
        if self.parts == 1 { (range, 0) } else { part_of(range, part) }
    }

    /// Whether a part of the slot's user is under way.
    const fn has(&self, place: Place) -> bool {
        self.user == place.user && self.outstanding > 0
    }

    const fn fail(&mut self, status: u8) {
        if self.status == DONE {
            self.status = status;
        }
    }
}

const IDLE: Slot = Slot {
    work: Work::Flush,
    status_at: 0,
    skip: 0,
    writable: 0,
    parts: 0,
    taken: 0,
    outstanding: 0,
    first: 0,
    end: 0,
    head: 0,
    user: 0,
    table: 0,
    status: DONE,
};

/// A memory table and, once another has replaced it, how many requests still
/// use it.
#[derive(Debug)]
struct Table {
    memory: Arc<GuestMemory>,
    requests: usize,
}

/// Where the next chain comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Driver,
    EarlierFront,
}

/// A queue whose ring runs.
#[derive(Debug)]
pub(crate) struct Queue {
    ring: Ring,
    call: Option<OwnedFd>,
    indirect: bool,
    /// Cleared by `SET_VRING_ENABLE`: nothing is taken from the ring.
    pub(crate) enabled: bool,
    /// The path had no room for the part that is being offered: it is offered
    /// again after a completion, and a kick would tell nothing new.
    pub(crate) is_blocked: bool,
    /// The request whose parts are being offered.
    current: Option<u16>,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    pieces: Box<[Piece]>,
    tables: Vec<Table>,
    table: u8,
    copy: Box<TableCopy>,
}

impl Queue {
    /// A queue on `ring`, with everything it will ever need.
    pub(crate) fn new(
        ring: Ring,
        memory: Arc<GuestMemory>,
        call: Option<OwnedFd>,
        indirect: bool,
        enabled: bool,
    ) -> Box<Self> {
        let size = usize::from(ring.memory().size());
        Box::new(Self {
            ring,
            call,
            indirect,
            enabled,
            is_blocked: false,
            current: None,
            slots: vec![IDLE; size].into_boxed_slice(),
            free: (0..size as u16).rev().collect(),
            pieces: vec![Piece::default(); size * MAX_PIECES].into_boxed_slice(),
            tables: vec![Table { memory, requests: 0 }],
            table: 0,
            copy: Box::new([0; _]),
        })
    }

    /// The next available entry.
    pub(crate) const fn base(&self) -> u16 {
        self.ring.base()
    }

    /// Whether no request is under way, nor one that an earlier front left.
    pub(crate) const fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len() && !self.ring.has_left()
    }

    /// Leaves to a later front what an earlier one has left.
    pub(crate) fn pass_on(&mut self) {
        self.ring.pass_on();
    }

    /// Where calls go from now on; gives back the descriptor used until now.
    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) -> Option<OwnedFd> {
        std::mem::replace(&mut self.call, call)
    }

    /// Requests from now on use `memory`, and the ring is at `ring`, or where
    /// it was if the table has lost it.
    pub(crate) fn set_memory(
        &mut self,
        memory: Arc<GuestMemory>,
        ring: Option<RingMemory>,
    ) -> Result<(), Broken> {
        if let Some(ring) = ring {
            self.ring.relocate(ring);
        }
        let current = usize::from(self.table);
        self.tables[current].requests =
            self.under_way().filter(|slot| slot.table == self.table).count();
        let table = Table { memory, requests: 0 };
        let free = self.tables.iter().position(|table| table.requests == 0);
        let place = free.unwrap_or(self.tables.len());
        let Ok(number) = u8::try_from(place) else { return Err(Broken::TooManyTables) };
        match self.tables.get_mut(place) {
            Some(unused) => *unused = table,
            None => self.tables.push(table),
        }
        self.table = number;
        for place in 0..self.tables.len() {
            self.let_table_go(place);
        }
        Ok(())
    }

    /// The requests that have a slot.
    fn under_way(&self) -> impl Iterator<Item = &Slot> {
        let is_current = |number| self.current.map(usize::from) == Some(number);
        let slots = self.slots.iter().enumerate();
        slots.filter(move |(n, slot)| slot.outstanding > 0 || is_current(*n)).map(|(_, slot)| slot)
    }

    /// A table that no request uses any more is not kept: the conversation
    /// unmaps it.
    fn let_table_go(&mut self, place: usize) {
        if self.tables[place].requests == 0 && place != usize::from(self.table) {
            let memory = Arc::clone(&self.tables[usize::from(self.table)].memory);
            self.tables[place].memory = memory;
        }
    }

    /// Whether there is something to offer that no completion has to come for
    /// first. With `drain`, nothing new is taken from the ring.
    pub(crate) fn has_work(&mut self, drain: bool) -> bool {
        if self.current.is_some() {
            return !self.is_blocked;
        }
        self.may_take(drain) != Ok(None)
    }

    /// Whether a chain can be taken, and from where. What an earlier front
    /// left is nothing new: also a ring that drains takes it.
    fn may_take(&mut self, drain: bool) -> Result<Option<Source>, Overrun> {
        let (left, open) = (self.ring.has_left(), self.enabled && !drain);
        Ok(match self.free.is_empty() {
            true => None,
            false if left => (open || drain).then_some(Source::EarlierFront),
            false => (open && self.ring.look()?).then_some(Source::Driver),
        })
    }

    /// Asks for a kick; see [`Ring::announce`].
    pub(crate) fn announce(&mut self) {
        self.ring.announce();
    }

    /// The next part for the path. The same part is offered until
    /// [`Queue::took`] or [`Queue::refused`] has been called. With `drain`,
    /// nothing new is taken from the ring.
    #[inline(always)] // Or the offer goes through memory.
    pub(crate) fn offer(
        &mut self,
        limits: &Limits,
        id: &[u8; ID_BYTES],
        drain: bool,
    ) -> Result<Offer, Broken> {
        if self.current.is_none() {
            let Some(from) = self.may_take(drain)? else { return Ok(Offer::Nothing) };
            self.ring.conceal();
            let head = match from {
                Source::Driver => self.ring.take()?,
                Source::EarlierFront => self.ring.take_left().expect("it was seen"),
            };
            self.current = self.begin(head, limits, id)?;
        }
        match self.current {
            Some(number) => self.offer_current(number, limits),
            None => Ok(Offer::Served),
        }
    }

    /// Gives a chain a slot, unless it is served on the spot.
    #[inline]
    fn begin(
        &mut self,
        head: u16,
        limits: &Limits,
        id: &[u8; ID_BYTES],
    ) -> Result<Option<u16>, Broken> {
        let number = *self.free.last().expect("a free slot was seen");
        let pieces = &mut self.pieces.as_chunks_mut().0[usize::from(number)];
        let memory = &self.tables[usize::from(self.table)].memory;
        let chain = walk(head, self.ring.memory(), memory, self.indirect, &mut self.copy, pieces);
        let Some(status_at) = chain.status else { return Err(Broken::NoStatus) };
        let written = u32::try_from(chain.writable_bytes).unwrap_or(u32::MAX);
        let (work, parts, data) = match prepare(memory, pieces, &chain, limits, id)? {
            Prepared::Parts { work, parts, data } => (work, parts, data),
            Prepared::Ended(status) => {
                answer(&mut self.ring, memory, status_at, status, head, written)?;
                return Ok(None);
            }
        };
        self.free.pop();
        let user = self.slots[usize::from(number)].user.wrapping_add(1);
        self.slots[usize::from(number)] = Slot {
            work,
            status_at,
            skip: data.skip,
            writable: written,
            parts,
            taken: 0,
            outstanding: 0,
            first: data.first,
            end: data.end,
            head,
            user,
            table: self.table,
            status: DONE,
        };
        Ok(Some(number))
    }

    #[inline]
    fn offer_current(&mut self, number: u16, limits: &Limits) -> Result<Offer, Broken> {
        let slot = &self.slots[usize::from(number)];
        if slot.status != DONE {
            // A part has failed: the rest need not be tried.
            self.let_go();
            self.end_if_over(number)?;
            return Ok(Offer::Served);
        }
        let place = Place { slot: number, part: slot.taken as u16, user: slot.user };
        let (op, range) = match slot.work {
            Work::Data { op, range } => (op, Some(slot.part(range, slot.taken).0)),
            Work::Flush => (Op::Flush, None),
            Work::Ranges { what } => match self.range(number, slot.taken, what, limits) {
                Some((op, range)) => (op, Some(range)),
                None => {
                    self.refused(Status::Failed)?;
                    return Ok(Offer::Served);
                }
            },
        };
        Ok(Offer::Part(place, op, range))
    }

    /// A range of a request that has many. It was well when the request began;
    /// if there is none, the disk has shrunk.
    #[cold]
    fn range(
        &self,
        slot: u16,
        part: u32,
        what: Sweep,
        limits: &Limits,
    ) -> Option<(Op, SectorRange)> {
        let words = self.pieces[usize::from(slot) * MAX_PIECES + part as usize];
        let bytes = words.map(u64::to_le_bytes);
        what.parse(bytes.as_flattened().first_chunk()?, limits).ok()?
    }

    /// The path took the part that was offered last.
    #[inline]
    pub(crate) fn took(&mut self) {
        let Some(number) = self.current else { return };
        let slot = &mut self.slots[usize::from(number)];
        slot.taken += 1;
        slot.outstanding += 1;
        self.is_blocked = false;
        if slot.taken == slot.parts {
            self.let_go();
        }
    }

    /// Offers no more of the request whose parts were being offered.
    const fn let_go(&mut self) -> Option<u16> {
        self.is_blocked = false;
        self.current.take()
    }

    /// The part that was offered last will not be taken: the request fails
    /// when the parts that were have ended.
    pub(crate) fn refused(&mut self, status: Status) -> Result<(), Broken> {
        let Some(number) = self.let_go() else { return Ok(()) };
        self.slots[usize::from(number)].fail(status as u8);
        self.end_if_over(number)
    }

    /// Where the data of a part is: its memory, pieces, and bytes before it.
    #[inline(always)] // Or four words go through memory for each copy.
    fn data(&self, place: Place, slot: &Slot) -> Option<(&GuestMemory, &[Piece], u64, u64)> {
        let Work::Data { range, .. } = slot.work else { return None };
        let (part, offset) = slot.part(range, u32::from(place.part));
        let pieces = &self.pieces.as_chunks::<MAX_PIECES>().0[usize::from(place.slot)];
        let pieces = &pieces[usize::from(slot.first)..usize::from(slot.end)];
        let memory = &self.tables[usize::from(slot.table)].memory;
        Some((memory, pieces, slot.skip + offset, part.bytes()))
    }

    /// Copies the data of the part that is being offered.
    pub(crate) fn fetch(&self, place: Place, into: &mut [u8]) -> Result<(), NotThere> {
        let slot = self.slots.get(usize::from(place.slot)).ok_or(NotThere)?;
        let (memory, pieces, skip, bytes) = self.data(place, slot).ok_or(NotThere)?;
        if slot.user != place.user || into.len() as u64 > bytes {
            return Err(NotThere);
        }
        chain::read(memory, pieces, skip, into)
    }

    /// Copies data of a part into guest memory, `offset` bytes into the part.
    #[inline]
    pub(crate) fn put(&self, place: Place, offset: usize, data: &[u8]) -> Result<(), NotThere> {
        let found = self.slots.get(usize::from(place.slot));
        let Some(slot) = found.filter(|slot| slot.has(place)) else { return Ok(()) };
        let (memory, pieces, skip, bytes) = self.data(place, slot).ok_or(NotThere)?;
        let end = (offset as u64).checked_add(data.len() as u64);
        if end.is_none_or(|end| end > bytes) {
            return Err(NotThere);
        }
        chain::write(memory, pieces, skip + offset as u64, data)
    }

    /// A part has ended.
    #[inline]
    pub(crate) fn complete(
        &mut self,
        place: Place,
        outcome: Result<(), BlockError>,
    ) -> Result<(), Broken> {
        let found = self.slots.get_mut(usize::from(place.slot));
        let Some(slot) = found.filter(|slot| slot.has(place)) else {
            debug_assert!(false, "a part ends once");
            return Ok(());
        };
        slot.outstanding -= 1;
        if let Err(error) = outcome {
            slot.fail(Status::from(error) as u8);
        }
        if slot.outstanding > 0 || self.current == Some(place.slot) {
            return Ok(());
        }
        self.end(place.slot)
    }

    /// The request whose parts were being offered has no more; those that were
    /// taken may be under way.
    #[cold]
    fn end_if_over(&mut self, number: u16) -> Result<(), Broken> {
        if self.slots[usize::from(number)].outstanding > 0 {
            return Ok(());
        }
        self.end(number)
    }

    #[inline(always)] // The second caller is cold.
    fn end(&mut self, number: u16) -> Result<(), Broken> {
        let &Slot { head, writable, status_at, status, table, .. } =
            &self.slots[usize::from(number)];
        self.free.push(number);
        let memory = &self.tables[usize::from(table)].memory;
        let answered = answer(&mut self.ring, memory, status_at, status, head, writable);
        if table != self.table {
            self.leave(table);
        }
        Ok(answered?)
    }

    /// A request has ended that began under a table that was replaced.
    #[cold]
    fn leave(&mut self, table: u8) {
        self.tables[usize::from(table)].requests -= 1;
        self.let_table_go(usize::from(table));
    }

    /// Shows the driver what has ended, and calls it if it wants that.
    pub(crate) fn publish(&mut self) -> Result<(), Broken> {
        let wanted = self.ring.publish();
        if self.ring.has_failed() {
            return Err(Broken::MemoryLost);
        }
        if wanted {
            self.call();
        }
        Ok(())
    }

    /// Calls the driver, if it has said where.
    pub(crate) fn call(&self) {
        if let Some(call) = &self.call {
            // The counter can be full only if nobody reads it; then the call
            // that is pending is enough.
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }
}

/// Tells the driver what became of a chain.
#[inline(always)] // Nearly all end where a part has ended.
fn answer(
    ring: &mut Ring,
    memory: &GuestMemory,
    status_at: u64,
    status: u8,
    head: u16,
    written: u32,
) -> Result<(), NotThere> {
    memory.write(status_at, &[status])?;
    ring.give_back(head, written);
    Ok(())
}

const _: () = assert!(MAX_QUEUE_SIZE as usize * MAX_PIECES <= u32::MAX as usize);

#[cfg(test)]
mod hostile;
