//! What a controller has to say to a driver of another process: a vector for each
//! completion queue that was made with one (Base 2.0, section 5.4).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_BITS: u16 = 64;

/// The vectors that were raised, until whoever knows their drivers takes them.
#[derive(Debug)]
pub(crate) struct Interrupts {
    raised: Box<[AtomicU64]>,
}

impl Interrupts {
    pub(crate) fn new(vectors: u16) -> Self {
        let words = vectors.div_ceil(WORD_BITS);
        Self { raised: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The vectors that were raised since the last call, each once.
    pub(crate) fn take(&self) -> impl Iterator<Item = u16> {
        let words = self.raised.iter().zip(0..).filter_map(|(word, number)| {
            // Most of the time there is nothing, and nothing is written.
            if word.load(Ordering::Relaxed) == 0 {
                return None;
            }
            Some((word.swap(0, Ordering::Relaxed), number * WORD_BITS))
        });
        words.flat_map(|(bits, first)| {
            (0..WORD_BITS).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| first + bit)
        })
    }
}

/// The vector of a completion queue.
#[derive(Debug)]
pub(super) struct Vector {
    interrupts: Arc<Interrupts>,
    number: u16,
}

impl Vector {
    /// Vector `number`, which the controller has.
    pub(super) fn new(interrupts: &Arc<Interrupts>, number: u16) -> Self {
        Self { interrupts: Arc::clone(interrupts), number }
    }

    /// Something was posted.
    pub(super) fn raise(&self) {
        let word = &self.interrupts.raised[usize::from(self.number / WORD_BITS)];
        word.fetch_or(1 << (self.number % WORD_BITS), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_taken_once_however_often_it_was_raised() {
        let interrupts = Arc::new(Interrupts::new(66));
        assert_eq!(interrupts.take().count(), 0);
        for number in [0, 65, 3, 65] {
            Vector::new(&interrupts, number).raise();
        }
        assert_eq!(interrupts.take().collect::<Vec<_>>(), [0, 3, 65]);
        assert_eq!(interrupts.take().count(), 0);
    }
}
