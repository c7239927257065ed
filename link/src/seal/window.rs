//! Which frames have come: each is believed once.

/// Frames that may overtake one, and it is believed all the same.
pub(crate) const WINDOW_FRAMES: u64 = 4096;

const WORDS: usize = (WINDOW_FRAMES / 64) as usize;

/// The newest counter that has come, and which of the 4096 up to it have.
#[derive(Debug)]
pub(super) struct Window {
    newest: u64,
    /// A bit for each counter, by its remainder.
    seen: Box<[u64; WORDS]>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { newest: 0, seen: Box::new([0; WORDS]) }
    }

    pub(super) const fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether a frame of this counter may be believed. Counters begin at one.
    pub(super) fn admits(&self, counter: u64) -> bool {
        if counter > self.newest {
            return true;
        }
        let (word, bit) = place(counter);
        counter > 0 && self.newest - counter < WINDOW_FRAMES && self.seen[word] & bit == 0
    }

    /// A frame of this counter, which was admitted, was verified.
    pub(super) fn note(&mut self, counter: u64) {
        if counter > self.newest {
            if counter - self.newest >= WINDOW_FRAMES {
                self.seen.fill(0);
            } else {
                for between in self.newest + 1..counter {
                    let (word, bit) = place(between);
                    self.seen[word] &= !bit;
                }
            }
            self.newest = counter;
        }
        let (word, bit) = place(counter);
        self.seen[word] |= bit;
    }
}

const fn place(counter: u64) -> (usize, u64) {
    let at = counter % WINDOW_FRAMES;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the order, no counter is admitted twice, and none that is
        /// new and not too old is kept out.
        #[test]
        fn each_counter_is_admitted_once(
            steps in prop::collection::vec((0..3_u8, 1..6000_u64), 1..400)
        ) {
            let mut window = Window::new();
            let mut seen = HashSet::new();
            for (kind, by) in steps {
                let newest = window.newest();
                let counter = match kind {
                    0 => newest + 1,
                    1 => newest + by,
                    _ => newest.saturating_sub(by % 5000),
                };
                let old = newest.saturating_sub(WINDOW_FRAMES - 1);
                let new = counter > 0 && counter >= old && !seen.contains(&counter);
                prop_assert_eq!(window.admits(counter), new, "{} of {}", counter, newest);
                if new {
                    window.note(counter);
                    seen.insert(counter);
                }
            }
        }
    }
}
