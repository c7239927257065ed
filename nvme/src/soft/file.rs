//! A file behind a namespace: mapped, sparse, and not ours alone.
//! A write to a hole of a mapped file can find the file system full, and then
//! it is a SIGBUS and not an error. So space is reserved in chunks before a
//! chunk is first written, and holes are read with a system call, because
//! reading them through a mapping would fill them on tmpfs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use block_core::{Mapping, Memory};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::{Errno, retry_on_intr};

use super::namespace::whole_pages;
use super::open::{OpenError, OpenFile};
use crate::PAGE;
use crate::completion::Status;
use crate::sys;

/// Space is reserved in pieces of this size: the largest request. Larger ones
/// would blow up a sparse file that is written here and there.
const CHUNK_BYTES: u64 = 128 * 1024;

/// From this size punching a hole is cheaper than setting pages to zero.
const PUNCH_BYTES: u64 = 64 * 1024;

/// The file, what to do, from which byte, with how many.
type Fallocate = fn(&File, FallocateFlags, u64, u64) -> rustix::io::Result<()>;

#[derive(Debug)]
pub(super) struct FileDisk {
    path: PathBuf,
    /// Locked as long as it is open.
    file: File,
    mapping: Mapping,
    bytes: u64,
    /// A bit for each chunk whose space is known to be reserved.
    reserved: Vec<u64>,
    /// Asks the kernel; a test asks something worse.
    fallocate: Fallocate,
    /// The storage failed, or someone cut the file: nothing is believed again.
    failed: bool,
}

impl FileDisk {
    pub(super) fn map(open: OpenFile) -> Result<Self, OpenError> {
        let OpenFile { path, file, bytes } = open;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mapping = match Mapping::of_file(&file, 0, length, true) {
            Ok(mapping) => mapping,
            Err(error) => return Err(OpenError::Map { path, error }),
        };
        let chunks = bytes.div_ceil(CHUNK_BYTES);
        let reserved = vec![0; usize::try_from(chunks.div_ceil(64)).unwrap_or(usize::MAX)];
        let fallocate: Fallocate = |file, flags, start, len| fallocate(file, flags, start, len);
        let mut disk = Self { path, file, mapping, bytes, reserved, fallocate, failed: false };
        disk.find_data();
        Ok(disk)
    }

