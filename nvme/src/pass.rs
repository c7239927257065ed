//! Commands that the caller has made, for tools and tests. They are safe with any
//! content: data pointers are the driver's own, and the length of a transfer is
//! that of its command. What has no data points to address 0, where no bus puts
//! any memory.

use std::ops::Range;

use block_core::{BlockError, Buffer};

use crate::command::{Command, DATASET_DEALLOCATE, feature, io};
use crate::completion::Status;
use crate::controller::{Controller, StartError};
use crate::event::Event;
use crate::health::HealthLog;
use crate::namespace::Namespace;
use crate::queue_pair::QueuePair;
use crate::table::{Data, Ending, MAX_TRANSFER_BYTES, Meaning};

/// Bytes of a range of Dataset Management (NVM Command Set 1.0, figure 41).
const RANGE_BYTES: usize = 16;
/// Most ranges in a command; their number is an 8-bit field, 0-based.
const MAX_RANGES: usize = 256;

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the device.
    Read,
    /// To the device.
    Write,
}

/// How a command of the caller's ended: with a status, or not at all, because the
/// controller was reset.
pub type Outcome = Result<Status, BlockError>;

impl QueuePair {
    /// Runs an I/O command without data, whatever it says; its data pointers are
    /// zero.
    pub async fn execute(&self, command: Command) -> Outcome {
        outcome(self.submit(command.with_data(0, 0), Data::Nothing, None, 1).await)
    }
}

impl Namespace {
    /// One read or write of `count` logical blocks from `start`, not cut and not
    /// checked against the namespace or the controller's limits, with its data from
    /// byte `at` of the buffer, a multiple of 4.
    ///
    /// # Errors
    /// [`BlockError::Malformed`] when the buffer, or one PRP list, is too short.
    pub async fn transfer_blocks(
        &self,
        direction: Direction,
        start: u64,
        count: u32,
        buffer: Buffer,
        at: usize,
    ) -> (Buffer, Outcome) {
        let lba_bytes = block_core::BLOCK_SIZE / self.lbas_per_block as usize;
        let bytes = (count as usize).saturating_mul(lba_bytes);
        let fits = at.checked_add(bytes).is_some_and(|end| end <= buffer.len());
        if !(1..=1 << 16).contains(&count) || !fits || !at.is_multiple_of(4) {
            return (buffer, Err(BlockError::Malformed));
        }
        if bytes > MAX_TRANSFER_BYTES {
            return (buffer, Err(BlockError::Malformed));
        }
        let opcode = if direction == Direction::Read { io::READ } else { io::WRITE };
        let command = Command::blocks(opcode, self.id(), start, count, 0);
        self.with_buffer(command, buffer, at, bytes).await
    }

    /// One Dataset Management command that deallocates ranges of logical blocks, 1
    /// to 256, none of them checked. The buffer carries them.
    ///
    /// # Errors
    /// [`BlockError::Malformed`] for another number of ranges, or one that is longer
    /// than its field.
    pub async fn deallocate_ranges(
        &self,
        ranges: &[Range<u64>],
        mut buffer: Buffer,
    ) -> (Buffer, Outcome) {
        let bytes = ranges.len() * RANGE_BYTES;
        if !(1..=MAX_RANGES).contains(&ranges.len()) || bytes > buffer.len() {
            return (buffer, Err(BlockError::Malformed));
        }
        for (entry, range) in buffer.chunks_exact_mut(RANGE_BYTES).zip(ranges) {
            let Ok(count) = u32::try_from(range.end.saturating_sub(range.start)) else {
                return (buffer, Err(BlockError::Malformed));
            };
            entry[..4].fill(0);
            entry[4..8].copy_from_slice(&count.to_le_bytes());
            entry[8..].copy_from_slice(&range.start.to_le_bytes());
        }
        let command = Command::new(io::DATASET_MANAGEMENT, self.id())
            .with_dword(10, ranges.len() as u32 - 1)
            .with_dword(11, DATASET_DEALLOCATE);
        self.with_buffer(command, buffer, 0, bytes).await
    }

    async fn with_buffer(
        &self,
        command: Command,
        buffer: Buffer,
        offset: usize,
        bytes: usize,
    ) -> (Buffer, Outcome) {
        let data = Data::Blocks { iova: buffer.iova() + offset as u64, bytes };
        let mut submission = self.queue().submit(command, data, Some(buffer), 1);
        let ending = (&mut submission).await;
        let buffer = submission.take_buffer();
        (buffer.expect("a command has its buffer until it has ended"), outcome(ending))
    }
}

impl Controller {
    /// Runs an admin command without data, whatever it says, and returns its result;
    /// its data pointers are zero. One that stays open, as an event request does, is
    /// waited for until the controller's patience is over.
    ///
    /// # Errors
    /// When the controller refuses or is silent.
    pub fn execute(&self, command: Command) -> Result<u32, StartError> {
        let core = self.core();
        let command = command.with_data(0, 0);
        core.port.complete(core.admin().execute(&core.port, "admin command", command))
    }

    /// The device's health log.
    ///
    /// # Errors
    /// When the controller refuses or is silent.
    pub fn health_log(&self) -> Result<HealthLog, StartError> {
        let core = self.core();
        core.port.complete(core.health_log())
    }

    /// What the controller has told by itself since this was asked last, with the
    /// health log if it is about that. A [`Watch`](crate::Watch) asks, too.
    ///
    /// # Errors
    /// When the controller is silent about it.
    pub fn next_event(&self) -> Result<Option<(Event, Option<HealthLog>)>, StartError> {
        let core = self.core();
        let Some(event) = core.take_event() else { return Ok(None) };
        Ok(Some((event, core.port.complete(core.attend(event))?)))
    }

    /// Whether the volatile write cache is on.
    ///
    /// # Errors
    /// When there is none, or the controller is silent.
    pub fn write_cache(&self) -> Result<bool, StartError> {
        Ok(self.execute(Command::get_feature(feature::WRITE_CACHE))? & 1 == 1)
    }

    /// Turns the volatile write cache on or off, until a reset. The driver goes on
    /// sending flushes, which cost nothing where there is nothing to flush.
    ///
    /// # Errors
    /// When there is none, or the controller is silent.
    pub fn set_write_cache(&self, on: bool) -> Result<(), StartError> {
        self.execute(Command::set_feature(feature::WRITE_CACHE, u32::from(on)))?;
        Ok(())
    }
}

fn outcome(ending: Ending) -> Outcome {
    match ending.meaning() {
        Meaning::Completed(status) => Ok(status),
        Meaning::Reset | Meaning::GivenUp | Meaning::Refused(_) => {
            Err(ending.outcome().err().unwrap_or(BlockError::Lost))
        }
    }
}
