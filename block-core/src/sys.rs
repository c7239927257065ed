//! The unsafe parts: mapping pages, the SIGBUS handler, and turning a buffer
//! into its bytes.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};

use crate::buffer::Buffer;
use crate::mapping::Memory;

/// The page size of x86-64.
const PAGE: usize = 4096;

/// The size of its large pages.
const HUGE_PAGE: usize = 2 << 20;

/// Mapped pages, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    len: usize,
    /// They are a part of this memory, which unmaps them.
    whole: Option<Arc<Memory>>,
}

// SAFETY: pages are an address range that any thread may unmap; the type gives
// out no reference to their content.
unsafe impl Send for Pages {}
// SAFETY: as above; `&Pages` yields only the address and the size.
unsafe impl Sync for Pages {}

impl Pages {
    pub(crate) fn anonymous(bytes: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let pages = Self::map(bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)?;
        if pages.len >= HUGE_PAGE {
            // SAFETY: the range was just mapped; the advice changes only what
            // size of pages backs it. A kernel without them refuses it, which
            // costs speed alone.
            unsafe { libc::madvise(pages.start.as_ptr().cast(), pages.len, libc::MADV_HUGEPAGE) };
        }
        Ok(pages)
    }

    pub(crate) fn of_file(
        file: &File,
        offset: u64,
        bytes: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let protection =
            if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        Self::map(bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
    }

    fn map(bytes: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        let len = bytes.checked_next_multiple_of(PAGE).filter(|&len| len > 0);
        let len = len.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: without MAP_FIXED the kernel picks a range that is in use by
        // nobody; every argument is a plain value that it checks.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, whole: None })
    }

    /// `len` bytes from byte `at` of `whole`, if they are in it and whole pages.
    pub(crate) fn part(whole: &Arc<Memory>, at: usize, len: usize) -> Option<Self> {
        let end = at.checked_add(len).filter(|&end| end <= whole.len())?;
        if len == 0 || !at.is_multiple_of(PAGE) || !end.is_multiple_of(PAGE) {
            return None;
        }
        // SAFETY: the range lies within memory that `whole` keeps mapped.
        let start = NonNull::new(unsafe { whole.as_ptr().add(at) })?;
        Some(Self { start, len, whole: Some(Arc::clone(whole)) })
    }

    /// Puts bytes of a file, or zeroes of this process, where the pages are: who
    /// had mapped them before is let go of.
    pub(crate) fn replace(&self, file: Option<(&File, u64)>) -> io::Result<()> {
        let offset = file.map_or(Ok(0), |(_, offset)| i64::try_from(offset));
        let offset = offset.map_err(|_| io::ErrorKind::InvalidInput)?;
        let (kind, fd) = match file {
            Some((file, _)) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = kind | libc::MAP_FIXED;
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is a mapping that this process holds; other pages in
        // its place keep every pointer into it valid, and whoever reads through
        // one expects bytes that others change.
        let mapped = unsafe { libc::mmap(start, self.len, protection, flags, fd, offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.whole.is_some() {
            return;
        }
        // SAFETY: the range was mapped by `map` and is unmapped only here; who
        // holds a pointer into it also holds the owner of these pages.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// The bytes of a buffer, to read.
pub(crate) fn bytes(buffer: &Buffer) -> &[u8] {
    let (memory, offset, len) = buffer.part();
    debug_assert!(offset + len <= memory.len());
    // SAFETY: the part lies within the mapped memory, which the buffer's pool
    // keeps alive; it belongs to this buffer alone, so the borrow of the
    // buffer is the borrow of the bytes. A device writes to it only while a
    // command table owns the buffer and nobody can borrow it.
    unsafe { std::slice::from_raw_parts(memory.as_ptr().add(offset), len) }
}

/// The bytes of a buffer, to change.
pub(crate) fn bytes_mut(buffer: &mut Buffer) -> &mut [u8] {
    let (memory, offset, len) = buffer.part();
    debug_assert!(offset + len <= memory.len());
    // SAFETY: as in `bytes`; the unique borrow of the buffer is the unique
    // borrow of its part.
    unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().add(offset), len) }
}

/// Places in the handler's table: 64 disks with 32 memory regions each, twice
/// over, since an old mapping lives until its requests have ended.
pub(crate) const MAX_GUARDED: usize = 4096;

/// One guarded range. `start` is 0 while the place is free.
struct Guarded {
    start: AtomicUsize,
    len: AtomicUsize,
    failed: AtomicBool,
}

static GUARDED: [Guarded; MAX_GUARDED] = [const {
    Guarded { start: AtomicUsize::new(0), len: AtomicUsize::new(0), failed: AtomicBool::new(false) }
}; MAX_GUARDED];

/// One past the highest place ever used, so that the handler's search is short.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Held while places are taken or given back; the handler does without.
static TABLE: Mutex<()> = Mutex::new(());

/// A place in the table of ranges whose SIGBUS is survived.
#[derive(Debug)]
pub(crate) struct BusGuard {
    place: usize,
}

impl BusGuard {
    pub(crate) fn over(pages: &Pages) -> io::Result<Self> {
        install_handler()?;
        let _table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        let place = GUARDED
            .iter()
            .position(|guarded| guarded.start.load(Ordering::Relaxed) == 0)
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        let guarded = &GUARDED[place];
        guarded.len.store(pages.len(), Ordering::Relaxed);
        guarded.failed.store(false, Ordering::Relaxed);
        guarded.start.store(pages.as_ptr().addr(), Ordering::Release);
        USED.fetch_max(place + 1, Ordering::Release);
        Ok(Self { place })
    }

    pub(crate) fn has_failed(&self) -> bool {
        GUARDED[self.place].failed.load(Ordering::Acquire)
    }

    /// The range holds other pages now.
    pub(crate) fn forgive(&self) {
        GUARDED[self.place].failed.store(false, Ordering::Release);
    }
}

impl Drop for BusGuard {
    fn drop(&mut self) {
        let _table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        GUARDED[self.place].start.store(0, Ordering::Release);
    }
}

fn install_handler() -> io::Result<()> {
    static INSTALL: Once = Once::new();
    let mut outcome = Ok(());
    INSTALL.call_once(|| {
        // SAFETY: `sigaction` is plain data for which all zeroes is valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction =
            on_bus_error as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: the handler uses only atomics, mmap and sigaction, all of
        // which may be called from a signal handler.
        if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
            outcome = Err(io::Error::last_os_error());
        }
    });
    outcome
}

extern "C" fn on_bus_error(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel hands a handler installed with SA_SIGINFO a valid
    // siginfo, whose address field is set for SIGBUS.
    let address = unsafe { (*info).si_addr() }.addr();
    for guarded in &GUARDED[..USED.load(Ordering::Acquire)] {
        let start = guarded.start.load(Ordering::Acquire);
        let len = guarded.len.load(Ordering::Relaxed);
        if start == 0 || address.wrapping_sub(start) >= len {
            continue;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range is a mapping that this process holds and that a
        // thread is reading or writing right now, so it is not being unmapped;
        // replacing its pages keeps every pointer into it valid.
        let mapped = unsafe { libc::mmap(start as *mut _, len, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            break;
        }
        guarded.failed.store(true, Ordering::Release);
        return;
    }
    // Not ours, or beyond help: let the fault happen again and end the process.
    // SAFETY: SIG_DFL with zeroed flags is a valid action.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(libc::SIGBUS, &default, ptr::null_mut());
    }
}

#[cfg(test)]
pub(crate) fn peek_at(byte: *mut u8) -> u8 {
    // SAFETY: the tests give the first byte of memory that they keep mapped.
    unsafe { byte.read_volatile() }
}

#[cfg(test)]
pub(crate) fn peek(mapping: &crate::Mapping, offset: usize) -> u8 {
    assert!(offset < mapping.len());
    // SAFETY: the offset is inside of the mapping; a volatile read of a byte
    // tolerates any other writer.
    unsafe { mapping.as_ptr().add(offset).read_volatile() }
}

#[cfg(test)]
pub(crate) fn poke(mapping: &crate::Mapping, offset: usize, value: u8) {
    assert!(offset < mapping.len());
    // SAFETY: as in `peek`, and the tests map writable.
    unsafe { mapping.as_ptr().add(offset).write_volatile(value) }
}
