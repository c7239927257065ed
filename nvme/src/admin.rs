//! The admin queue: one command at a time, for start-up and the making and
//! deleting of queues.

use std::sync::atomic::Ordering;

use block_core::DmaMemory;

use crate::command::{Command, admin};
use crate::completion::{Completion, Status};
use crate::controller::StartError;
use crate::event::Event;
use crate::identify::{IDENTIFY_BYTES, Page};
use crate::port::{ADMIN_ENTRIES, Port, pause};
use crate::registers::{CSTS, CSTS_FATAL, GONE};
use crate::ring::{CompletionRing, SubmissionRing};
use crate::sys::Words;

/// From here on identifiers are those of event requests. 0xffff is not reached.
const EVENT_IDS: u16 = 0x4000;

/// The admin queue and the page that answers are written to.
pub(crate) struct Admin {
    submission_memory: DmaMemory,
    completion_memory: DmaMemory,
    submission: SubmissionRing,
    completion: CompletionRing,
    answer_memory: DmaMemory,
    next_id: u16,
    /// A command got no answer: until a reset the controller may still write
    /// to the answer page, so nothing more is asked.
    silent: bool,
    /// The event request that is open.
    request: Option<u16>,
    /// What the last one told.
    event: Option<Event>,
    /// Which queue numbers are taken; 0 is this queue.
    queues: Vec<bool>,
}

impl Admin {
    /// Allocates the queue's memory; the controller does not know it yet.
    pub(crate) fn new(port: &Port) -> Result<Self, StartError> {
        let allocate = || port.bus.allocate(crate::PAGE).map_err(StartError::Memory);
        let (submission_memory, completion_memory) = (allocate()?, allocate()?);
        Ok(Self {
            submission: SubmissionRing::new(&submission_memory, ADMIN_ENTRIES),
            completion: CompletionRing::new(&completion_memory, ADMIN_ENTRIES),
            submission_memory,
            completion_memory,
            answer_memory: allocate()?,
            next_id: 0,
            silent: false,
            request: None,
            event: None,
            queues: vec![true],
        })
    }

    /// Starts the controller, which has been stopped, on this queue.
    pub(crate) async fn start(&mut self, port: &Port) -> Result<(), StartError> {
        self.submission.restart();
        self.completion.restart();
        self.silent = false;
        (self.request, self.event) = (None, None);
        self.queues.truncate(1);
        port.enable(&self.submission_memory, &self.completion_memory).await
    }

    /// Says how many queues there can be, beside this one.
    pub(crate) fn grant(&mut self, queues: u16) {
        self.queues.resize(usize::from(queues) + 1, false);
    }

    /// A queue number that is not taken.
    pub(crate) fn take_queue(&mut self) -> Option<u16> {
        let id = self.queues.iter().position(|taken| !taken)?;
        self.queues[id] = true;
        u16::try_from(id).ok()
    }

    /// Gives a queue number back; the controller has no such queue any more.
    pub(crate) fn return_queue(&mut self, id: u16) {
        if let Some(taken) = self.queues.get_mut(usize::from(id)) {
            *taken = false;
        }
    }

    /// Identify: what the controller wrote.
    pub(crate) async fn identify(
        &mut self,
        port: &Port,
        what: u8,
        namespace: u32,
    ) -> Result<Box<Page>, StartError> {
        self.ask(port, "identify", Command::identify(what, namespace)).await
    }

    /// Runs a command whose answer is a page, or less and then zeroes or what
    /// was there before.
    pub(crate) async fn ask(
        &mut self,
        port: &Port,
        name: &'static str,
        command: Command,
    ) -> Result<Box<Page>, StartError> {
        let command = command.with_data(self.answer_memory.iova(), 0);
        self.execute(port, name, command).await?;
        let words = Words::all(&self.answer_memory);
        let mut page = Box::new([0; IDENTIFY_BYTES]);
        for (index, bytes) in page.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&words.load(index, Ordering::Relaxed).to_le_bytes());
        }
        Ok(page)
    }

    /// Runs one command to its end and returns its result.
    pub(crate) async fn execute(
        &mut self,
        port: &Port,
        name: &'static str,
        command: Command,
    ) -> Result<u32, StartError> {
        if self.silent {
            return Err(StartError::NoAnswer { command: name, patience: port.patience() });
        }
        let id = self.next_id();
        self.push(port, command.with_id(id));
        self.silent = true;
        let (status, result) = self.answer(port, name, id).await?;
        self.silent = false;
        match status {
            status if status.is_success() => Ok(result),
            status => Err(StartError::Refused { command: name, status }),
        }
    }

    /// Leaves an event request with the controller, unless one is there or nothing is
    /// asked any more.
    pub(crate) fn request_event(&mut self, port: &Port) {
        if self.request.is_none() && !self.silent {
            let id = self.next_id() | EVENT_IDS;
            self.push(port, Command::new(admin::ASYNC_EVENT_REQUEST, 0).with_id(id));
            self.request = Some(id);
        }
    }

    /// What the controller has told since this was asked last.
    pub(crate) fn take_event(&mut self, port: &Port) -> Option<Event> {
        if self.event.is_none()
            && self.request.is_some()
            && !self.silent
            && let Some(completion) = self.pop(port)
            && !self.hears(&completion)
        {
            let id = completion.command_id;
            tracing::warn!(id, "completion of an unknown admin command");
        }
        self.event.take()
    }

    /// Whether this is the answer to the event request.
    fn hears(&mut self, completion: &Completion) -> bool {
        let is_it = completion.submission_queue == 0 && self.request == Some(completion.command_id);
        if is_it {
            self.request = None;
            self.event = completion.status.is_success().then(|| Event::parse(completion.result));
        }
        is_it
    }

    /// Identifiers of commands; those of event requests differ.
    fn next_id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = (self.next_id + 1) % EVENT_IDS;
        id
    }

    fn push(&mut self, port: &Port, command: Command) {
        self.submission.push(command.words());
        if let Some(tail) = self.submission.news() {
            port.bus.write32(port.capabilities.submission_doorbell(0), tail);
        }
    }

    fn pop(&mut self, port: &Port) -> Option<Completion> {
        let completion = self.completion.pop()?;
        if let Some(head) = self.completion.news() {
            port.bus.write32(port.capabilities.completion_doorbell(0), head);
        }
        Some(completion)
    }

    async fn answer(
        &mut self,
        port: &Port,
        name: &'static str,
        id: u16,
    ) -> Result<(Status, u32), StartError> {
        let limit = (port.clock)() + port.patience();
        loop {
            if let Some(completion) = self.pop(port) {
                if self.hears(&completion) {
                    continue;
                }
                if completion.command_id == id && completion.submission_queue == 0 {
                    return Ok((completion.status, completion.result));
                }
                tracing::warn!(
                    id = completion.command_id,
                    "completion of an unknown admin command"
                );
                continue;
            }
            // A controller that has failed or is gone is not waited for.
            match port.bus.read32(CSTS) {
                GONE => return Err(StartError::Gone),
                status if status & CSTS_FATAL != 0 => return Err(StartError::Fatal),
                _ if (port.clock)() >= limit => {
                    return Err(StartError::NoAnswer { command: name, patience: port.patience() });
                }
                _ => pause().await,
            }
        }
    }
}
