//! The controller's ends of the rings.

use std::sync::atomic::Ordering;

use super::interrupts::Vector;
use crate::command::{COMMAND_WORDS, Command};
use crate::completion::{COMPLETION_WORDS, Completion, Status};
use crate::sys::Words;

/// A submission queue: the controller reads at the head.
#[derive(Debug)]
pub(super) struct SubmissionQueue {
    words: Words,
    entries: u32,
    head: u32,
    /// The completion queue of its commands.
    pub(super) completion: u16,
    /// The admin command that deletes it: it waits for commands under way.
    pub(super) deletion: Option<u16>,
    /// Its shadow doorbell is not looked at until the doorbell is written.
    pub(super) asleep: bool,
}

impl SubmissionQueue {
    pub(super) fn new(words: Words, entries: u32, completion: u16) -> Self {
        Self { words, entries, head: 0, completion, deletion: None, asleep: false }
    }

    /// Takes the next command, given what the tail doorbell says. A tail that
    /// is no place in the ring is an error the specification leaves undefined
    /// (Base 2.0, section 3.3.1.1): nothing is fetched.
    pub(super) fn fetch(&mut self, tail: u32) -> Option<Command> {
        if tail == self.head || tail >= self.entries {
            return None;
        }
        let base = self.head as usize * COMMAND_WORDS;
        // The tail was loaded with Acquire, so the entry is all there.
        let words = self.words.load_all::<COMMAND_WORDS>(base);
        self.head = if self.head + 1 == self.entries { 0 } else { self.head + 1 };
        Some(Command::from_words(words))
    }

    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }
}

/// A completion queue: the controller writes at the tail.
#[derive(Debug)]
pub(super) struct CompletionQueue {
    words: Words,
    entries: u32,
    tail: u32,
    phase: bool,
    head: u32,
    /// Entries that are free for who is owed none, as far as is known.
    room: u32,
    /// What is raised by an entry, if its driver has asked for it and may hear it.
    vector: Option<Vector>,
}

impl CompletionQueue {
    pub(super) fn new(words: Words, entries: u32, vector: Option<Vector>) -> Self {
        Self { words, entries, tail: 0, phase: true, head: 0, room: entries - 1, vector }
    }

    /// Whether there is room for an entry that nobody is owed, by what is known of the
    /// head.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.room > 0
    }

    /// The driver has taken entries up to this one. It cannot have taken what is not
    /// there: such a value frees nothing.
    pub(super) fn learn_head(&mut self, head: u32) {
        let after_head =
            |place: u32| if place < self.head { place + self.entries } else { place } - self.head;
        let taken = after_head(head);
        if head < self.entries && taken <= after_head(self.tail) {
            self.room += taken;
            self.head = head;
        }
    }

    /// A command stays open: it is owed an entry. The caller has seen room.
    pub(super) fn owe(&mut self) {
        self.room -= 1;
    }

    /// The entry of a command that stayed open is about to be written.
    pub(super) fn pay(&mut self) {
        self.room += 1;
    }

    /// Writes an entry; the caller has seen room.
    pub(super) fn post(&mut self, queue: u16, head: u16, id: u16, status: Status, result: u32) {
        let entry = Completion {
            result,
            submission_head: head,
            submission_queue: queue,
            command_id: id,
            status,
        };
        let [first, last] = entry.to_words(self.phase);
        let base = self.tail as usize * COMPLETION_WORDS;
        self.words.store(base, first, Ordering::Relaxed);
        // Release: who sees the phase sees the data.
        self.words.store(base + 1, last, Ordering::Release);
        self.room -= 1;
        self.tail = self.next();
        if self.tail == 0 {
            self.phase = !self.phase;
        }
        if let Some(vector) = &self.vector {
            vector.raise();
        }
    }

    fn next(&self) -> u32 {
        if self.tail + 1 == self.entries { 0 } else { self.tail + 1 }
    }
}
