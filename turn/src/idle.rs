//! The loop of a polling thread, and the one place where it waits.

use std::fmt;
use std::io;

use block_core::time::{Clock, Time};
use serde::{Deserialize, Serialize};

use crate::gaps::Gaps;
use crate::poller::Poller;
use crate::wait;

/// What a loop does between turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Turns again at once. For comparison, and for a core of its own.
    Spin,
    /// Gives the core to others after every turn. For pollers that outnumber cores.
    Yield,
    /// Where work has kept coming, stays awake about as long as a wake-up costs, giving
    /// the core to others; then, and otherwise at once, sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once. For comparison.
    Interrupt,
}

/// As configurations say it.
impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::Yield => "yield",
            Self::Adaptive => "adaptive",
            Self::Interrupt => "interrupt",
        })
    }
}

/// What a loop turns: it owns its sources and knows when there is work.
pub trait Station {
    /// Does a bounded amount of what can be done; whether anything moved.
    fn turn(&mut self, now: Time) -> bool;

    /// Announces the sleep to every source that rings only when asked
    /// (avail_event, sleeping flags, interrupts).
    fn announce_sleep(&mut self);

    /// Looks at every source once more, after the announcement was made
    /// visible: whether there is work, which forbids the sleep.
    fn has_work(&mut self) -> bool;

    /// Takes the announcement back: sources need not ring any more.
    fn retract_sleep(&mut self);

    /// When a turn is due though nothing came in.
    fn deadline(&self) -> Option<Time>;

    /// Whether the loop should end.
    fn is_stopped(&self) -> bool;
}

/// Turns a station until it is stopped.
#[derive(Debug)]
pub struct Loop {
    poller: Poller,
    idle: Idle,
    clock: Clock,
}

impl Loop {
    /// A loop that sleeps in `poller`.
    #[must_use]
    pub fn new(poller: Poller, idle: Idle, clock: Clock) -> Self {
        Self { poller, idle, clock }
    }

    /// What the loop sleeps in, to register more sources.
    #[must_use]
    pub fn poller(&self) -> &Poller {
        &self.poller
    }

    /// The moment it is.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Runs the station on this thread.
    ///
    /// # Errors
    /// The kernel's, when it cannot wait.
    pub fn run(&self, station: &mut impl Station) -> io::Result<()> {
        let mut gaps = Gaps::new(self.clock.now());
        while !station.is_stopped() {
            let now = self.clock.now();
            let moved = station.turn(now);
            if moved {
                gaps.moved(now);
            }
            match self.idle {
                // Whoever works on what moved may need this core.
                Idle::Yield => rustix::thread::sched_yield(),
                _ if moved => {}
                Idle::Spin => std::hint::spin_loop(),
                // Who is waited for may need this core.
                Idle::Adaptive if gaps.pays(now) => rustix::thread::sched_yield(),
                Idle::Adaptive | Idle::Interrupt => self.sleep(station)?,
            }
        }
        Ok(())
    }

    fn sleep(&self, station: &mut impl Station) -> io::Result<()> {
        wait::sleep(station, |station| {
            let timeout = station.deadline().map(|deadline| deadline - self.clock.now());
            self.poller.sleep(timeout)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// A producer that rings only when it sees the announcement.
    struct Mailbox {
        sent: AtomicU64,
        sleeping: AtomicBool,
        bell: rustix::fd::OwnedFd,
    }

    struct Reader {
        mailbox: Arc<Mailbox>,
        taken: u64,
        until: u64,
    }

    impl Station for Reader {
        fn turn(&mut self, _: Time) -> bool {
            let sent = self.mailbox.sent.load(Ordering::Acquire);
            let moved = sent != self.taken;
            self.taken = sent;
            moved
        }

        fn announce_sleep(&mut self) {
            self.mailbox.sleeping.store(true, Ordering::Relaxed);
        }

        fn has_work(&mut self) -> bool {
            self.mailbox.sent.load(Ordering::Acquire) != self.taken
        }

        fn retract_sleep(&mut self) {
            self.mailbox.sleeping.store(false, Ordering::Relaxed);
        }

        fn deadline(&self) -> Option<Time> {
            None
        }

        fn is_stopped(&self) -> bool {
            self.taken == self.until
        }
    }

    /// A wake-up that is lost once hangs this test: nothing else ends a sleep.
    #[test]
    fn no_message_is_slept_through() {
        const MESSAGES: u64 = 20_000;
        for idle in [Idle::Adaptive, Idle::Interrupt, Idle::Yield] {
            let bell = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
            let mailbox = Arc::new(Mailbox {
                sent: AtomicU64::new(0),
                sleeping: AtomicBool::new(false),
                bell,
            });
            let sender = Arc::clone(&mailbox);
            let thread = std::thread::spawn(move || {
                for number in 1..=MESSAGES {
                    sender.sent.store(number, Ordering::Release);
                    fence(Ordering::SeqCst);
                    if sender.sleeping.load(Ordering::Relaxed) {
                        rustix::io::write(&sender.bell, &1u64.to_ne_bytes()).expect("ring");
                    }
                    if number % 3 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            let poller = Poller::new().expect("epoll");
            poller.registrar().add(mailbox.bell.as_fd()).expect("register");
            let mut reader = Reader { mailbox, taken: 0, until: MESSAGES };
            Loop::new(poller, idle, Clock::start()).run(&mut reader).expect("run");
            thread.join().expect("sender");
        }
    }
}
