//! What the integration tests share: a path over memory, and a front that a
//! thread turns.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

pub mod front_end;
pub mod sys;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use block_core::time::Clock;
use block_core::{BlockError, Op, SECTOR_SIZE, Time};
use block_front::{DiskOptions, Front};
use link::path::Refusal;
use link::{Guest, Part, Path, Source, VolumeHandle};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

/// How a [`MemoryPath`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Turns that a part stays on its way.
    pub delay: u32,
    /// Whether parts, and the segments of a read, overtake each other.
    pub reorder: bool,
    /// Most parts on their way at once.
    pub slots: usize,
    /// Bytes that are placed with one call.
    pub segment: usize,
}

/// A path that is as good as paths get.
pub const SWIFT: Manners = Manners { delay: 0, reorder: false, slots: 64, segment: 128 << 10 };

/// A path that does everything that a path may do.
pub const RUDE: Manners = Manners { delay: 3, reorder: true, slots: 5, segment: 1368 };

/// Switches that a test turns while the front runs.
#[derive(Debug, Default)]
pub struct Switches {
    /// Nothing is answered.
    pub stalled: AtomicBool,
    /// Every part fails.
    pub failing: AtomicBool,
    /// How far the front's clock goes before the real one, in nanoseconds.
    pub ahead: AtomicU64,
    /// Parts in the order in which they were taken, when a test wants them.
    pub log: Mutex<Option<Vec<(Op, u64, u32)>>>,
}

struct UnderWay {
    part: Part,
    data: Vec<u8>,
    wait: u32,
}

/// A path over memory: each volume is a vector.
pub struct MemoryPath {
    volumes: Vec<Vec<u8>>,
    manners: Manners,
    under_way: Vec<UnderWay>,
    spare: Vec<Vec<u8>>,
    switches: Arc<Switches>,
    chance: u64,
}

impl MemoryPath {
    pub fn new(sectors: &[u64], manners: Manners, switches: Arc<Switches>) -> Self {
        let volumes = sectors.iter().map(|&count| vec![0; count as usize * SECTOR_SIZE]).collect();
        Self {
            volumes,
            manners,
            under_way: Vec::with_capacity(manners.slots),
            spare: (0..manners.slots).map(|_| vec![0; 128 << 10]).collect(),
            switches,
            chance: 0x9e37_79b9_7f4a_7c15,
        }
    }

    fn below(&mut self, count: usize) -> usize {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance % count as u64) as usize
    }

    fn run(&mut self, one: &UnderWay, guest: &mut impl Guest) -> Result<(), BlockError> {
        if self.switches.failing.load(Ordering::Relaxed) {
            return Err(BlockError::Medium);
        }
        let Some(range) = one.part.range else { return Ok(()) };
        let volume = &mut self.volumes[usize::from(one.part.volume.0)];
        let bytes = range.start() as usize * SECTOR_SIZE..range.end() as usize * SECTOR_SIZE;
        let bytes = volume.get_mut(bytes).ok_or(BlockError::OutOfRange)?;
        match one.part.op {
            Op::Read => {
                let segment = self.manners.segment;
                let count = bytes.len().div_ceil(segment);
                for number in 0..count {
                    let number = if self.manners.reorder { count - 1 - number } else { number };
                    let chunk = bytes.chunks(segment).nth(number).expect("counted");
                    guest.place(one.part.token, number * segment, chunk);
                }
            }
            Op::Write | Op::WriteThrough => bytes.copy_from_slice(&one.data[..bytes.len()]),
            Op::Discard | Op::WriteZeroes | Op::WriteZeroesUnmap | Op::WriteZeroesThrough => {
                bytes.fill(0);
            }
            Op::Flush => {}
        }
        Ok(())
    }
}

impl Path for MemoryPath {
    fn submit(&mut self, _: Time, part: Part, source: &mut impl Source) -> Result<(), Refusal> {
        let Some(mut data) = self.spare.pop() else { return Err(Refusal::Busy) };
        if part.op.carries_data() {
            let bytes = part.range.expect("a write has a range").bytes() as usize;
            if let Err(error) = source.fetch(part.token, &mut data[..bytes]) {
                self.spare.push(data);
                return Err(Refusal::Failed(error));
            }
        }
        if let Some(log) = &mut *self.switches.log.lock().expect("not poisoned") {
            let (start, count) = part.range.map_or((0, 0), |range| (range.start(), range.count()));
            log.push((part.op, start, count));
        }
        self.under_way.push(UnderWay { part, data, wait: self.manners.delay });
        Ok(())
    }

