//! Which tasks can go on: a bitmap that any thread may set bits in and one takes
//! them out of.

use crate::atomic::{AtomicU64, Ordering};

/// Bits in a word.
pub(crate) const BITS: usize = u64::BITS as usize;

/// A bit for each task, and above them a bit for each word that is not zero, so
/// that a turn of a worker with ten thousand slots looks at three words and not at
/// all of them.
pub(crate) struct Ready {
    words: Box<[AtomicU64]>,
    groups: Box<[AtomicU64]>,
}

impl Ready {
    /// No task of `capacity` can go on.
    pub(crate) fn new(capacity: usize) -> Self {
        let zeroes = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        let words = capacity.div_ceil(BITS);
        Self { words: zeroes(words), groups: zeroes(words.div_ceil(BITS)) }
    }

    /// How many words there are, of `BITS` tasks each.
    pub(crate) fn words(&self) -> usize {
        self.words.len()
    }

    /// How many groups there are, of `BITS` words each.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Says that a task can go on.
    pub(crate) fn set(&self, task: usize) {
        let word = task / BITS;
        // Release: what was done before the wake is seen by the task that runs
        // because of it. Whoever finds the word zero answers for its bit above;
        // the executor clears that bit before it takes the word.
        if self.words[word].fetch_or(1 << (task % BITS), Ordering::Release) == 0 {
            self.groups[word / BITS].fetch_or(1 << (word % BITS), Ordering::Release);
        }
    }

    /// Whether some task can go on.
    pub(crate) fn any(&self) -> bool {
        self.groups.iter().any(|group| group.load(Ordering::Acquire) != 0)
    }

    /// Takes which words of a group may have tasks.
    pub(crate) fn take_group(&self, group: usize) -> u64 {
        // A load first: an empty group, the usual case, is not written to.
        match self.groups[group].load(Ordering::Relaxed) {
            0 => 0,
            _ => self.groups[group].swap(0, Ordering::Acquire),
        }
    }

    /// Takes the tasks of a word. After its group.
    pub(crate) fn take_word(&self, word: usize) -> u64 {
        self.words[word].swap(0, Ordering::Acquire)
    }
}
