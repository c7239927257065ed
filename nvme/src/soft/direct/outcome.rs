//! What becomes of a command when the kernel has done a part of it.

use std::io;

use super::job::{Kind, Step};
use super::{DirectDisk, Ended};
use crate::completion::Status;
use crate::sys as memory;

/// What follows from the end of an operation.
enum Next {
    /// The next step.
    Go,
    /// The same once more.
    Again,
    /// Another one instead.
    Instead(Step),
    /// Nothing: the command ends.
    Fail(Status),
}

impl DirectDisk {
    /// The operation of a job has ended: what of it follows, until the command has.
    pub(super) fn go_on(&mut self, place: u16, outcome: io::Result<usize>) -> Option<Ended> {
        let step = std::mem::replace(&mut self.jobs[usize::from(place)].now, Step::Sync);
        let outcome = (self.answered)(&step, outcome);
        let next = self.judge(place, &step, outcome);
        let job = &mut self.jobs[usize::from(place)];
        if job.owner.is_none() {
            return Some(self.end(place, Status::INTERNAL));
        }
        let step = match next {
            Next::Again => Some(step),
            Next::Instead(other) => Some(other),
            Next::Fail(status) => return Some(self.end(place, status)),
            Next::Go => job.steps.pop(),
        };
        // The cache may have been turned off after the command was begun.
        let is_volatile = job.kind.changes() && !job.is_durable;
        let syncs = is_volatile && (job.through || !self.cached);
        match step {
            Some(step) => self.begin(place, step),
            None if syncs => {
                job.is_durable = true;
                self.begin(place, Step::Sync);
            }
            None => {
                // Of what has failed nothing is believed, whatever the kernel says.
                let status = self.check(self.fault(place)).err().unwrap_or(Status::SUCCESS);
                return Some(self.end(place, status));
            }
        }
        None
    }

    fn judge(&mut self, place: u16, step: &Step, outcome: io::Result<usize>) -> Next {
        let error = match (step, outcome) {
            (Step::Read(range) | Step::Write(range) | Step::Clear(range), Ok(count)) => {
                return if count as u64 == range.end - range.start {
                    Next::Go
                } else {
                    self.judge_short(step, count)
                };
            }
            (_, Ok(_)) => return Next::Go,
            (_, Err(error)) => error,
        };
        let code = error.raw_os_error().unwrap_or(libc::EIO);
        match (step, code) {
            // Something came in between that is none of the file's business.
            (_, libc::EINTR | libc::EAGAIN) => Next::Again,
            // What the machine is short of now says nothing about the file.
            (_, libc::ENOMEM) => Next::Fail(Status::INTERNAL),
            // After a failed write-back the next one would succeed without it.
            (Step::Sync, _) => {
                self.fail(&format!("writing it out failed: {error}"));
                Next::Fail(Status::WRITE_FAULT)
            }
            (_, libc::ENOSPC | libc::EDQUOT) => Next::Fail(Status::CAPACITY_EXCEEDED),
            // The driver's memory is not there: others have cut it.
            (Step::Read(_) | Step::Write(_), libc::EFAULT) => Next::Fail(Status::DATA_TRANSFER),
            // A file system without holes keeps the blocks: deallocation is advice.
            (Step::Punch(range) | Step::Empty(range), libc::EOPNOTSUPP) => {
                match self.jobs[usize::from(place)].kind {
                    Kind::Deallocate => Next::Go,
                    _ => Next::Instead(Step::Clear(range.clone())),
                }
            }
            (Step::Punch(_) | Step::Empty(_), _) => {
                self.fail(&format!("its space could not be changed: {error}"));
                Next::Fail(Status::WRITE_FAULT)
            }
            // Nothing rests in a cache whose loss would be hidden: it is this command's.
            (Step::Read(_) | Step::Write(_) | Step::Clear(_), _) => {
                self.note(&format!("{step:?} ended with: {error}"));
                Next::Fail(self.fault(place))
            }
        }
    }

    /// Not all bytes were moved, which a whole file has room for.
    fn judge_short(&mut self, step: &Step, count: usize) -> Next {
        self.note(&format!("{step:?} ended after {count} bytes"));
        if !self.has_its_size() {
            self.fail("the file was truncated");
        }
        match step {
            Step::Read(_) => Next::Fail(Status::READ_ERROR),
            _ if self.failed => Next::Fail(Status::WRITE_FAULT),
            // The file system has no more.
            _ => Next::Fail(Status::CAPACITY_EXCEEDED),
        }
    }

    /// The command ends; its place is free, and its memory the driver's again.
    pub(super) fn end(&mut self, place: u16, status: Status) -> Ended {
        let job = &mut self.jobs[usize::from(place)];
        let (owner, kind, bytes) = (job.owner, job.kind, job.bytes);
        if let Some(bounce) = &job.bounce {
            self.bounced -= bounce.bytes();
            let mut at = bounce.offset();
            let copies = kind == Kind::Read && owner.is_some() && status.is_success();
            for part in job.parts.iter().filter(|_| copies) {
                memory::copy(bounce.memory(), at, part.memory(), part.offset(), part.bytes());
                at += part.bytes();
            }
        }
        job.end();
        self.free.push(place);
        Ended { owner, kind, bytes, status }
    }

    fn fault(&self, place: u16) -> Status {
        match self.jobs[usize::from(place)].kind {
            Kind::Read => Status::READ_ERROR,
            _ => Status::WRITE_FAULT,
        }
    }

    pub(super) fn check(&self, status: Status) -> Result<(), Status> {
        if self.failed { Err(status) } else { Ok(()) }
    }

    fn note(&mut self, what: &str) {
        self.errors += 1;
        if self.errors.is_power_of_two() {
            let (path, count) = (self.path.display(), self.errors);
            tracing::warn!(%path, count, "a command on this file failed: {what}");
        }
    }

    pub(super) fn fail(&mut self, reason: &str) {
        if !self.failed {
            let path = self.path.display();
            tracing::error!(%path, "the namespace over this file has failed: {reason}");
        }
        self.failed = true;
    }
}
