//! A file behind a namespace whose bytes go straight between its storage and the driver's
//! memory: `O_DIRECT`, through a ring of the kernel's (io_uring). Many commands are under
//! way at once, and whoever drives the controller never waits for the storage.
//!
//! *A driver's memory is the kernel's from when a command is begun until its operation has
//! ended.* The kernel cannot be made to let go of it earlier: a read that its driver has
//! forgotten is still written where the driver said. So whatever tells a driver that it
//! may use its memory again comes after that:
//!
//! - a command's completion is posted when its last operation has ended, and not before:
//!   an abort says that it did not help;
//! - a submission queue is deleted when the last command of it has ended;
//! - a reset drops the commands, and shows that it is done (CSTS.RDY) when the last
//!   operation has ended; until then nothing new is begun;
//! - whoever takes the way to memory away ([`cut_off`]), a piece of memory or the power
//!   waits for it, and so does the end of the controller: the process is not torn down
//!   under the kernel.
//!
//! The kernel's side holds the memory by itself ([`sys`]): what its driver drops meanwhile
//! is neither unmapped nor given to anybody else.
//!
//! What is not aligned goes through memory that is, whole commands at a time. There is a
//! bound to that memory: with all of it in use nothing is fetched.
//!
//! [`cut_off`]: crate::Bus::cut_off

mod job;
mod outcome;
mod probe;
mod sys;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use block_core::Memory;
use rustix::fs::fstat;

use super::namespace::whole_pages;
use super::open::OpenFile;
use super::prp::Piece;
use super::windows::Windows;
use crate::completion::Status;
use crate::identify::LbaSize;
use crate::sys as memory;
use job::{Job, Step};
use probe::{Alignment, bypass_cache, restore_cache};
use sys::{MAX_PARTS, Operation, Part, Ring};

pub(super) use job::{Kind, Owner};
pub use probe::NotDirect;

/// Most commands that the kernel has at a time: more than a device has channels.
const PLACES: u16 = 256;

/// Memory for what is not aligned: a few of the largest commands.
const BOUNCE_BYTES: usize = 8 << 20;

/// From this size giving space back is cheaper than writing zeroes.
const PUNCH_BYTES: u64 = 64 * 1024;

/// Most zeroes that are written in one operation.
const CLEAR_BYTES: usize = 256 * 1024;

/// What the kernel has answered; a test answers something worse.
type Answered = fn(&Step, io::Result<usize>) -> io::Result<usize>;

#[derive(Debug)]
pub(super) struct DirectDisk {
    /// Declared first: it waits for the kernel before anything else goes.
    ring: Ring,
    path: PathBuf,
    bytes: u64,
    alignment: Alignment,
    /// One for each place of the ring.
    jobs: Box<[Job]>,
    free: Vec<u16>,
    /// Bytes of memory that unaligned commands go through now.
    bounced: usize,
    zeroes: Arc<Memory>,
    bell: OwnedFd,
    /// The file has its size, as was seen since the kernel was last told anything.
    is_whole: bool,
    cached: bool,
    /// Errors of single commands.
    errors: u64,
    answered: Answered,
    /// The storage failed, or someone cut the file: nothing is believed again.
    failed: bool,
}

/// The memory of a transfer, as the driver has opened it.
type Pieces<'a> = (&'a Windows, &'a [Piece]);

/// A command that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Who waits for it.
    pub(super) owner: Option<Owner>,
    /// What it was.
    pub(super) kind: Kind,
    /// Bytes of a read or write.
    pub(super) bytes: u64,
    /// How it ended.
    pub(super) status: Status,
}

impl DirectDisk {
    /// Takes the file, or gives it back as it was.
    pub(super) fn over(open: OpenFile, lba_size: LbaSize) -> Result<Self, (OpenFile, NotDirect)> {
        let alignment = match bypass_cache(&open.file, lba_size) {
            Ok(alignment) => alignment,
            Err(why) => return Err((open, why)),
        };
        let made = open.file.try_clone().and_then(|file| {
            Ok((Ring::new(file, PLACES)?, Arc::new(Memory::anonymous(CLEAR_BYTES)?)))
        });
        let ((ring, bell), zeroes) = match made {
            Ok(made) => made,
            Err(error) => {
                restore_cache(&open.file);
                return Err((open, NotDirect::Ring(error)));
            }
        };
        Ok(Self {
            ring,
            path: open.path,
            bytes: open.bytes,
            alignment,
            jobs: (0..PLACES).map(|_| Job::idle()).collect(),
            free: (0..PLACES).rev().collect(),
            bounced: 0,
            zeroes,
            bell,
            is_whole: false,
            cached: true,
            errors: 0,
            answered: |_, outcome| outcome,
            failed: false,
        })
    }

