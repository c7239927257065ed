//! The controller's life: off, running, failed; and in a run, the queues.

use std::sync::Arc;

use super::SoftOptions;
use super::disorder::Chance;
use super::events::Events;
use super::fault::{Fault, Switches, Verdict};
use super::interrupts::{Interrupts, Vector};
use super::io::Progress;
use super::log::Served;
use super::namespace::SoftNamespace;
use super::prp::Piece;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::registers::{Configuration, Registers};
use super::shadow::Shadow;
use super::windows::{Registry, Windows};
use crate::PAGE;
use crate::command::{COMMAND_WORDS, Command};
use crate::completion::{COMPLETION_WORDS, Status};
use crate::registers::{
    CC_ENABLE, CC_SHUTDOWN_MASK, CSTS_FATAL, CSTS_READY, CSTS_SHUTDOWN_COMPLETE,
};

/// Most bytes moved, or made zero, or deallocated in one call of `work`, so
/// that a turn stays short; a command counts as one page more.
const WORK_BYTES: usize = 1 << 20;

/// CC.MPS, CC.CSS and CC.AMS: zero is all that is supported.
const CC_UNSUPPORTED: u32 = 0b1111 << 7 | 0b111 << 4 | 0b111 << 11;

/// What becomes of a command when it is looked at.
pub(super) enum Answer {
    /// It ended, with a status and a result.
    Now(Status, u32),
    /// It stays open.
    Later,
}

/// A command that was fetched and not executed.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) queue: u16,
    pub(super) command: Command,
    pub(super) stuck: Stuck,
}

/// Whether a command that is held back is executed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stuck {
    /// In its turn.
    No,
    /// It waits for an abort or the end of its queue.
    UntilAborted,
    /// It waits for the end of its queue.
    Fast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Power {
    Off,
    Running,
    Failed,
    /// It was reset, and the kernel has commands yet.
    Stopping,
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) options: SoftOptions,
    pub(super) windows: Windows,
    pub(super) namespaces: Vec<SoftNamespace>,
    pub(super) submission: Vec<Option<SubmissionQueue>>,
    pub(super) completion: Vec<Option<CompletionQueue>>,
    pub(super) features: [u32; 16],
    pub(super) held: Vec<Held>,
    pub(super) events: Events,
    pub(super) pieces: Vec<Piece>,
    pub(super) served: Served,
    pub(super) shadow: Option<Shadow>,
    /// What tells a driver of another process that something was posted.
    interrupts: Option<Arc<Interrupts>>,
    pub(super) power: Power,
    /// Some namespaces say later how a command ended.
    pub(super) has_direct: bool,
    /// Resets that were asked for until now.
    resets: u32,
    switches: Switches,
    chance: Chance,
    budget: usize,
    /// It does nothing.
    hangs: bool,
    /// It reaches no memory.
    cut_off: bool,
    /// A reset costs what was not flushed.
    reset_loses: Option<Chance>,
}

impl Engine {
    pub(super) fn new(
        options: SoftOptions,
        mut namespaces: Vec<SoftNamespace>,
        interrupts: Option<Arc<Interrupts>>,
    ) -> Self {
        let queues = usize::from(options.queues) + 1;
        for namespace in &mut namespaces {
            namespace.set_cached(options.write_cache);
        }
        let has_direct = namespaces.iter().any(SoftNamespace::is_direct);
        Self {
            windows: Windows::default(),
            namespaces,
            submission: (0..queues).map(|_| None).collect(),
            completion: (0..queues).map(|_| None).collect(),
            features: super::admin::initial_features(&options),
            held: Vec::with_capacity(64),
            events: Events::new(),
            pieces: Vec::with_capacity(options.max_transfer / PAGE + 1),
            served: Served::default(),
            shadow: None,
            interrupts,
            power: Power::Off,
            has_direct,
            resets: 0,
            switches: Switches::default(),
            chance: Chance::new(options.disorder.map_or(0, |disorder| disorder.seed)),
            budget: 0,
            hangs: false,
            cut_off: false,
            reset_loses: None,
            options,
        }
    }

    pub(super) fn work(&mut self, registers: &Registers, registry: &Registry) -> usize {
        if registers.is_gone() || self.hangs || self.cut_off {
            return 0;
        }
        let mut count = self.follow(registers, registry);
        if self.has_direct {
            count += self.collect(registers);
        }
        if self.power != Power::Running {
            return count;
        }
        self.budget = WORK_BYTES;
        count += self.release(registers);
        for queue in 0..self.submission.len() as u16 {
            count += self.serve(queue, registers, registry);
        }
        if self.has_direct {
            self.tell();
        }
        count
    }

    pub(super) fn inject(&mut self, fault: Fault, registers: &Registers) {
        match fault {
            Fault::Stick { count } => self.switches.stick(count, false),
            Fault::StickFast { count } => self.switches.stick(count, true),
            Fault::Fail { opcode, status, count } => self.switches.fail(opcode, status, count),
            Fault::Fatal => self.fail(registers),
            Fault::Hang => self.hangs = true,
            Fault::Removal => registers.remove(),
            Fault::Return { seed } => {
                registers.put_back();
                self.hangs = false;
                self.power_cut(seed, registers);
            }
            Fault::Shrink { blocks } => {
                self.namespaces.iter_mut().take(1).for_each(|namespace| namespace.shrink(blocks));
            }
            Fault::LossyReset { seed } => self.reset_loses = Some(Chance::new(seed)),
        }
    }

