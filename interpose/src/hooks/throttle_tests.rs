//! The throttle in virtual time, its requests as tasks of the real executor.

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use block_core::{Op, SectorRange, Time};
use proptest::prelude::*;
use turn::Executor;

use super::{Limits, Throttle};
use crate::hooks::{RequestFacts, TurnClock};

/// A volume whose requests do nothing but pass the throttle.
struct Bench {
    clock: Rc<TurnClock>,
    throttle: Rc<Throttle>,
    executor: Executor,
    passed: Rc<RefCell<Vec<Passed>>>,
    sent: usize,
}

#[derive(Clone, Copy, Debug)]
struct Passed {
    number: usize,
    bytes: u64,
    when: Time,
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let clock = Rc::new(TurnClock::default());
        let throttle = Rc::new(Throttle::new(limits, clock.now()));
        Self { clock, throttle, executor: Executor::new(4096), passed: Rc::default(), sent: 0 }
    }

    fn send(&mut self, facts: RequestFacts) {
        let (clock, throttle) = (Rc::clone(&self.clock), Rc::clone(&self.throttle));
        let (passed, number) = (Rc::clone(&self.passed), self.sent);
        self.sent += 1;
        let life = async move {
            throttle.admit(facts, &clock).await;
            let (bytes, when) = (facts.bytes(), clock.now());
            passed.borrow_mut().push(Passed { number, bytes, when });
        };
        self.executor.spawn(life).expect("room");
        self.run();
    }

    fn run(&mut self) {
        while self.executor.run(0) > 0 {}
    }

    fn tick(&mut self, now: Time) {
        self.clock.tick(now);
        self.run();
    }

    fn missing(&self) -> usize {
        self.sent - self.passed.borrow().len()
    }
}

fn limits(iops: u64, bytes: u64, burst: Duration) -> Limits {
    Limits::new(NonZeroU64::new(iops), NonZeroU64::new(bytes), burst).expect("limits")
}

fn write(sectors: u32) -> RequestFacts {
    RequestFacts { op: Op::Write, range: SectorRange::new(0, sectors) }
}

const FLUSH: RequestFacts = RequestFacts { op: Op::Flush, range: None };

/// A second's worth of requests comes in a second, the burst at once; a flush
/// is a request, and a trim of a whole volume no more than that.
#[test]
fn a_rate_is_a_rate_and_a_burst_is_a_burst() {
    let mut bench = Bench::new(limits(100, 0, Duration::from_millis(100)));
    let trim = RequestFacts { op: Op::Discard, range: SectorRange::new(0, u32::MAX) };
    for _ in 0..20 {
        bench.send(FLUSH);
        bench.send(trim);
    }
    assert_eq!(bench.missing(), 30);
    assert_eq!(bench.throttle.throttled().waiting, 30);
    bench.tick(Time::from_nanos(9_999_999));
    assert_eq!(bench.missing(), 30);
    bench.tick(Time::from_nanos(10_000_000));
    assert_eq!(bench.missing(), 29);
    bench.tick(Time::from_nanos(99_999_999));
    // The rates add up to no more than the burst while nobody looked.
    assert_eq!(bench.missing(), 29 - 8);
    assert!(bench.clock.deadline().is_some());
}

/// An operator who lowers a limit by mistake raises it again: what waits must
/// not wait for the old rate.
#[test]
fn a_new_rate_holds_for_those_who_wait() {
    let hour = 3600;
    let mut bench = Bench::new(limits(1, 0, Duration::ZERO));
    (0..hour).for_each(|_| bench.send(FLUSH));
    assert_eq!(bench.missing(), hour - 1);
    bench.throttle.set_limits(limits(1_000_000, 0, Duration::from_secs(1)), bench.clock.now());
    bench.run();
    let due = bench.clock.deadline().expect("somebody waits");
    assert!(due <= Time::from_nanos(1000), "waits for the old rate until {due:?}");
    bench.tick(Time::from_nanos(2_000_000));
    assert_eq!(bench.missing(), hour - 1 - 2000);
    bench.throttle.lift();
    bench.run();
    assert_eq!(bench.missing(), 0);
    assert_eq!(bench.clock.deadline(), None, "nothing ticks when nobody waits");
    assert_eq!(bench.throttle.throttled().delayed, hour as u64 - 1);
}

