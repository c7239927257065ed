//! The admin command set (NVMe Base 2.0, section 5).

use super::SoftOptions;
use super::engine::{Answer, Engine, Stuck};
use super::identify;
use super::prp;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::registers::Registers;
use crate::PAGE;
use crate::command::{ALL_NAMESPACES, COMMAND_WORDS, Command, admin, cns, feature};
use crate::completion::{COMPLETION_WORDS, Status};
use crate::identify::{IDENTIFY_BYTES, Page};
use crate::sys;

/// Asynchronous Event Requests that can be open (AERL is one less).
pub(super) const MAX_EVENTS: usize = 4;

/// Feature identifiers that hold a value: 1 to 11 without LBA ranges.
const FEATURES: std::ops::RangeInclusive<u8> = 0x01..=0x0b;
const LBA_RANGES: u8 = 0x03;

/// Set Features: save the value.
const SAVE: u32 = 1 << 31;
/// Create queue: physically contiguous.
const CONTIGUOUS: u32 = 1;
/// Create completion queue: interrupts enabled.
const INTERRUPTS: u32 = 1 << 1;

/// What features are after a reset.
pub(super) fn initial_features(options: &SoftOptions) -> [u32; 16] {
    let mut features = [0; 16];
    features[usize::from(feature::WRITE_CACHE)] = u32::from(options.write_cache);
    let queues = u32::from(options.queues - 1);
    features[usize::from(feature::QUEUES)] = queues << 16 | queues;
    features
}

impl Engine {
    /// Executes one admin command.
    pub(super) fn administer(&mut self, command: &Command, registers: &Registers) -> Answer {
        if command.flags() != 0 {
            return Answer::Now(Status::INVALID_FIELD, 0);
        }
        let outcome = match command.opcode() {
            admin::CREATE_COMPLETION_QUEUE => self.create_completion_queue(command, registers),
            admin::CREATE_SUBMISSION_QUEUE => self.create_submission_queue(command, registers),
            admin::DELETE_SUBMISSION_QUEUE => {
                match self.delete_submission_queue(command, registers) {
                    Ok(true) => Ok(0),
                    Ok(false) => return Answer::Later,
                    Err(status) => Err(status),
                }
            }
            admin::DELETE_COMPLETION_QUEUE => self.delete_completion_queue(command),
            admin::IDENTIFY => self.identify(command),
            admin::GET_LOG_PAGE => self.get_log_page(command),
            admin::SET_FEATURES => self.set_features(command),
            admin::GET_FEATURES => self.get_features(command),
            admin::DOORBELL_BUFFERS if self.options.shadow_doorbells => self.take_shadows(command),
            admin::ABORT => self.abort(command, registers),
            admin::ASYNC_EVENT_REQUEST if self.events.requests.len() == MAX_EVENTS => {
                Err(Status::ASYNC_EVENT_LIMIT)
            }
            admin::ASYNC_EVENT_REQUEST => {
                self.events.requests.push(command.id());
                self.deliver_events(registers);
                return Answer::Later;
            }
            _ => Err(Status::INVALID_OPCODE),
        };
        self.deliver_events(registers);
        match outcome {
            Ok(result) => Answer::Now(Status::SUCCESS, result),
            Err(status) => Answer::Now(status, 0),
        }
    }

    fn create_completion_queue(
        &mut self,
        command: &Command,
        registers: &Registers,
    ) -> Result<u32, Status> {
        let (queue, entries) = self.new_queue(command, self.completion.len())?;
        if self.completion[usize::from(queue)].is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let attributes = command.dword(11);
        if attributes & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let vector = attributes >> 16;
        if attributes & INTERRUPTS != 0 && vector > u32::from(self.options.queues) {
            return Err(Status::INVALID_VECTOR);
        }
        let words = entries as usize * COMPLETION_WORDS;
        let words = self.windows.words(command.prp1(), words).ok_or(Status::DATA_TRANSFER)?;
        registers.clear_head(queue);
        let vector = (attributes & INTERRUPTS != 0).then_some(vector as u16);
        let vector = vector.and_then(|number| self.vector(number));
        self.completion[usize::from(queue)] = Some(CompletionQueue::new(words, entries, vector));
        Ok(0)
    }

