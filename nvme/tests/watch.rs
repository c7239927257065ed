//! A controller that gets stuck, fails or goes away, under the watch's eyes.

mod harness;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use block_core::device::{Device, Durability};
use block_core::{BlockError, Buffer, Pba, Pool, Time};
use harness::{Drive, disorder, filled, memory, poll};
use nvme::command::{Command, feature};
use nvme::soft::{Fault, Image, Runner};
use nvme::watch::Trouble;
use nvme::{
    Controller, LbaSize, Namespace, News, Patience, QueuePair, SoftController, SoftNamespace,
    SoftOptions, StartError, Watch,
};

const BLOCK: usize = 4096;

/// What a turn takes, as the clock has it.
const TURN: Duration = Duration::from_micros(50);

const PATIENCE: Patience = Patience {
    command: Duration::from_millis(30),
    abort: Duration::from_millis(5),
    resets: 3,
    pause: Duration::from_millis(10),
};

/// Turns after which something that should have happened never will.
const MANY: u32 = 3_000_000;

/// A watched driver in a time of its own: each turn takes 50 us.
struct Rig {
    watch: Watch,
    queue: Rc<QueuePair>,
    controller: Controller,
    soft: Arc<SoftController>,
    runner: Option<Runner>,
    pool: Pool,
    now: Arc<AtomicU64>,
    /// Commands of which it was said that they are late.
    late: u64,
}

impl Rig {
    fn new(options: SoftOptions, disk: SoftNamespace, drive: Drive) -> Self {
        let soft = SoftController::new(options, vec![disk]);
        let now = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&now);
        // Whoever waits sees time go by, also where nothing is turned.
        let step = TURN.as_nanos() as u64 / 8;
        let clock: nvme::Clock =
            Arc::new(move || Time::from_nanos(told.fetch_add(step, Ordering::Relaxed)));
        let (bus, runner) = match drive {
            Drive::Here => (soft.bus(), None),
            Drive::SecondThread => (soft.distant_bus(), Some(soft.spawn())),
        };
        let controller = Controller::start(bus, clock).expect("the controller starts");
        let queue = controller.create_queue_pair(16).expect("a queue pair");
        let watch = Watch::new(&controller, Rc::clone(&queue), PATIENCE);
        let pool = controller.pool(24, BLOCK).expect("memory");
        Self { watch, queue, controller, soft, runner, pool, now, late: 0 }
    }

    fn small() -> Self {
        Self::new(SoftOptions::default(), memory(64), Drive::Here)
    }

    fn namespace(&self) -> Namespace {
        let info = self.controller.namespace(1).expect("the namespace");
        Namespace::new(Rc::clone(&self.queue), &info)
    }

    fn turn(&mut self) -> Option<News> {
        let now = self.now.fetch_add(TURN.as_nanos() as u64, Ordering::Relaxed);
        let news = self.watch.look(Time::from_nanos(now));
        self.queue.reap();
        self.queue.ring();
        match &self.runner {
            None => drop(self.soft.work()),
            Some(runner) => runner.keep_up(),
        }
        // Nothing is asked of whoever hears it.
        if let Some(News::Late(commands)) = news {
            self.late += commands as u64;
            return None;
        }
        news
    }

    fn until_news(&mut self) -> News {
        for _ in 0..MANY {
            if let Some(news) = self.turn() {
                return news;
            }
        }
        panic!("no news");
    }

    fn run<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        for _ in 0..MANY {
            if let Poll::Ready(output) = poll(future.as_mut()) {
                return output;
            }
            assert!(self.turn().is_none(), "nothing is wrong with the controller");
        }
        panic!("no outcome");
    }

    fn milliseconds(&self) -> u64 {
        self.now.load(Ordering::Relaxed) / 1_000_000
    }
}

type Asked<'a> = Pin<Box<dyn Future<Output = (Buffer, Result<(), BlockError>)> + 'a>>;

