//! Shadow doorbells (NVMe Base 2.0, section 5.8): the driver stores in memory where a
//! queue stands, and writes to the doorbell itself only when the controller has said
//! that it looks no more. For a controller that is software that is worth a lot.

use std::sync::atomic::{Ordering, fence};

use block_core::DmaMemory;

use crate::PAGE;
use crate::command::{Command, admin};
use crate::controller::StartError;
use crate::port::Port;
use crate::registers::DOORBELLS;
use crate::sys::HalfWords;

/// Words that both sides change, and the fence between two accesses: what the order
/// of accesses can be tried out on (`tests`).
pub(crate) trait Shared {
    /// The word's value, with everything that was done before it was stored.
    fn see(&self, index: usize) -> u32;

    /// Changes the word, after everything that was done before.
    fn show(&self, index: usize, value: u32);

    /// What was shown is visible before anything is seen.
    fn fence(&self);
}

impl Shared for HalfWords {
    fn see(&self, index: usize) -> u32 {
        self.load(index, Ordering::Acquire)
    }

    fn show(&self, index: usize, value: u32) {
        self.store(index, value, Ordering::Release);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// The driver's side: a queue goes from `old` to `new`. Whether the controller must be
/// told by the doorbell.
pub(crate) fn announce(
    values: &impl Shared,
    events: &impl Shared,
    index: usize,
    old: u32,
    new: u32,
) -> bool {
    values.show(index, new);
    // The store must be seen before the load is done: the controller stores the
    // event and then looks at the value once more. Without this each could miss
    // the other, and both would wait.
    values.fence();
    wants(events.see(index), old, new)
}

/// The controller's side: it has come to `head` and would look no more. Where the
/// queue stands; at `head` it is told from now on.
pub(crate) fn fall_asleep(
    values: &impl Shared,
    events: &impl Shared,
    index: usize,
    head: u32,
) -> u32 {
    events.show(index, head);
    // As above, the other way round.
    events.fence();
    values.see(index)
}

/// Words in a page.
const WORDS: usize = PAGE / 4;

/// Two pages, laid out as doorbells are: where the queues stand, and from where on the
/// controller wants to be told.
pub(crate) struct Shadow {
    values: HalfWords,
    events: HalfWords,
    places: (u64, u64),
    /// Words from one doorbell to the next.
    stride: usize,
}

impl Shadow {
    /// Allocates both; the controller does not know them yet.
    pub(crate) fn new(port: &Port) -> Result<Self, StartError> {
        let page = || port.bus.allocate(PAGE).map_err(StartError::Memory);
        let stride = port.capabilities.doorbell_stride as usize / 4;
        Ok(Self::over(&page()?, &page()?, stride))
    }

    /// Two pages of zeroes.
    pub(crate) fn over(values: &DmaMemory, events: &DmaMemory, stride: usize) -> Self {
        let places = (values.iova(), events.iova());
        Self { values: words(values), events: words(events), places, stride }
    }

    /// What tells the controller.
    pub(crate) const fn command(&self) -> Command {
        Command::new(admin::DOORBELL_BUFFERS, 0).with_data(self.places.0, self.places.1)
    }

    /// Every queue is as if never used.
    pub(crate) fn clear(&self) {
        for index in 0..WORDS {
            self.values.store(index, 0, Ordering::Relaxed);
            self.events.store(index, 0, Ordering::Relaxed);
        }
    }

    /// A queue pair that is about to be created is as if never used.
    pub(crate) fn clear_queue(&self, queue: u16) {
        for side in 0..2 {
            let index = (2 * usize::from(queue) + side) * self.stride;
            if index < WORDS {
                self.values.store(index, 0, Ordering::Relaxed);
                self.events.store(index, 0, Ordering::Relaxed);
            }
        }
    }

    /// A doorbell, given by its offset, goes from `old` to `new`. Whether it must be
    /// written itself, too.
    pub(crate) fn ring(&self, doorbell: u32, old: u32, new: u32) -> bool {
        let index = (doorbell - DOORBELLS) as usize / 4;
        if index >= WORDS {
            return true;
        }
        announce(&self.values, &self.events, index, old, new)
    }
}

fn words(memory: &DmaMemory) -> HalfWords {
    let words = HalfWords::new(std::sync::Arc::clone(memory.memory()), 0, WORDS);
    words.expect("a page has as many words")
}

/// Whether on the way from `old` to `new` the queue comes past `event`. Places wrap at
/// the queue's size, the sums at 16 bits: as all drivers do.
const fn wants(event: u32, old: u32, new: u32) -> bool {
    let (event, old, new) = (event as u16, old as u16, new as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use loom::sync::atomic::{AtomicBool, AtomicU32, fence};
    use loom::sync::{Arc, atomic::Ordering};

    use super::{Shared, announce, fall_asleep, wants};

    /// A word of a model of memory that reorders whatever may be reordered.
    struct Word<const FENCED: bool>(AtomicU32);

    impl<const FENCED: bool> Shared for Word<FENCED> {
        fn see(&self, _: usize) -> u32 {
            self.0.load(Ordering::Acquire)
        }

        fn show(&self, _: usize, value: u32) {
            self.0.store(value, Ordering::Release);
        }

        fn fence(&self) {
            if FENCED {
                fence(Ordering::SeqCst);
            }
        }
    }

    /// The driver submits in the very moment in which the controller falls asleep, in
    /// every order that there is.
    fn every_order<const DRIVER: bool, const CONTROLLER: bool>() {
        loom::model(|| {
            // The controller's last event is far back: the driver need not ring for it.
            let values = Arc::new(Word::<DRIVER>(AtomicU32::new(5)));
            let events = Arc::new(Word::<CONTROLLER>(AtomicU32::new(3)));
            let rung = Arc::new(AtomicBool::new(false));
            let driver = {
                let (values, events, rung) = (values.clone(), events.clone(), rung.clone());
                loom::thread::spawn(move || {
                    if announce(&*values, &*events, 0, 5, 6) {
                        rung.store(true, Ordering::Release);
                    }
                })
            };
            let seen = fall_asleep(&*values, &*events, 0, 5);
            driver.join().expect("no panic");
            assert!(seen == 6 || rung.load(Ordering::Acquire), "each has missed the other");
        });
    }

    #[test]
    fn nobody_misses_the_other_in_any_order() {
        every_order::<true, true>();
    }

    /// The model shows what a processor shows once in a million times, or another
    /// processor than this: that each of the two fences is needed.
    #[test]
    #[should_panic = "each has missed the other"]
    fn without_the_drivers_fence_one_is_missed() {
        every_order::<false, true>();
    }

    #[test]
    #[should_panic = "each has missed the other"]
    fn without_the_controllers_fence_one_is_missed() {
        every_order::<true, false>();
    }

    #[test]
    fn the_controller_is_told_when_its_event_is_passed_also_around_the_end() {
        assert!(wants(0, 0, 1) && wants(5, 5, 6) && wants(5, 3, 9));
        assert!(!wants(5, 6, 9) && !wants(5, 3, 5) && !wants(0, 4, 5));
        // A ring of 64 entries: from 63 to 0, and from 60 to 3.
        assert!(wants(63, 63, 0) && wants(62, 60, 3) && wants(0, 60, 3));
    }
}
