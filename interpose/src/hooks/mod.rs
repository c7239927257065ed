//! Interposers: pairs of hooks around every request of a volume, `admit`
//! before it runs (which may wait) and `done` after it.
//!
//! What stands around a volume stands in a fixed order, outermost first: the meter
//! and the recorder see what the guest sees, the throttle's waiting included. Only
//! the meter is always there; the others are an array, and come and go while
//! requests run. No hook serves a request.

pub mod clock;
pub mod histogram;
pub mod meter;
pub mod throttle;
pub mod trace;

mod bucket;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::{BlockError, Op, Request, SectorRange, Time};

pub use clock::TurnClock;
use meter::Running;
pub use meter::{Kind, Measured, Meter};
pub use throttle::{Limits, Throttle, Throttled};
pub use trace::{Recorded, Recorder};

/// What the hooks of a volume know of a request: not its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// What it does.
    pub op: Op,
    /// Where; `None` only for a flush.
    pub range: Option<SectorRange>,
}

impl RequestFacts {
    /// Bytes of data that the request moves; none for a flush or a trim.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match (self.op, self.range) {
            (Op::Read | Op::Write | Op::WriteThrough, Some(range)) => range.bytes(),
            _ => 0,
        }
    }
}

impl From<&Request> for RequestFacts {
    fn from(request: &Request) -> Self {
        Self { op: request.op, range: request.range }
    }
}

/// A request that the hooks have let pass; handed back when it is done. The
/// meter counts it as running until then, or until it is dropped.
#[derive(Debug)]
#[must_use = "a request that is not done is not counted"]
pub struct Ticket {
    facts: RequestFacts,
    arrived: Time,
    _running: Running,
}

/// Places of the array, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Record,
    Throttle,
}

/// One interposer that is not always there.
#[derive(Clone, Debug)]
enum Hook {
    Record(Rc<Recorder>),
    Throttle(Rc<Throttle>),
}

impl Hook {
    fn place(&self) -> Place {
        match self {
            Self::Record(_) => Place::Record,
            Self::Throttle(_) => Place::Throttle,
        }
    }

    /// Whether the request may pass now; if so it has.
    fn try_admit(&self, facts: RequestFacts, clock: &TurnClock) -> bool {
        match self {
            Self::Record(_) => true,
            Self::Throttle(throttle) => throttle.try_admit(facts, clock),
        }
    }

    async fn admit(&self, facts: RequestFacts, clock: &TurnClock) {
        match self {
            Self::Record(_) => {}
            Self::Throttle(throttle) => throttle.admit(facts, clock).await,
        }
    }

    fn done(&self, facts: RequestFacts, arrived: Time, outcome: Result<(), BlockError>, now: Time) {
        match self {
            Self::Record(recorder) => recorder.done(facts, arrived, now, outcome),
            Self::Throttle(_) => {}
        }
    }
}

/// What stands around one volume.
#[derive(Debug)]
pub struct Hooks {
    meter: Rc<Meter>,
    /// The others.
    array: RefCell<Vec<Hook>>,
    /// Whether there is a throttle among them.
    limited: Cell<bool>,
}

impl Hooks {
    /// A meter, and a throttle if there are limits.
    #[must_use]
    pub fn new(limits: Option<Limits>, now: Time) -> Self {
        let meter = Rc::new(Meter::default());
        let hooks = Self { meter, array: RefCell::default(), limited: Cell::new(false) };
        hooks.set_limits(limits, now);
        hooks
    }

    /// Lets a request pass that has to wait for nothing, the usual one. Only one
    /// hook makes requests wait, the innermost: none has let this one pass if
    /// another does not.
    pub fn try_admit(&self, facts: RequestFacts, clock: &TurnClock) -> Option<Ticket> {
        let passes = self.array.borrow().iter().all(|hook| hook.try_admit(facts, clock));
        passes.then(|| self.arrive(facts, clock))
    }

    /// Whether no hook makes anybody wait, as around most volumes.
    #[must_use]
    #[inline]
    pub fn is_free(&self) -> bool {
        !self.limited.get()
    }

    /// Lets a request pass while the hooks are free ([`Hooks::is_free`]), without a
    /// ticket: when it has come. [`Hooks::gone`] follows.
    #[inline]
    pub fn come(&self, clock: &TurnClock) -> Time {
        self.meter.come();
        clock.now()
    }

