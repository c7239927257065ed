//! Runs tasks and a disk in an order drawn from a seed, under a clock of its
//! own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use block_core::Time;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::SimDisk;

/// Polls without a command executed and without time passing after which a run
/// is called endless: a hundred times what a merge of a test's pool takes.
const MOST_IDLE_POLLS: u32 = 20_000_000;

/// Polls that may still happen after the disk has stopped, at most: so that a
/// crash also finds what was answered since the last command.
const MOST_LAST_POLLS: u32 = 32;

/// Most nanoseconds that pass in one step.
const MOST_STEP_NANOS: u64 = 20_000;

/// Why a run ended before its future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The disk has stopped: the machine is dead. Drop the driver, then ask
    /// the disk what is left.
    Stopped,
    /// Nobody can go on, whatever time it becomes: tasks wait for each other.
    Stuck,
}

/// Names a task of a [`Driver`].
type TaskId = usize;

/// The future that [`Driver::run`] was given.
const MAIN: TaskId = 0;

#[derive(Default)]
struct Ready(Mutex<Vec<TaskId>>);

impl Ready {
    fn push(&self, task: TaskId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn take(&self, place: usize) -> TaskId {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).swap_remove(place)
    }
}

struct TaskWaker {
    ready: Arc<Ready>,
    task: TaskId,
    woken: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::Relaxed) {
            self.ready.push(self.task);
        }
    }
}

struct Task {
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    wake: Arc<TaskWaker>,
    waker: Waker,
}

impl Task {
    fn new(ready: &Arc<Ready>, task: TaskId) -> Self {
        let wake = TaskWaker { ready: Arc::clone(ready), task, woken: AtomicBool::new(false) };
        let wake = Arc::new(wake);
        Self { future: None, waker: Waker::from(Arc::clone(&wake)), wake }
    }
}

/// The driver's clock: rises a little with every step, and leaps to the next
/// moment that somebody waits for when nothing else can happen.
#[derive(Clone, Default)]
pub struct VirtualClock {
    inner: Rc<ClockState>,
}

#[derive(Default)]
struct ClockState {
    now: Cell<Time>,
    /// Who sleeps until when; the number keeps equal moments apart.
    sleepers: RefCell<BTreeMap<(Time, u64), Waker>>,
    slept: Cell<u64>,
}

impl VirtualClock {
    /// The moment it is.
    pub fn now(&self) -> Time {
        self.inner.now.get()
    }

    /// Waits until `moment`.
    pub fn sleep_until(&self, moment: Time) -> impl Future<Output = ()> + use<> {
        let clock = Rc::clone(&self.inner);
        let number = clock.slept.replace(clock.slept.get() + 1);
        poll_fn(move |context| {
            if clock.now.get() >= moment {
                return Poll::Ready(());
            }
            let mut sleepers = clock.sleepers.borrow_mut();
            sleepers.insert((moment, number), context.waker().clone());
            Poll::Pending
        })
    }

    /// Waits that long.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + use<> {
        self.sleep_until(self.now() + duration)
    }

    fn next_sleeper(&self) -> Option<Time> {
        self.inner.sleepers.borrow().first_key_value().map(|(&(moment, _), _)| moment)
    }

    fn advance(&self, to: Time) {
        self.inner.now.set(self.now().max(to));
        let mut sleepers = self.inner.sleepers.borrow_mut();
        while let Some(sleeper) = sleepers.first_entry() {
            if sleeper.key().0 > self.now() {
                return;
            }
            sleeper.remove().wake();
        }
    }
}

/// What ticks beside the tasks: when it wants to be told the time, and how.
struct Ticking {
    deadline: Box<dyn Fn() -> Option<Time>>,
    tick: Box<dyn Fn(Time)>,
}

/// Runs tasks on a disk. Dropping it drops them wherever they are, as the end
/// of a process does.
pub struct Driver {
    disk: SimDisk,
    clock: VirtualClock,
    ticking: Vec<Ticking>,
    tasks: Vec<Task>,
    free: Vec<TaskId>,
    ready: Arc<Ready>,
    random: SmallRng,
    idle_polls: u32,
    last_polls: u32,
}

