//! The driver against a controller that lies.
//!
//! Its admin queue is honest, so that it comes up; on the I/O queue it writes
//! what it likes. The driver must not panic, must not end a command twice, and
//! must not let go of a buffer whose command has not ended.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use block_core::device::{Device, Durability};
use block_core::{BlockError, DmaMemory, Pba, Time};
use proptest::prelude::*;

use crate::completion::{COMPLETION_WORDS, Completion, Status};
use crate::registers::DOORBELLS;
use crate::sys::Words;
use crate::{
    Bus, Controller, LbaSize, Namespace, SoftController, SoftNamespace, SoftOptions, StartError,
};

const DEPTH: u16 = 7;
const ENTRIES: u32 = 8;
/// The admin queue has three pieces of memory; then come the queue pair's
/// submission ring and its completion ring.
const COMPLETION_RING: usize = 4;

/// A sound controller whose I/O doorbells lead nowhere.
struct LyingBus {
    inner: Arc<dyn Bus>,
    allocated: Mutex<Vec<DmaMemory>>,
}

impl Bus for LyingBus {
    fn read32(&self, offset: u32) -> u32 {
        self.inner.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        if offset < DOORBELLS + 8 {
            self.inner.write32(offset, value);
        }
    }

    fn allocate(&self, bytes: usize) -> std::io::Result<DmaMemory> {
        let dma = self.inner.allocate(bytes)?;
        self.allocated.lock().expect("no panic").push(dma.clone());
        Ok(dma)
    }

    fn cut_off(&self) {
        self.inner.cut_off();
    }

    fn relax(&self) {
        self.inner.relax();
    }
}

/// Time passes whenever someone looks.
fn clock() -> crate::Clock {
    let now = AtomicU64::new(0);
    Arc::new(move || Time::from_nanos(now.fetch_add(1_000_000, Ordering::Relaxed)))
}

fn start() -> (Controller, Arc<LyingBus>) {
    let namespace = SoftNamespace::memory(1 << 20, LbaSize::B4096).expect("memory");
    let soft = SoftController::new(SoftOptions::default(), vec![namespace]);
    let bus = Arc::new(LyingBus { inner: soft.bus(), allocated: Mutex::default() });
    let controller = Controller::start(Arc::clone(&bus) as Arc<dyn Bus>, clock());
    (controller.expect("the admin queue is honest"), bus)
}

/// What the controller writes next: an entry, or a repetition of its last.
#[derive(Clone, Debug)]
struct Lie {
    id: u16,
    queue: u16,
    status_bits: u16,
    head: u16,
}

