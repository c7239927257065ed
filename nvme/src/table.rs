//! The command table: a fixed place for each outstanding command, which owns
//! the command's buffer until the controller has let go of it.

use std::sync::atomic::Ordering;
use std::task::Waker;

use block_core::{BlockError, Buffer, DmaMemory};

use crate::PAGE;
use crate::completion::Status;
use crate::sys::Words;

/// Pointers in one page of a PRP list.
const LIST_ENTRIES: usize = PAGE / 8;

/// Most bytes of one transfer: what one list page can say, so that lists are
/// never chained. A request of ours has 128 KiB.
pub(crate) const MAX_TRANSFER_BYTES: usize = LIST_ENTRIES * PAGE;

/// Bits of a command identifier that name the place. The rest counts the uses
/// of the place, so that a completion that comes twice finds another count.
const PLACE_BITS: u32 = 10;

/// Most commands at a time. The last place stays empty: no identifier is
/// 0xffff, which error logs use for "no command" (Base 2.0, section 3.3.3.1).
pub(crate) const MAX_DEPTH: u16 = (1 << PLACE_BITS) - 1;

/// What a command's data pointers point at.
#[derive(Clone, Copy)]
pub(crate) enum Data {
    /// Nothing.
    Nothing,
    /// `bytes` of the command's buffer from `offset`, a multiple of 4.
    Blocks { offset: usize, bytes: usize },
    /// `bytes` of zeroes to be written.
    Zeroes { bytes: usize },
    /// One range of Dataset Management, in logical blocks.
    Range { start: u64, count: u32 },
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the controller's status.
    Completed(Status),
    /// The controller was stopped first: what it did, nobody knows.
    Reset,
    /// The controller was given up: what it did, nobody knows.
    GivenUp,
}

impl Ending {
    /// As most commands end.
    pub(crate) const DONE: Self = Self::Completed(Status::SUCCESS);

    /// The outcome for whoever asked for blocks.
    pub(crate) const fn outcome(self) -> Result<(), BlockError> {
        match self {
            Self::Completed(status) => status.outcome(),
            Self::Reset => Err(BlockError::Lost),
            Self::GivenUp => Err(BlockError::Medium),
        }
    }

    pub(crate) fn is_success(self) -> bool {
        matches!(self, Self::Completed(status) if status.is_success())
    }

    /// Whether the controller gave the command up, and does not say that it
    /// would again.
    pub(crate) fn is_abort(self) -> bool {
        self == Self::Completed(Status::ABORT_REQUESTED)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Free,
    /// The controller has it.
    Busy,
    /// The outcome waits to be fetched.
    Ended(Ending),
}

struct Place {
    stage: Stage,
    /// Of the command that is here, or was here last.
    id: u16,
    /// In which round of the queue pair's watch the command was issued.
    round: u32,
    /// Until the outcome has been fetched.
    buffer: Option<Buffer>,
    /// Of who wants the outcome. While the command is under way, none means nobody.
    waker: Option<Waker>,
    /// While it is free: the free place after it.
    next: u16,
}

/// The places, and for each a page for its PRP list or range.
pub(crate) struct Table {
    places: Vec<Place>,
    /// The first free place, if there is one, and how many there are.
    first: u16,
    free: usize,
    busy: usize,
    lists: DmaMemory,
    list_words: Words,
}

impl Place {
    /// The command is under way, and who asks for it will be woken.
    #[cold]
    fn wait(&mut self, waker: &Waker) {
        assert!(self.stage == Stage::Busy, "a place has one owner until it fetched the outcome");
        match &mut self.waker {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }
}

/// A completion for a command that is not under way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotUnderWay;

impl Table {
    /// Bytes of DMA memory that a table of `depth` places needs: a page for
    /// each place and one page of zeroes.
    pub(crate) fn dma_bytes(depth: u16) -> usize {
        (usize::from(depth) + 1) * PAGE
    }

    pub(crate) fn new(depth: u16, lists: DmaMemory) -> Self {
        assert!(depth <= MAX_DEPTH && lists.memory().len() >= Self::dma_bytes(depth));
        let empty = |id| Place {
            stage: Stage::Free,
            id,
            round: 0,
            buffer: None,
            waker: None,
            next: id + 1,
        };
        let places: Vec<Place> = (0..depth).map(empty).collect();
        let list_words = Words::all(&lists);
        Self { free: places.len(), places, first: 0, busy: 0, lists, list_words }
    }