    fn create_submission_queue(
        &mut self,
        command: &Command,
        registers: &Registers,
    ) -> Result<u32, Status> {
        let (queue, entries) = self.new_queue(command, self.submission.len())?;
        if self.submission[usize::from(queue)].is_some() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let attributes = command.dword(11);
        if attributes & CONTIGUOUS == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let target = (attributes >> 16) as u16;
        if target == 0 || usize::from(target) >= self.completion.len() {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if self.completion[usize::from(target)].is_none() {
            return Err(Status::INVALID_COMPLETION_QUEUE);
        }
        let words = entries as usize * COMMAND_WORDS;
        let words = self.windows.words(command.prp1(), words).ok_or(Status::DATA_TRANSFER)?;
        registers.clear_tail(queue);
        self.submission[usize::from(queue)] = Some(SubmissionQueue::new(words, entries, target));
        Ok(0)
    }

    /// Number and entries of a queue to be made.
    fn new_queue(&self, command: &Command, limit: usize) -> Result<(u16, u32), Status> {
        let queue = command.dword(10) as u16;
        let granted = (self.features[usize::from(feature::QUEUES)] & 0xffff) as usize + 1;
        if queue == 0 || usize::from(queue) >= limit || usize::from(queue) > granted {
            return Err(Status::INVALID_QUEUE_ID);
        }
        let entries = (command.dword(10) >> 16) + 1;
        if entries < 2 || entries > u32::from(self.options.queue_entries) {
            return Err(Status::INVALID_QUEUE_SIZE);
        }
        if !command.prp1().is_multiple_of(PAGE as u64) {
            return Err(Status::PRP_OFFSET);
        }
        Ok((queue, entries))
    }

    /// Deletes a queue; false if that has to wait until the kernel has let go of what its
    /// commands named.
    fn delete_submission_queue(
        &mut self,
        command: &Command,
        registers: &Registers,
    ) -> Result<bool, Status> {
        let queue = command.dword(10) as u16;
        let source = self.submission.get(usize::from(queue)).and_then(Option::as_ref);
        if queue == 0 || source.is_none_or(|source| source.deletion.is_some()) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        while let Some(index) = self.held.iter().position(|held| held.queue == queue) {
            let id = self.held.swap_remove(index).command.id();
            // Completions for which the driver leaves no room are not owed.
            if self.has_room(queue, registers) {
                self.post(queue, id, Status::QUEUE_DELETED, 0);
            }
        }
        Ok(self.close(queue, command.id()))
    }

    fn delete_completion_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let queue = command.dword(10) as u16;
        if queue == 0 || !self.completion.get(usize::from(queue)).is_some_and(Option::is_some) {
            return Err(Status::INVALID_QUEUE_ID);
        }
        if self.submission.iter().flatten().any(|source| source.completion == queue) {
            return Err(Status::INVALID_QUEUE_DELETION);
        }
        self.completion[usize::from(queue)] = None;
        Ok(0)
    }

    fn identify(&mut self, command: &Command) -> Result<u32, Status> {
        let id = command.namespace();
        let namespace = |id: u32| {
            let index = usize::try_from(id).ok().and_then(|id| id.checked_sub(1));
            index.and_then(|index| self.namespaces.get(index)).ok_or(Status::INVALID_NAMESPACE)
        };
        // Only the NVM command set is there, whose identifier is 0.
        let is_nvm = command.dword(11) >> 24 == 0;
        let mut page: Box<Page> = Box::new([0; IDENTIFY_BYTES]);
        match command.dword(10) as u8 {
            // Namespace management's "common to all": there is none.
            cns::NAMESPACE if id == ALL_NAMESPACES => {
                return Err(Status::INVALID_NAMESPACE);
            }
            cns::NAMESPACE => {
                let namespace = namespace(id)?;
                identify::namespace(&mut page, namespace, &self.options, id);
            }
            cns::CONTROLLER => {
                identify::controller(&mut page, &self.options, self.namespaces.len() as u32);
            }
            cns::ACTIVE_NAMESPACES => {
                if id >= ALL_NAMESPACES - 1 {
                    return Err(Status::INVALID_NAMESPACE);
                }
                identify::active_namespaces(&mut page, id, self.namespaces.len() as u32);
            }
            cns::NAMESPACE_DESCRIPTORS => {
                namespace(id)?;
                identify::descriptors(&mut page, &self.options, id);
            }
            cns::COMMAND_SET_CONTROLLER if is_nvm => {}
            _ => return Err(Status::INVALID_FIELD),
        }
        self.answer(command, &page[..])?;
        Ok(0)
    }