    fn turn(&mut self, _: Time, guest: &mut impl Guest) -> bool {
        if self.switches.stalled.load(Ordering::Relaxed) {
            return false;
        }
        let mut left = self.under_way.len();
        let moved = left > 0;
        for one in &mut self.under_way {
            one.wait = one.wait.saturating_sub(1);
        }
        while left > 0 {
            left -= 1;
            let at = if self.manners.reorder { self.below(self.under_way.len()) } else { 0 };
            if self.under_way[at].wait > 0 {
                continue;
            }
            let one = self.under_way.remove(at);
            let outcome = self.run(&one, guest);
            guest.complete(one.part.token, outcome);
            self.spare.push(one.data);
        }
        moved
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn abandon(&mut self, volume: VolumeHandle, guest: &mut impl Guest) {
        for at in (0..self.under_way.len()).rev() {
            if self.under_way[at].part.volume == volume {
                let one = self.under_way.remove(at);
                guest.complete(one.part.token, Err(BlockError::Unreachable));
                self.spare.push(one.data);
            }
        }
    }
}

/// How the thread spends its idle time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    Yield,
    Sleep,
    /// Nothing but a descriptor ends the sleep, for three seconds.
    SleepDeeply,
}

type Request = Box<dyn FnOnce(&mut Front) + Send>;

/// A front with some disks of equal size, turned by a thread.
pub struct World {
    pub sockets: Vec<PathBuf>,
    pub switches: Arc<Switches>,
    requests: Sender<Request>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<MemoryPath>>,
    directory: tempfile::TempDir,
}

impl World {
    pub fn new(
        disks: usize,
        sectors: u64,
        manners: Manners,
        idle: Idle,
        change: impl Fn(&mut DiskOptions),
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let sockets: Vec<_> =
            (0..disks).map(|disk| directory.path().join(format!("{disk}.sock"))).collect();
        let specs = sockets.iter().enumerate().map(|(disk, socket)| {
            let volume = VolumeHandle(disk as u16);
            let mut options = DiskOptions::new(format!("disk-{disk}"), socket, volume, sectors);
            change(&mut options);
            options.check().expect("a valid disk")
        });
        let mut front = Front::new(specs.collect()).expect("a front");
        let switches = Arc::new(Switches::default());
        let mut path = MemoryPath::new(&vec![sectors; disks], manners, Arc::clone(&switches));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (requests, asked) = channel::<Request>();
        let thread = std::thread::spawn(move || {
            let clock = Clock::start();
            while !stopped.load(Ordering::Relaxed) {
                while let Ok(request) = asked.try_recv() {
                    request(&mut front);
                }
                let ahead = Duration::from_nanos(path.switches.ahead.load(Ordering::Relaxed));
                if front.turn(clock.now() + ahead, &mut path) {
                    continue;
                }
                match idle {
                    Idle::Yield => std::thread::yield_now(),
                    Idle::Sleep => sleep(&mut front, 20),
                    Idle::SleepDeeply => sleep(&mut front, 3000),
                }
            }
            drop(front);
            path
        });
        Self { sockets, switches, requests, stop, thread: Some(thread), directory }
    }

    /// Runs `request` on the front's thread.
    pub fn ask(&self, request: impl FnOnce(&mut Front) + Send + 'static) {
        self.requests.send(Box::new(request)).expect("the thread lives");
    }

    /// Keeps the front's thread from turning until the answer is dropped.
    pub fn hold(&self) -> Sender<()> {
        let (release, released) = channel();
        let (held, holds) = channel();
        self.ask(move |_| {
            held.send(()).expect("somebody waits");
            // It ends by being dropped.
            let _: Result<(), _> = released.recv();
        });
        holds.recv().expect("the thread lives");
        release
    }

    /// Ends the front; gives back what its path holds.
    pub fn end(mut self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        let path = self.thread.take().expect("once").join().expect("the front does not panic");
        for socket in &self.sockets {
            assert!(!socket.exists(), "the socket is removed at the end");
        }
        path.volumes
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            assert!(outcome.is_ok() || std::thread::panicking(), "the front does not panic");
        }
    }
}

/// A sleep as a real loop does it, but never longer than `most` milliseconds,
/// so that switches are seen.
fn sleep(front: &mut Front, most: i64) {
    front.announce_sleep();
    fence(Ordering::SeqCst);
    if !front.has_work() {
        let timeout = Timespec { tv_sec: most / 1000, tv_nsec: most % 1000 * 1_000_000 };
        let mut fds = [PollFd::from_borrowed_fd(front.wait_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).expect("poll");
    }
    front.retract_sleep();
}