/// The session of a front that waits may be closed with the whole worker: what
/// waited in vain holds nobody up.
#[test]
fn whoever_stops_waiting_leaves_the_door_open() {
    let clock = TurnClock::default();
    let throttle = Throttle::new(limits(1, 0, Duration::ZERO), clock.now());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut poll =
        |admit: std::pin::Pin<&mut dyn Future<Output = ()>>| admit.poll(&mut context).is_ready();
    assert!(poll(std::pin::pin!(throttle.admit(FLUSH, &clock))));
    {
        let mut first = std::pin::pin!(throttle.admit(FLUSH, &clock));
        let mut second = std::pin::pin!(throttle.admit(FLUSH, &clock));
        assert!(!poll(first.as_mut()) && !poll(second.as_mut()));
        assert_eq!(throttle.throttled().waiting, 2);
    }
    assert_eq!(throttle.throttled().waiting, 0);
    assert_eq!(clock.deadline(), None);
    clock.tick(Time::from_nanos(1_000_000_000));
    assert!(poll(std::pin::pin!(throttle.admit(FLUSH, &clock))));
}

#[test]
fn limits_survive_being_stored_and_nonsense_is_no_limit() {
    for limits in [
        None,
        Some(limits(500, 0, Duration::ZERO)),
        Some(limits(0, 10 << 20, Duration::from_secs(3600))),
        Some(limits(u64::MAX, u64::MAX, Duration::from_nanos(1))),
    ] {
        assert_eq!(Limits::decode(&Limits::encode(limits)), limits);
    }
    assert_eq!(Limits::decode(&[0xff; 24]), None, "a burst of centuries");
    assert_eq!(Limits::new(None, NonZeroU64::new(4095), Duration::ZERO), None);
}

/// What a guest does: it sends something, or time passes, to somewhere or to
/// the next moment that matters.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u32),
    Flush,
    Wait(u64),
    UntilDue,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u32..=256).prop_map(Step::Send),
        1 => Just(Step::Flush),
        1 => (0u64..200_000_000).prop_map(Step::Wait),
        2 => Just(Step::UntilDue),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// Whatever a guest does and whenever the worker looks: in no span of time
    /// does more pass than rate times span and the burst; requests pass in the
    /// order in which they came; and nobody waits longer than the rates make
    /// necessary.
    #[test]
    fn never_more_than_the_rate_never_out_of_order_never_starved(
        iops in 1u64..2000, rate in prop_oneof![Just(0), 4096u64..100 << 20],
        burst in 0u64..2_000_000_000, steps in steps(),
    ) {
        let burst_time = Duration::from_nanos(burst);
        let mut bench = Bench::new(limits(iops, rate, burst_time));
        let mut now = 0;
        let (mut last_sent, mut overslept) = (0, 0);
        for step in steps {
            match step {
                Step::Send(sectors) => bench.send(write(sectors)),
                Step::Flush => bench.send(FLUSH),
                Step::Wait(nanos) => {
                    now += nanos;
                    let due = bench.clock.deadline().map_or(now, Time::nanos);
                    overslept += u128::from(now.saturating_sub(due));
                }
                Step::UntilDue => now = bench.clock.deadline().map_or(now, Time::nanos).max(now),
            }
            if matches!(step, Step::Send(_) | Step::Flush) {
                last_sent = now;
            }
            bench.tick(Time::from_nanos(now));
        }
        while bench.missing() > 0 {
            let due = bench.clock.deadline().expect("somebody waits, so somebody is due");
            let before = bench.missing();
            prop_assert!(due.nanos() > now);
            now = due.nanos();
            bench.tick(due);
            prop_assert!(bench.missing() < before, "due, and nobody passed");
        }
        prop_assert_eq!(bench.clock.deadline(), None);

        let passed = bench.passed.borrow();
        prop_assert!(passed.iter().enumerate().all(|(at, passed)| passed.number == at));
        let parts = 1_000_000_000u128;
        let most = |rate: u64, least: u128, span: u64| {
            let burst = (u128::from(rate) * u128::from(burst)).max(least * parts);
            u128::from(rate) * u128::from(span) + burst
        };
        for (first, from) in passed.iter().enumerate() {
            let mut bytes = 0;
            for (count, to) in passed[first..].iter().enumerate() {
                bytes += u128::from(to.bytes);
                let span = to.when.nanos() - from.when.nanos();
                prop_assert!((count as u128 + 1) * parts <= most(iops, 1, span));
                prop_assert!(rate == 0 || bytes * parts <= most(rate, 128 << 10, span));
            }
        }
        // Had all come at the end, both buckets would have needed so long, a
        // nanosecond lost to rounding for each request; and a worker may look
        // late.
        let all: u128 = passed.iter().map(|passed| u128::from(passed.bytes)).sum();
        let count = passed.len() as u128;
        let needed = (count * parts / u128::from(iops))
            + (all * parts).checked_div(u128::from(rate)).unwrap_or(0) + count;
        let end = passed.last().map_or(0, |last| u128::from(last.when.nanos()));
        prop_assert!(end <= u128::from(last_sent) + needed + overslept);
    }
}