    #[inline]
    pub(crate) fn free(&self) -> usize {
        self.free
    }

    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    /// Takes a free place for a command: its identifier, which names the place too
    /// ([`Table::place_of`]), and its two data pointers.
    #[inline]
    pub(crate) fn occupy(
        &mut self,
        data: Data,
        buffer: Option<Buffer>,
        waker: Waker,
        round: u32,
    ) -> (u16, (u64, u64)) {
        assert!(self.free > 0, "the caller has seen a free place");
        let index = self.first;
        let place = &mut self.places[usize::from(index)];
        (self.first, self.free) = (place.next, self.free - 1);
        // The count of uses is in the upper bits, and leaves them at the top.
        place.id = place.id.wrapping_add(1 << PLACE_BITS);
        place.round = round;
        place.stage = Stage::Busy;
        place.buffer = buffer;
        place.waker = Some(waker);
        self.busy += 1;
        let id = place.id;
        (id, self.point(index, data))
    }

    /// Where the command with this identifier is.
    pub(crate) const fn place_of(id: u16) -> u16 {
        id & MAX_DEPTH
    }

    /// Ends the command with this identifier, if it is under way. Gives back
    /// who waits for it, or `None` when the place is free again.
    #[inline]
    pub(crate) fn end(&mut self, id: u16, ending: Ending) -> Result<Option<Waker>, NotUnderWay> {
        let index = Self::place_of(id);
        let place = self.places.get_mut(usize::from(index)).ok_or(NotUnderWay)?;
        if place.id != id || place.stage != Stage::Busy {
            return Err(NotUnderWay);
        }
        self.busy -= 1;
        let waker = place.waker.take();
        place.stage = Stage::Ended(ending);
        if waker.is_none() {
            self.release(index);
        }
        Ok(waker)
    }

    /// Nobody has asked for the outcome that is there.
    #[cold]
    fn release(&mut self, index: u16) {
        let place = &mut self.places[usize::from(index)];
        place.stage = Stage::Free;
        place.buffer = None;
        place.next = self.first;
        (self.first, self.free) = (index, self.free + 1);
    }

    /// The identifier of some command under way.
    pub(crate) fn any_busy(&self) -> Option<u16> {
        self.places.iter().find(|place| place.stage == Stage::Busy).map(|place| place.id)
    }

    /// The identifiers of commands that have been under way since at least
    /// `rounds` rounds before `now`.
    pub(crate) fn late(&self, now: u32, rounds: u32) -> Vec<u16> {
        let late =
            |place: &&Place| place.stage == Stage::Busy && now.wrapping_sub(place.round) >= rounds;
        self.places.iter().filter(late).map(|place| place.id).collect()
    }

    /// Whether the command with this identifier is under way.
    pub(crate) fn is_busy(&self, id: u16) -> bool {
        let place = self.places.get(usize::from(Self::place_of(id)));
        place.is_some_and(|place| place.stage == Stage::Busy && place.id == id)
    }

    /// Fetches the outcome from a place and frees it, or leaves the waker.
    #[inline]
    pub(crate) fn fetch(&mut self, index: u16, waker: &Waker) -> Option<(Option<Buffer>, Ending)> {
        let place = &mut self.places[usize::from(index)];
        let Stage::Ended(ending) = place.stage else {
            place.wait(waker);
            return None;
        };
        place.stage = Stage::Free;
        place.next = self.first;
        (self.first, self.free) = (index, self.free + 1);
        Some((place.buffer.take(), ending))
    }

    /// Nobody wants the outcome any more. True when that freed the place; else
    /// the buffer stays until the controller has let go of it.
    pub(crate) fn abandon(&mut self, index: u16) -> bool {
        let place = &mut self.places[usize::from(index)];
        place.waker = None;
        let is_over = matches!(place.stage, Stage::Ended(_));
        if is_over {
            self.release(index);
        }
        is_over
    }

    /// Keeps all memory that a controller was told of mapped for ever.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(self.lists.clone());
        self.places.iter_mut().for_each(|place| std::mem::forget(place.buffer.take()));
    }

    /// PRP1 and PRP2 for the data (Base 2.0, section 4.1.1).
    #[inline]
    fn point(&self, index: u16, data: Data) -> (u64, u64) {
        let buffer = self.places[usize::from(index)].buffer.as_ref();
        if let (Data::Blocks { offset, bytes }, Some(buffer)) = (data, buffer) {
            let first = buffer.iova() + offset as u64;
            if first as usize % PAGE + bytes <= PAGE {
                return (first, 0);
            }
        }
        self.point_further(index, data, buffer)
    }