    pub(super) fn read(
        &mut self,
        at: u64,
        to: &Memory,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Status> {
        let range = at..at + bytes as u64;
        for chunk in chunks(&range) {
            let part = part(&range, chunk);
            let to_offset = offset + (part.start - at) as usize;
            let len = (part.end - part.start) as usize;
            if self.is_reserved(chunk) {
                sys::copy(&self.mapping, part.start as usize, to, to_offset, len);
            } else {
                let count = sys::read_file(&self.file, part.start, to, to_offset, len);
                if !matches!(count, Ok(count) if count == len) {
                    self.fail(&format!("a read of {len} bytes ended with {count:?}"));
                }
            }
        }
        // After the copy: the mark says what the copy met.
        self.check(Status::READ_ERROR)
    }

    pub(super) fn write(
        &mut self,
        at: u64,
        from: &Memory,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Status> {
        self.check(Status::WRITE_FAULT)?;
        self.reserve(&(at..at + bytes as u64))?;
        sys::copy(from, offset, &self.mapping, at as usize, bytes);
        self.check(Status::WRITE_FAULT)
    }

    /// Makes the bytes zero. Their space goes back to the file system or is
    /// reserved, as `keep` says; a file system that can do neither without
    /// writing gets zeroes written.
    pub(super) fn zero(&mut self, range: Range<u64>, keep: bool) -> Result<(), Status> {
        self.check(Status::WRITE_FAULT)?;
        let inner = whole_pages(&range);
        let is_reserved = chunks(&range).all(|chunk| self.is_reserved(chunk));
        let is_small = inner.end - inner.start < PUNCH_BYTES;
        if inner.is_empty() || is_small && (keep || is_reserved) {
            return self.clear(range);
        }
        let done = if keep { self.empty(inner.clone())? } else { self.punch(inner.clone())? };
        if !done {
            return self.clear(range);
        }
        self.clear(range.start..inner.start)?;
        self.clear(inner.end..range.end)
    }

    /// Whole pages.
    pub(super) fn deallocate(&mut self, range: Range<u64>) -> Result<(), Status> {
        self.check(Status::WRITE_FAULT)?;
        // A file system without holes keeps the blocks: deallocation is advice.
        self.punch(range).map(|_| ())
    }

    pub(super) fn persist(&mut self, range: Range<u64>) -> Result<(), Status> {
        let len = (range.end - range.start) as usize;
        let persisted = sys::persist(&self.mapping, range.start as usize, len);
        self.settled(persisted)
    }

    pub(super) fn flush(&mut self) -> Result<(), Status> {
        let flushed = self.file.sync_data();
        self.settled(flushed)
    }

    /// After a failed write-back the kernel may have thrown the pages away, and
    /// the next attempt would succeed without them.
    fn settled(&mut self, outcome: io::Result<()>) -> Result<(), Status> {
        if let Err(error) = outcome {
            self.fail(&format!("writing it out failed: {error}"));
        }
        self.check(Status::WRITE_FAULT)
    }

    fn clear(&mut self, range: Range<u64>) -> Result<(), Status> {
        if range.is_empty() {
            return Ok(());
        }
        self.reserve(&range)?;
        sys::clear(&self.mapping, range.start as usize, (range.end - range.start) as usize);
        self.check(Status::WRITE_FAULT)
    }

    /// Makes sure that the chunks of a range have space.
    fn reserve(&mut self, range: &Range<u64>) -> Result<(), Status> {
        for chunk in chunks(range) {
            if self.is_reserved(chunk) {
                continue;
            }
            let start = chunk * CHUNK_BYTES;
            let len = CHUNK_BYTES.min(self.bytes - start);
            // KEEP_SIZE: a file that was cut stays cut, so that it is noticed.
            match self.allocate(FallocateFlags::KEEP_SIZE, start, len) {
                Ok(()) => {}
                // Without reservation a full file system ends as a failed
                // namespace and not as a lost process.
                Err(Errno::OPNOTSUPP) => {}
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    self.reserve_pages(&part(range, chunk))?;
                    continue;
                }
                Err(error) => return Err(self.refused("no space could be reserved", error)),
            }
            self.mark_reserved(chunk);
        }
        Ok(())
    }

    /// Not enough space for a chunk: there may be some for the pages that are
    /// written now.
    fn reserve_pages(&mut self, range: &Range<u64>) -> Result<(), Status> {
        let start = range.start / PAGE as u64 * PAGE as u64;
        let len = range.end.next_multiple_of(PAGE as u64) - start;
        let reserved = self.allocate(FallocateFlags::KEEP_SIZE, start, len);
        reserved.map_err(|error| self.refused("no space could be reserved", error))
    }

    /// Makes whole pages a hole; false if the file system has none.
    fn punch(&mut self, range: Range<u64>) -> Result<bool, Status> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.allocate(flags, range.start, range.end - range.start) {
            Ok(()) => {
                for chunk in chunks(&range) {
                    self.reserved[(chunk / 64) as usize] &= !(1 << (chunk % 64));
                }
                Ok(true)
            }
            Err(Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(self.refused("a hole could not be made", error)),
        }
    }

    /// Makes whole pages reserved space that nothing was written to, in one
    /// step: space that was given back first, others could take. False if the
    /// file system has no such thing.
    fn empty(&mut self, range: Range<u64>) -> Result<bool, Status> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match self.allocate(flags, range.start, range.end - range.start) {
            Ok(()) => {
                for chunk in whole_chunks(&range, self.bytes) {
                    self.mark_reserved(chunk);
                }
                Ok(true)
            }
            Err(Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(self.refused("space could not be emptied", error)),
        }
    }

    /// Changes what space the file has. A signal that came in between is none
    /// of its business.
    fn allocate(&self, flags: FallocateFlags, start: u64, len: u64) -> rustix::io::Result<()> {
        retry_on_intr(|| (self.fallocate)(&self.file, flags, start, len))
    }

    /// What the command gets whose space the kernel refused. What the machine
    /// is short of now says nothing about the file; all else ends it.
    fn refused(&mut self, what: &str, error: Errno) -> Status {
        match error {
            Errno::NOSPC | Errno::DQUOT => Status::CAPACITY_EXCEEDED,
            Errno::NOMEM => Status::INTERNAL,
            _ => {
                self.fail(&format!("{what}: {error}"));
                Status::WRITE_FAULT
            }
        }
    }

    /// Chunks that are data from end to end need no reservation.
    fn find_data(&mut self) {
        let mut at = 0;
        while let Ok(start) = seek(&self.file, SeekFrom::Data(at))
            && let Ok(end) = seek(&self.file, SeekFrom::Hole(start))
            && end > at
        {
            for chunk in whole_chunks(&(start..end), self.bytes) {
                self.mark_reserved(chunk);
            }
            at = end;
        }
    }

    fn is_reserved(&self, chunk: u64) -> bool {
        self.reserved[(chunk / 64) as usize] >> (chunk % 64) & 1 == 1
    }

    fn mark_reserved(&mut self, chunk: u64) {
        self.reserved[(chunk / 64) as usize] |= 1 << (chunk % 64);
    }

    fn check(&mut self, status: Status) -> Result<(), Status> {
        if self.mapping.has_failed() && !self.failed {
            self.fail("the file was truncated");
        }
        if self.failed { Err(status) } else { Ok(()) }
    }

    fn fail(&mut self, reason: &str) {
        if !self.failed {
            let path = self.path.display();
            tracing::error!(%path, "the namespace over this file has failed: {reason}");
        }
        self.failed = true;
    }
}

fn chunks(range: &Range<u64>) -> Range<u64> {
    range.start / CHUNK_BYTES..range.end.div_ceil(CHUNK_BYTES)
}

/// The chunks of a file of `bytes` that lie in a range from end to end; the
/// last one may be short.
fn whole_chunks(range: &Range<u64>, bytes: u64) -> Range<u64> {
    let end =
        if range.end >= bytes { bytes.div_ceil(CHUNK_BYTES) } else { range.end / CHUNK_BYTES };
    range.start.div_ceil(CHUNK_BYTES)..end
}

fn part(range: &Range<u64>, chunk: u64) -> Range<u64> {
    range.start.max(chunk * CHUNK_BYTES)..range.end.min((chunk + 1) * CHUNK_BYTES)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::open::{FileIo, FileOptions};
    use super::*;

    thread_local! {
        /// What the kernel answers next, the last one first; then it obeys.
        static ANSWERS: RefCell<Vec<Errno>> = const { RefCell::new(Vec::new()) };
    }

    type Change = fn(&mut FileDisk) -> Result<(), Status>;

    /// A signal came, or the machine was out of memory for a moment, while the
    /// kernel looked for space, and the namespace was gone until the next
    /// start. A file system that fails must not be believed again, though.
    #[test]
    fn a_signal_fails_nothing_and_a_shortage_one_command() {
        const ALL: Range<u64> = 0..1 << 20;
        let folder = tempfile::tempdir().expect("a folder");
        let options = FileOptions {
            path: folder.path().join("disk"),
            create: Some(ALL.end),
            io: FileIo::Mapped,
        };
        let open = OpenFile::open(&options).expect("a file");
        let mut disk = FileDisk::map(open).expect("a disk");
        disk.fallocate = |file, flags, start, len| match ANSWERS.take().split_last() {
            Some((answer, rest)) => {
                ANSWERS.set(rest.to_vec());
                Err(*answer)
            }
            None => fallocate(file, flags, start, len),
        };
        let changes: [Change; 4] = [
            |disk| disk.zero(ALL, true),
            |disk| disk.zero(ALL, false),
            |disk| disk.deallocate(ALL),
            |disk| disk.reserve(&ALL),
        ];
        for change in changes {
            for (answers, outcome) in [
                (vec![Errno::INTR, Errno::INTR], Ok(())),
                (vec![Errno::NOMEM], Err(Status::INTERNAL)),
                (vec![Errno::NOMEM, Errno::INTR], Err(Status::INTERNAL)),
                (vec![Errno::DQUOT, Errno::NOSPC], Err(Status::CAPACITY_EXCEEDED)),
            ] {
                disk.punch(ALL).expect("nothing is reserved");
                ANSWERS.set(answers);
                assert_eq!(change(&mut disk), outcome);
                ANSWERS.take();
            }
        }
        ANSWERS.set(vec![Errno::IO]);
        assert_eq!(disk.deallocate(ALL), Err(Status::WRITE_FAULT));
        assert_eq!(disk.zero(ALL, true), Err(Status::WRITE_FAULT));
    }
}
