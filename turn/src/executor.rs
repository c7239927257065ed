//! One task per slot, woken through a bitmap.
//!
//! A task is boxed once, when its slot is made, and loops for ever: take the
//! slot's request, serve it, answer it. So a request allocates nothing. Tasks
//! are never cancelled; only dropping the executor drops them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use block_core::Chance;

use crate::ready::{BITS, Ready};

/// Times that one task may run in one turn. A task that yields to be fair
/// (between batches of hashing, say) waits for the next turn after so many.
const RUNS_PER_TURN: usize = 4;

/// Names a task of one executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(usize);

struct TaskWaker {
    ready: Arc<Ready>,
    task: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.set(self.task);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    waker: Waker,
}

/// Runs tasks on one thread. Wakers may be used from any thread, but only the
/// owner's own waking is noticed without a further message: a waker does not
/// end a sleep.
pub struct Executor {
    tasks: Vec<Option<Task>>,
    ready: Arc<Ready>,
    /// Chooses who is next; without it the order rotates.
    chance: Option<Chance>,
}

impl Executor {
    /// An executor with room for `capacity` tasks.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let ready = Arc::new(Ready::new(capacity));
        Self { tasks: Vec::with_capacity(capacity), ready, chance: None }
    }

    /// Lets chance choose the order of ready tasks from now on: a simulation
    /// finds the orders that no load would.
    pub fn draw_order(&mut self, chance: Chance) {
        self.chance = Some(chance);
    }

    /// Adds a task, which runs in the next [`Executor::run`]. `None` when all
    /// places are taken.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + 'static) -> Option<TaskId> {
        let task = self.place()?;
        let waker = Waker::from(Arc::new(TaskWaker { ready: Arc::clone(&self.ready), task }));
        waker.wake_by_ref();
        self.tasks[task] = Some(Task { future: Box::pin(future), waker });
        Some(TaskId(task))
    }

    fn place(&mut self) -> Option<usize> {
        if let Some(free) = self.tasks.iter().position(Option::is_none) {
            return Some(free);
        }
        if self.tasks.len() == self.ready.words() * BITS {
            return None;
        }
        self.tasks.push(None);
        Some(self.tasks.len() - 1)
    }

    /// Makes a task run again, whether or not what it waits for has come.
    pub fn wake(&self, id: TaskId) {
        if let Some(Some(task)) = self.tasks.get(id.0) {
            task.waker.wake_by_ref();
        }
    }

    /// Whether some task can go on.
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        self.ready.any()
    }

    /// Runs what can go on, each task at most a few times, beginning at the
    /// word of the bitmap that `start` names, so that nobody is always last.
    /// Returns how often a task ran.
    pub fn run(&mut self, start: usize) -> usize {
        let (words, groups) = (self.ready.words(), self.ready.groups());
        let mut runs = 0;
        for _ in 0..RUNS_PER_TURN {
            let before = runs;
            let start = self.chance.as_ref().map_or(start, |chance| chance.number() as usize);
            let first = start.checked_rem(words).unwrap_or(0);
            for group in (first / BITS..groups).chain(0..first / BITS) {
                runs += self.run_group(group, (first % BITS) as u32, start);
            }
            if runs == before {
                break;
            }
        }
        runs
    }

    fn run_group(&mut self, group: usize, shift: u32, start: usize) -> usize {
        let mut words = self.ready.take_group(group).rotate_right(shift);
        let mut runs = 0;
        while words != 0 {
            let word = (words.trailing_zeros() + shift) as usize % BITS;
            words &= words - 1;
            runs += self.run_word(group * BITS + word, start);
        }
        runs
    }

    fn run_word(&mut self, word: usize, start: usize) -> usize {
        let shift = (start % BITS) as u32;
        let mut bits = self.ready.take_word(word).rotate_right(shift);
        let runs = bits.count_ones() as usize;
        while bits != 0 {
            let next = self.next_bit(bits);
            bits &= !(1 << next);
            self.run_task(word * BITS + (next + shift) as usize % BITS);
        }
        runs
    }

    /// One of the bits: the lowest, or as chance will.
    fn next_bit(&self, bits: u64) -> u32 {
        let Some(chance) = &self.chance else { return bits.trailing_zeros() };
        let mut left = bits;
        for _ in 0..chance.number() % u64::from(bits.count_ones()) {
            left &= left - 1;
        }
        left.trailing_zeros()
    }

    fn run_task(&mut self, index: usize) {
        let Some(Some(task)) = self.tasks.get_mut(index) else { return };
        let mut context = Context::from_waker(&task.waker);
        if task.future.as_mut().poll(&mut context).is_ready() {
            self.tasks[index] = None;
        }
    }
}

