//! A controller with a driver on it, and what drives both in a test.
#![allow(dead_code)] // Each test binary uses a part.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use block_core::time::Clock as RealClock;
use block_core::{BlockCount, Buffer, Extent, Pba, Pool};
use nvme::soft::{Disorder, Runner};
use nvme::{Controller, LbaSize, Namespace, QueuePair, SoftController, SoftNamespace, SoftOptions};

/// Longer than any test waits for one outcome.
const PATIENCE: Duration = Duration::from_secs(20);

/// A clock of the real world for the driver.
pub(crate) fn clock() -> nvme::Clock {
    let clock = RealClock::start();
    Arc::new(move || clock.now())
}

/// A driver with one queue pair on a soft controller.
pub(crate) struct Rig {
    /// Dropped before the controller, which it waits for.
    pub(crate) queue: Rc<QueuePair>,
    pub(crate) controller: Controller,
    pub(crate) soft: Arc<SoftController>,
    pub(crate) runner: Option<Runner>,
}

/// Who drives the soft controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drive {
    Here,
    SecondThread,
}

impl Rig {
    pub(crate) fn new(options: SoftOptions, namespaces: Vec<SoftNamespace>, drive: Drive) -> Self {
        Self::with_depth(options, namespaces, drive, 64)
    }

    pub(crate) fn with_depth(
        options: SoftOptions,
        namespaces: Vec<SoftNamespace>,
        drive: Drive,
        depth: u16,
    ) -> Self {
        let soft = SoftController::new(options, namespaces);
        let (bus, runner) = match drive {
            Drive::Here => (soft.bus(), None),
            Drive::SecondThread => (soft.distant_bus(), Some(soft.spawn())),
        };
        let controller = Controller::start(bus, clock()).expect("the controller starts");
        let queue = controller.create_queue_pair(depth).expect("a queue pair");
        Self { queue, controller, soft, runner }
    }

    /// Over one megabyte of memory.
    pub(crate) fn small() -> Self {
        Self::new(SoftOptions::default(), vec![memory(256)], Drive::Here)
    }

    pub(crate) fn namespace(&self, id: u32) -> Namespace {
        let info = self.controller.namespace(id).expect("the namespace");
        Namespace::new(Rc::clone(&self.queue), &info)
    }

    pub(crate) fn pool(&self, count: usize, bytes: usize) -> Pool {
        self.controller.pool(count, bytes).expect("memory")
    }

    /// One round of a worker's loop.
    pub(crate) fn turn(&self) -> usize {
        self.queue.ring();
        let worked = if self.runner.is_none() { self.soft.work() } else { 0 };
        let reaped = self.queue.reap();
        if self.runner.is_some() && reaped == 0 {
            std::thread::yield_now();
        }
        worked + reaped
    }

    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let start = Instant::now();
        loop {
            if let Poll::Ready(output) = poll(future.as_mut()) {
                return output;
            }
            self.turn();
            assert!(start.elapsed() < PATIENCE, "no outcome");
        }
    }
}

/// Polls once; nobody is woken, the caller polls again.
pub(crate) fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A namespace of memory with 4096-byte blocks.
pub(crate) fn memory(blocks: u64) -> SoftNamespace {
    SoftNamespace::memory(blocks * 4096, LbaSize::B4096).expect("memory")
}

pub(crate) fn disorder(seed: u64) -> SoftOptions {
    let disorder = Disorder { seed, held: 24, delay: 2 };
    SoftOptions { disorder: Some(disorder), ..SoftOptions::default() }
}

pub(crate) fn filled(pool: &Pool, byte: u8) -> Buffer {
    let mut buffer = pool.take().expect("a free buffer");
    buffer.fill(byte);
    buffer
}

pub(crate) fn extent(start: u64, count: u64) -> Extent {
    Extent { start: Pba(start), count: BlockCount(count) }
}
