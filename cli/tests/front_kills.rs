//! `vrio front` is killed again and again under a driver that checks what it
//! reads. The driver keeps what QEMU keeps: its rings, and the in-flight area.

#[allow(dead_code, unreachable_pub)] // the front's own tests use the rest
#[path = "../../block-front/tests/world/front_end.rs"]
mod front_end;
mod stand;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io};

use front_end::{ALL, DATA, EVENT_IDX, FrontEnd, Guest, IN, MEMORY, OUT, Ring, SIZE, USER};
use front_end::{bytes, state};
use stand::{Process, Stand, vrio};
use vhost::vhost_user::message::FrontendReq as Req;

const FLUSH: u32 = 4;

/// Requests under way at once; each place has blocks of its own.
const DEPTH: u16 = 32;
const BLOCKS: u64 = 4096;
const BLOCK: usize = 4096;

/// How often the front is killed: `VRIO_FRONT_KILLS`.
fn kills() -> u64 {
    match std::env::var("VRIO_FRONT_KILLS") {
        Ok(count) => count.parse().expect("VRIO_FRONT_KILLS is a number"),
        Err(_) => 10,
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % count
    }
}

/// What the two threads tell each other.
#[derive(Default)]
struct Shared {
    /// Requests that came back.
    ended: AtomicU64,
    /// Fronts that were killed, and of how many of them the driver has taken
    /// all answers.
    killed: AtomicU64,
    drained: AtomicU64,
    stop: AtomicBool,
    failed: AtomicBool,
}

/// What a place has under way.
#[derive(Clone, Copy)]
enum Doing {
    Nothing,
    Read(u64),
    Write(u64, u64),
    Flush,
}

/// A driver, and what it knows of the disk.
struct Driver<'a> {
    guest: &'a Guest,
    ring: Ring<'a>,
    area: Option<(Vec<u8>, OwnedFd)>,
    doing: [Doing; DEPTH as usize],
    /// The stamp of each block's last write.
    written: Vec<u64>,
    stamp: u64,
    chance: Chance,
}

/// A block's content after a write.
fn content(block: u64, stamp: u64) -> Vec<u8> {
    if stamp == 0 {
        return vec![0; BLOCK];
    }
    let words = (0..BLOCK as u64 / 8).map(|word| block << 40 ^ stamp << 12 ^ word);
    words.flat_map(u64::to_ne_bytes).collect()
}

impl<'a> Driver<'a> {
    fn new(guest: &'a Guest) -> Self {
        Self {
            guest,
            ring: Ring::new(guest, 0),
            area: None,
            doing: [Doing::Nothing; DEPTH as usize],
            written: vec![0; BLOCKS as usize],
            stamp: 0,
            chance: Chance(0x9e37_79b9_7f4a_7c15),
        }
    }

    /// Connects as QEMU does. Any answer may be missing: then the front was
    /// killed, and there will be another.
    fn connect(&mut self, socket: &Path) -> io::Result<FrontEnd> {
        let front_end = FrontEnd { socket: UnixStream::connect(socket)? };
        front_end.socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let ask = |request| {
            front_end.send(request, 1, &[], &[])?;
            front_end.answer()
        };
        let tell = |request, body: &[u8], fds: &[BorrowedFd<'_>]| {
            front_end.send(request, 0b1001, body, fds)?;
            let answer = front_end.answer()?;
            if answer != bytes(&[0]) {
                return Err(io::Error::other(format!("{request:?} was refused")));
            }
            Ok(())
        };
        ask(Req::GET_FEATURES)?;
        let protocol = ask(Req::GET_PROTOCOL_FEATURES)?;
        front_end.send(Req::SET_PROTOCOL_FEATURES, 1, &protocol, &[])?;
        tell(Req::SET_FEATURES, &bytes(&[ALL | EVENT_IDX]), &[])?;
        let (body, file) = self.area.get_or_insert_with(|| front_end.area(1, SIZE));
        tell(Req::SET_INFLIGHT_FD, body, &[file.as_fd()])?;
        let table = bytes(&[1, 0, MEMORY as u64, USER, 0]);
        tell(Req::SET_MEM_TABLE, &table, &[self.guest.file.as_fd()])?;
        tell(Req::SET_VRING_NUM, &state(0, SIZE.into()), &[])?;
        tell(Req::SET_VRING_BASE, &state(0, self.ring.used_index().into()), &[])?;
        tell(Req::SET_VRING_ADDR, &self.ring.addresses(), &[])?;
        tell(Req::SET_VRING_CALL, &bytes(&[0]), &[self.ring.call.as_fd()])?;
        tell(Req::SET_VRING_KICK, &bytes(&[0]), &[self.ring.kick.as_fd()])?;
        tell(Req::SET_VRING_ENABLE, &state(0, 1), &[])?;
        Ok(front_end)
    }