/// Lets the other tasks run before this one goes on.
pub fn yield_now() -> impl Future<Output = ()> {
    let mut yielded = false;
    std::future::poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_task_runs_when_woken_and_only_then() {
        let mut executor = Executor::new(100);
        let runs = Rc::new(Cell::new(0));
        let counter = Rc::clone(&runs);
        let task = executor.spawn(std::future::poll_fn(move |_| {
            counter.set(counter.get() + 1);
            Poll::<()>::Pending
        }));
        let task = task.expect("room");
        assert_eq!(executor.run(0), 1);
        assert_eq!(executor.run(0), 0);
        assert!(!executor.is_runnable());
        executor.wake(task);
        assert!(executor.is_runnable());
        assert_eq!(executor.run(7), 1);
        assert_eq!(runs.get(), 2);
    }

    /// A task that always wakes itself must not keep the turn for itself.
    #[test]
    fn a_turn_is_bounded_though_a_task_never_stops_yielding() {
        let mut executor = Executor::new(2);
        executor.spawn(async {
            loop {
                yield_now().await;
            }
        });
        assert_eq!(executor.run(0), RUNS_PER_TURN);
        assert!(executor.is_runnable());
    }

    #[test]
    fn the_order_rotates_so_that_every_task_is_first_once() {
        const TASKS: usize = 130;
        let mut executor = Executor::new(TASKS);
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks: Vec<TaskId> = (0..TASKS)
            .filter_map(|number| {
                let order = Rc::clone(&order);
                executor.spawn(std::future::poll_fn(move |_| {
                    order.borrow_mut().push(number);
                    Poll::Pending
                }))
            })
            .collect();
        assert_eq!(tasks.len(), TASKS);
        let mut firsts = std::collections::BTreeSet::new();
        for start in 0..192 {
            order.borrow_mut().clear();
            tasks.iter().for_each(|&task| executor.wake(task));
            assert_eq!(executor.run(start), TASKS);
            firsts.insert(order.borrow()[0]);
        }
        assert!(firsts.len() >= TASKS / 2, "{} different firsts", firsts.len());
    }

    /// A simulation runs each seed again to see what happened: the same order
    /// must come of it, and another one of another seed.
    #[test]
    fn a_drawn_order_runs_each_task_once_and_follows_from_the_seed() {
        const TASKS: usize = 70;
        let order_of = |seed: u64| {
            let mut executor = Executor::new(TASKS);
            let drawn = Cell::new(seed);
            executor.draw_order(Chance::new(move || {
                drawn.set(drawn.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
                drawn.get() >> 33
            }));
            let order = Rc::new(RefCell::new(Vec::new()));
            for number in 0..TASKS {
                let order = Rc::clone(&order);
                executor.spawn(async move { order.borrow_mut().push(number) });
            }
            assert_eq!(executor.run(0), TASKS);
            order.take()
        };
        assert_eq!(order_of(1), order_of(1));
        assert_ne!(order_of(1), order_of(2));
        let mut all = order_of(3);
        all.sort_unstable();
        assert!(all.into_iter().eq(0..TASKS));
    }

    #[test]
    fn a_finished_task_gives_its_place_back() {
        let mut executor = Executor::new(1);
        let room = executor.ready.words() * BITS;
        for _ in 0..room {
            assert!(executor.spawn(async {}).is_some());
        }
        assert!(executor.spawn(async {}).is_none());
        executor.run(0);
        assert!(executor.spawn(async {}).is_some());
    }
}
