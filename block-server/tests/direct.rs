//! A worker's engine over a file that is served directly.

#[path = "../../nvme/tests/direct_folder/mod.rs"]
mod direct_folder;

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block_core::time::Clock as RealClock;
use block_core::{Device, Pba};
use block_server::{Attached, Engine, NvmeEngine};
use nvme::soft::{FileIo, FileOptions};
use nvme::{Clock, LbaSize, SoftNamespace, SoftOptions};
use turn::{Idle, Poller};

/// A worker that sleeps at once, over a file that is served directly: it sleeps with
/// commands under way, more of them than the kernel takes at a time, and nothing but
/// their ends wakes it. One that is slept through hangs this test: nothing else ends a
/// sleep.
#[test]
fn a_thread_sleeps_while_the_kernel_reads_and_sleeps_through_nothing() {
    const DEPTH: usize = 300;
    let Some(folder) = direct_folder::direct_folder("sleeping with reads under way") else {
        return;
    };
    let path = folder.path().join("disk");
    // Holes are read at once: it must be data.
    File::create(&path).and_then(|file| file.write_all_at(&vec![7; 64 << 20], 0)).expect("a file");
    let options = FileOptions { path, create: None, io: FileIo::Direct };
    let disk = SoftNamespace::file(&options, LbaSize::B4096).expect("a namespace");
    let clock = RealClock::start();
    let clock: Clock = Arc::new(move || clock.now());
    let attached = vec![Attached::Soft(disk)];
    let made = NvmeEngine::over(None, SoftOptions::default(), attached, clock, Idle::Interrupt);
    let (mut engine, devices) = made.map_err(|(_, error)| error).expect("it starts");
    let poller = Poller::new().expect("an epoll");
    for bell in engine.bells() {
        poller.registrar().add(bell).expect("it can be waited for");
    }
    let pool = engine.pool(DEPTH, 4096).expect("memory");
    let mut context = Context::from_waker(Waker::noop());
    let mut slept = 0;
    for round in 0..40_u64 {
        let count = if round % 2 == 0 { 1 } else { DEPTH as u64 };
        let read = |at| {
            let buffer = pool.take().expect("free");
            Box::pin(devices[0].read(Pba((at * 37 + round) % 16384), buffer, 0..1))
        };
        let mut reads: Vec<_> = (0..count).map(read).collect();
        loop {
            reads.retain_mut(|read| match read.as_mut().poll(&mut context) {
                Poll::Ready((_, outcome)) => {
                    assert_eq!(outcome, Ok(()));
                    false
                }
                Poll::Pending => true,
            });
            engine.ring();
            let moved = engine.work() + engine.reap(&mut Vec::new());
            if reads.is_empty() {
                break;
            }
            if moved == 0 && !engine.is_busy() {
                poller.sleep(None).expect("it waits");
                slept += 1;
            }
        }
    }
    assert!(slept > 0, "it was never asleep");
}
