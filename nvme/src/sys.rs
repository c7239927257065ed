//! The unsafe parts: words of rings that two sides share, and copies between
//! DMA memory and what backs a namespace.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use block_core::{DmaMemory, Mapping, Memory};

/// Bytes in a word.
const WORD: usize = 8;

/// 64-bit little-endian words of memory that a controller reads and writes at
/// the same time.
#[derive(Debug)]
pub(crate) struct Words {
    /// The first of them: to ask the memory for its place each time takes time.
    first: NonNull<AtomicU64>,
    count: usize,
    _memory: Arc<Memory>,
}

// SAFETY: the words lie in memory that any thread may reach and that stays mapped as long
// as this lives; they are only loaded and stored, atomically.
unsafe impl Send for Words {}
// SAFETY: the same.
unsafe impl Sync for Words {}

impl Words {
    /// `count` words from byte `start` of `memory`, or `None` when they are
    /// not aligned or not all inside.
    pub(crate) fn new(memory: Arc<Memory>, start: usize, count: usize) -> Option<Self> {
        let end = count.checked_mul(WORD)?.checked_add(start)?;
        if !start.is_multiple_of(WORD) || end > memory.len() {
            return None;
        }
        // SAFETY: `start` lies within the memory or at its end, as was just checked.
        let first = unsafe { NonNull::new(memory.as_ptr().add(start))? };
        Some(Self { first: first.cast(), count, _memory: memory })
    }

    /// All words of a piece of DMA memory.
    pub(crate) fn all(dma: &DmaMemory) -> Self {
        let memory = Arc::clone(dma.memory());
        let count = memory.len() / WORD;
        Self::new(memory, 0, count).expect("the words of a memory lie within it")
    }

    /// The word's value.
    pub(crate) fn load(&self, index: usize, ordering: Ordering) -> u64 {
        u64::from_le(self.word(index).load(ordering))
    }

    /// Changes the word.
    pub(crate) fn store(&self, index: usize, value: u64, ordering: Ordering) {
        self.word(index).store(value.to_le(), ordering);
    }

    /// The values of consecutive words. Whoever handed them over did so with
    /// an ordered store of something else.
    pub(crate) fn load_all<const N: usize>(&self, first: usize) -> [u64; N] {
        assert!(first.checked_add(N).is_some_and(|end| end <= self.count));
        std::array::from_fn(|index| u64::from_le(self.at(first + index).load(Ordering::Relaxed)))
    }

    /// Changes consecutive words; an ordered store of something else hands
    /// them over.
    #[inline]
    pub(crate) fn store_all<const N: usize>(&self, first: usize, values: &[u64; N]) {
        assert!(first.checked_add(N).is_some_and(|end| end <= self.count));
        for (index, value) in values.iter().enumerate() {
            self.at(first + index).store(value.to_le(), Ordering::Relaxed);
        }
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.count);
        self.at(index)
    }

    /// A word that the caller has checked to exist.
    #[inline]
    fn at(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < self.count);
        // SAFETY: the three callers, all of this type, have checked the index. `new` has
        // checked that the words lie within the memory, which `self` keeps mapped at its
        // place, and are aligned (mappings begin at a page). Threads of this process touch
        // rings, lists and answers at the same time only through this function, that is,
        // atomically.
        unsafe { self.first.add(index).as_ref() }
    }
}

/// 32-bit little-endian words, each stored and loaded in one access: doorbells.
#[derive(Debug)]
pub(crate) struct HalfWords {
    memory: Arc<Memory>,
    start: usize,
    count: usize,
}