    pub(super) fn power_cut(&mut self, seed: u64, registers: &Registers) {
        let mut chance = Chance::new(seed);
        self.break_off(&mut chance, registers);
        for namespace in &mut self.namespaces {
            namespace.power_cut(&mut chance);
        }
    }

    pub(super) fn host_died(&mut self, seed: u64, registers: &Registers) {
        self.break_off(&mut Chance::new(seed), registers);
    }

    /// The driver takes memory away, or comes anew and gives some.
    pub(super) fn reach_memory(&mut self, reaches: bool) {
        self.cut_off = !reaches;
        if !reaches {
            self.forsake();
            self.finish();
        }
    }

    /// Stops in the middle of everything.
    fn break_off(&mut self, chance: &mut Chance, registers: &Registers) {
        for held in std::mem::take(&mut self.held) {
            if held.stuck == Stuck::No && chance.below(2) == 0 {
                // Nobody learns of it.
                let _ = self.execute(held.queue, &held.command);
            }
        }
        self.forsake();
        self.finish();
        self.switches = Switches::default();
        registers.clear_configuration();
        self.stop(registers);
    }

    /// Does what CC asks for (Base 2.0, section 3.1.3.5).
    fn follow(&mut self, registers: &Registers, registry: &Registry) -> usize {
        let Configuration { value: configuration, resets } = registers.configuration();
        let is_reset = std::mem::replace(&mut self.resets, resets) != resets;
        // After the register: the driver may have made the memory that it names
        // while this thread was on its way here. The same holds for doorbells.
        self.windows.refresh(registry);
        let enabled = configuration & CC_ENABLE != 0;
        match self.power {
            Power::Off if enabled => {
                self.start(configuration, registers);
                1
            }
            Power::Running | Power::Failed if is_reset || !enabled => {
                self.stop(registers);
                if let Some(chance) = &mut self.reset_loses {
                    self.namespaces.iter_mut().for_each(|namespace| namespace.power_cut(chance));
                }
                1
            }
            _ if configuration & CC_SHUTDOWN_MASK != 0
                && registers.status() & CSTS_SHUTDOWN_COMPLETE == 0
                && !self.is_under_way() =>
            {
                // A namespace that cannot be written out has said so in the log;
                // that keeps the others from nothing.
                self.flush_all();
                registers.set_status(registers.status() | CSTS_SHUTDOWN_COMPLETE);
                1
            }
            _ => 0,
        }
    }

    fn start(&mut self, configuration: u32, registers: &Registers) {
        let attributes = registers.admin_attributes();
        let entries = |bits: u32| (bits & 0xfff) + 1;
        let (submission, completion) = (entries(attributes), entries(attributes >> 16));
        let (asq, acq) = registers.admin_addresses();
        let aligned = (asq | acq).is_multiple_of(PAGE as u64);
        let submission_words = self.windows.words(asq, submission as usize * COMMAND_WORDS);
        let completion_words = self.windows.words(acq, completion as usize * COMPLETION_WORDS);
        let sound =
            configuration & CC_UNSUPPORTED == 0 && aligned && submission.min(completion) > 1;
        let (Some(submission_words), Some(completion_words), true) =
            (submission_words, completion_words, sound)
        else {
            return self.fail(registers);
        };
        self.submission[0] = Some(SubmissionQueue::new(submission_words, submission, 0));
        let vector = self.vector(0);
        self.completion[0] = Some(CompletionQueue::new(completion_words, completion, vector));
        self.power = Power::Running;
        registers.set_status(CSTS_READY);
    }

    /// A controller reset: no queue, no command, no feature value is left
    /// (Base 2.0, section 3.7.2). It is over when the kernel has no command either: until
    /// then the driver's memory is not the driver's.
    fn stop(&mut self, registers: &Registers) {
        self.held.clear();
        self.forsake();
        self.power = Power::Stopping;
        if !self.is_under_way() {
            self.end_stop(registers);
        }
    }

    /// The kernel has let go of what a reset left behind.
    pub(super) fn end_stop(&mut self, registers: &Registers) {
        for queue in 0..self.submission.len() as u16 {
            self.submission[usize::from(queue)] = None;
            self.completion[usize::from(queue)] = None;
            registers.clear_tail(queue);
            registers.clear_head(queue);
        }
        self.events.reset();
        self.shadow = None;
        self.features = super::admin::initial_features(&self.options);
        for namespace in &mut self.namespaces {
            namespace.set_cached(self.options.write_cache);
        }
        self.power = Power::Off;
        registers.set_status(0);
    }

    fn fail(&mut self, registers: &Registers) {
        self.power = Power::Failed;
        registers.set_status(registers.status() | CSTS_FATAL);
    }

