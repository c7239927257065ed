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

/// The data of a command.
pub(crate) enum Payload {
    /// None.
    Nothing,
    /// `bytes` of the buffer from `offset`, a multiple of 4.
    Blocks { buffer: Buffer, offset: usize, bytes: usize },
    /// `bytes` of zeroes to be written.
    Zeroes { bytes: usize },
    /// One range of Dataset Management, in logical blocks.
    Range { start: u64, count: u32 },
}

/// What of a payload stays when its buffer is away.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    Nothing,
    Blocks { offset: usize, bytes: usize },
    Zeroes { bytes: usize },
    Range { start: u64, count: u32 },
}

impl Shape {
    /// The payload once more, with the buffer that has come back.
    pub(crate) fn with(self, buffer: Option<Buffer>) -> Option<Payload> {
        Some(match self {
            Self::Nothing => Payload::Nothing,
            Self::Blocks { offset, bytes } => Payload::Blocks { buffer: buffer?, offset, bytes },
            Self::Zeroes { bytes } => Payload::Zeroes { bytes },
            Self::Range { start, count } => Payload::Range { start, count },
        })
    }
}

impl Payload {
    /// Everything but the buffer.
    pub(crate) const fn shape(&self) -> Shape {
        match *self {
            Self::Nothing => Shape::Nothing,
            Self::Blocks { offset, bytes, .. } => Shape::Blocks { offset, bytes },
            Self::Zeroes { bytes } => Shape::Zeroes { bytes },
            Self::Range { start, count } => Shape::Range { start, count },
        }
    }

    /// The buffer, when there is one.
    pub(crate) fn into_buffer(self) -> Option<Buffer> {
        match self {
            Self::Blocks { buffer, .. } => Some(buffer),
            _ => None,
        }
    }
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
    /// The outcome for whoever asked for blocks.
    pub(crate) const fn outcome(self) -> Result<(), BlockError> {
        match self {
            Self::Completed(status) => status.outcome(),
            Self::Reset => Err(BlockError::Lost),
            Self::GivenUp => Err(BlockError::Medium),
        }
    }

    /// Whether the controller gave the command up, and does not say that it
    /// would again.
    pub(crate) fn is_abort(self) -> bool {
        self == Self::Completed(Status::ABORT_REQUESTED)
    }
}

enum State {
    Free,
    /// The controller has it. No waker: nobody wants the outcome any more.
    Busy {
        buffer: Option<Buffer>,
        waker: Option<Waker>,
    },
    /// The outcome waits to be fetched.
    Ended {
        buffer: Option<Buffer>,
        ending: Ending,
    },
}

struct Place {
    state: State,
    uses: u16,
    /// In which round of the queue pair's watch the command was issued.
    round: u32,
}

