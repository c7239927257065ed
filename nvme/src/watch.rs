//! A watch over one controller: commands that are not answered in time are
//! aborted, and a controller that does not help itself is reset.
//!
//! Whoever turns the queue pair asks [`Watch::look`] once a turn. Most turns
//! that costs a comparison: commands do not know when they were issued, but in
//! which *round* of the watch, and a round ends a few times in a second. So the
//! clock is not read for commands, and time in which nobody looked (the thread
//! was held up, the machine slept) does not count against the controller.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use block_core::Time;
use thiserror::Error;

use crate::controller::{Controller, Core, Health, StartError};
use crate::event::Event;
use crate::health::HealthLog;
use crate::port::pause;
use crate::queue_pair::QueuePair;

/// The longest round: how late a fatal status is seen while commands are under
/// way. A look then costs one read of a register.
const LONGEST_ROUND: Duration = Duration::from_millis(100);

/// Rounds before a command is late, at least: it is late by one at most.
const FEWEST_ROUNDS: u32 = 8;

/// How long a controller may take before something is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a command; then it is aborted.
    pub command: Duration,
    /// For a command that was aborted; then the controller is reset.
    pub abort: Duration,
    /// How many resets are tried before the controller is given up; at least
    /// one is.
    pub resets: u32,
    /// From the first reset that failed to the second; doubles each time.
    pub pause: Duration,
}

impl Default for Patience {
    /// 30 s for a command, as Linux (`nvme_core.io_timeout`): a flush of a
    /// large cache may take so long. Five resets within half a minute, beside
    /// what each takes by itself.
    fn default() -> Self {
        Self {
            command: Duration::from_secs(30),
            abort: Duration::from_secs(5),
            resets: 5,
            pause: Duration::from_secs(2),
        }
    }
}

/// Why a controller is reset.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Trouble {
    /// Commands are not answered, aborted or not.
    #[error("{0} of its commands had no answer in time, and aborting them did not help")]
    Stuck(usize),
    /// CSTS.CFS.
    #[error("it reports a fatal status (CSTS.CFS)")]
    Fatal,
    /// All ones.
    #[error("its registers read as all ones: it was removed or lost its power")]
    Gone,
    /// Its bus says that it is taken away.
    #[error("it is taken away: it was unplugged, or is given to another driver")]
    Revoked,
    /// CSTS.RDY is 0.
    #[error("it has stopped by itself: it lost its power or was reset by somebody else")]
    Stopped,
}

/// What a watch has to say.
#[derive(Debug)]
pub enum News {
    /// The controller is about to be reset. Nothing that its namespaces answer
    /// from now on is to be believed by those who rely on answered writes.
    Down(Trouble),
    /// It works again: make new [`Namespace`](crate::Namespace)s of it. The
    /// number of resets that it took.
    Up(u32),
    /// So many commands were not answered in time, and are aborted.
    Late(usize),
    /// It has something to tell, with its health log if it is about that. Its commands
    /// go on.
    Event(Event, Option<HealthLog>),
    /// Its health log, as [`Watch::read_health`] asks for it.
    Health(HealthLog),
    /// It does not come back, and why. Its commands end with an error, at once.
    GivenUp(StartError),
}

/// What was done about a controller so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Commands that were not answered in time.
    pub late: u64,
    /// Resets that brought the controller back.
    pub resets: u64,
}

/// Watches over the controller of one queue pair.
pub struct Watch {
    /// Declared first: what is dropped before the queue pair is.
    stage: Stage,
    core: Arc<Core>,
    queue: Rc<QueuePair>,
    patience: Patience,
    round: Duration,
    rounds: u32,
    next_look: Time,
    /// Its bus says when the device is wanted back.
    is_removable: bool,
    troubles: Troubles,
    /// How often the health log is read, and when next.
    health: Option<(Duration, Time)>,
}

enum Stage {
    Calm,
    /// Ready with whether all of them have ended.
    Aborting(usize, Step<bool>),
    /// Ready with the health log, if the event is about that.
    Attending(Event, Step<Result<Option<HealthLog>, StartError>>),
    /// Ready with the health log.
    Asking(Step<Result<HealthLog, StartError>>),
    /// Ready with how many resets it took.
    Resetting(Step<Result<u32, StartError>>),
    Over,
}

type Step<T> = Pin<Box<dyn Future<Output = T>>>;

impl Watch {
    /// A watch over the controller, for the thread that turns this queue pair
    /// of it. A controller has one: others find their queue pairs stale.
    #[must_use]
    pub fn new(controller: &Controller, queue: Rc<QueuePair>, patience: Patience) -> Self {
        let round = (patience.command / FEWEST_ROUNDS).min(LONGEST_ROUND);
        let round = round.max(Duration::from_nanos(1));
        let rounds = patience.command.as_nanos().div_ceil(round.as_nanos());
        let core = controller.core();
        Self {
            stage: Stage::Calm,
            is_removable: core.port.bus.announces_removal(),
            core,
            queue,
            patience,
            round,
            rounds: u32::try_from(rounds).unwrap_or(u32::MAX).saturating_add(1),
            next_look: Time::ZERO,
            troubles: Troubles::default(),
            health: None,
        }
    }

    /// Reads the health log every so often, while commands are under way.
    pub fn read_health(&mut self, every: Duration, now: Time) {
        self.health = Some((every, now + every));
    }

    /// What was done so far.
    #[must_use]
    pub fn troubles(&self) -> Troubles {
        self.troubles
    }

