//! The unsafe parts: one of the kernel's rings (io_uring), and the memory that the kernel
//! reads and writes because of it.
//!
//! What must hold: *memory that an operation names stays mapped, and its bytes are
//! nobody else's, from when the operation is begun until its completion was taken from
//! the ring.* The first half is this module's: a place of the ring holds the memory until
//! then, and a ring that is dropped waits. The second half is the engine's, which says
//! nothing to the driver that would let it use the memory again before then; see
//! [`super`].
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use block_core::Memory;
use io_uring::{IoUring, opcode, squeue, types};

/// Bytes of memory, which it keeps mapped.
#[derive(Clone, Debug)]
pub(super) struct Part {
    memory: Arc<Memory>,
    offset: usize,
    bytes: usize,
}

impl Part {
    /// # Panics
    /// If they are not in the memory.
    pub(super) fn new(memory: &Arc<Memory>, offset: usize, bytes: usize) -> Self {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= memory.len()));
        Self { memory: Arc::clone(memory), offset, bytes }
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of its first byte.
    pub(super) fn address(&self) -> usize {
        self.memory.as_ptr().addr() + self.offset
    }

    fn iovec(&self) -> libc::iovec {
        // SAFETY: `new` has checked that the offset lies within the memory or at its end.
        let start = unsafe { self.memory.as_ptr().add(self.offset) };
        libc::iovec { iov_base: start.cast(), iov_len: self.bytes }
    }
}

/// Most parts of one operation (the kernel's UIO_MAXIOV).
pub(super) const MAX_PARTS: usize = 1024;

/// What the kernel is asked to do with the ring's file.
#[derive(Debug)]
pub(super) enum Operation<'a> {
    /// Fills the parts with bytes from here on.
    Read(u64, &'a [Part]),
    /// Writes the parts to the bytes from here on; durably, if so.
    Write(u64, &'a [Part], bool),
    /// Changes what space these bytes have (fallocate's mode).
    Allocate(Range<u64>, i32),
    /// Makes what was written durable (fdatasync).
    Sync,
}

/// A ring for one file, with places for operations; each has one at a time.
pub(super) struct Ring {
    ring: IoUring,
    file: File,
    places: Box<[Place]>,
    /// Operations that were begun and whose completion was not taken.
    busy: usize,
    /// Of them those that the kernel was not told of.
    untold: usize,
}

/// What an operation needs until its completion.
struct Place {
    is_busy: bool,
    iovecs: Vec<libc::iovec>,
    memory: Vec<Arc<Memory>>,
}

// SAFETY: the pointers in `iovecs` are to memory that `memory` keeps mapped in this
// process, whichever thread asks; nobody follows them but the kernel.
unsafe impl Send for Place {}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("file", &self.file).field("busy", &self.busy).finish()
    }
}

