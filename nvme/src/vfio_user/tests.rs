//! A driver that talks nonsense, and one that goes away.

use std::future::Future;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block_core::{BlockError, Device, Pba};

use super::wire::{ERROR, Header, NO_REPLY, Writer, command};
use super::{Exported, VfioUserBus, socket};
use crate::arena::Arena;
use crate::bus::Bus;
use crate::registers::{CAP, CC, CSTS, GONE};
use crate::{Controller, LbaSize, Namespace, Patience, SoftNamespace, SoftOptions, Watch};

/// A controller's thread.
struct Server {
    folder: tempfile::TempDir,
    over: Arc<AtomicBool>,
    ringer: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder"))
    }

    fn start_in(folder: tempfile::TempDir) -> Self {
        let disk = SoftNamespace::memory(1 << 20, LbaSize::B4096).expect("memory");
        let options = SoftOptions::default();
        let exported =
            Exported::bind(&folder.path().join("nvme"), options, vec![disk]).expect("a socket");
        let (bell, ringer) = UnixStream::pair().expect("a pair");
        let over = Arc::<AtomicBool>::default();
        let seen = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let is_over = || seen.load(Ordering::Relaxed);
            exported.serve(&is_over, std::os::fd::AsFd::as_fd(&bell)).expect("it serves");
        });
        Self { folder, over, ringer, thread: Some(thread) }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("nvme")
    }
}

impl Server {
    /// The controller's process ends; another one may take its place.
    fn end(mut self) -> tempfile::TempDir {
        self.stop();
        std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"))
    }

