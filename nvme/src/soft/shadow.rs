//! The controller's side of shadow doorbells (NVMe Base 2.0, section 5.8). It looks at
//! them as long as there is something; then it says so, and looks again only when the
//! doorbell itself was written. Looking always would hide a driver that forgets that.

use std::sync::atomic::Ordering;

use super::engine::Engine;
use super::registers::Registers;
use crate::PAGE;
use crate::command::Command;
use crate::completion::Status;
use crate::shadow::fall_asleep;
use crate::sys::HalfWords;

/// The two pages.
#[derive(Debug)]
pub(super) struct Shadow {
    values: HalfWords,
    events: HalfWords,
}

impl Shadow {
    /// Where a queue's completion head stands.
    pub(super) fn head(&self, queue: u16) -> u32 {
        self.values.load(2 * usize::from(queue) + 1, Ordering::Acquire)
    }

    /// Where a queue's tail stands, as far as the controller may know: from when it is
    /// asleep until the doorbell was written it does not look.
    fn look(
        &self,
        queue: u16,
        head: u32,
        asleep: &mut bool,
        was_rung: impl FnOnce() -> bool,
    ) -> u32 {
        if *asleep && !was_rung() {
            return head;
        }
        *asleep = false;
        let tail = self.tail(queue);
        if tail != head {
            return tail;
        }
        // From `head` on the driver writes to the doorbell.
        let tail = fall_asleep(&self.values, &self.events, 2 * usize::from(queue), head);
        *asleep = tail == head;
        tail
    }

    fn tail(&self, queue: u16) -> u32 {
        self.values.load(2 * usize::from(queue), Ordering::Acquire)
    }
}

impl Engine {
    /// Doorbell Buffer Config.
    pub(super) fn take_shadows(&mut self, command: &Command) -> Result<u32, Status> {
        let page = |iova: u64| {
            let aligned = iova.is_multiple_of(PAGE as u64);
            aligned.then(|| self.windows.half_words(iova, PAGE / 4)).flatten()
        };
        // Two for each queue pair must fit.
        let fits = 2 * self.submission.len() <= PAGE / 4;
        let (Some(values), Some(events), true) = (page(command.prp1()), page(command.prp2()), fits)
        else {
            return Err(Status::INVALID_FIELD);
        };
        self.shadow = Some(Shadow { values, events });
        Ok(0)
    }

    /// Where a submission queue's tail stands, as far as the controller may know. The
    /// admin queue has its doorbell only.
    pub(super) fn tail(&mut self, queue: u16, registers: &Registers) -> u32 {
        let source = self.submission[usize::from(queue)].as_mut();
        let (Some(shadow), Some(source), true) = (&self.shadow, source, queue > 0) else {
            return registers.tail(queue);
        };
        let head = u32::from(source.head());
        shadow.look(queue, head, &mut source.asleep, || registers.take_ring(queue))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32};
    use std::time::{Duration, Instant};

    use block_core::{DmaMemory, Memory};

    use super::*;
    use crate::registers::DOORBELLS;
    use crate::shadow::Shadow as Driver;

    /// The driver moves a tail in the very moment in which the controller falls asleep.
    /// Without a full fence on each side both miss each other and wait for ever.
    #[test]
    fn nobody_misses_the_other_while_one_falls_asleep() {
        const SPAN: Duration = Duration::from_millis(300);
        const ENTRIES: u32 = 1 << 15;
        const QUEUE: u16 = 3;
        let page = || {
            let memory = Memory::anonymous(PAGE).expect("memory");
            DmaMemory::new(Arc::new(memory), 1 << 32)
        };
        let (values, events) = (page(), page());
        let driver = Driver::over(&values, &events, 1);
        let words = |dma: &DmaMemory| HalfWords::new(Arc::clone(dma.memory()), 0, PAGE / 4);
        let soft = Shadow {
            values: words(&values).expect("a page"),
            events: words(&events).expect("a page"),
        };
        let (seen, rung, over) =
            (AtomicU32::new(0), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut head, mut asleep) = (0, false);
                while !over.load(Ordering::Relaxed) {
                    let was_rung = || rung.swap(false, Ordering::AcqRel);
                    let tail = soft.look(QUEUE, head, &mut asleep, was_rung);
                    if tail == head {
                        std::hint::spin_loop();
                    }
                    head = tail;
                    seen.store(head, Ordering::Release);
                }
            });
            let (start, mut round, mut missed) = (Instant::now(), 0, false);
            while !missed && start.elapsed() < SPAN {
                for _ in 0..100 {
                    let (old, new) = (round % ENTRIES, (round + 1) % ENTRIES);
                    // Earlier and later in the other's few instructions.
                    (0..round * 7 % 97).for_each(|step| {
                        std::hint::black_box(step);
                    });
                    if driver.ring(DOORBELLS + 8 * u32::from(QUEUE), old, new) {
                        rung.store(true, Ordering::Release);
                    }
                    if missed {
                        break;
                    }
                    missed |= !comes(|| seen.load(Ordering::Acquire) == new);
                    round += 1;
                }
            }
            over.store(true, Ordering::Relaxed);
            assert!(!missed, "before round {round}");
        });
    }

    /// Whether it becomes true before long; whoever makes it so may have no processor.
    fn comes(is_so: impl Fn() -> bool) -> bool {
        for _ in 0..2000 {
            if is_so() {
                return true;
            }
        }
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if is_so() {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }
}
