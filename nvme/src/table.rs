//! The command table: a fixed place for each outstanding command. The buffer of one that
//! nobody waits for any more stays here until the controller has let go of it.

use std::fmt;
use std::sync::atomic::Ordering;
use std::task::Waker;

use block_core::device::{Ended, Failure, Tag};
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
    /// `bytes` from `iova`, a multiple of 4, of a buffer that goes with the command.
    Blocks { iova: u64, bytes: usize },
    /// `bytes` of zeroes to be written.
    Zeroes { bytes: usize },
    /// One range of Dataset Management, in logical blocks.
    Range { start: u64, count: u32 },
}

/// How a command ended: one number, since each is stored, fetched and compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending(u16);

/// What an [`Ending`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It was completed with the controller's status.
    Completed(Status),
    /// The controller was stopped first: what it did, nobody knows.
    Reset,
    /// The controller was given up: what it did, nobody knows.
    GivenUp,
    /// The controller never got it.
    Refused(BlockError),
}

impl Ending {
    /// As most commands end.
    pub(crate) const DONE: Self = Self::completed(Status::SUCCESS);
    /// See [`Meaning::Reset`]. A status has 15 bits.
    pub(crate) const RESET: Self = Self(1 << 15);
    /// See [`Meaning::GivenUp`].
    pub(crate) const GIVEN_UP: Self = Self(1 << 15 | 1);
    /// See [`Meaning::Refused`]; the error's code follows.
    const REFUSED: u16 = 3 << 14;

    /// See [`Meaning::Completed`].
    pub(crate) const fn completed(status: Status) -> Self {
        Self(status.bits())
    }

    /// See [`Meaning::Refused`].
    pub(crate) const fn refused(error: BlockError) -> Self {
        Self(Self::REFUSED | error.code() as u16)
    }

    pub(crate) const fn is_success(self) -> bool {
        self.0 < Self::RESET.0 && Status::of_bits(self.0).is_success()
    }

    pub(crate) fn meaning(self) -> Meaning {
        match self {
            Self::RESET => Meaning::Reset,
            Self::GIVEN_UP => Meaning::GivenUp,
            Self(bits) if bits < Self::RESET.0 => Meaning::Completed(Status::of_bits(bits)),
            Self(bits) => {
                let error = BlockError::from_code(bits as u8).err();
                Meaning::Refused(error.unwrap_or(BlockError::Malformed))
            }
        }
    }

    /// The outcome for whoever reaps.
    #[inline]
    fn told(self) -> Result<(), Failure> {
        if self.is_success() { Ok(()) } else { Err(self.failure()) }
    }

    #[cold]
    fn failure(self) -> Failure {
        match self.outcome() {
            Err(error) if !self.is_abort() => Failure::Error(error),
            _ => Failure::GivenUp,
        }
    }

    /// The outcome for whoever asked for blocks.
    pub(crate) fn outcome(self) -> Result<(), BlockError> {
        match self.meaning() {
            Meaning::Completed(status) => status.outcome(),
            Meaning::Reset => Err(BlockError::Lost),
            Meaning::GivenUp => Err(BlockError::Medium),
            Meaning::Refused(error) => Err(error),
        }
    }

    /// Whether the controller gave the command up, and does not say that it
    /// would again.
    pub(crate) fn is_abort(self) -> bool {
        self == Self::completed(Status::ABORT_REQUESTED)
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.meaning().fmt(f)
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

/// Who wants the outcome of a command.
pub(crate) enum Owner {
    /// Nobody any more.
    Nobody,
    /// A task, which fetches it.
    Task(Waker),
    /// Whoever reaps: it is told at once, and the place is free.
    Reaper(Tag),
}

/// Who learns that a command has ended.
pub(crate) enum Learner {
    Nobody,
    Task(Waker),
    Reaper(Ended),
}

/// A cache line of its own.
#[repr(align(64))]
struct Place {
    stage: Stage,
    /// Of the command that is here, or was here last.
    id: u16,
    /// Rounds of the queue pair's watch that ended since the command was issued.
    age: u32,
    /// While the command is under way: its buffer, unless whoever waits has that.
    buffer: Option<Buffer>,
    /// While the command is under way: who wants the outcome.
    owner: Owner,
    /// While it is free: the free place after it.
    next: u16,
}

/// The places, and for each a page for its PRP list or range.
pub(crate) struct Table {
    places: Vec<Place>,
    /// The first free place, if there is one, and how many there are.
    first: u16,
    free: usize,
    submitted: u64,
    ended: u64,
    lists: DmaMemory,
    list_words: Words,
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
            age: 0,
            buffer: None,
            owner: Owner::Nobody,
            next: id + 1,
        };
        let places: Vec<Place> = (0..depth).map(empty).collect();
        let list_words = Words::all(&lists);
        Self { free: places.len(), places, first: 0, submitted: 0, ended: 0, lists, list_words }
    }