/// Commands get stuck and can be aborted: each runs again, nobody is told, and
/// no reset is made of it.
#[test]
fn stuck_commands_are_aborted_in_time_and_run_again() {
    for drive in [Drive::Here, Drive::SecondThread] {
        let mut rig = Rig::new(SoftOptions::default(), memory(64), drive);
        let namespace = rig.namespace();
        rig.soft.inject(Fault::Stick { count: 3 });
        let begun = rig.milliseconds();
        for at in 0..6 {
            let buffer = filled(&rig.pool, at as u8 + 1);
            let outcome = rig.run(namespace.write(Pba(at), buffer, 0..1, Durability::Cached)).1;
            assert_eq!(outcome, Ok(()));
        }
        if drive == Drive::Here {
            let passed = rig.milliseconds() - begun;
            assert!((90..150).contains(&passed), "three times 30 ms, and not {passed} ms");
        }
        for at in 0..6 {
            let buffer = filled(&rig.pool, 0);
            let (buffer, outcome) = rig.run(namespace.read(Pba(at), buffer, 0..1));
            assert_eq!((outcome, buffer[0]), (Ok(()), at as u8 + 1));
        }
        assert_eq!((rig.watch.troubles().late, rig.watch.troubles().resets), (3, 0));
        assert_eq!(rig.late, 3, "each is told once");
        assert_eq!(rig.controller.epoch(), 0);
    }
}

/// A slow device is no stuck one, and the thread may be held up for longer than
/// any command may take: time in which nobody looked does not count.
#[test]
fn a_thread_that_was_held_up_takes_nobody_for_stuck() {
    let mut rig = Rig::small();
    let namespace = rig.namespace();
    rig.soft.inject(Fault::Stick { count: 1 });
    let mut read: Asked<'_> = Box::pin(namespace.read(Pba(0), filled(&rig.pool, 0), 0..1));
    for _ in 0..20 {
        assert!(poll(read.as_mut()).is_pending());
        rig.turn();
    }
    rig.now.fetch_add(3_600_000_000_000, Ordering::Relaxed);
    for _ in 0..20 {
        assert!(poll(read.as_mut()).is_pending());
        assert!(rig.turn().is_none());
    }
    assert_eq!(rig.watch.troubles().late, 0);
    assert_eq!(rig.run(read).1, Ok(()));
}

/// What an abort does not free, a reset does: everything that was under way
/// ends as lost, on the old namespace nothing changes any more, and on a new
/// one everything works.
#[test]
fn a_controller_that_is_stuck_is_reset() {
    for drive in [Drive::Here, Drive::SecondThread] {
        let mut rig = Rig::new(disorder(3), memory(64), drive);
        for round in 1..=40 {
            let old = rig.namespace();
            rig.soft.inject(Fault::StickFast { count: 2 });
            let mut asked: Vec<Asked<'_>> = (0..20)
                .map(|at| {
                    let buffer = filled(&rig.pool, round);
                    Box::pin(old.write(Pba(at), buffer, 0..1, Durability::Cached)) as Asked<'_>
                })
                .collect();
            let mut lost = 0;
            let mut ask = || {
                asked.retain_mut(|write| match poll(write.as_mut()) {
                    Poll::Pending => true,
                    Poll::Ready((_, outcome)) => {
                        assert!(matches!(outcome, Ok(()) | Err(BlockError::Lost)), "{outcome:?}");
                        lost += usize::from(outcome.is_err());
                        false
                    }
                });
                asked.len()
            };
            let down = (0..MANY).find_map(|_| {
                ask();
                rig.turn()
            });
            assert!(matches!(down, Some(News::Down(Trouble::Stuck(2)))), "{down:?}");
            assert!(matches!(rig.until_news(), News::Up(1)));
            assert_eq!((ask(), rig.pool.available()), (0, 24));
            assert!(lost >= 2, "{lost}");
            let late = old.write(Pba(0), filled(&rig.pool, 99), 0..1, Durability::Cached);
            assert_eq!(rig.run(late).1, Err(BlockError::Lost));
            let new = rig.namespace();
            for at in 0..20 {
                let buffer = filled(&rig.pool, round);
                assert_eq!(rig.run(new.write(Pba(at), buffer, 0..1, Durability::Cached)).1, Ok(()));
            }
            assert_eq!(rig.run(new.flush()), Ok(()));
        }
        assert_eq!(rig.watch.troubles().resets, 40);
        assert_eq!(rig.queue.counters().unexpected, 0);
    }
}

/// A fatal status is seen long before a command is late.
#[test]
fn a_fatal_status_is_reset_at_once() {
    let mut rig = Rig::small();
    let namespace = rig.namespace();
    rig.soft.inject(Fault::Fatal);
    let mut read: Asked<'_> = Box::pin(namespace.read(Pba(0), filled(&rig.pool, 0), 0..1));
    assert!(poll(read.as_mut()).is_pending());
    let begun = rig.milliseconds();
    assert!(matches!(rig.until_news(), News::Down(Trouble::Fatal)));
    assert!(rig.milliseconds() - begun < 10);
    assert!(matches!(rig.until_news(), News::Up(1)));
    assert!(matches!(poll(read.as_mut()), Poll::Ready((_, Err(BlockError::Lost)))));
}

