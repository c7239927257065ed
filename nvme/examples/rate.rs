//! How much driver and soft controller cost together: random reads and writes
//! of 4 KiB, 32 at a time, in one thread. Run it with `--release`.
//!
//! What the driver takes by itself `make bench` counts.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use block_core::device::{Device, Durability};
use block_core::time::Clock;
use block_core::{BlockError, Buffer, Pba, Pool};
use nvme::soft::{FileIo, FileOptions};
use nvme::{Controller, LbaSize, Namespace, QueuePair, SoftController, SoftNamespace, SoftOptions};

const DEPTH: usize = 32;
const REQUESTS: u64 = 2_000_000;
const ROUNDS: usize = 5;
const KINDS: [&str; 2] = ["read", "write"];
/// 32 MiB, and 1 GiB: with and without the help of caches.
const SIZES: [u64; 2] = [32 << 20, 1 << 30];

fn main() {
    for bytes in SIZES {
        report(&format!("{} MiB of memory", bytes >> 20), || memory(bytes));
    }
    // A mapped file where there is a tmpfs, so that no disk is measured.
    if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
        let options = FileOptions {
            path: folder.path().join("disk"),
            create: Some(SIZES[0]),
            io: FileIo::Auto,
        };
        let open = || SoftNamespace::file(&options, LbaSize::B4096).expect("a namespace");
        report(&format!("{} MiB of a file", SIZES[0] >> 20), open);
    }
}

fn report(name: &str, namespace: impl Fn() -> SoftNamespace) {
    for kind in KINDS {
        let mut nanos: Vec<f64> =
            (0..ROUNDS).map(|_| measure(namespace(), kind, REQUESTS)).collect();
        nanos.sort_by(f64::total_cmp);
        let (best, median) = (nanos[0], nanos[ROUNDS / 2]);
        println!("{name}, {kind}: best {best:.0} ns, median {median:.0} ns");
    }
}

fn memory(bytes: u64) -> SoftNamespace {
    SoftNamespace::memory(bytes, LbaSize::B4096).expect("memory")
}

/// Nanoseconds of a request.
fn measure(namespace: SoftNamespace, kind: &str, requests: u64) -> f64 {
    let soft = SoftController::new(SoftOptions::default(), vec![namespace]);
    let clock = Clock::start();
    let controller = Controller::start(soft.bus(), Arc::new(move || clock.now()));
    let controller = controller.expect("the soft controller starts");
    let queue = controller.create_queue_pair(DEPTH as u16).expect("a queue pair");
    let info = controller.namespace(1).expect("the namespace");
    let namespace = Namespace::new(queue.clone(), &info);
    let pool = controller.pool(DEPTH, 4096).expect("memory");
    let blocks = namespace.blocks().0;
    // Touch every page once, so that the kernel's work is not measured.
    let mut context = Context::from_waker(Waker::noop());
    for at in 0..blocks {
        let buffer = pool.take().expect("a free buffer");
        let mut write = Box::pin(namespace.write(Pba(at), buffer, 0..1, Durability::Cached));
        while write.as_mut().poll(&mut context).is_pending() {
            queue.ring();
            soft.work();
            queue.reap();
        }
    }
    let mut random = 1_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Pba((random >> 33) % blocks)
    };
    if kind == "read" {
        let begin = |buffer| namespace.read(next(), buffer, 0..1);
        return drive(&soft, &queue, &pool, requests, begin);
    }
    let begin = |buffer| namespace.write(next(), buffer, 0..1, Durability::Cached);
    drive(&soft, &queue, &pool, requests, begin)
}

fn drive<R: Future<Output = (Buffer, Result<(), BlockError>)>>(
    soft: &SoftController,
    queue: &QueuePair,
    pool: &Pool,
    requests: u64,
    mut begin: impl FnMut(Buffer) -> R,
) -> f64 {
    let mut context = Context::from_waker(Waker::noop());
    let mut slots: Vec<_> =
        (0..DEPTH).map(|_| Box::pin(begin(pool.take().expect("free")))).collect();
    let start = Instant::now();
    let mut done = 0;
    while done < requests {
        queue.reap();
        for slot in &mut slots {
            if let Poll::Ready((buffer, outcome)) = slot.as_mut().poll(&mut context) {
                outcome.expect("no error");
                done += 1;
                slot.set(begin(buffer));
                let _ = slot.as_mut().poll(&mut context);
            }
        }
        queue.ring();
        soft.work();
    }
    start.elapsed().as_nanos() as f64 / done as f64
}