    pub(crate) fn free(&self) -> usize {
        self.free
    }

    pub(crate) fn busy(&self) -> usize {
        (self.submitted - self.ended) as usize
    }

    /// Commands that there have been, and how many of them have ended.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.submitted, self.ended)
    }

    /// Takes a free place for a command, if there is one: its identifier, which names the
    /// place too ([`Table::place_of`]).
    #[inline]
    pub(crate) fn occupy(&mut self, owner: impl FnOnce() -> Owner) -> Option<u16> {
        // After the last free place comes one that there is not.
        let place = self.places.get_mut(usize::from(self.first))?;
        self.first = place.next;
        self.free -= 1;
        self.submitted += 1;
        // The count of uses is in the upper bits, and leaves them at the top.
        place.id = place.id.wrapping_add(1 << PLACE_BITS);
        place.age = 0;
        place.stage = Stage::Busy;
        // A free place has none, so there is nothing to drop.
        std::mem::forget(std::mem::replace(&mut place.owner, owner()));
        Some(place.id)
    }

    /// The buffer of the command in a place, which has just been taken, until it ends.
    #[inline]
    pub(crate) fn keep(&mut self, index: u16, buffer: Buffer) {
        // As the owner.
        std::mem::forget(self.places[usize::from(index)].buffer.replace(buffer));
    }

    /// Where the command with this identifier is.
    pub(crate) const fn place_of(id: u16) -> u16 {
        id & MAX_DEPTH
    }

    /// Ends the command with this identifier, if it is under way, and says who learns of
    /// it. Unless that is a task, the place is free again.
    #[inline]
    pub(crate) fn end(&mut self, id: u16, ending: Ending) -> Result<Learner, NotUnderWay> {
        let index = Self::place_of(id);
        let place = self.places.get_mut(usize::from(index)).ok_or(NotUnderWay)?;
        if place.id != id || place.stage != Stage::Busy {
            return Err(NotUnderWay);
        }
        self.ended += 1;
        match std::mem::replace(&mut place.owner, Owner::Nobody) {
            Owner::Task(waker) => {
                place.stage = Stage::Ended(ending);
                return Ok(Learner::Task(waker));
            }
            Owner::Reaper(tag) => {
                if let Some(buffer) = place.buffer.take() {
                    place.stage = Stage::Free;
                    place.next = self.first;
                    (self.first, self.free) = (index, self.free + 1);
                    return Ok(Learner::Reaper(Ended { tag, buffer, outcome: ending.told() }));
                }
            }
            Owner::Nobody => {}
        }
        self.release(index);
        Ok(Learner::Nobody)
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

    /// A round of the watch has ended: the identifiers of commands that have been under
    /// way for at least `rounds` of them.
    pub(crate) fn end_round(&mut self, rounds: u32) -> Vec<u16> {
        let busy = self.places.iter_mut().filter(|place| place.stage == Stage::Busy);
        let late = busy.filter_map(|place| {
            place.age = place.age.saturating_add(1);
            (place.age >= rounds).then_some(place.id)
        });
        late.collect()
    }

    /// Whether the command with this identifier is under way.
    pub(crate) fn is_busy(&self, id: u16) -> bool {
        let place = self.places.get(usize::from(Self::place_of(id)));
        place.is_some_and(|place| place.stage == Stage::Busy && place.id == id)
    }

    /// Fetches the outcome from a place and frees it, if it is there and as usual.
    #[inline]
    pub(crate) fn fetch_done(&mut self, index: u16) -> bool {
        let place = &mut self.places[usize::from(index)];
        if place.stage != Stage::Ended(Ending::DONE) {
            return false;
        }
        place.stage = Stage::Free;
        place.next = self.first;
        (self.first, self.free) = (index, self.free + 1);
        true
    }

    /// Fetches the outcome from a place and frees it, if it is there.
    pub(crate) fn fetch(&mut self, index: u16) -> Option<Ending> {
        let place = &mut self.places[usize::from(index)];
        let Stage::Ended(ending) = place.stage else { return None };
        place.stage = Stage::Free;
        place.next = self.first;
        (self.first, self.free) = (index, self.free + 1);
        Some(ending)
    }

    /// The command there is under way, and who asks for it will be woken.
    pub(crate) fn wait(&mut self, index: u16, waker: &Waker) {
        let place = &mut self.places[usize::from(index)];
        assert!(place.stage == Stage::Busy, "a place has one owner until it fetched the outcome");
        match &mut place.owner {
            Owner::Task(old) => old.clone_from(waker),
            other => *other = Owner::Task(waker.clone()),
        }
    }

    /// Nobody wants the outcome any more. True when that freed the place; else
    /// the buffer stays until the controller has let go of it.
    pub(crate) fn abandon(&mut self, index: u16, buffer: Option<Buffer>) -> bool {
        let place = &mut self.places[usize::from(index)];
        place.owner = Owner::Nobody;
        let is_over = matches!(place.stage, Stage::Ended(_));
        if is_over {
            self.release(index);
        } else {
            place.buffer = buffer;
        }
        is_over
    }

    /// Keeps all memory that a controller was told of mapped for ever.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(self.lists.clone());
        self.places.iter_mut().for_each(|place| std::mem::forget(place.buffer.take()));
    }

    /// PRP1 and PRP2 for the data of the command in a place (Base 2.0, section 4.1.1).
    #[inline]
    pub(crate) fn point(&self, index: u16, data: Data) -> (u64, u64) {
        match data {
            Data::Blocks { iova, bytes } if iova as usize % PAGE + bytes <= PAGE => (iova, 0),
            Data::Blocks { iova, bytes } => self.point_at_pages(index, iova, PAGE, bytes),
            Data::Zeroes { bytes } => {
                let zero = self.lists.iova() + (self.places.len() * PAGE) as u64;
                self.point_at_pages(index, zero, 0, bytes)
            }
            Data::Range { start, count } => self.point_at_range(index, start, count),
            Data::Nothing => (0, 0),
        }
    }

    /// A pointer to one range of Dataset Management.
    #[inline(never)]
    fn point_at_range(&self, index: u16, start: u64, count: u32) -> (u64, u64) {
        let (list, iova) = self.list(index);
        // Context attributes (none), length, start (NVM Command Set 1.0, figure 41).
        self.list_words.store(list, u64::from(count) << 32, Ordering::Relaxed);
        self.list_words.store(list + 1, start, Ordering::Relaxed);
        (iova, 0)
    }

    /// Pointers to `bytes` from `first`; each further page begins `step` bytes
    /// after the page before it.
    #[inline(never)]
    fn point_at_pages(&self, index: u16, first: u64, step: usize, bytes: usize) -> (u64, u64) {
        let (list, list_iova) = self.list(index);
        let (step, in_page) = (step as u64, first % PAGE as u64);
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

    /// The page for the list of a place: its first word, and where a device finds it.
    fn list(&self, index: u16) -> (usize, u64) {
        let index = usize::from(index);
        (index * LIST_ENTRIES, self.lists.iova() + (index * PAGE) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_core::Pool;

    fn table(depth: u16) -> Table {
        Table::new(depth, DmaMemory::private(Table::dma_bytes(depth)).expect("memory"))
    }

    /// A command: its identifier.
    fn command(table: &mut Table) -> u16 {
        table.occupy(|| Owner::Task(Waker::noop().clone())).expect("a free place")
    }

    /// A controller repeats a completion after the place has a new command: that one goes
    /// on.
    #[test]
    fn a_repeated_completion_does_not_end_the_next_command() {
        let mut table = table(1);
        let first = command(&mut table);
        assert!(
            table.occupy(|| Owner::Task(Waker::noop().clone())).is_none(),
            "there is one place"
        );
        assert!(table.end(first, Ending::RESET).is_ok());
        assert_eq!(table.fetch(Table::place_of(first)), Some(Ending::RESET));
        let second = command(&mut table);
        assert_eq!(table.end(first, Ending::RESET).err(), Some(NotUnderWay));
        assert_eq!((table.busy(), table.fetch(Table::place_of(second))), (1, None));
        assert!(table.end(second, Ending::RESET).is_ok());
    }

    #[test]
    fn an_abandoned_buffer_returns_to_its_pool_only_with_the_completion() {
        let mut table = table(4);
        let pool = Pool::private(1, PAGE).expect("memory");
        let id = command(&mut table);
        assert!(!table.abandon(Table::place_of(id), pool.take()));
        assert_eq!((pool.available(), table.free()), (0, 3));
        assert!(matches!(table.end(id, Ending::RESET), Ok(Learner::Nobody)));
        assert_eq!((pool.available(), table.free()), (1, 4));
        // Nor does it matter which comes first.
        let id = command(&mut table);
        assert!(matches!(table.end(id, Ending::RESET), Ok(Learner::Task(_))));
        assert!(table.abandon(Table::place_of(id), pool.take()));
        assert_eq!((pool.available(), table.free()), (1, 4));
    }

    #[test]
    fn no_identifier_is_the_one_that_means_no_command() {
        let mut table = table(MAX_DEPTH);
        for _ in 0..64 {
            let ids: Vec<u16> = (0..MAX_DEPTH).map(|_| command(&mut table)).collect();
            for id in ids {
                assert_ne!(id, u16::MAX);
                assert!(table.end(id, Ending::RESET).is_ok());
                assert!(table.abandon(Table::place_of(id), None));
            }
        }
    }
}
