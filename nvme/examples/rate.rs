//! How much driver and soft controller cost together: random reads and writes
//! of 4 KiB, 32 at a time, in one thread. Run it with `--release`.
//!
//! `rate count` has valgrind count the instructions of a request, the soft controller's
//! left out: they are the same in every run. "loop" is this program's own share of them.

use std::future::Future;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use block_core::device::{Device, Durability};
use block_core::time::Clock;
use block_core::{BlockError, Buffer, Pba, Pool};
use nvme::soft::FileOptions;
use nvme::{Controller, LbaSize, Namespace, QueuePair, SoftController, SoftNamespace, SoftOptions};

const DEPTH: usize = 32;
const REQUESTS: u64 = 2_000_000;
const ROUNDS: usize = 5;
const KINDS: [&str; 2] = ["read", "write"];
const LOOP: &str = "loop";
/// Requests of which the instructions are counted.
const COUNTED: u64 = 20_000;
/// 32 MiB, and 1 GiB: with and without the help of caches.
const SIZES: [u64; 2] = [32 << 20, 1 << 30];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["count"] => return KINDS.into_iter().chain([LOOP]).for_each(count),
        ["serve", kind] => return serve(kind),
        _ => {}
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
    for kind in KINDS {
        let mut nanos: Vec<f64> =
            (0..ROUNDS).map(|_| measure(namespace(), kind, REQUESTS)).collect();
        nanos.sort_by(f64::total_cmp);
        let (best, median) = (nanos[0], nanos[ROUNDS / 2]);
        println!("{name}, {kind}: best {best:.0} ns, median {median:.0} ns");
    }
}

/// What callgrind watches.
fn serve(kind: &str) {
    measure(memory(1 << 20), kind, COUNTED);
}

/// Instructions of one request between submission and outcome.
fn count(kind: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let program = std::env::current_exe().expect("this program");
    let outcome = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*rate::turn*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["serve", kind])
        .output()
        .expect("valgrind starts: it must be installed");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stderr));
    let listing = std::fs::read_to_string(&out).expect("callgrind's file");
    let total = listing.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: f64 = total.expect("a total").trim().parse().expect("a number");
    println!("{kind}: {:.0} instructions", total / COUNTED as f64);
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
    if kind == LOOP {
        let begin = |buffer| Nothing(Some(buffer), Some(next()));
        return drive(&soft, &queue, &pool, requests, begin);
    }
    if kind == "read" {
        let begin = |buffer| namespace.read(next(), buffer, 0..1);
        return drive(&soft, &queue, &pool, requests, begin);
    }
    let begin = |buffer| namespace.write(next(), buffer, 0..1, Durability::Cached);
    drive(&soft, &queue, &pool, requests, begin)
}

/// A request that nobody serves: under way when it is polled first, and then done.
struct Nothing(Option<Buffer>, Option<Pba>);

impl Future for Nothing {
    type Output = (Buffer, Result<(), BlockError>);

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.1.take() {
            Some(_) => Poll::Pending,
            None => Poll::Ready((self.0.take().expect("polled until it is done"), Ok(()))),
        }
    }
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
        done += turn(queue, &mut slots, &mut context, &mut begin);
        soft.work();
    }
    start.elapsed().as_nanos() as f64 / done as f64
}