    /// Whether it must be asked again though nothing comes.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !matches!(self.stage, Stage::Calm | Stage::Over)
    }

    /// When it must be asked again though nothing comes: `None` when there is nothing to
    /// look after.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        (self.is_busy() || self.queue.in_flight() > 0).then_some(self.next_look)
    }

    /// Takes the next step, if one is due. To be called before completions are
    /// taken, and what it says to be passed on before that.
    pub fn look(&mut self, now: Time) -> Option<News> {
        match &mut self.stage {
            // Without commands nobody waits, but a device that can be taken away is let go.
            Stage::Calm if now < self.next_look => None,
            Stage::Calm if self.queue.in_flight() == 0 && !self.is_removable => None,
            Stage::Calm => {
                self.next_look = now + self.round;
                self.check(now)
            }
            Stage::Aborting(late, step) => match poll(step) {
                Poll::Pending => None,
                Poll::Ready(true) => {
                    self.stage = Stage::Calm;
                    None
                }
                Poll::Ready(false) => {
                    let stuck = Trouble::Stuck(*late);
                    self.reset(self.standing().unwrap_or(stuck))
                }
            },
            Stage::Attending(event, step) => match poll(step) {
                Poll::Pending => None,
                Poll::Ready(outcome) => {
                    let event = *event;
                    self.stage = Stage::Calm;
                    // Whoever does not say more is looked at in the next round.
                    Some(News::Event(event, outcome.ok().flatten()))
                }
            },
            Stage::Asking(step) => match poll(step) {
                Poll::Pending => None,
                Poll::Ready(outcome) => {
                    self.stage = Stage::Calm;
                    outcome.ok().map(News::Health)
                }
            },
            Stage::Resetting(step) => match poll(step) {
                Poll::Pending => None,
                Poll::Ready(Ok(tries)) => {
                    self.troubles.resets += 1;
                    self.stage = Stage::Calm;
                    Some(News::Up(tries))
                }
                Poll::Ready(Err(error)) => {
                    self.stage = Stage::Over;
                    Some(News::GivenUp(error))
                }
            },
            Stage::Over => None,
        }
    }

    fn check(&mut self, now: Time) -> Option<News> {
        if let Some(trouble) = self.standing() {
            return self.reset(trouble);
        }
        let late = self.queue.end_round(self.rounds);
        if !late.is_empty() {
            self.troubles.late += late.len() as u64;
            tracing::warn!(
                queue = self.queue.id(),
                commands = late.len(),
                patience = ?self.patience.command,
                "commands have no answer in time; they are aborted"
            );
            let (core, queue) = (Arc::clone(&self.core), Rc::clone(&self.queue));
            let step = abort(core, queue, late.clone(), self.patience.abort);
            self.stage = Stage::Aborting(late.len(), Box::pin(step));
            return Some(News::Late(late.len()));
        }
        if let Some(event) = self.core.take_event() {
            let core = Arc::clone(&self.core);
            let step = async move { core.attend(event).await };
            self.stage = Stage::Attending(event, Box::pin(step));
        } else if let Some((every, next)) = &mut self.health
            && *next <= now
        {
            *next = now + *every;
            let core = Arc::clone(&self.core);
            self.stage = Stage::Asking(Box::pin(async move { core.health_log().await }));
        }
        None
    }

    /// What is wrong with the controller, by its registers.
    fn standing(&self) -> Option<Trouble> {
        match self.core.health() {
            Health::Ready => None,
            Health::NotReady => Some(Trouble::Stopped),
            Health::Fatal => Some(Trouble::Fatal),
            Health::Gone if self.core.port.bus.is_revoked() => Some(Trouble::Revoked),
            Health::Gone => Some(Trouble::Gone),
        }
    }

    fn reset(&mut self, trouble: Trouble) -> Option<News> {
        let (core, queue) = (Arc::clone(&self.core), Rc::clone(&self.queue));
        queue.hold();
        self.stage = Stage::Resetting(Box::pin(reset(core, queue, self.patience)));
        Some(News::Down(trouble))
    }
}

fn poll<T>(step: &mut Step<T>) -> Poll<T> {
    step.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Aborts commands, one after the other: a controller takes at least one abort
/// at a time, whatever its limit (ACL) is. An abort proves nothing; a command
/// is over when its own completion has come.
async fn abort(core: Arc<Core>, queue: Rc<QueuePair>, late: Vec<u16>, patience: Duration) -> bool {
    for &id in late.iter().filter(|id| queue.is_under_way(**id)) {
        match core.abort(queue.id(), id).await {
            Ok(_) | Err(StartError::Refused { .. }) => {}
            Err(error) => {
                tracing::warn!("a command cannot be aborted: {error}");
                return false;
            }
        }
    }
    let limit = (core.port.clock)() + patience;
    while late.iter().any(|id| queue.is_under_way(*id)) {
        if (core.port.clock)() >= limit {
            return false;
        }
        pause().await;
    }
    true
}

/// Resets the controller until it works again, a few times at most; how often.
async fn reset(
    core: Arc<Core>,
    queue: Rc<QueuePair>,
    patience: Patience,
) -> Result<u32, StartError> {
    let mut wait = patience.pause;
    for attempt in 1.. {
        let outcome = match core.reset().await {
            Ok(()) => queue.create_again().await,
            Err(error) => Err(error),
        };
        let Err(error) = outcome else { return Ok(attempt) };
        let is_over = matches!(error, StartError::Changed { .. }) || core.port.bus.is_revoked();
        if attempt >= patience.resets || is_over {
            core.give_up();
            return Err(error);
        }
        tracing::warn!(attempt, "the controller does not come back, trying again: {error}");
        let until = (core.port.clock)() + wait;
        while (core.port.clock)() < until {
            pause().await;
        }
        wait *= 2;
    }
    unreachable!("the last attempt returns")
}