    /// What becomes readable when a command has ended.
    pub(super) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    pub(super) fn set_cached(&mut self, cached: bool) {
        self.cached = cached;
    }

    /// Whether one more command can be begun, whatever it is.
    pub(super) fn has_place(&self) -> bool {
        !self.free.is_empty() && self.bounced < BOUNCE_BYTES
    }

    /// Commands under way.
    pub(super) fn busy(&self) -> usize {
        self.ring.busy()
    }

    /// Whether a command of this submission queue is under way.
    pub(super) fn has_any_of(&self, queue: u16) -> bool {
        self.jobs.iter().any(|job| job.owner.is_some_and(|owner| owner.queue == queue))
    }

    /// Begins to read bytes into pieces of memory; the caller has seen a place. This and
    /// the next are out of line: what is done at once does not become slower for them.
    #[cold]
    #[inline(never)]
    pub(super) fn read(
        &mut self,
        owner: Owner,
        range: Range<u64>,
        pieces: Pieces<'_>,
    ) -> Result<(), Status> {
        self.check(Status::READ_ERROR)?;
        let job = self.start(owner, Kind::Read);
        self.take_memory(job, &range, pieces)?;
        self.begin(job, Step::Read(range));
        Ok(())
    }

    /// Begins to write pieces of memory, past the cache if `through`.
    #[cold]
    #[inline(never)]
    pub(super) fn write(
        &mut self,
        owner: Owner,
        range: Range<u64>,
        pieces: Pieces<'_>,
        through: bool,
    ) -> Result<(), Status> {
        self.check(Status::WRITE_FAULT)?;
        self.look_at_size()?;
        let place = self.start(owner, Kind::Write);
        self.take_memory(place, &range, pieces)?;
        let durable = through || !self.cached;
        let job = &mut self.jobs[usize::from(place)];
        (job.through, job.is_durable) = (through, durable);
        if let Some(bounce) = &job.bounce {
            let mut at = bounce.offset();
            for part in &job.parts {
                memory::copy(part.memory(), part.offset(), bounce.memory(), at, part.bytes());
                at += part.bytes();
            }
        }
        self.begin(place, Step::Write(range));
        Ok(())
    }

    /// Begins to make bytes zero. Space for them is kept if `keep`; else it is given back
    /// where that is cheaper.
    pub(super) fn zero(
        &mut self,
        owner: Owner,
        range: Range<u64>,
        keep: bool,
        through: bool,
    ) -> Result<(), Status> {
        self.check(Status::WRITE_FAULT)?;
        self.look_at_size()?;
        let place = self.start(owner, Kind::Zero);
        let job = &mut self.jobs[usize::from(place)];
        job.through = through;
        let inner = whole_pages(&range);
        if inner.end - inner.start < PUNCH_BYTES {
            self.begin(place, Step::Clear(range));
            return Ok(());
        }
        let edges = [inner.end..range.end, range.start..inner.start];
        job.steps.extend(edges.into_iter().filter(|edge| !edge.is_empty()).map(Step::Clear));
        self.begin(place, if keep { Step::Empty(inner) } else { Step::Punch(inner) });
        Ok(())
    }

    /// Begins to give whole pages back, range by range; false if there is none.
    pub(super) fn deallocate(
        &mut self,
        owner: Owner,
        ranges: impl Iterator<Item = Range<u64>>,
    ) -> Result<bool, Status> {
        self.check(Status::WRITE_FAULT)?;
        let place = self.start(owner, Kind::Deallocate);
        let job = &mut self.jobs[usize::from(place)];
        job.steps.extend(ranges.filter(|range| !range.is_empty()).map(Step::Punch));
        let Some(first) = job.steps.pop() else {
            self.end(place, Status::SUCCESS);
            return Ok(false);
        };
        self.begin(place, first);
        Ok(true)
    }

    /// Begins to make everything durable whose command has ended.
    pub(super) fn flush(&mut self, owner: Owner) -> Result<(), Status> {
        self.check(Status::WRITE_FAULT)?;
        let job = self.start(owner, Kind::Flush);
        self.begin(job, Step::Sync);
        Ok(())
    }

