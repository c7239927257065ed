//! The array around a volume, as a worker uses it.

use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use block_core::{BlockCount, BlockError, Op, SectorRange, Time};
use turn::Executor;

use super::trace::{Entry, Header, Reader, pipe};
use super::*;

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn read() -> RequestFacts {
    RequestFacts { op: Op::Read, range: SectorRange::new(8, 8) }
}

fn limits(iops: u64) -> Option<Limits> {
    Limits::new(NonZeroU64::new(iops), None, Duration::ZERO)
}

fn header() -> Header {
    Header { volume: [7; 16], name: "disk".to_owned(), blocks: BlockCount(100), began: 5 }
}

/// Spawns a request that takes no time once it was admitted.
fn send(stand: &mut Stand, outcome: Result<(), BlockError>) {
    let (hooks, clock) = (Rc::clone(&stand.hooks), Rc::clone(&stand.clock));
    let life = async move {
        let ticket = hooks.admit(read(), &clock).await;
        hooks.done(ticket, outcome, clock.now());
    };
    stand.executor.spawn(life).expect("room");
    stand.run();
}

struct Stand {
    clock: Rc<TurnClock>,
    hooks: Rc<Hooks>,
    executor: Executor,
}

impl Stand {
    fn new(limits: Option<Limits>) -> Self {
        let hooks = Rc::new(Hooks::new(limits, Time::ZERO));
        Self { clock: Rc::default(), hooks, executor: Executor::new(8) }
    }

    fn run(&mut self) {
        while self.executor.run(0) > 0 {}
    }

    fn tick(&mut self, now: Time) {
        self.clock.tick(now);
        self.run();
    }
}

/// The operator looks at a volume that a limit slows down: the meter shows what
/// the guest feels, and the throttle what of it is its doing.
#[test]
fn the_meter_sees_what_the_guest_sees() {
    let mut stand = Stand::new(limits(10));
    send(&mut stand, Ok(()));
    send(&mut stand, Err(BlockError::Medium));
    assert_eq!(stand.hooks.measured().in_flight, 1);
    stand.tick(at(100));
    let measured = stand.hooks.measured();
    let reads = measured.kind(Kind::Read);
    assert_eq!((measured.in_flight, reads.bytes, reads.errors), (0, 8192, 1));
    assert_eq!(reads.latency.total(), 2);
    assert_eq!(reads.latency.longest(), Duration::from_millis(100));
    assert_eq!(measured.kind(Kind::Write).latency.total(), 0);
    let waited = Throttled { waiting: 0, delayed: 1, waited: Duration::from_millis(100) };
    assert_eq!(stand.hooks.throttled(), Some(waited));
}

/// Hooks come and go while requests wait inside: each request is counted once,
/// pays once, and is recorded only if it came after the recording began.
#[test]
fn the_array_changes_under_waiting_requests() {
    let mut stand = Stand::new(limits(1));
    (0..3).for_each(|_| send(&mut stand, Ok(())));
    stand.tick(at(10));
    let (sink, writer) = pipe();
    stand.hooks.record(Recorder::new(header(), sink, stand.clock.now()));
    assert!(stand.hooks.recorded().is_some_and(|recorded| recorded.open));
    send(&mut stand, Ok(()));
    stand.tick(at(1000));
    let in_flight = stand.hooks.measured().in_flight;
    assert_eq!(in_flight, 2, "one a second, though the array has grown");
    stand.hooks.set_limits(None, stand.clock.now());
    stand.run();
    let in_flight = stand.hooks.measured().in_flight;
    assert_eq!(in_flight, 0, "nobody waits for a throttle that is gone");
    assert_eq!(stand.hooks.limits(), None);
    send(&mut stand, Ok(()));
    stand.hooks.stop_recording();
    send(&mut stand, Ok(()));
    assert_eq!(stand.hooks.measured().kind(Kind::Read).latency.total(), 6);

    let mut file = Vec::new();
    assert!(writer.run(&mut file).expect("memory").ended);
    let entries: Vec<_> = Reader::open(&file[..]).expect("a trace").map(Result::unwrap).collect();
    let recorded: Vec<_> = entries
        .iter()
        .map(|entry| match entry {
            Entry::Request(request) => (request.arrival, request.latency),
            Entry::Gap(_) => panic!("nothing was dropped"),
        })
        .collect();
    let after = Duration::from_millis(990);
    assert_eq!(recorded, [(Duration::ZERO, after), (after, Duration::ZERO)]);
}

/// A front goes away while the throttle holds its requests: they are not
/// running for ever, and those of others do not wait for them.
#[test]
fn a_request_that_goes_away_while_it_waits_was_none() {
    let mut stand = Stand::new(limits(1));
    send(&mut stand, Ok(()));
    {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut waits = std::pin::pin!(stand.hooks.admit(read(), &stand.clock));
        assert!(waits.as_mut().poll(&mut context).is_pending());
        assert_eq!(stand.hooks.measured().in_flight, 1);
    }
    assert_eq!(stand.hooks.measured().in_flight, 0);
    assert_eq!(stand.hooks.throttled().map(|throttled| throttled.waiting), Some(0));
    send(&mut stand, Ok(()));
    stand.tick(at(1000));
    assert_eq!(stand.hooks.measured().kind(Kind::Read).latency.total(), 2);
}

/// A meter is always on, so its cost is every request's.
#[test]
fn a_request_without_a_throttle_never_waits() {
    let (hooks, clock) = (Hooks::new(None, Time::ZERO), TurnClock::default());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let admit = std::pin::pin!(hooks.admit(read(), &clock));
    assert!(admit.poll(&mut context).is_ready());
}