    /// The same, of what is not in one page.
    #[inline(never)]
    fn point_further(&self, index: u16, data: Data, buffer: Option<&Buffer>) -> (u64, u64) {
        let list = usize::from(index) * LIST_ENTRIES;
        let list_iova = self.lists.iova() + (usize::from(index) * PAGE) as u64;
        match data {
            Data::Nothing => (0, 0),
            Data::Range { start, count } => {
                // Context attributes (none), length, start (NVM Command Set
                // 1.0, figure 41).
                self.list_words.store(list, u64::from(count) << 32, Ordering::Relaxed);
                self.list_words.store(list + 1, start, Ordering::Relaxed);
                (list_iova, 0)
            }
            Data::Blocks { offset, bytes } => {
                let buffer = buffer.expect("a command on blocks of a buffer has one");
                self.pages(list, list_iova, buffer.iova() + offset as u64, PAGE as u64, bytes)
            }
            Data::Zeroes { bytes } => {
                let zero = self.lists.iova() + (self.places.len() * PAGE) as u64;
                self.pages(list, list_iova, zero, 0, bytes)
            }
        }
    }

    /// Pointers to `bytes` from `first`; each further page begins `step` bytes
    /// after the page before it.
    fn pages(
        &self,
        list: usize,
        list_iova: u64,
        first: u64,
        step: u64,
        bytes: usize,
    ) -> (u64, u64) {
        let in_page = first % PAGE as u64;
        let mut at = first - in_page;
        match (in_page as usize + bytes).div_ceil(PAGE) {
            0 | 1 => (first, 0),
            2 => (first, at + step),
            pages => {
                for entry in list..list + pages - 1 {
                    at += step;
                    self.list_words.store(entry, at, Ordering::Relaxed);
                }
                (first, list_iova)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_core::Pool;

    fn table(depth: u16) -> Table {
        Table::new(depth, DmaMemory::private(Table::dma_bytes(depth)).expect("memory"))
    }

    /// A read of one block into a buffer, as a command: its identifier.
    fn read(table: &mut Table, pool: &Pool) -> u16 {
        let data = Data::Blocks { offset: 0, bytes: PAGE };
        table.occupy(data, pool.take(), Waker::noop().clone(), 0).0
    }

    /// A controller repeats a completion after the place has a new command:
    /// the buffer of that command must stay.
    #[test]
    fn a_repeated_completion_does_not_end_the_next_command() {
        let mut table = table(1);
        let pool = Pool::private(2, PAGE).expect("memory");
        let first = read(&mut table, &pool);
        assert!(table.end(first, Ending::Reset).is_ok());
        assert!(table.fetch(Table::place_of(first), Waker::noop()).is_some());
        let second = read(&mut table, &pool);
        assert_eq!(table.end(first, Ending::Reset).err(), Some(NotUnderWay));
        assert_eq!((table.busy(), pool.available()), (1, 1));
        assert!(table.end(second, Ending::Reset).is_ok());
    }

    #[test]
    fn an_abandoned_buffer_returns_to_its_pool_only_with_the_completion() {
        let mut table = table(4);
        let pool = Pool::private(1, PAGE).expect("memory");
        let id = read(&mut table, &pool);
        assert!(!table.abandon(Table::place_of(id)));
        assert_eq!((pool.available(), table.free()), (0, 3));
        assert!(table.end(id, Ending::Reset).expect("it was under way").is_none());
        assert_eq!((pool.available(), table.free()), (1, 4));
        // Nor does it matter which comes first.
        let id = read(&mut table, &pool);
        assert!(table.end(id, Ending::Reset).expect("it was under way").is_some());
        assert_eq!((pool.available(), table.free()), (0, 3));
        assert!(table.abandon(Table::place_of(id)));
        assert_eq!((pool.available(), table.free()), (1, 4));
    }

    #[test]
    fn no_identifier_is_the_one_that_means_no_command() {
        let mut table = table(MAX_DEPTH);
        for _ in 0..64 {
            let ids: Vec<u16> = (0..MAX_DEPTH)
                .map(|_| table.occupy(Data::Nothing, None, Waker::noop().clone(), 0).0)
                .collect();
            for id in ids {
                assert_ne!(id, u16::MAX);
                assert!(table.end(id, Ending::Reset).is_ok());
                assert!(table.abandon(Table::place_of(id)));
            }
        }
    }
}