    /// Connects to a front that is about to listen.
    fn await_connection(&mut self, socket: &Path) -> FrontEnd {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            match self.connect(socket) {
                Ok(connection) => return connection,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes what has come back; a wrong answer ends the test.
    fn reap(&mut self) -> u64 {
        let mut ended = 0;
        while let Some((head, _)) = self.ring.take_used() {
            let place = head as usize / 3;
            let doing = std::mem::replace(&mut self.doing[place], Doing::Nothing);
            assert_eq!(self.guest.status(place as u64), 0, "no request fails");
            match doing {
                Doing::Nothing => panic!("{head} came back twice"),
                Doing::Read(block) => {
                    let expected = content(block, self.written[block as usize]);
                    let found = self.guest.get(DATA + 0x1000 * place as u64, BLOCK);
                    assert!(found == expected, "block {block} is not what was written");
                }
                Doing::Write(block, stamp) => self.written[block as usize] = stamp,
                Doing::Flush => {}
            }
            ended += 1;
        }
        ended
    }

    /// Gives each place that has nothing to do something.
    fn ask(&mut self) {
        for place in 0..DEPTH {
            if !matches!(self.doing[usize::from(place)], Doing::Nothing) {
                continue;
            }
            let block = u64::from(place) + u64::from(DEPTH) * self.chance.below(BLOCKS / 32);
            match self.chance.below(20) {
                0 => self.request(place, FLUSH, block, Doing::Flush),
                1..8 => self.request(place, IN, block, Doing::Read(block)),
                _ => {
                    self.stamp += 1;
                    let doing = Doing::Write(block, self.stamp);
                    self.request(place, OUT, block, doing);
                }
            }
        }
    }

    fn request(&mut self, place: u16, kind: u32, block: u64, doing: Doing) {
        let head = self.ring.prepare(place, kind, block * 8, BLOCK as u32);
        let data = DATA + 0x1000 * u64::from(place);
        match doing {
            Doing::Write(block, stamp) => self.guest.put(data, &content(block, stamp)),
            _ => self.guest.put(data, &[0xee; BLOCK]),
        }
        self.doing[usize::from(place)] = doing;
        self.ring.offer(head);
    }

    /// Drives the disk until told to stop, whatever becomes of the front.
    fn drive(&mut self, socket: &Path, shared: &Shared) -> FrontEnd {
        let mut connection = None;
        let mut moved = Instant::now();
        while !shared.stop.load(Ordering::Acquire) {
            let killed = shared.killed.load(Ordering::Acquire);
            let ended = self.reap();
            shared.ended.fetch_add(ended, Ordering::Release);
            self.ask();
            if ended == 0 {
                shared.drained.store(killed, Ordering::Release);
            }
            if ended > 0 {
                moved = Instant::now();
                continue;
            }
            assert!(moved.elapsed() < Duration::from_secs(30), "the disk has stopped");
            match &connection {
                Some(front_end) if !is_gone(front_end) => std::thread::yield_now(),
                _ => {
                    connection = self.connect(socket).ok();
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
        }
        connection.unwrap_or_else(|| self.connect(socket).expect("a front"))
    }

    /// Waits for what is under way and reads all blocks that were written.
    fn read_back(&mut self) -> u64 {
        let blocks: Vec<u64> = (0..BLOCKS).filter(|&b| self.written[b as usize] > 0).collect();
        self.settle();
        for &block in &blocks {
            self.request((block % u64::from(DEPTH)) as u16, IN, block, Doing::Read(block));
            self.settle();
        }
        blocks.len() as u64
    }

    /// Connects until the front has said so: it lets the driver in, and refuses
    /// it when its ring starts.
    fn await_refusal(&mut self, stand: &mut Stand, sentence: &str) {
        let socket = stand.socket("front");
        self.await_refusal_of(stand.front_process("front"), &socket, sentence);
    }

    fn await_refusal_of(&mut self, front: &Process, socket: &Path, sentence: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        while !front.log().contains(sentence) {
            let _ = self.connect(socket);
            assert!(Instant::now() < end, "{}", front.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Gives every place a request, and waits for all of them.
    fn work(&mut self) {
        self.ask();
        self.settle();
    }

    fn settle(&mut self) {
        let begin = Instant::now();
        while self.doing.iter().any(|doing| !matches!(doing, Doing::Nothing)) {
            self.reap();
            assert!(begin.elapsed() < Duration::from_secs(30), "a request does not come back");
            std::thread::yield_now();
        }
    }
}

/// Whether the front has hung up.
fn is_gone(front_end: &FrontEnd) -> bool {
    let mut byte = [0];
    front_end.socket.set_nonblocking(true).expect("set");
    let outcome = io::Read::read(&mut &front_end.socket, &mut byte);
    front_end.socket.set_nonblocking(false).expect("set");
    !matches!(outcome, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Kills the front and starts it again; how long the driver got no answer.
fn kill_again_and_again(stand: &mut Stand, count: u64, shared: &Shared) -> Vec<Duration> {
    let mut chance = Chance(0x1234_5678_9abc_def1);
    let mut stalls = Vec::new();
    let passed = |counter: &AtomicU64, since: u64| {
        let begin = Instant::now();
        while counter.load(Ordering::Acquire) <= since {
            assert!(!shared.failed.load(Ordering::Acquire), "the driver has failed");
            assert!(begin.elapsed() < Duration::from_secs(30), "the disk has stopped");
            std::thread::sleep(Duration::from_micros(100));
        }
    };
    passed(&shared.ended, 0);
    for kill in 0..count {
        std::thread::sleep(Duration::from_micros(chance.below(30_000)));
        stand.front_process("front").kill();
        let killed = Instant::now();
        shared.killed.store(kill + 1, Ordering::Release);
        stand.restart_front("front");
        if kill % 4 == 3 {
            // Somewhere in its start; the next kill is measured.
            std::thread::sleep(Duration::from_micros(chance.below(40_000)));
            continue;
        }
        // What the dead front had answered is not what the next one serves.
        passed(&shared.drained, kill);
        passed(&shared.ended, shared.ended.load(Ordering::Acquire));
        stalls.push(killed.elapsed());
    }
    passed(&shared.ended, shared.ended.load(Ordering::Acquire));
    stalls.sort_unstable();
    stalls
}

/// A guest with requests under way must not notice that its front was killed
/// at any moment: each comes back once, without an error, and the disk holds
/// what was answered.
#[test]
fn a_killed_front_is_a_short_pause() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "queues = 1");
    let guest = Guest::new();
    let shared = Shared::default();
    let known = Mutex::new(0);
    let stalls = std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            let _flag = FlagOnPanic(&shared.failed);
            let mut driver = Driver::new(&guest);
            let _connection = driver.drive(&socket, &shared);
            *known.lock().expect("known") = driver.read_back();
        });
        let stalls = kill_again_and_again(&mut stand, kills(), &shared);
        shared.stop.store(true, Ordering::Release);
        driver.join().expect("the driver found no fault");
        stalls
    });
    let at = |part: usize| stalls[(stalls.len() * part / 100).min(stalls.len() - 1)];
    println!(
        "{} kills, {} requests, {} blocks read back; the driver waited: p50 {:?}, p99 {:?}, most {:?}",
        kills(),
        shared.ended.load(Ordering::Relaxed),
        known.lock().expect("known"),
        at(50),
        at(99),
        at(100),
    );
}

/// Tells the other thread that this one has panicked.
struct FlagOnPanic<'a>(&'a AtomicBool);

impl Drop for FlagOnPanic<'_> {
    fn drop(&mut self) {
        self.0.store(std::thread::panicking(), Ordering::Release);
    }
}

/// Front and server are killed together, and with them the copies of what was
/// answered: a guest that goes on must not find older data than it was told
/// of without anybody saying so.
#[test]
fn a_guest_whose_answered_writes_may_be_lost_is_stopped_until_somebody_accepts_it() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "queues = 1");
    let guest = Guest::new();
    let mut driver = Driver::new(&guest);
    let connection = driver.connect(&socket).expect("connected");
    driver.work();
    // While the server lives, a front that starts again lacks nothing.
    stand.front_process("front").kill();
    drop(connection);
    stand.restart_front("front");
    let connection = driver.await_connection(&socket);
    driver.work();

    stand.front_process("front").kill();
    drop(connection);
    stand.server().kill();
    stand.start_server();
    stand.restart_front("front");
    driver.await_refusal(&mut stand, "--accept-loss disk if it can live without");
    assert_eq!(driver.reap(), 0, "nothing is served");

    stand.front_process("front").kill();
    stand.configure_front("front", "disk", "queues = 1\naccept_loss = true");
    stand.restart_front("front");
    let _connection = driver.await_connection(&socket);
    driver.work();

    // It was accepted once and for all.
    stand.front_process("front").kill();
    stand.configure_front("front", "disk", "queues = 1");
    stand.restart_front("front");
    let _connection = driver.await_connection(&socket);
    driver.read_back();
}