impl HalfWords {
    /// `count` words from byte `start` of `memory`, or `None` when they are
    /// not aligned or not all inside.
    pub(crate) fn new(memory: Arc<Memory>, start: usize, count: usize) -> Option<Self> {
        let end = count.checked_mul(size_of::<u32>())?.checked_add(start)?;
        let aligned = start.is_multiple_of(size_of::<u32>());
        (aligned && end <= memory.len()).then_some(Self { memory, start, count })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The word's value.
    pub(crate) fn load(&self, index: usize, ordering: Ordering) -> u32 {
        u32::from_le(self.word(index).load(ordering))
    }

    /// Changes the word.
    pub(crate) fn store(&self, index: usize, value: u32, ordering: Ordering) {
        self.word(index).store(value.to_le(), ordering);
    }

    fn word(&self, index: usize) -> &AtomicU32 {
        assert!(index < self.count);
        let at = self.start + index * size_of::<u32>();
        // SAFETY: `new` has checked that the words lie within the memory, which
        // `self` keeps mapped, and are aligned. Threads of this process touch
        // doorbells only through this type, that is, atomically.
        unsafe { AtomicU32::from_ptr(self.memory.as_ptr().add(at).cast()) }
    }
}

/// Mapped bytes at a stable address.
pub(crate) trait Region {
    /// The first byte.
    fn start(&self) -> *mut u8;
    /// How many bytes.
    fn bytes(&self) -> usize;
}

impl Region for Memory {
    fn start(&self) -> *mut u8 {
        self.as_ptr()
    }

    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Region for Mapping {
    fn start(&self) -> *mut u8 {
        self.as_ptr()
    }

    fn bytes(&self) -> usize {
        self.len()
    }
}

/// Copies `len` bytes. The regions are different ones.
pub(crate) fn copy(from: &impl Region, from_at: usize, to: &impl Region, to_at: usize, len: usize) {
    assert!(inside(from, from_at, len) && inside(to, to_at, len));
    // SAFETY: both ranges lie inside of mapped regions that the borrows keep
    // mapped, and different mappings do not overlap. The bytes on the driver's
    // side belong to a command that the driver has handed over and not had
    // back (it owns no reference into them), those on the namespace's side to
    // the engine, of which one thread at a time has the only borrow.
    unsafe { std::ptr::copy_nonoverlapping(from.start().add(from_at), to.start().add(to_at), len) }
}

/// Sets `len` bytes to zero.
pub(crate) fn clear(region: &impl Region, at: usize, len: usize) {
    assert!(inside(region, at, len));
    // SAFETY: as in `copy`.
    unsafe { std::ptr::write_bytes(region.start().add(at), 0, len) }
}

/// Copies bytes out of a region.
pub(crate) fn copy_out(region: &impl Region, at: usize, to: &mut [u8]) {
    assert!(inside(region, at, to.len()));
    // SAFETY: as in `copy`; `to` is borrowed uniquely and is no mapped region.
    unsafe {
        std::ptr::copy_nonoverlapping(region.start().add(at), to.as_mut_ptr(), to.len());
    }
}

/// Copies bytes into a region.
pub(crate) fn copy_in(from: &[u8], region: &impl Region, at: usize) {
    assert!(inside(region, at, from.len()));
    // SAFETY: as in `copy_out`, the other way round.
    unsafe {
        std::ptr::copy_nonoverlapping(from.as_ptr(), region.start().add(at), from.len());
    }
}

fn inside(region: &impl Region, at: usize, len: usize) -> bool {
    at.checked_add(len).is_some_and(|end| end <= region.bytes())
}

/// Gives whole pages of private memory back to the kernel; they read as zero.
pub(crate) fn give_back(memory: &Memory, at: usize, len: usize) -> io::Result<()> {
    assert!(inside(memory, at, len));
    // SAFETY: the range lies inside of a private anonymous mapping, where the
    // advice means "zero these pages"; as in `copy`, nobody else uses them now.
    let outcome =
        unsafe { libc::madvise(memory.as_ptr().add(at).cast(), len, libc::MADV_DONTNEED) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Writes the pages of a mapped file that hold these bytes to its storage and
/// waits for that.
pub(crate) fn persist(mapping: &Mapping, at: usize, len: usize) -> io::Result<()> {
    assert!(inside(mapping, at, len));
    let page = at & !(crate::PAGE - 1);
    // SAFETY: the range lies inside of a mapping that the borrow keeps mapped;
    // msync changes no byte of it.
    let outcome =
        unsafe { libc::msync(mapping.as_ptr().add(page).cast(), at + len - page, libc::MS_SYNC) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads from a file into memory without a mapping, so that a hole stays one.
/// Returns how many bytes there were.
pub(crate) fn read_file(
    file: &File,
    offset: u64,
    to: &Memory,
    at: usize,
    len: usize,
) -> io::Result<usize> {
    assert!(inside(to, at, len));
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `len` bytes into a range that lies
    // inside of the memory; whose it is, see `copy`.
    let count = unsafe { libc::pread(file.as_raw_fd(), to.as_ptr().add(at).cast(), len, offset) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
