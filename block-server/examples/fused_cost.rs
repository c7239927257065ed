//! What does a request cost below the guest's rings, when front and worker
//! share a thread? `cargo run --release -p block-server --example fused_cost`
//! prints the processor's time for reads and writes of 4 KiB at two depths.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use block_core::time::Clock;
use block_core::{BlockError, Op, SectorRange, Time};
use block_server::catalog::Formatting;
use block_server::{
    Chance, Directory, Errand, Limits, LocalPath, Mailbox, NvmeEngine, Owned, Place, Size, Worker,
    WorkerIndex,
};
use link::{
    Access, AttachReply, AttachRequest, FrontId, Guest, Part, Path, Source, Token, VolumeHandle,
    VolumeName,
};
use nvme::{LbaSize, SoftNamespace, SoftOptions};

const BLOCKS: u64 = 65_536;
const REQUESTS: usize = 300_000;

/// A guest with a page for each token.
struct Pages {
    memory: Vec<u8>,
    free: Vec<u64>,
    ended: usize,
}

impl Source for Pages {
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError> {
        let from = token.0 as usize * 4096;
        into.copy_from_slice(&self.memory[from..from + into.len()]);
        Ok(())
    }
}

impl Guest for Pages {
    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]) {
        let from = token.0 as usize * 4096 + offset;
        self.memory[from..from + bytes.len()].copy_from_slice(bytes);
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        outcome.expect("a request that works");
        self.free.push(token.0);
        self.ended += 1;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let clock = Clock::start();
    let namespace = SoftNamespace::memory(320 << 20, LbaSize::B4096)?;
    let (engine, devices) =
        NvmeEngine::soft(SoftOptions::default(), vec![namespace], Arc::new(move || clock.now()))?;
    let owned = devices.into_iter().map(|device| Owned::raw("memory", device, Formatting::IfBlank));
    let mailbox = Mailbox::new()?;
    let place = Place {
        worker: WorkerIndex(0),
        directory: Arc::new(Directory::default()),
        mailbox: Arc::clone(&mailbox),
        chance: Chance::new(rand::random),
        wall: || 0,
    };
    let worker = Worker::start(engine, owned.collect(), place, Limits::default())?;
    let mut path = LocalPath::new(worker, FrontId([1; 16]), 1, 128);
    let volume = attach(&mut path, &mailbox)?;
    for (op, name) in [(Op::Write, "write"), (Op::Read, "read")] {
        for depth in [1, 32] {
            let best = (0..9).map(|_| run(&mut path, volume, op, depth)).fold(f64::MAX, f64::min);
            println!("{name:>5}, depth {depth:>2}: {best:.0} ns per request");
        }
    }
    Ok(())
}

fn attach(
    path: &mut LocalPath<NvmeEngine>,
    mailbox: &Mailbox,
) -> Result<VolumeHandle, Box<dyn Error>> {
    let name = VolumeName::new("disk")?;
    let (answer, mut outcome) = tokio::sync::oneshot::channel();
    mailbox.send(Errand::Create {
        device: "memory".to_owned(),
        name: name.clone(),
        size: Size(BLOCKS * 4096),
        read_only: false,
        domain: None,
        answer,
    });
    let mut pages = Pages { memory: Vec::new(), free: Vec::new(), ended: 0 };
    while outcome.is_empty() {
        path.turn(Time::ZERO, &mut pages);
    }
    outcome.try_recv()??;
    match path.attach(AttachRequest::new(name, Access::Write)) {
        AttachReply::Attached(attached) => Ok(attached.handle),
        other => Err(format!("{other:?}").into()),
    }
}

fn run(path: &mut LocalPath<NvmeEngine>, volume: VolumeHandle, op: Op, depth: u64) -> f64 {
    let memory = vec![7; depth as usize * 4096];
    let mut pages = Pages { memory, free: (0..depth).collect(), ended: 0 };
    let (mut random, mut submitted) = (1u64, 0);
    let begun = cpu_time();
    while pages.ended < REQUESTS {
        while submitted < REQUESTS
            && let Some(token) = pages.free.pop()
        {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let range = SectorRange::new((random >> 40) % BLOCKS * 8, 8);
            let part = Part { token: Token(token), volume, op, range };
            if path.submit(Time::ZERO, part, &mut pages).is_err() {
                pages.free.push(token);
                break;
            }
            submitted += 1;
        }
        path.turn(Time::ZERO, &mut pages);
    }
    (cpu_time() - begun).as_nanos() as f64 / REQUESTS as f64
}

/// What this thread has used; unlike the clock's time, not what others did
/// meanwhile.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
