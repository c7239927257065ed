//! How much driver and soft controller cost together: random reads and writes
//! of 4 KiB, 32 at a time, in one thread. Run it with `--release`.
//!
//! With a number of requests as argument it does one short run of reads, for
//! a tool that counts instructions. What submitting and reaping cost, the soft
//! controller excluded:
//!
//! ```sh
//! cargo build --release -p nvme --example rate
//! valgrind --tool=callgrind --toggle-collect='*rate::turn*' target/release/examples/rate 20000
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use block_core::device::{Device, Durability};
use block_core::time::Clock;
use block_core::{BlockError, Buffer, Pba};
use nvme::soft::FileOptions;
use nvme::{Controller, LbaSize, Namespace, QueuePair, SoftController, SoftNamespace, SoftOptions};

const DEPTH: usize = 32;
const REQUESTS: u64 = 2_000_000;
const ROUNDS: usize = 5;
/// 32 MiB, and 1 GiB: with and without the help of caches.
const SIZES: [u64; 2] = [32 << 20, 1 << 30];

fn main() {
    if let Some(requests) = std::env::args().nth(1) {
        let requests = requests.parse().expect("a number of requests");
        println!("{:.0} ns", measure(memory(1 << 20), false, requests));
        return;
    }
    for bytes in SIZES {
        report(&format!("{} MiB of memory", bytes >> 20), || memory(bytes));
    }
    // A mapped file where there is a tmpfs, so that no disk is measured.
    if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
        let options = FileOptions { path: folder.path().join("disk"), create: Some(SIZES[0]) };
        let open = || SoftNamespace::file(&options, LbaSize::B4096).expect("a namespace");
        report(&format!("{} MiB of a file", SIZES[0] >> 20), open);
    }
}

fn report(name: &str, namespace: impl Fn() -> SoftNamespace) {
    for (kind, writes) in [("read", false), ("write", true)] {
        let mut nanos: Vec<f64> =
            (0..ROUNDS).map(|_| measure(namespace(), writes, REQUESTS)).collect();
        nanos.sort_by(f64::total_cmp);
        let (best, median) = (nanos[0], nanos[ROUNDS / 2]);
        println!("{name}, {kind}: best {best:.0} ns, median {median:.0} ns");
    }
}

/// The driver's part of a turn, apart from the soft controller's, so that a tool can
/// count it by its name.
#[inline(never)]
fn turn<R: Future<Output = (Buffer, Result<(), BlockError>)>>(
    queue: &QueuePair,
    slots: &mut [Pin<Box<R>>],
    context: &mut Context<'_>,
    mut again: impl FnMut(Buffer) -> R,
) -> u64 {
    let mut done = 0;
    queue.reap();
    for slot in slots {
        if let Poll::Ready((buffer, outcome)) = slot.as_mut().poll(context) {
            outcome.expect("no error");
            done += 1;
            slot.set(again(buffer));
            let _ = slot.as_mut().poll(context);
        }
    }
    queue.ring();
    done
}

fn memory(bytes: u64) -> SoftNamespace {
    SoftNamespace::memory(bytes, LbaSize::B4096).expect("memory")
}

fn measure(namespace: SoftNamespace, writes: bool, requests: u64) -> f64 {
    let soft = SoftController::new(SoftOptions::default(), vec![namespace]);
    let clock = Clock::start();
    let controller = Controller::start(soft.bus(), Arc::new(move || clock.now()));
    let controller = controller.expect("the soft controller starts");
    let queue = controller.create_queue_pair(DEPTH as u16).expect("a queue pair");
    let info = controller.namespace(1).expect("the namespace");
    let namespace = Namespace::new(queue.clone(), &info);
    let pool = controller.pool(DEPTH, 4096).expect("memory");
    let blocks = namespace.blocks().0;
    let mut context = Context::from_waker(Waker::noop());
    let mut random = 1_u64;
    let request = |buffer: Buffer, at: u64| {
        let namespace = &namespace;
        async move {
            if writes {
                namespace.write(Pba(at), buffer, 0..1, Durability::Cached).await
            } else {
                namespace.read(Pba(at), buffer, 0..1).await
            }
        }
    };
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % blocks
    };
    // Touch every page once, so that the kernel's work is not measured.
    for at in 0..blocks {
        let buffer = pool.take().expect("a free buffer");
        let mut write = Box::pin(namespace.write(Pba(at), buffer, 0..1, Durability::Cached));
        while write.as_mut().poll(&mut context).is_pending() {
            queue.ring();
            soft.work();
            queue.reap();
        }
    }
    let mut slots: Vec<_> =
        (0..DEPTH).map(|_| Box::pin(request(pool.take().expect("free"), next()))).collect();
    let start = Instant::now();
    let mut done = 0;
    while done < requests {
        done += turn(&queue, &mut slots, &mut context, |buffer| request(buffer, next()));
        soft.work();
    }
    start.elapsed().as_nanos() as f64 / done as f64
}