impl Driver {
    /// A driver without tasks.
    pub fn new(disk: &SimDisk, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed ^ 0x64_72_69_76_65_72);
        let ready = Arc::default();
        Self {
            disk: disk.clone(),
            clock: VirtualClock::default(),
            ticking: Vec::new(),
            tasks: vec![Task::new(&ready, MAIN)],
            free: Vec::new(),
            ready,
            last_polls: random.random_range(0..MOST_LAST_POLLS),
            random,
            idle_polls: 0,
        }
    }

    /// The driver's clock; a clone goes wherever the time is asked for.
    pub fn clock(&self) -> VirtualClock {
        self.clock.clone()
    }

    /// Has `tick` told the time whenever `deadline` has come.
    pub fn tick_at(
        &mut self,
        deadline: impl Fn() -> Option<Time> + 'static,
        tick: impl Fn(Time) + 'static,
    ) {
        self.ticking.push(Ticking { deadline: Box::new(deadline), tick: Box::new(tick) });
    }

    /// Adds a task.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) {
        let id = self.free.pop().unwrap_or_else(|| {
            self.tasks.push(Task::new(&self.ready, self.tasks.len()));
            self.tasks.len() - 1
        });
        self.tasks[id].future = Some(Box::pin(future));
        self.tasks[id].waker.wake_by_ref();
    }

    /// Lets everything go on until `future` is ready. It need not be `'static`;
    /// it is dropped when the run ends, ready or not.
    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Halt> {
        let mut main = pin!(future);
        let mut answer = None;
        self.tasks[MAIN].waker.wake_by_ref();
        self.drive(&mut |context| {
            if answer.is_none()
                && let Poll::Ready(value) = main.as_mut().poll(context)
            {
                answer = Some(value);
            }
            answer.is_some()
        })?;
        answer.ok_or(Halt::Stuck)
    }

    /// Lets everything go on until nothing can: all tasks wait for something
    /// that only the caller can bring. Time does not leap.
    pub fn settle(&mut self) -> Result<(), Halt> {
        while self.step(&mut |_| false)? != Step::Nothing {}
        Ok(())
    }

    /// Lets `duration` pass, and everything happen that happens in it.
    pub fn pass(&mut self, duration: Duration) -> Result<(), Halt> {
        let sleep = self.clock.sleep(duration);
        self.run(sleep)
    }

    fn drive(&mut self, main: &mut dyn FnMut(&mut Context<'_>) -> bool) -> Result<(), Halt> {
        loop {
            match self.step(main)? {
                Step::Ready => return Ok(()),
                Step::Moved => {}
                Step::Nothing if self.leap() => {}
                Step::Nothing => return Err(Halt::Stuck),
            }
        }
    }

    fn step(&mut self, main: &mut dyn FnMut(&mut Context<'_>) -> bool) -> Result<Step, Halt> {
        let runnable = self.ready.len();
        if self.disk.has_stopped() {
            if self.last_polls == 0 || runnable == 0 {
                return Err(Halt::Stopped);
            }
            self.last_polls -= 1;
        }
        // The disk is one among those that could go on.
        let choices = runnable + usize::from(self.disk.waiting() > 0);
        if choices == 0 {
            return Ok(Step::Nothing);
        }
        self.let_time_pass();
        let choice = self.random.random_range(0..choices);
        if choice >= runnable {
            self.idle_polls = 0;
            self.disk.step();
            return Ok(Step::Moved);
        }
        self.idle_polls += 1;
        assert!(self.idle_polls < MOST_IDLE_POLLS, "a task spins and nothing ends it");
        let task = self.ready.take(choice);
        Ok(self.poll(task, main))
    }

    fn poll(&mut self, id: TaskId, main: &mut dyn FnMut(&mut Context<'_>) -> bool) -> Step {
        let task = &mut self.tasks[id];
        task.wake.woken.store(false, Ordering::Relaxed);
        let mut context = Context::from_waker(&task.waker);
        if id == MAIN {
            return if main(&mut context) { Step::Ready } else { Step::Moved };
        }
        if let Some(future) = &mut task.future
            && future.as_mut().poll(&mut context).is_ready()
        {
            task.future = None;
            self.free.push(id);
        }
        Step::Moved
    }

    fn let_time_pass(&mut self) {
        let nanos = self.random.random_range(0..MOST_STEP_NANOS);
        self.advance(self.clock.now() + Duration::from_nanos(nanos));
    }

    /// Makes it the next moment that somebody waits for.
    fn leap(&mut self) -> bool {
        // What is due already is told first: it may have nothing to add.
        self.advance(self.clock.now());
        if self.ready.len() > 0 {
            return true;
        }
        let deadlines = self.ticking.iter().filter_map(|ticking| (ticking.deadline)());
        let Some(moment) = deadlines.chain(self.clock.next_sleeper()).min() else { return false };
        let later = moment > self.clock.now();
        self.advance(moment);
        later || self.ready.len() > 0
    }

    fn advance(&self, to: Time) {
        self.clock.advance(to);
        let now = self.clock.now();
        for ticking in &self.ticking {
            if (ticking.deadline)().is_some_and(|deadline| deadline <= now) {
                (ticking.tick)(now);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The run's own future is ready.
    Ready,
    /// Something happened.
    Moved,
    /// Nothing can happen at this time.
    Nothing,
}
