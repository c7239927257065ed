//! The ring between two processes, in every order in which their accesses to memory
//! can take effect (loom): the wire's own module, compiled here once more.

#[path = "../src/wire/shared/ring.rs"]
#[allow(dead_code)]
mod ring;
#[path = "../../turn/tests/sleepers/mod.rs"]
mod sleepers;

/// In the place of the crate's own.
mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};
}

use atomic::{AtomicU32, Ordering, fence};
use loom::sync::Arc;
use ring::{Reader, Words, Writer};
use sleepers::{Bell, model};

#[derive(Default)]
struct Shared {
    head: AtomicU32,
    tail: AtomicU32,
    sleeping: AtomicU32,
    /// What is not seen in order is seen as it was before.
    slots: [AtomicU32; 2],
    bell: Bell,
}

impl Shared {
    fn words(&self) -> Words<'_> {
        Words { head: &self.head, tail: &self.tail, sleeping: &self.sleeping }
    }
}

/// Every frame is read as it was written, and the reader, which sleeps whenever it
/// finds nothing, is woken for the last one. Without a fence it is not, in some
/// order, and loom reports a deadlock.
#[test]
fn no_frame_is_slept_through() {
    const FRAMES: u32 = 2;
    model(|| {
        let shared = Arc::new(Shared::default());
        let writing = Arc::clone(&shared);
        let thread = loom::thread::spawn(move || {
            let mut writer = Writer::default();
            for number in 1..=FRAMES {
                let slot = writer.next(writing.words()).expect("no lie").expect("room");
                writing.slots[slot.index()].store(number, Ordering::Relaxed);
                if writer.publish(writing.words()) {
                    writing.bell.ring();
                }
            }
        });
        let (mut reader, mut taken) = (Reader::default(), 0);
        while taken < FRAMES {
            let mut count = 0;
            for slot in reader.filled(shared.words(), u32::MAX).expect("no lie") {
                taken += 1;
                count += 1;
                assert_eq!(shared.slots[slot.index()].load(Ordering::Relaxed), taken);
            }
            reader.give_back(shared.words(), count);
            if count == 0 {
                reader.announce(shared.words());
                fence(Ordering::SeqCst);
                if reader.filled(shared.words(), 1).expect("no lie").next().is_none() {
                    shared.bell.wait();
                }
                reader.retract(shared.words());
            }
        }
        thread.join().expect("no panic");
    });
}