    fn stop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = std::io::Write::write(&mut self.ringer, &[0]);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn arena() -> Arc<Arena> {
    Arc::new(Arena::in_memory(1 << 24).expect("memory"))
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("it listens");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a timeout");
    stream
}

fn say(stream: &UnixStream, command: u16, flags: u32, payload: &[u8]) {
    let header = Header { id: 7, command, bytes: 0, flags, error: 0 };
    socket::send(stream, &header.with(payload), &[]).expect("it listens");
}

/// Every command, with every length of payload up to a long one, of zeroes and of
/// ones: each has its answer, and the next driver is served.
#[test]
fn nonsense_is_answered_and_hurts_nobody() {
    let server = Server::start();
    let stream = connect(&server.path());
    for command in 0..20 {
        for bytes in (0..48).step_by(4) {
            for byte in [0, 0x10, 0xff] {
                say(&stream, command, 0, &vec![byte; bytes]);
                let answer = socket::receive(&stream).expect("an answer").expect("an answer");
                assert_eq!((answer.header.id, answer.header.command), (7, command));
            }
        }
    }
    drop(stream);
    let stream = connect(&server.path());
    // A message that is shorter than its header, then one that is too long.
    for bytes in [3_u32, 1 << 30] {
        let mut header = Writer::default();
        header.u16(1).u16(command::VERSION).u32(bytes).u32(0).u32(0);
        let _ = socket::send(&stream, &header.0, &[]);
    }
    assert!(!matches!(socket::receive(&stream), Ok(Some(_))), "it is disconnected");
    drop(stream);
    let bus = VfioUserBus::connect(&server.path(), arena()).expect("the next driver");
    assert_ne!(bus.read64(CAP), u64::MAX);
}

/// Two pieces of memory at the same address, or with ends that wrap around, are
/// refused; what asks for no answer gets none.
#[test]
fn memory_that_cannot_be_is_refused() {
    let server = Server::start();
    let arena = arena();
    let bus = VfioUserBus::connect(&server.path(), Arc::clone(&arena)).expect("a driver");
    assert!(bus.has_mapped_doorbells());
    drop(bus);
    let stream = connect(&server.path());
    let map = |iova: u64, bytes: u64| {
        let mut map = Writer::default();
        map.u32(32).u32(3).u64(0).u64(iova).u64(bytes);
        let header = Header { id: 9, command: command::DMA_MAP, bytes: 0, flags: 0, error: 0 };
        let file = std::os::fd::AsFd::as_fd(arena.file());
        socket::send(&stream, &header.with(&map.0), &[file]).expect("it listens");
        let answer = socket::receive(&stream).expect("an answer").expect("an answer");
        answer.header.flags & ERROR == 0
    };
    assert!(map(1 << 20, 8192));
    assert!(!map(1 << 20, 4096) && !map((1 << 20) + 4096, 8192), "taken");
    assert!(!map(u64::MAX - 4095, 8192) && !map(4097, 4096) && !map(4096, 0));
    assert!(map((1 << 20) + 8192, 4096), "its neighbour");
    say(&stream, command::DMA_MAP, NO_REPLY, &[]);
    say(&stream, command::RESET, 0, &[]);
    let answer = socket::receive(&stream).expect("an answer").expect("an answer");
    assert_eq!(answer.header.command, command::RESET);
}

/// A driver that disappears leaves a controller that is off.
#[test]
fn the_next_driver_finds_the_controller_off() {
    let server = Server::start();
    let bus = VfioUserBus::connect(&server.path(), arena()).expect("a driver");
    let memory = bus.allocate(8192).expect("memory");
    bus.write32(crate::registers::AQA, 7 << 16 | 7);
    bus.write64(crate::registers::ASQ, memory.iova());
    bus.write64(crate::registers::ACQ, memory.iova() + 4096);
    bus.write32(CC, crate::registers::CC_ENTRY_SIZES | 1);
    while bus.read32(CSTS) & 1 == 0 {}
    drop(bus);
    let bus = VfioUserBus::connect(&server.path(), arena()).expect("the next driver");
    assert_eq!((bus.read32(CC) & 1, bus.read32(CSTS)), (0, 0));
}

/// The controller's process dies: its registers read as ones, and nothing waits.
#[test]
fn a_process_that_is_gone_reads_as_ones() {
    let server = Server::start();
    let bus = VfioUserBus::connect(&server.path(), arena()).expect("a driver");
    drop(server);
    assert_eq!((bus.read32(CSTS), bus.read64(CAP)), (GONE, u64::MAX));
    bus.write32(CC, 0);
    bus.cut_off();
}

/// The controller's process ends under load and is started again a moment later: the
/// watch finds it by itself, and what had no answer ends as lost, not as done.
#[test]
fn a_process_that_comes_back_is_driven_again() {
    let server = Server::start();
    let bus = VfioUserBus::connect(&server.path(), arena()).expect("a driver");
    let clock = block_core::time::Clock::start();
    let controller = Controller::start(bus, Arc::new(move || clock.now())).expect("it starts");
    let queue = controller.create_queue_pair(8).expect("a queue pair");
    let pool = controller.pool(1, 4096).expect("memory");
    let patience = Patience { pause: Duration::from_millis(50), ..Patience::default() };
    let mut watch = Watch::new(&controller, Rc::clone(&queue), patience);
    let read = |namespace: Namespace, watch: &mut Watch, news: &mut Vec<String>| {
        let buffer = pool.take().expect("free");
        let mut read = Box::pin(async move { namespace.read(Pba(3), buffer, 0..1).await.1 });
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(outcome) = read.as_mut().poll(&mut context) {
                return outcome;
            }
            assert!(Instant::now() < end, "no outcome; {news:?}");
            queue.ring();
            news.extend(watch.look(clock.now()).map(|news| format!("{news:?}")));
            queue.reap();
        }
    };
    let namespace = || Namespace::new(Rc::clone(&queue), &controller.namespace(1).expect("it"));
    let mut news = Vec::new();
    assert_eq!(read(namespace(), &mut watch, &mut news), Ok(()));
    let folder = server.end();
    let again = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        Server::start_in(folder)
    });
    assert_eq!(read(namespace(), &mut watch, &mut news), Err(BlockError::Lost));
    let end = Instant::now() + Duration::from_secs(20);
    while !news.iter().any(|news| news.starts_with("Up")) {
        assert!(Instant::now() < end, "it does not come back; {news:?}");
        news.extend(watch.look(clock.now()).map(|news| format!("{news:?}")));
        queue.reap();
    }
    assert_eq!(news[0], "Down(Gone)");
    assert_eq!(read(namespace(), &mut watch, &mut news), Ok(()));
    drop(again.join().expect("the second process"));
}