/// A controller that is pulled out and put back in has lost its cache, and is
/// found again by one of the next resets.
#[test]
fn a_controller_that_was_away_is_found_again() {
    for drive in [Drive::Here, Drive::SecondThread] {
        let disk = SoftNamespace::losing_memory(64 << 12, LbaSize::B4096, Image::default());
        let mut rig = Rig::new(SoftOptions::default(), disk, drive);
        let namespace = rig.namespace();
        let write = namespace.write(Pba(1), filled(&rig.pool, 7), 0..1, Durability::Through);
        assert_eq!(rig.run(write).1, Ok(()));
        rig.soft.inject(Fault::Removal);
        let mut read: Asked<'_> = Box::pin(namespace.read(Pba(1), filled(&rig.pool, 0), 0..1));
        assert!(poll(read.as_mut()).is_pending());
        assert!(matches!(rig.until_news(), News::Down(Trouble::Gone)));
        for _ in 0..20 {
            assert!(rig.turn().is_none());
        }
        assert!(poll(read.as_mut()).is_pending(), "whoever is away may still come back and write");
        rig.soft.inject(Fault::Return { seed: 1 });
        assert!(matches!(rig.until_news(), News::Up(2 | 3)));
        assert!(matches!(poll(read.as_mut()), Poll::Ready((_, Err(BlockError::Lost)))));
        drop(read);
        let again = rig.namespace();
        let (buffer, outcome) = rig.run(again.read(Pba(1), filled(&rig.pool, 0), 0..1));
        assert_eq!((outcome, buffer[0]), (Ok(()), 7));
    }
}