/// A guest that starts anew reads what is there, whatever was lost.
#[test]
fn a_guest_that_starts_anew_is_served_after_a_loss() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "queues = 1");
    for _ in 0..2 {
        let guest = Guest::new();
        let mut driver = Driver::new(&guest);
        let _connection = driver.await_connection(&socket);
        driver.work();
        // From now on the front answers for the volume again: it may go on.
        stand.front_process("front").kill();
        stand.restart_front("front");
        let _connection = driver.await_connection(&socket);
        driver.work();
        stand.front_process("front").kill();
        stand.server().kill();
        stand.start_server();
        stand.restart_front("front");
    }
}

/// A volume that was detached by force while its front was away may have been
/// written by another: what the guest remembers of it is not there.
#[test]
fn a_guest_does_not_go_on_with_a_volume_that_was_taken_away() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "queues = 1");
    let guest = Guest::new();
    let mut driver = Driver::new(&guest);
    let _connection = driver.await_connection(&socket);
    driver.work();
    stand.front_process("front").kill();
    assert!(stand.volume(&["detach", "disk", "--force"]).status.success());
    stand.restart_front("front");
    driver.await_refusal(&mut stand, "--accept-loss disk if it can live with that");
    let guest = Guest::new();
    let mut driver = Driver::new(&guest);
    let _connection = driver.await_connection(&socket);
    driver.work();
}

