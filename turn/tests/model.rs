//! The code by which threads wake each other, in every order in which their
//! accesses to memory can take effect (loom). The modules are those of the crate,
//! compiled here once more over loom's atomics.

#[path = "../src/ready.rs"]
#[allow(dead_code)]
mod ready;
mod sleepers;
#[path = "../src/wait.rs"]
mod wait;

/// In the place of the crate's own.
mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;

use atomic::{AtomicU64, Ordering, fence};
use ready::Ready;
use sleepers::{Bell, model};
pub(crate) use turn::Station;

/// A source that rings only whom it sees announce a sleep: a guest's ring, a wire
/// in memory.
struct Source {
    sent: AtomicU64,
    sleeping: AtomicBool,
    bell: Bell,
}

impl Source {
    fn send(&self, number: u64) {
        self.sent.store(number, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            self.bell.ring();
        }
    }
}

struct Reader {
    source: Arc<Source>,
    taken: u64,
    until: u64,
}

impl Station for Reader {
    fn turn(&mut self, _: block_core::Time) -> bool {
        let sent = self.source.sent.load(Ordering::Acquire);
        std::mem::replace(&mut self.taken, sent) != sent
    }

    fn announce_sleep(&mut self) {
        self.source.sleeping.store(true, Ordering::Relaxed);
    }

    fn has_work(&mut self) -> bool {
        self.source.sent.load(Ordering::Acquire) != self.taken
    }

    fn retract_sleep(&mut self) {
        self.source.sleeping.store(false, Ordering::Relaxed);
    }

    fn deadline(&self) -> Option<block_core::Time> {
        None
    }

    fn is_stopped(&self) -> bool {
        self.taken == self.until
    }
}

/// The reader sleeps in every gap between two messages. A wake-up that is lost in
/// any order leaves it there for ever, which loom reports as a deadlock; without
/// either fence it does.
#[test]
fn a_sleep_is_never_slept_through() {
    const MESSAGES: u64 = 2;
    model(|| {
        let source = Arc::new(Source {
            sent: AtomicU64::new(0),
            sleeping: AtomicBool::new(false),
            bell: Bell::default(),
        });
        let sender = Arc::clone(&source);
        let thread = loom::thread::spawn(move || {
            for number in 1..=MESSAGES {
                sender.send(number);
            }
        });
        let mut reader = Reader { source, taken: 0, until: MESSAGES };
        while !reader.is_stopped() {
            if !reader.turn(block_core::Time::ZERO) {
                let wait = |reader: &Reader| {
                    reader.source.bell.wait();
                    Ok::<_, std::convert::Infallible>(())
                };
                wait::sleep(&mut reader, wait).unwrap_or_else(|never| match never {});
            }
        }
        thread.join().expect("no panic");
    });
}

/// Takes all tasks there are, as the executor does.
fn take(ready: &Ready, taken: &mut Vec<usize>) {
    for group in 0..ready.groups() {
        let mut words = ready.take_group(group);
        while words != 0 {
            let word = group * ready::BITS + words.trailing_zeros() as usize;
            words &= words - 1;
            let mut tasks = ready.take_word(word);
            while tasks != 0 {
                taken.push(word * ready::BITS + tasks.trailing_zeros() as usize);
                tasks &= tasks - 1;
            }
        }
    }
}

/// Two threads wake tasks of one word while the owner takes them: a task whose bit
/// is set in its word but not above would never run.
#[test]
fn a_woken_task_is_always_found() {
    model(|| {
        let ready = Arc::new(Ready::new(ready::BITS));
        let wakers = [0, 1].map(|task| {
            let ready = Arc::clone(&ready);
            loom::thread::spawn(move || ready.set(task))
        });
        let mut taken = Vec::new();
        take(&ready, &mut taken);
        for waker in wakers {
            waker.join().expect("no panic");
        }
        let left = 2 - taken.len();
        assert_eq!(ready.any(), left > 0, "{taken:?} ran");
        take(&ready, &mut taken);
        taken.sort_unstable();
        assert_eq!(taken, [0, 1], "each once");
        assert!(!ready.any());
    });
}