    /// The same, and waits for it: at the end, and when the cache is turned off.
    pub(super) fn flush_now(&mut self) -> Result<(), Status> {
        if let Err(error) = self.ring.file().sync_data() {
            self.fail(&format!("writing it out failed: {error}"));
        }
        self.check(Status::WRITE_FAULT)
    }

    /// Tells the kernel what was begun, and lets it finish what it has to: at most one
    /// system call.
    pub(super) fn tell(&mut self) {
        self.ring.tell();
        self.is_whole = false;
    }

    /// The next command that has ended.
    pub(super) fn next_ended(&mut self) -> Option<Ended> {
        while let Some((place, outcome)) = self.ring.take() {
            if let Some(ended) = self.go_on(place, outcome) {
                return Some(ended);
            }
        }
        None
    }

    /// Whether a look is needed that no bell asks for any more.
    pub(super) fn has_news(&mut self) -> bool {
        self.ring.has_news()
    }

    /// Nobody waits for what is under way any more: each ends with the operation that the
    /// kernel has.
    pub(super) fn forsake(&mut self) {
        for job in &mut self.jobs {
            job.owner = None;
            job.steps.clear();
        }
    }

    /// Sleeps until something under way has ended.
    pub(super) fn wait(&mut self) {
        if let Err(error) = self.ring.wait() {
            // Going on would hand memory back to which the kernel may write.
            panic!("{}: the kernel does not say when it is done: {error}", self.path.display());
        }
    }

    fn start(&mut self, owner: Owner, kind: Kind) -> u16 {
        let place = self.free.pop().expect("the caller has seen a place");
        self.jobs[usize::from(place)].start(owner, kind);
        place
    }

    /// The driver's memory is the job's from now on. If the kernel cannot take it as it
    /// lies, there is other memory to go through.
    fn take_memory(
        &mut self,
        place: u16,
        range: &Range<u64>,
        (windows, pieces): Pieces<'_>,
    ) -> Result<(), Status> {
        let job = &mut self.jobs[usize::from(place)];
        job.bytes = range.end - range.start;
        let part =
            |&Piece { place, bytes }: &Piece| Part::new(windows.shared(place), place.offset, bytes);
        job.parts.extend(pieces.iter().map(part));
        let Alignment { memory, file } = self.alignment;
        let fits = |part: &Part| {
            part.address().is_multiple_of(memory) && part.bytes().is_multiple_of(file)
        };
        if job.parts.len() <= MAX_PARTS && job.parts.iter().all(fits) {
            return Ok(());
        }
        let bytes = job.bytes as usize;
        let Ok(memory) = Memory::anonymous(bytes) else {
            self.end(place, Status::INTERNAL);
            return Err(Status::INTERNAL);
        };
        job.bounce = Some(Part::new(&Arc::new(memory), 0, bytes));
        self.bounced += bytes;
        Ok(())
    }

    /// A write behind the end of a file that was cut would make it longer again, and hide
    /// what is missing. Once for all that the kernel is told at a time.
    fn look_at_size(&mut self) -> Result<(), Status> {
        if !self.is_whole {
            self.is_whole = true;
            if !self.has_its_size() {
                self.fail("the file was truncated");
            }
        }
        self.check(Status::WRITE_FAULT)
    }

    fn has_its_size(&self) -> bool {
        let found = fstat(self.ring.file());
        found.is_ok_and(|found| u64::try_from(found.st_size).is_ok_and(|size| size >= self.bytes))
    }

    /// Gives the kernel a step of a job.
    fn begin(&mut self, place: u16, mut step: Step) {
        let job = &mut self.jobs[usize::from(place)];
        let memory = job.bounce.as_ref().map_or(&job.parts[..], std::slice::from_ref);
        let zeroes;
        let operation = match &mut step {
            Step::Read(range) => Operation::Read(range.start, memory),
            Step::Write(range) => Operation::Write(range.start, memory, job.is_durable),
            Step::Clear(range) => {
                let end = range.end.min(range.start + CLEAR_BYTES as u64);
                if end < range.end {
                    job.steps.push(Step::Clear(end..range.end));
                    range.end = end;
                }
                zeroes = Part::new(&self.zeroes, 0, (range.end - range.start) as usize);
                Operation::Write(range.start, std::slice::from_ref(&zeroes), false)
            }
            Step::Punch(range) => Operation::Allocate(
                range.clone(),
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            ),
            Step::Empty(range) => Operation::Allocate(
                range.clone(),
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            ),
            Step::Sync => Operation::Sync,
        };
        self.ring.begin(place, &operation);
        job.now = step;
    }
}