    /// A request has ended that had no ticket.
    #[inline]
    pub fn gone(
        &self,
        facts: RequestFacts,
        arrived: Time,
        outcome: Result<(), BlockError>,
        now: Time,
    ) {
        self.meter.go();
        self.ended(facts, arrived, outcome, now);
    }

    #[inline]
    fn ended(
        &self,
        facts: RequestFacts,
        arrived: Time,
        outcome: Result<(), BlockError>,
        now: Time,
    ) {
        let array = self.array.borrow();
        array.iter().rev().for_each(|hook| hook.done(facts, arrived, outcome, now));
        self.meter.done(facts, now - arrived, outcome);
    }

    #[inline]
    fn arrive(&self, facts: RequestFacts, clock: &TurnClock) -> Ticket {
        Ticket { facts, arrived: clock.now(), _running: self.meter.arrive() }
    }

    /// Lets a request pass, which may take until its turn has come. One that
    /// goes away before, because the future is dropped, was none.
    pub async fn admit(&self, facts: RequestFacts, clock: &TurnClock) -> Ticket {
        let ticket = self.arrive(facts, clock);
        let mut last = None;
        // The array may change while a hook waits.
        while let Some(hook) = self.inside(last) {
            hook.admit(facts, clock).await;
            last = Some(hook.place());
        }
        ticket
    }

    /// The request has ended.
    pub fn done(&self, ticket: Ticket, outcome: Result<(), BlockError>, now: Time) {
        self.ended(ticket.facts, ticket.arrived, outcome, now);
    }

    /// What the requests were and how long they took.
    #[must_use]
    pub fn measured(&self) -> Measured {
        self.meter.measured()
    }

    /// What the volume may do, if that is limited.
    #[must_use]
    pub fn limits(&self) -> Option<Limits> {
        self.throttle().map(|throttle| throttle.limits())
    }

    /// Sets what the volume may do, also for requests that wait already.
    pub fn set_limits(&self, limits: Option<Limits>, now: Time) {
        match (self.throttle(), limits) {
            (Some(throttle), Some(limits)) => throttle.set_limits(limits, now),
            (Some(throttle), None) => {
                self.take(Place::Throttle);
                throttle.lift();
            }
            (None, Some(limits)) => {
                self.put(Hook::Throttle(Rc::new(Throttle::new(limits, now))));
            }
            (None, None) => {}
        }
    }

    /// What the throttle has held back, while there is one.
    #[must_use]
    pub fn throttled(&self) -> Option<Throttled> {
        self.throttle().map(|throttle| throttle.throttled())
    }

    /// Records every request that comes from here on; ends another recording.
    pub fn record(&self, recorder: Recorder) {
        self.stop_recording();
        self.put(Hook::Record(Rc::new(recorder)));
    }

    /// Ends the recording, if there is one. Requests that run are not in it.
    pub fn stop_recording(&self) {
        if let Some(Hook::Record(recorder)) = self.take(Place::Record) {
            recorder.finish();
        }
    }

    /// What the recording has, if there is one.
    #[must_use]
    pub fn recorded(&self) -> Option<Recorded> {
        let array = self.array.borrow();
        array.iter().find_map(|hook| match hook {
            Hook::Record(recorder) => Some(recorder.recorded()),
            Hook::Throttle(_) => None,
        })
    }

    fn throttle(&self) -> Option<Rc<Throttle>> {
        let array = self.array.borrow();
        array.iter().find_map(|hook| match hook {
            Hook::Throttle(throttle) => Some(Rc::clone(throttle)),
            Hook::Record(_) => None,
        })
    }

    fn inside(&self, last: Option<Place>) -> Option<Hook> {
        let array = self.array.borrow();
        array.iter().find(|hook| last.is_none_or(|last| last < hook.place())).cloned()
    }

    fn put(&self, hook: Hook) {
        let mut array = self.array.borrow_mut();
        let at = array.partition_point(|other| other.place() < hook.place());
        array.insert(at, hook);
        self.limited.set(array.iter().any(|hook| hook.place() == Place::Throttle));
    }

    fn take(&self, place: Place) -> Option<Hook> {
        let mut array = self.array.borrow_mut();
        let at = array.iter().position(|hook| hook.place() == place)?;
        let hook = array.remove(at);
        self.limited.set(array.iter().any(|hook| hook.place() == Place::Throttle));
        Some(hook)
    }
}

#[cfg(test)]
mod tests;