/// Neither one that is gone for good nor one that hangs keeps anybody waiting:
/// it is cut off from memory, every request ends with an error, then and
/// later, and every buffer comes back, with nothing in it that came too late.
#[test]
fn a_controller_that_does_not_come_back_is_given_up() {
    for (fault, drive) in [
        (Fault::Removal, Drive::Here),
        (Fault::Removal, Drive::SecondThread),
        (Fault::Hang, Drive::Here),
        (Fault::Hang, Drive::SecondThread),
    ] {
        let mut rig = Rig::new(SoftOptions::default(), memory(64), drive);
        let namespace = rig.namespace();
        rig.soft.inject(fault);
        let mut reads: Vec<Asked<'_>> = (0..20)
            .map(|at| Box::pin(namespace.read(Pba(at), filled(&rig.pool, 77), 0..1)) as Asked<'_>)
            .collect();
        reads.iter_mut().for_each(|read| assert!(poll(read.as_mut()).is_pending()));
        assert!(matches!(rig.until_news(), News::Down(_)));
        let News::GivenUp(why) = rig.until_news() else { panic!("it does not come back") };
        match fault {
            Fault::Removal => assert!(matches!(why, StartError::Gone), "{why}"),
            _ => assert!(matches!(why, StartError::Silent { .. }), "{why}"),
        }
        rig.turn();
        for read in &mut reads {
            let Poll::Ready((buffer, outcome)) = poll(read.as_mut()) else { panic!("it waits") };
            assert_eq!((outcome, buffer[0]), (Err(BlockError::Medium), 77));
        }
        drop(reads);
        assert_eq!((rig.queue.in_flight(), rig.pool.available()), (0, 24));
        let late = namespace.read(Pba(0), filled(&rig.pool, 77), 0..1);
        // It would answer now; nobody listens.
        rig.soft.inject(Fault::Return { seed: 2 });
        let (buffer, outcome) = rig.run(late);
        assert_eq!((outcome, buffer[0]), (Err(BlockError::Medium), 77));
        assert!(!rig.watch.is_busy());
    }
}

/// Whoever answers after a reset is another device: nothing is served from it.
#[test]
fn another_device_at_the_same_place_is_given_up() {
    let mut rig = Rig::small();
    let namespace = rig.namespace();
    rig.soft.inject(Fault::Shrink { blocks: 32 });
    rig.soft.inject(Fault::Fatal);
    let mut read: Asked<'_> = Box::pin(namespace.read(Pba(0), filled(&rig.pool, 0), 0..1));
    assert!(poll(read.as_mut()).is_pending());
    assert!(matches!(rig.until_news(), News::Down(Trouble::Fatal)));
    let News::GivenUp(why) = rig.until_news() else { panic!("it is another device") };
    assert!(why.to_string().contains("its namespaces was"), "{why}");
    rig.turn();
    assert!(matches!(poll(read.as_mut()), Poll::Ready((_, Err(BlockError::Lost)))));
    let write = namespace.write(Pba(0), filled(&rig.pool, 0), 0..1, Durability::Cached);
    assert_eq!(rig.run(write).1, Err(BlockError::Medium));
}

/// The switch for a cache that does not survive a reset takes only what was not
/// flushed, and does take some of that.
#[test]
fn a_lossy_reset_costs_what_was_not_flushed() {
    let mut lost = 0;
    for seed in 0..20 {
        let disk = SoftNamespace::losing_memory(64 << 12, LbaSize::B4096, Image::default());
        let mut rig = Rig::new(SoftOptions::default(), disk, Drive::Here);
        let namespace = rig.namespace();
        rig.soft.inject(Fault::LossyReset { seed });
        let write =
            |at, byte| namespace.write(at, filled(&rig.pool, byte), 0..1, Durability::Cached);
        let (flushed, cached) = (write(Pba(0), 1), write(Pba(1), 1));
        assert_eq!(rig.run(flushed).1, Ok(()));
        assert_eq!(rig.run(namespace.flush()), Ok(()));
        assert_eq!(rig.run(cached).1, Ok(()));
        rig.soft.inject(Fault::StickFast { count: 1 });
        let mut read: Asked<'_> = Box::pin(namespace.read(Pba(0), filled(&rig.pool, 0), 0..1));
        assert!(poll(read.as_mut()).is_pending());
        assert!(matches!(rig.until_news(), News::Down(_)));
        assert!(matches!(rig.until_news(), News::Up(_)));
        drop(read);
        assert!(namespace.is_lost());
        let again = rig.namespace();
        let mut found = |at| rig.run(again.read(at, filled(&rig.pool, 9), 0..1)).0[0];
        assert_eq!(found(Pba(0)), 1);
        lost += usize::from(found(Pba(1)) == 0);
    }
    assert!((1..20).contains(&lost), "{lost} of 20");
}

/// It gets too warm: whoever turns the queue learns it, with the log, and reads go on.
#[test]
fn what_a_controller_tells_by_itself_is_passed_on() {
    for drive in [Drive::Here, Drive::SecondThread] {
        let mut rig = Rig::new(SoftOptions::default(), memory(64), drive);
        let threshold = Command::set_feature(feature::TEMPERATURE, 250);
        rig.controller.execute(threshold).expect("it has a threshold");
        let (namespace, pool) = (rig.namespace(), rig.pool.clone());
        let start = || Box::pin(namespace.read(Pba(0), filled(&pool, 0), 0..1));
        let (mut read, mut told) = (start(), None);
        for _ in 0..MANY {
            match rig.turn() {
                None => {}
                Some(News::Event(event, health)) => {
                    told = Some((event, health));
                    break;
                }
                Some(news) => panic!("{news:?}"),
            }
            if let Poll::Ready((_, outcome)) = poll(read.as_mut()) {
                assert_eq!(outcome, Ok(()));
                read = start();
            }
        }
        let (event, health) = told.expect("an event");
        assert!(event.to_string().contains("temperature"));
        assert_eq!(health.expect("the health log").critical_warning, 2);
        assert_eq!(rig.run(read).1, Ok(()));
    }
}

/// A disk that wears out says so in its log, which somebody must read: every so often, and
/// beside the work, none of which waits for it.
#[test]
fn the_health_log_is_read_every_so_often_while_there_is_work() {
    const EVERY: Duration = Duration::from_millis(100);
    let mut rig = Rig::small();
    rig.watch.read_health(EVERY, Time::ZERO);
    let (mut logs, mut reads) = (Vec::new(), 0);
    while rig.now.load(Ordering::Relaxed) < 10 * EVERY.as_nanos() as u64 {
        let (namespace, pool) = (rig.namespace(), rig.pool.clone());
        let mut read = Box::pin(namespace.read(Pba(1), filled(&pool, 0), 0..1));
        while poll(read.as_mut()).is_pending() {
            match rig.turn() {
                Some(News::Health(log)) => logs.push(log),
                Some(news) => panic!("{news:?}"),
                None => {}
            }
        }
        reads += 1;
    }
    assert!((5..=10).contains(&logs.len()), "{} times", logs.len());
    assert!(reads > 1000, "{reads} reads: they have waited");
    assert!(logs[0].reads < logs[logs.len() - 1].reads, "an old log");
}