/// The places, and for each a page for its PRP list or range.
pub(crate) struct Table {
    places: Vec<Place>,
    free: Vec<u16>,
    busy: usize,
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
        let places = (0..depth).map(|_| Place { state: State::Free, uses: 0, round: 0 }).collect();
        let list_words = Words::all(&lists);
        Self { places, free: (0..depth).rev().collect(), busy: 0, lists, list_words }
    }

    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    /// Takes a free place for a command: the place, the command's identifier
    /// and its two data pointers.
    pub(crate) fn occupy(
        &mut self,
        payload: Payload,
        waker: Waker,
        round: u32,
    ) -> (u16, u16, (u64, u64)) {
        let index = self.free.pop().expect("the caller has seen a free place");
        let pointers = self.point(index, &payload);
        let place = &mut self.places[usize::from(index)];
        place.round = round;
        place.uses = (place.uses + 1) & (u16::MAX >> PLACE_BITS);
        place.state = State::Busy { buffer: payload.into_buffer(), waker: Some(waker) };
        self.busy += 1;
        (index, place.uses << PLACE_BITS | index, pointers)
    }

    /// Ends the command with this identifier, if it is under way. Gives back
    /// who waits for it, or `None` when the place is free again.
    pub(crate) fn end(&mut self, id: u16, ending: Ending) -> Result<Option<Waker>, NotUnderWay> {
        let index = id & MAX_DEPTH;
        let place = self.places.get_mut(usize::from(index)).ok_or(NotUnderWay)?;
        let State::Busy { buffer, waker } = &mut place.state else { return Err(NotUnderWay) };
        if place.uses != id >> PLACE_BITS {
            return Err(NotUnderWay);
        }
        let (buffer, waker) = (buffer.take(), waker.take());
        self.busy -= 1;
        if waker.is_some() {
            place.state = State::Ended { buffer, ending };
        } else {
            place.state = State::Free;
            self.free.push(index);
        }
        Ok(waker)
    }

    /// The identifier of some command under way.
    pub(crate) fn any_busy(&self) -> Option<u16> {
        let busy = |place: &Place| matches!(place.state, State::Busy { .. });
        let index = self.places.iter().position(busy)?;
        Some(self.places[index].uses << PLACE_BITS | index as u16)
    }

    /// The identifiers of commands that have been under way since at least
    /// `rounds` rounds before `now`.
    pub(crate) fn late(&self, now: u32, rounds: u32) -> Vec<u16> {
        let late = |place: &Place| {
            matches!(place.state, State::Busy { .. }) && now.wrapping_sub(place.round) >= rounds
        };
        let places = self.places.iter().enumerate().filter(|(_, place)| late(place));
        places.map(|(index, place)| place.uses << PLACE_BITS | index as u16).collect()
    }

    /// Whether the command with this identifier is under way.
    pub(crate) fn is_busy(&self, id: u16) -> bool {
        let place = self.places.get(usize::from(id & MAX_DEPTH));
        place.is_some_and(|place| {
            matches!(place.state, State::Busy { .. }) && place.uses == id >> PLACE_BITS
        })
    }

    /// Fetches the outcome from a place and frees it, or leaves the waker.
    pub(crate) fn fetch(&mut self, index: u16, waker: &Waker) -> Option<(Option<Buffer>, Ending)> {
        let place = &mut self.places[usize::from(index)];
        match &mut place.state {
            State::Free => unreachable!("a place has one owner until it fetched the outcome"),
            State::Busy { waker: old, .. } => {
                if !old.as_ref().is_some_and(|old| old.will_wake(waker)) {
                    *old = Some(waker.clone());
                }
                None
            }
            State::Ended { buffer, ending } => {
                let outcome = (buffer.take(), *ending);
                place.state = State::Free;
                self.free.push(index);
                Some(outcome)
            }
        }
    }

    /// Nobody wants the outcome any more. True when that freed the place; else
    /// the buffer stays until the controller has let go of it.
    pub(crate) fn abandon(&mut self, index: u16) -> bool {
        let place = &mut self.places[usize::from(index)];
        match &mut place.state {
            State::Free => false,
            State::Busy { waker, .. } => {
                *waker = None;
                false
            }
            State::Ended { .. } => {
                place.state = State::Free;
                self.free.push(index);
                true
            }
        }
    }

    /// PRP1 and PRP2 for the data (Base 2.0, section 4.1.1).
    fn point(&self, index: u16, payload: &Payload) -> (u64, u64) {
        let list = usize::from(index) * LIST_ENTRIES;
        let list_iova = self.lists.iova() + (usize::from(index) * PAGE) as u64;
        match payload {
            Payload::Nothing => (0, 0),
            Payload::Range { start, count } => {
                // Context attributes (none), length, start (NVM Command Set
                // 1.0, figure 41).
                self.list_words.store(list, u64::from(*count) << 32, Ordering::Relaxed);
                self.list_words.store(list + 1, *start, Ordering::Relaxed);
                (list_iova, 0)
            }
            Payload::Blocks { buffer, offset, bytes } => {
                self.pages(list, list_iova, buffer.iova() + *offset as u64, PAGE as u64, *bytes)
            }
            Payload::Zeroes { bytes } => {
                let zero = self.lists.iova() + (self.places.len() * PAGE) as u64;
                self.pages(list, list_iova, zero, 0, *bytes)
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

    /// A controller repeats a completion after the place has a new command:
    /// the buffer of that command must stay.
    #[test]
    fn a_repeated_completion_does_not_end_the_next_command() {
        let mut table = table(1);
        let pool = Pool::private(2, PAGE).expect("memory");
        let blocks =
            || Payload::Blocks { buffer: pool.take().expect("free"), offset: 0, bytes: PAGE };
        let (place, first, _) = table.occupy(blocks(), Waker::noop().clone(), 0);
        assert!(table.end(first, Ending::Reset).is_ok());
        assert!(table.fetch(place, Waker::noop()).is_some());
        let (_, second, _) = table.occupy(blocks(), Waker::noop().clone(), 0);
        assert_eq!(table.end(first, Ending::Reset).err(), Some(NotUnderWay));
        assert_eq!((table.busy(), pool.available()), (1, 1));
        assert!(table.end(second, Ending::Reset).is_ok());
    }

    #[test]
    fn an_abandoned_buffer_returns_to_its_pool_only_with_the_completion() {
        let mut table = table(4);
        let pool = Pool::private(1, PAGE).expect("memory");
        let buffer = pool.take().expect("free");
        let payload = Payload::Blocks { buffer, offset: 0, bytes: PAGE };
        let (place, id, _) = table.occupy(payload, Waker::noop().clone(), 0);
        assert!(!table.abandon(place));
        assert_eq!((pool.available(), table.free()), (0, 3));
        assert!(table.end(id, Ending::Reset).expect("it was under way").is_none());
        assert_eq!((pool.available(), table.free()), (1, 4));
    }

    #[test]
    fn no_identifier_is_the_one_that_means_no_command() {
        let mut table = table(MAX_DEPTH);
        for _ in 0..64 {
            let ids: Vec<u16> = (0..MAX_DEPTH)
                .map(|_| table.occupy(Payload::Nothing, Waker::noop().clone(), 0).1)
                .collect();
            for id in ids {
                assert_ne!(id, u16::MAX);
                assert!(table.end(id, Ending::Reset).is_ok());
                assert!(table.abandon(id & MAX_DEPTH));
            }
        }
    }
}