/// Front and server are one process, which is killed: what they had may be missing. A
/// `vrio local` that finds this out and ends in order, before anybody accepted it,
/// gives the volume back; the next one must not take it for a whole one.
#[test]
fn local_does_not_forget_a_loss_when_it_ends_in_order() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    assert_eq!(stand.server().stop(), Some(0));
    let socket = stand.path("local.sock");
    let log = stand.path("local.log");
    let config = stand.path("server.toml");
    let local = |more: &[&str]| {
        let mut command = vrio();
        command.arg("local").arg("--config").arg(&config).args(["--queues", "1"]).args(more);
        command.arg("--disk").arg(format!("disk={}", socket.display()));
        let _ = fs::remove_file(&log);
        Process::spawn(&mut command, log.clone())
    };
    let guest = Guest::new();
    let mut driver = Driver::new(&guest);
    let mut front = local(&[]);
    let connection = driver.await_connection(&socket);
    driver.work();
    front.kill();
    drop(connection);

    let mut front = local(&[]);
    driver.await_refusal_of(&front, &socket, "--accept-loss disk if it can live without");
    assert_eq!(front.stop(), Some(0), "{}", front.log());
    let mut front = local(&[]);
    driver.await_refusal_of(&front, &socket, "--accept-loss disk if it can live with that");
    assert_eq!(driver.reap(), 0, "nothing is served");
    assert_eq!(front.stop(), Some(0), "{}", front.log());

    let mut front = local(&["--accept-loss", "disk"]);
    let _connection = driver.await_connection(&socket);
    driver.work();
    assert_eq!(front.stop(), Some(0), "{}", front.log());
    // It was accepted once and for all.
    let _front = local(&[]);
    let _connection = driver.await_connection(&socket);
    driver.read_back();
}