    fn set_features(&mut self, command: &Command) -> Result<u32, Status> {
        let (id, value) = (command.dword(10) as u8, command.dword(11));
        if command.dword(10) & SAVE != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        if !FEATURES.contains(&id) || id == LBA_RANGES {
            return Err(Status::INVALID_FIELD);
        }
        let mut value = value;
        if id == feature::QUEUES {
            let (submission, completion) = (value & 0xffff, value >> 16);
            if submission == 0xffff || completion == 0xffff {
                return Err(Status::INVALID_FIELD);
            }
            if self.submission[1..].iter().flatten().next().is_some()
                || self.completion[1..].iter().flatten().next().is_some()
            {
                return Err(Status::SEQUENCE);
            }
            let most = u32::from(self.options.queues - 1);
            let granted = submission.min(completion).min(most);
            value = granted << 16 | granted;
        }
        if id == feature::WRITE_CACHE {
            if !self.options.write_cache {
                return Err(Status::INVALID_FIELD);
            }
            let enabled = value & 1 == 1;
            if !enabled {
                // What is in the cache must not stay volatile.
                let flushed = self.flush_all();
                if !flushed.is_success() {
                    return Err(flushed);
                }
            }
            self.namespaces.iter_mut().for_each(|namespace| namespace.set_cached(enabled));
            value &= 1;
        }
        if id == feature::TEMPERATURE {
            *self.events.threshold(value)? = value as u16;
            self.judge_temperature();
            return Ok(0);
        }
        self.features[usize::from(id)] = value;
        Ok(if id == feature::QUEUES { value } else { 0 })
    }

    fn get_features(&mut self, command: &Command) -> Result<u32, Status> {
        let id = command.dword(10) as u8;
        let defaults = initial_features(&self.options);
        if !FEATURES.contains(&id) || id == LBA_RANGES {
            return Err(Status::INVALID_FIELD);
        }
        match command.dword(10) >> 8 & 0b111 {
            0 if id == feature::TEMPERATURE => {
                self.events.threshold(command.dword(11)).map(|kelvin| u32::from(*kelvin))
            }
            0 => Ok(self.features[usize::from(id)]),
            1 | 2 => Ok(defaults[usize::from(id)]),
            // Capabilities: changeable, not saveable, the same everywhere.
            3 => Ok(1 << 2),
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The result's bit 0 is 0 if the command was aborted (section 5.1). Only
    /// I/O commands that were held back are: the kernel gives nothing back.
    fn abort(&mut self, command: &Command, registers: &Registers) -> Result<u32, Status> {
        let (queue, id) = (command.dword(10) as u16, (command.dword(10) >> 16) as u16);
        let found = |held: &super::engine::Held| held.queue == queue && held.command.id() == id;
        let Some(index) = self.held.iter().position(found) else { return Ok(1) };
        if self.held[index].stuck == Stuck::Fast || !self.has_room(queue, registers) {
            return Ok(1);
        }
        self.held.swap_remove(index);
        self.post(queue, id, Status::ABORT_REQUESTED, 0);
        Ok(0)
    }

    /// Writes an answer to where the command points.
    pub(super) fn answer(&mut self, command: &Command, bytes: &[u8]) -> Result<(), Status> {
        let pointers = (command.prp1(), command.prp2());
        prp::resolve(&self.windows, pointers, bytes.len(), &mut self.pieces)?;
        let mut rest = bytes;
        for piece in &self.pieces {
            let (now, later) = rest.split_at(piece.bytes);
            sys::copy_in(now, self.windows.memory(piece.place), piece.place.offset);
            rest = later;
        }
        Ok(())
    }
}
