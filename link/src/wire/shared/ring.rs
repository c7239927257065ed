//! A ring in memory that is shared with another process: its indices, and the rule
//! by which the reader is woken. What the other side says is checked here, once.

use crate::atomic::{AtomicU32, Ordering, fence};

/// Slots of a ring.
pub(crate) const SLOTS: u32 = 512;
const _: () = assert!(SLOTS.is_power_of_two());

/// The words of one direction. The writer's `head` and the reader's `tail` count
/// slots and are never reset; `sleeping` is set by a reader that wants to be rung.
#[derive(Clone, Copy)]
pub(crate) struct Words<'a> {
    pub(crate) head: &'a AtomicU32,
    pub(crate) tail: &'a AtomicU32,
    pub(crate) sleeping: &'a AtomicU32,
}

/// A slot's place in its ring: below [`SLOTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u32);

impl Slot {
    const fn of(count: u32) -> Self {
        Self(count % SLOTS)
    }

    /// Its number from the start of the ring.
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The other side has said what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lie;

/// The side that fills slots. Its own count is not read back from the memory.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    head: u32,
    /// Filled and not published.
    pending: u32,
    /// Slots that are known to be free behind the pending ones.
    room: u32,
}

impl Writer {
    /// The next slot to fill; none while all are full.
    pub(crate) fn next(&mut self, words: Words<'_>) -> Result<Option<Slot>, Lie> {
        if self.room == 0 {
            let filled = self.head.wrapping_add(self.pending);
            // Acquire: the reader has copied what was in a slot before we fill it.
            let taken = words.tail.load(Ordering::Acquire);
            self.room = SLOTS.checked_sub(filled.wrapping_sub(taken)).ok_or(Lie)?;
        }
        if self.room == 0 {
            return Ok(None);
        }
        let slot = Slot::of(self.head.wrapping_add(self.pending));
        self.room -= 1;
        self.pending += 1;
        Ok(Some(slot))
    }

    /// Shows the reader all slots that were filled; whether it must be rung.
    pub(crate) fn publish(&mut self, words: Words<'_>) -> bool {
        if self.pending == 0 {
            return false;
        }
        self.head = self.head.wrapping_add(std::mem::take(&mut self.pending));
        // Release: the slots are filled before the reader sees that they are.
        words.head.store(self.head, Ordering::Release);
        // The reader announces, then looks; we publish, then look. One of us sees
        // the other.
        fence(Ordering::SeqCst);
        words.sleeping.load(Ordering::Relaxed) != 0
            && words.sleeping.swap(0, Ordering::Relaxed) != 0
    }
}

/// The side that empties slots.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    tail: u32,
}

impl Reader {
    /// The slots that are filled now, at most `most`.
    pub(crate) fn filled(
        &self,
        words: Words<'_>,
        most: u32,
    ) -> Result<impl Iterator<Item = Slot> + use<>, Lie> {
        // Acquire: what is in the slots is read after it was published.
        let filled = words.head.load(Ordering::Acquire).wrapping_sub(self.tail);
        if filled > SLOTS {
            return Err(Lie);
        }
        let tail = self.tail;
        Ok((0..filled.min(most)).map(move |offset| Slot::of(tail.wrapping_add(offset))))
    }

    /// Gives the oldest slots back: they were copied.
    pub(crate) fn give_back(&mut self, words: Words<'_>, count: u32) {
        self.tail = self.tail.wrapping_add(count);
        words.tail.store(self.tail, Ordering::Release);
    }

    /// Asks to be rung. A full fence and a last look must follow.
    pub(crate) fn announce(&self, words: Words<'_>) {
        words.sleeping.store(1, Ordering::Relaxed);
    }

    /// Looks by itself again.
    pub(crate) fn retract(&self, words: Words<'_>) {
        words.sleeping.store(0, Ordering::Relaxed);
    }
}