impl Ring {
    /// A ring with so many places, and a descriptor that becomes readable, edge by edge,
    /// when a completion is to be taken.
    ///
    /// The kernel finishes completions when the thread that has begun the operation
    /// enters it next, for whatever reason, and says in the ring when it should
    /// (`COOP_TASKRUN`, `TASKRUN_FLAG`: Linux 5.19): no thread is interrupted, and one that
    /// sleeps is woken. Rings of one thread (`SINGLE_ISSUER`) cannot be: a controller is
    /// made by one thread and may be driven by others.
    pub(super) fn new(file: File, places: u16) -> io::Result<(Self, OwnedFd)> {
        let ring = IoUring::builder()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .dontfork()
            .build(u32::from(places))?;
        // SAFETY: the ring's descriptor is open as long as the ring is borrowed.
        let bell = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }.try_clone_to_owned()?;
        // Each operation has one completion: there is room for all.
        assert!(ring.params().sq_entries() >= u32::from(places));
        assert!(ring.params().cq_entries() >= u32::from(places));
        let places = (0..places).map(|_| Place::roomy()).collect();
        Ok((Self { ring, file, places, busy: 0, untold: 0 }, bell))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Begins an operation in a place that has none. The kernel learns of it by
    /// [`Ring::tell`].
    pub(super) fn begin(&mut self, place: u16, operation: &Operation<'_>) {
        let file = types::Fd(self.file.as_raw_fd());
        let kept = &mut self.places[usize::from(place)];
        assert!(!kept.is_busy, "a place has one operation at a time");
        let entry = match operation {
            Operation::Read(at, parts) => match kept.keep(parts) {
                (&[one], _) => opcode::Read::new(file, one.iov_base.cast(), one.iov_len as u32)
                    .offset(*at)
                    .build(),
                (_, (all, count)) => opcode::Readv::new(file, all, count).offset(*at).build(),
            },
            Operation::Write(at, parts, durable) => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                match kept.keep(parts) {
                    (&[one], _) => {
                        opcode::Write::new(file, one.iov_base.cast(), one.iov_len as u32)
                            .offset(*at)
                            .rw_flags(flags)
                            .build()
                    }
                    (_, (all, count)) => {
                        opcode::Writev::new(file, all, count).offset(*at).rw_flags(flags).build()
                    }
                }
            }
            Operation::Allocate(range, mode) => {
                let len = range.end - range.start;
                opcode::Fallocate::new(file, len).offset(range.start).mode(*mode).build()
            }
            Operation::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        kept.is_busy = true;
        self.push(&entry.user_data(u64::from(place)));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry names the ring's own file, and bytes of memory that its place
        // keeps mapped (`keep`), as it keeps the list of them, unchanged, until the
        // completion was taken: `begin` takes no busy place, `take` alone frees one, and
        // `drop` waits. Whose bytes they are, see the module.
        let pushed = unsafe { self.ring.submission().push(entry) };
        assert!(pushed.is_ok(), "the ring has an entry for each place");
        self.busy += 1;
        self.untold += 1;
    }

    /// Tells the kernel what was begun, and lets it finish what it has to: one system
    /// call, or none when there is neither. What it cannot take now stays to be told.
    pub(super) fn tell(&mut self) {
        if self.untold == 0 && !self.ring.submission().taskrun() {
            return;
        }
        if let Ok(count) = self.ring.submit() {
            self.untold = self.untold.saturating_sub(count);
        }
    }

    /// A place whose operation has ended, and how. It is free now.
    pub(super) fn take(&mut self) -> Option<(u16, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let place = u16::try_from(entry.user_data()).ok()?;
        let kept = self.places.get_mut(usize::from(place)).filter(|kept| kept.is_busy)?;
        kept.is_busy = false;
        kept.memory.clear();
        self.busy -= 1;
        let result = entry.result();
        Some((place, usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))))
    }

    /// Operations under way.
    pub(super) fn busy(&self) -> usize {
        self.busy
    }

    /// Whether there is something to tell or to take, which no descriptor announces any
    /// more.
    pub(super) fn has_news(&mut self) -> bool {
        self.untold > 0 || self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Sleeps until an operation that is under way has ended.
    ///
    /// # Errors
    /// The kernel's; a shortage for a moment is none.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        if self.busy == 0 || !self.ring.completion().is_empty() {
            return Ok(());
        }
        match self.ring.submit_and_wait(1) {
            Ok(count) => {
                self.untold = self.untold.saturating_sub(count);
                Ok(())
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR) => Ok(()),
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {
                    std::thread::yield_now();
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}

impl Place {
    /// A free one, with room for the parts of most operations.
    fn roomy() -> Self {
        Self { is_busy: false, iovecs: Vec::with_capacity(4), memory: Vec::with_capacity(4) }
    }

    /// Keeps the parts' memory and a list of them: what is in it, and where it is.
    fn keep(&mut self, parts: &[Part]) -> (&[libc::iovec], (*const libc::iovec, u32)) {
        assert!(parts.len() <= MAX_PARTS);
        assert!(parts.iter().all(|part| u32::try_from(part.bytes).is_ok()));
        self.iovecs.clear();
        self.iovecs.extend(parts.iter().map(Part::iovec));
        self.memory.clear();
        self.memory.extend(parts.iter().map(|part| Arc::clone(&part.memory)));
        (&self.iovecs, (self.iovecs.as_ptr(), parts.len() as u32))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while self.busy > 0 {
            while self.take().is_some() {}
            if let Err(error) = self.wait() {
                // The kernel may still write there: it stays mapped for ever.
                tracing::error!("memory of operations without an end is lost: {error}");
                std::mem::forget(std::mem::take(&mut self.places));
                return;
            }
        }
    }
}
