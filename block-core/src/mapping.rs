//! Memory of this process: its own, and mapped files that others can take
//! away.
//!
//! Whoever owns a mapped file can truncate it under us; touching the lost
//! pages raises SIGBUS. A [`Mapping`] is registered with a handler that puts
//! zero pages in its place and marks it failed. Its user checks the mark,
//! fails one disk, and nothing else notices.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// Page-aligned memory that this process fills: its own, or a part of a file
/// that another process maps too.
#[derive(Debug)]
pub struct Memory {
    /// Declared first: the guard must leave its table before the pages go.
    guard: Option<sys::BusGuard>,
    pages: sys::Pages,
    claimed: AtomicBool,
}

impl Memory {
    /// `bytes` of zeroes, rounded up to whole pages; the kernel supplies each
    /// page when it is first touched, 2 MiB at a time where that is possible.
    ///
    /// # Errors
    /// The kernel's, when it has no address space or memory to give.
    pub fn anonymous(bytes: usize) -> io::Result<Self> {
        let pages = sys::Pages::anonymous(bytes)?;
        Ok(Self { guard: None, pages, claimed: AtomicBool::new(false) })
    }

    /// `bytes` of `file` from `offset`, a multiple of the page size, with what is
    /// in them. If others cut the file, the memory becomes zeroes of this process.
    ///
    /// # Errors
    /// The kernel's; or [`io::ErrorKind::QuotaExceeded`] when more mappings
    /// exist than the handler's table has places.
    pub fn of_file(file: &File, offset: u64, bytes: usize) -> io::Result<Self> {
        let pages = sys::Pages::of_file(file, offset, bytes, true)?;
        let guard = Some(sys::BusGuard::over(&pages)?);
        Ok(Self { guard, pages, claimed: AtomicBool::new(false) })
    }

    /// `bytes` from byte `at` of `whole`, both at multiples of the page size, as
    /// memory of its own; `None` if they are not all in it. It keeps `whole` mapped.
    /// The caller gives each byte to one part at a time.
    #[must_use]
    pub fn part(whole: &Arc<Self>, at: usize, bytes: usize) -> Option<Self> {
        let pages = sys::Pages::part(whole, at, bytes)?;
        Some(Self { guard: None, pages, claimed: AtomicBool::new(false) })
    }

    /// Puts what is in `file` from `offset`, a multiple of the page size, in place of
    /// the memory, at the same address; without a file, zeroes of this process. Who
    /// supplied the pages until now (a device, another process) is let go of.
    ///
    /// # Errors
    /// The kernel's; the memory is as it was.
    pub fn replace(&self, file: Option<(&File, u64)>) -> io::Result<()> {
        self.pages.replace(file)?;
        if let Some(guard) = &self.guard {
            guard.forgive();
        }
        Ok(())
    }

    /// Whether a file was cut under the memory: what is in it is worth nothing.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.guard.as_ref().is_some_and(sys::BusGuard::has_failed)
    }

    /// The first byte. Reading or writing through it takes a `sys` module and
    /// an argument that nobody else does.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.pages.as_ptr()
    }

    /// Size in bytes, a multiple of the page size.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there is no byte; never true for memory that was made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the memory for one exclusive user; false if one has it.
    pub(crate) fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::Relaxed)
    }
}

/// A shared mapping of a file or memfd that survives the file's truncation.
#[derive(Debug)]
pub struct Mapping {
    /// Declared first: the guard must leave its table before the pages go.
    guard: sys::BusGuard,
    pages: sys::Pages,
}

impl Mapping {
    /// Maps `bytes` of `file` from `offset` (a multiple of the page size).
    ///
    /// # Errors
    /// The kernel's; or [`io::ErrorKind::QuotaExceeded`] when more mappings
    /// exist than the handler's table has places.
    pub fn of_file(file: &File, offset: u64, bytes: usize, writable: bool) -> io::Result<Self> {
        let pages = sys::Pages::of_file(file, offset, bytes, writable)?;
        let guard = sys::BusGuard::over(&pages)?;
        Ok(Self { guard, pages })
    }

    /// The first byte. Reading or writing through it takes a `sys` module;
    /// whatever is read there may change at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.pages.as_ptr()
    }

    /// Size in bytes, a multiple of the page size.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there is no byte; never true for a mapping that was made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the file was cut under the mapping. From then on the mapping is
    /// zeroes that no file holds: what was read since is worth nothing.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.guard.has_failed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest can shrink the memfd that backs its memory while we copy from
    /// it. Without the handler this test dies of SIGBUS.
    #[test]
    fn a_file_truncated_under_its_mapping_reads_as_zero_and_is_marked() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(3 * 4096).expect("grow");
        let mapping = Mapping::of_file(&file, 0, 3 * 4096, true).expect("map");
        let other = Mapping::of_file(&file, 0, 4096, true).expect("map");
        sys::poke(&mapping, 4096, 7);
        assert_eq!(sys::peek(&mapping, 4096), 7);
        assert!(!mapping.has_failed());

        file.set_len(4096).expect("shrink");
        assert_eq!(sys::peek(&mapping, 4096), 0);
        assert!(mapping.has_failed());
        assert!(!other.has_failed(), "only the mapping that was touched has failed");
        assert_eq!(sys::peek(&other, 0), 0);
    }

    /// A device goes and comes back: pointers into what it had mapped stay.
    #[test]
    fn memory_can_be_put_on_another_file_at_the_same_place() {
        let file = |byte| {
            let file = tempfile::tempfile().expect("a temporary file");
            std::os::unix::fs::FileExt::write_all_at(&file, &[byte; 8192], 0).expect("bytes");
            file
        };
        let (first, second) = (file(1), file(2));
        let memory = Memory::of_file(&first, 0, 4096).expect("map");
        let first_byte = || sys::peek_at(memory.as_ptr());
        first.set_len(0).expect("cut");
        assert_eq!((first_byte(), memory.has_failed()), (0, true));
        memory.replace(Some((&second, 4096))).expect("map");
        assert_eq!((first_byte(), memory.has_failed()), (2, false));
        memory.replace(None).expect("map");
        assert_eq!(first_byte(), 0);
    }

    #[test]
    fn parts_lie_in_the_whole_and_keep_it() {
        let whole = Arc::new(Memory::anonymous(3 * 4096).expect("memory"));
        let part = Memory::part(&whole, 4096, 8192).expect("inside");
        assert_eq!(part.as_ptr().addr(), whole.as_ptr().addr() + 4096);
        for (at, bytes) in [(4096, 8193), (1, 4096), (0, 0), (8192, 8192), (usize::MAX, 4096)] {
            assert!(Memory::part(&whole, at, bytes).is_none(), "{bytes} bytes from {at}");
        }
        drop(whole);
        assert_eq!(sys::peek_at(part.as_ptr()), 0);
    }

    #[test]
    fn mappings_come_and_go_without_using_up_the_table() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(4096).expect("grow");
        for _ in 0..3 * sys::MAX_GUARDED {
            Mapping::of_file(&file, 0, 4096, false).expect("a free place in the table");
        }
    }
}