    /// Takes commands from one queue while there are some, their completions
    /// have room and the budget lasts.
    fn serve(&mut self, queue: u16, registers: &Registers, registry: &Registry) -> usize {
        let source = self.submission[usize::from(queue)].as_ref();
        if source.is_none_or(|source| source.deletion.is_some()) {
            return 0;
        }
        let tail = self.tail(queue, registers);
        self.windows.refresh(registry);
        let mut count = 0;
        while self.budget > 0
            && self.has_room(queue, registers)
            && self.may_hold(queue)
            && self.has_place(queue)
        {
            let Some(source) = &mut self.submission[usize::from(queue)] else { break };
            let Some(command) = source.fetch(tail) else { break };
            count += 1;
            let answer = if queue == 0 {
                // An event that is told meanwhile leaves room for this one's answer.
                self.owe(0);
                let answer = self.administer(&command, registers);
                self.pay(0);
                answer
            } else {
                self.take(queue, &command)
            };
            if let Answer::Now(status, result) = answer {
                self.post(queue, command.id(), status, result);
            }
        }
        count
    }

    /// An I/O command has been fetched: execute it, or hold it back.
    fn take(&mut self, queue: u16, command: &Command) -> Answer {
        let stuck = match self.switches.judge(command.opcode()) {
            Verdict::Serve if self.options.disorder.is_none() => {
                return self.execute(queue, command);
            }
            Verdict::Serve => Stuck::No,
            Verdict::Stick { fast: false } => Stuck::UntilAborted,
            Verdict::Stick { fast: true } => Stuck::Fast,
            Verdict::Fail(status) => return Answer::Now(status, 0),
        };
        self.held.push(Held { queue, command: *command, stuck });
        Answer::Later
    }

    fn execute(&mut self, queue: u16, command: &Command) -> Answer {
        self.budget = self.budget.saturating_sub(PAGE);
        match self.serve_io(queue, command) {
            Ok(Progress::Done(bytes)) => {
                self.budget = self.budget.saturating_sub(bytes);
                Answer::Now(Status::SUCCESS, 0)
            }
            Ok(Progress::UnderWay) => {
                self.owe(queue);
                Answer::Later
            }
            Err(status) => Answer::Now(status, 0),
        }
    }

    /// Executes some of the commands held back, in an order of chance.
    fn release(&mut self, registers: &Registers) -> usize {
        let Some(disorder) = self.options.disorder else { return 0 };
        let mut count = 0;
        for _ in 0..self.held.len() {
            let index = self.chance.below(self.held.len());
            let held = &self.held[index];
            let queue = held.queue;
            let waits = self.chance.below(disorder.delay as usize + 1) > 0;
            if held.stuck != Stuck::No
                || waits
                || self.budget == 0
                || !self.has_room(queue, registers)
                || !self.has_place(queue)
            {
                continue;
            }
            let command = self.held.swap_remove(index).command;
            if let Answer::Now(status, result) = self.execute(queue, &command) {
                self.post(queue, command.id(), status, result);
            }
            count += 1;
        }
        count
    }

    fn may_hold(&self, queue: u16) -> bool {
        let Some(disorder) = self.options.disorder else { return true };
        queue == 0
            || self.held.iter().filter(|held| held.stuck == Stuck::No).count()
                < disorder.held.max(1)
    }

    /// Whether a completion of this submission queue's commands has room. The head
    /// doorbell is asked only when the last value leaves none.
    #[inline]
    pub(super) fn has_room(&mut self, queue: u16, registers: &Registers) -> bool {
        let Some(source) = &self.submission[usize::from(queue)] else { return false };
        let target = source.completion;
        let completion = self.completion[usize::from(target)].as_ref();
        completion.is_some_and(CompletionQueue::has_room) || self.finds_room(target, registers)
    }

    #[cold]
    fn finds_room(&mut self, target: u16, registers: &Registers) -> bool {
        let shadow = self.shadow.as_ref().filter(|_| target > 0);
        let head = shadow.map_or_else(|| registers.head(target), |shadow| shadow.head(target));
        self.completion[usize::from(target)].as_mut().is_some_and(|completion| {
            completion.learn_head(head);
            completion.has_room()
        })
    }

    pub(super) fn post(&mut self, queue: u16, id: u16, status: Status, result: u32) {
        let Some(source) = &self.submission[usize::from(queue)] else { return };
        let (head, target) = (source.head(), source.completion);
        if let Some(completion) = &mut self.completion[usize::from(target)] {
            // Nothing else here would go differently at a second attempt.
            let may_retry = status.is_success() || status == Status::ABORT_REQUESTED;
            let status = if may_retry { status } else { status.final_answer() };
            completion.post(queue, head, id, status, result);
        }
    }

    /// A vector that the controller has, if there is who hears it.
    pub(super) fn vector(&self, number: u16) -> Option<Vector> {
        self.interrupts.as_ref().map(|interrupts| Vector::new(interrupts, number))
    }

    /// Flushes every namespace, also after one has failed.
    pub(super) fn flush_all(&mut self) -> Status {
        let flushed = self.namespaces.iter_mut().map(SoftNamespace::flush);
        flushed.fold(Status::SUCCESS, |worst, outcome| outcome.err().unwrap_or(worst))
    }
}