fn lies() -> impl Strategy<Value = Vec<Lie>> {
    // Identifiers near those in use, so that some lies are true.
    let id = prop_oneof![3 => (0..8_u16, 0..4_u16).prop_map(|(place, uses)| uses << 10 | place),
                         1 => any::<u16>()];
    let queue = prop_oneof![3 => Just(1_u16), 1 => any::<u16>()];
    // A command that was aborted would run again, instead of ending.
    let is_abort = |bits: u16| bits & 0x7fff == 0x0007;
    let status = any::<u16>().prop_map(move |bits| if is_abort(bits) { 0 } else { bits });
    let lie = (id, queue, prop_oneof![Just(0), status], any::<u16>());
    let lie = lie.prop_map(|(id, queue, status_bits, head)| Lie { id, queue, status_bits, head });
    prop::collection::vec(lie, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lies_end_no_command_twice_and_free_no_buffer_early(lies in lies()) {
        let (controller, bus) = start();
        let queue = controller.create_queue_pair(DEPTH).expect("a queue pair");
        let ring = Words::all(&bus.allocated.lock().expect("no panic")[COMPLETION_RING]);
        let pool = controller.pool(usize::from(DEPTH), 4096).expect("memory");
        let info = controller.namespace(1).expect("the namespace");
        let namespace = Namespace::new(queue.clone(), &info);
        let mut context = Context::from_waker(Waker::noop());
        type Write<'a> = Pin<Box<dyn Future<Output = (block_core::Buffer, Result<(), BlockError>)> + 'a>>;
        let mut requests: Vec<Write<'_>> = Vec::new();
        let mut true_ones = 0;
        for (number, lie) in lies.iter().enumerate() {
            while let Some(buffer) = pool.take() {
                let mut write: Write<'_> =
                    Box::pin(namespace.write(Pba(0), buffer, 0..1, Durability::Cached));
                prop_assert!(write.as_mut().poll(&mut context).is_pending());
                requests.push(write);
            }
            let before = queue.counters();
            let place = number as u32 % ENTRIES;
            let phase = (number as u32 / ENTRIES).is_multiple_of(2);
            let entry = Completion {
                result: 0,
                submission_head: lie.head,
                submission_queue: lie.queue,
                command_id: lie.id,
                status: Status::SUCCESS,
            };
            let [first, last] = entry.to_words(phase);
            let last = last | u64::from(lie.status_bits) << 49;
            ring.store(place as usize * COMPLETION_WORDS, first, Ordering::Relaxed);
            ring.store(place as usize * COMPLETION_WORDS + 1, last, Ordering::Release);
            prop_assert_eq!(queue.reap(), 1);
            queue.ring();
            let after = queue.counters();
            let ended = after.ended - before.ended;
            prop_assert_eq!(ended + after.unexpected - before.unexpected, 1);
            prop_assert!(lie.queue == queue.id() || ended == 0, "another queue's entry");
            true_ones += ended;
            let mut done = 0;
            requests.retain_mut(|request| match request.as_mut().poll(&mut context) {
                Poll::Ready(_) => { done += 1; false }
                Poll::Pending => true,
            });
            prop_assert_eq!(done, ended);
            prop_assert_eq!(queue.in_flight() + pool.available(), usize::from(DEPTH));
        }
        prop_assert_eq!(queue.counters().ended, true_ones);
        // A reset proves that the controller has let go of the rest.
        controller.reset().expect("the admin queue is honest");
        let rest = queue.in_flight();
        prop_assert_eq!(queue.reap(), rest);
        for request in &mut requests {
            let Poll::Ready((_, outcome)) = request.as_mut().poll(&mut context) else {
                return Err(TestCaseError::fail("a command survived the reset"));
            };
            // The reset may also have cost what was answered before.
            prop_assert_eq!(outcome, Err(BlockError::Lost));
        }
        prop_assert_eq!(pool.available(), usize::from(DEPTH));
    }
}

/// The controller never answers on its admin queue: start-up ends with a
/// sentence, in bounded time, and the memory it may still write to is not freed
/// while it runs.
#[test]
fn a_silent_controller_is_given_up_with_a_sentence() {
    struct Deaf(Arc<dyn Bus>);
    impl Bus for Deaf {
        fn read32(&self, offset: u32) -> u32 {
            self.0.read32(offset)
        }
        fn write32(&self, offset: u32, value: u32) {
            if offset < DOORBELLS {
                self.0.write32(offset, value);
            }
        }
        fn allocate(&self, bytes: usize) -> std::io::Result<DmaMemory> {
            self.0.allocate(bytes)
        }
        fn cut_off(&self) {
            self.0.cut_off();
        }
        fn relax(&self) {
            self.0.relax();
        }
    }
    let soft = SoftController::new(SoftOptions::default(), Vec::new());
    let error = Controller::start(Arc::new(Deaf(soft.bus())), clock()).err().expect("no answer");
    assert!(matches!(error, StartError::NoAnswer { command: "identify", .. }), "{error}");
}

#[test]
fn registers_of_ones_and_of_zeroes_are_no_controller() {
    struct Constant(u32);
    impl Bus for Constant {
        fn read32(&self, _: u32) -> u32 {
            self.0
        }
        fn write32(&self, _: u32, _: u32) {}
        fn allocate(&self, bytes: usize) -> std::io::Result<DmaMemory> {
            DmaMemory::private(bytes)
        }
        fn cut_off(&self) {}
        fn relax(&self) {}
    }
    let error = |value| Controller::start(Arc::new(Constant(value)), clock()).err().expect("none");
    assert!(matches!(error(u32::MAX), StartError::Gone));
    assert!(matches!(error(0), StartError::NoBlockCommands));
    // Capabilities that look right, and a status that never changes.
    let stuck = error(0x0000_0021 | 1 << 5);
    assert!(matches!(stuck, StartError::Silent { .. } | StartError::NoAnswer { .. }), "{stuck}");
}
