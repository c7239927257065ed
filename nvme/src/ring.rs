//! The driver's ends of the two rings of a queue (NVMe Base 2.0, section 3.3).

use std::sync::atomic::Ordering;

use block_core::DmaMemory;

use crate::command::{COMMAND_BYTES, COMMAND_WORDS};
use crate::completion::{COMPLETION_BYTES, COMPLETION_WORDS, Completion};
use crate::sys::Words;

/// The submission side: the driver writes at the tail.
///
/// It keeps no head. Whoever pushes keeps fewer commands outstanding than the
/// ring has entries, and a command that has not been fetched is outstanding;
/// so there is room, whatever head the controller claims.
#[derive(Debug)]
pub(crate) struct SubmissionRing {
    words: Words,
    entries: u32,
    tail: u32,
    rung: u32,
}

impl SubmissionRing {
    pub(crate) fn new(dma: &DmaMemory, entries: u16) -> Self {
        let words = Words::all(dma);
        assert!(dma.memory().len() >= usize::from(entries) * COMMAND_BYTES);
        Self { words, entries: u32::from(entries), tail: 0, rung: 0 }
    }

    /// Writes a command at the tail; the controller is not told yet.
    #[inline]
    pub(crate) fn push(&mut self, command: &[u64; COMMAND_WORDS]) {
        let base = self.tail as usize * COMMAND_WORDS;
        self.words.store_all(base, command);
        self.tail = if self.tail + 1 == self.entries { 0 } else { self.tail + 1 };
    }

    /// The value for the tail doorbell, if the controller does not know it.
    pub(crate) fn news(&mut self) -> Option<u32> {
        (self.rung != self.tail).then(|| {
            self.rung = self.tail;
            self.tail
        })
    }

    /// The value that the controller knows.
    pub(crate) fn rung(&self) -> u32 {
        self.rung
    }

    /// Back to the state of a queue that has just been created.
    pub(crate) fn restart(&mut self) {
        (self.tail, self.rung) = (0, 0);
    }
}

/// The completion side: the driver reads at the head.
#[derive(Debug)]
pub(crate) struct CompletionRing {
    words: Words,
    entries: u32,
    head: u32,
    rung: u32,
    phase: bool,
}

impl CompletionRing {
    pub(crate) fn new(dma: &DmaMemory, entries: u16) -> Self {
        let words = Words::all(dma);
        assert!(dma.memory().len() >= usize::from(entries) * COMPLETION_BYTES);
        Self { words, entries: u32::from(entries), head: 0, rung: 0, phase: true }
    }

    /// Whether the controller has written the entry at the head.
    pub(crate) fn has_news(&self) -> bool {
        let last = self.words.load(self.head as usize * COMPLETION_WORDS + 1, Ordering::Relaxed);
        Completion::phase_of(last) == self.phase
    }

    /// The entry at the head, if the controller has written it.
    pub(crate) fn pop(&mut self) -> Option<Completion> {
        let base = self.head as usize * COMPLETION_WORDS;
        let last = self.pop_last()?;
        Some(Completion::from_words([self.words.load(base, Ordering::Relaxed), last]))
    }

    /// The last word of the entry at the head: all but the result, which commands on
    /// blocks do not have.
    #[inline]
    pub(crate) fn pop_last(&mut self) -> Option<u64> {
        let at = self.head as usize * COMPLETION_WORDS + 1;
        // Acquire: with the phase comes everything the controller wrote before
        // it, the data of a read included.
        let last = self.words.load(at, Ordering::Acquire);
        if Completion::phase_of(last) != self.phase {
            return None;
        }
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(last)
    }

    /// The value for the head doorbell, if the controller does not know it.
    pub(crate) fn news(&mut self) -> Option<u32> {
        (self.rung != self.head).then(|| {
            self.rung = self.head;
            self.head
        })
    }

    /// Entries that were taken since the controller was told.
    pub(crate) fn untold(&self) -> u32 {
        if self.head >= self.rung {
            self.head - self.rung
        } else {
            self.entries - self.rung + self.head
        }
    }

    /// The value that the controller knows.
    pub(crate) fn rung(&self) -> u32 {
        self.rung
    }

    /// Back to the state of a queue that has just been created: no entry has
    /// the first phase.
    pub(crate) fn restart(&mut self) {
        for word in 0..self.entries as usize * COMPLETION_WORDS {
            self.words.store(word, 0, Ordering::Relaxed);
        }
        (self.head, self.rung, self.phase) = (0, 0, true);
    }
}
