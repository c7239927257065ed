//! DMA memory in a file that the controller's process maps too.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use block_core::{DmaMemory, Memory};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

use crate::PAGE;
use crate::sys;

/// Where memory of our own begins for a controller: address 0 stays free.
const FIRST_IOVA: u64 = 1 << 32;

/// Some controllers register memory in large pages only.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// A range of a file, mapped by the controller as a whole and once, out of which
/// a bus gives pieces to its driver. A piece that the driver has dropped is given
/// again.
#[derive(Debug)]
pub struct Arena {
    file: File,
    /// Bytes of the file.
    range: Range<u64>,
    /// Where the controller sees the range's first byte.
    iova: u64,
    /// The range in this process, if the controller holds these very pages, whatever
    /// the file has: then none is given back to the kernel.
    pinned: Option<Arc<Memory>>,
    /// Without an IOMMU: parts of the range that have consecutive addresses, in
    /// rising order, and where the controller sees each.
    runs: Vec<(Range<u64>, u64)>,
    /// In rising order of their place.
    pieces: Mutex<Vec<Piece>>,
}

#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    memory: Weak<Memory>,
}

impl Arena {
    /// The bytes `range` of `file`, both ends at multiples of a page, which the
    /// controller sees from address `iova`.
    ///
    /// # Panics
    /// If an end is elsewhere: that is a mistake in the bus.
    #[must_use]
    pub fn new(file: File, range: Range<u64>, iova: u64) -> Self {
        let page = PAGE as u64;
        assert!(range.start.is_multiple_of(page) && range.end.is_multiple_of(page));
        let runs = vec![(range.clone(), iova)];
        Self { file, range, iova, pinned: None, runs, pieces: Mutex::default() }
    }

    /// `bytes` of memory of its own, a file without a name that nobody can cut. It
    /// takes no more than is touched.
    ///
    /// # Errors
    /// The kernel's.
    pub fn in_memory(bytes: u64) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE_PAGE);
        Ok(Self::new(sealed_file("vrio-dma", bytes, None)?, 0..bytes, FIRST_IOVA))
    }

    /// `bytes` of memory for devices that hold the pages themselves (a PCI device
    /// behind an IOMMU): all of it is there from now on. Huge pages when enough are
    /// reserved, else a warning and small ones.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pinned(bytes: u64) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(HUGE_PAGE);
        let arena = Self::in_huge_pages(bytes).or_else(|error| {
            let pages = bytes / HUGE_PAGE;
            tracing::warn!(
                "DMA memory is in small pages ({error}), which costs the IOMMU some speed; \
                 'sysctl vm.nr_hugepages={pages}' (or more) before the start reserves large ones"
            );
            Self::in_memory(bytes)
        })?;
        let memory = Arc::new(Memory::of_file(&arena.file, 0, bytes as usize)?);
        Ok(Self { pinned: Some(memory), ..arena })
    }

    pub(crate) fn in_huge_pages(bytes: u64) -> io::Result<Self> {
        let file = sealed_file("vrio-dma", bytes, Some(MemfdFlags::HUGE_2MB))?;
        // Now or never: a page that is missing later is a SIGBUS.
        fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        Ok(Self::new(file, 0..bytes, FIRST_IOVA))
    }

    /// Memory that a controller without an IOMMU reaches at these addresses: `runs`
    /// are parts of it that are consecutive for the controller, in rising order.
    pub(crate) fn scattered(file: File, memory: Arc<Memory>, runs: Vec<(Range<u64>, u64)>) -> Self {
        let range = 0..memory.len() as u64;
        let pieces = Mutex::default();
        Self { file, range, iova: 0, pinned: Some(memory), runs, pieces }
    }

    /// The file that a controller maps.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What of the file it maps.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Where it maps that.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// The whole in this process, if a device may hold the pages themselves.
    pub(crate) fn memory(&self) -> Option<&Arc<Memory>> {
        self.pinned.as_ref()
    }

    /// Zeroed memory that the controller reaches.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] when no gap is long enough, or the kernel's.
    pub fn allocate(&self, bytes: usize) -> io::Result<DmaMemory> {
        let bytes =
            bytes.max(1).checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        // What the controller may still write to is not dropped but leaked.
        pieces.retain(|piece| piece.memory.strong_count() > 0);
        let gaps = self.runs.iter().filter_map(|(run, iova)| {
            let start = first_gap(&pieces, run, bytes as u64)?;
            Some((start, iova + (start - run.start)))
        });
        let (start, iova) = gaps.into_iter().next().ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Arc::new(self.zeroed(start, bytes)?);
        let range = start..start + bytes as u64;
        let index = pieces.partition_point(|piece| piece.range.start < start);
        pieces.insert(index, Piece { range, memory: Arc::downgrade(&memory) });
        Ok(DmaMemory::new(memory, iova))
    }

    fn zeroed(&self, start: u64, bytes: usize) -> io::Result<Memory> {
        let Some(whole) = &self.pinned else {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&self.file, flags, start, bytes as u64)?;
            return Memory::of_file(&self.file, start, bytes);
        };
        // A hole would be filled with another page than the device holds.
        let at = (start - self.range.start) as usize;
        let memory = Memory::part(whole, at, bytes).ok_or(io::ErrorKind::InvalidInput)?;
        sys::clear(&memory, 0, bytes);
        Ok(memory)
    }
}

/// Where in a run `bytes` are free.
fn first_gap(pieces: &[Piece], run: &Range<u64>, bytes: u64) -> Option<u64> {
    let mut start = run.start;
    for piece in pieces.iter().filter(|piece| run.contains(&piece.range.start)) {
        if piece.range.start - start >= bytes {
            return Some(start);
        }
        start = piece.range.end;
    }
    (run.end - start >= bytes).then_some(start)
}

/// A file in memory, without a name, whose size is fixed: whoever gets it can not
/// cut it under us. In huge pages of that size, if any.
pub(crate) fn sealed_file(name: &str, bytes: u64, huge: Option<MemfdFlags>) -> io::Result<File> {
    let huge = huge.map_or(MemfdFlags::empty(), |size| size | MemfdFlags::HUGETLB);
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | huge)?;
    ftruncate(&file, bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::sys::Words;

    fn arena(pages: u64) -> Arena {
        let file = tempfile::tempfile().expect("a file");
        file.set_len((pages + 1) << 12).expect("grow");
        Arena::new(file, 1 << 12..(pages + 1) << 12, 1 << 32)
    }

    /// A buffer of an earlier queue must not show its bytes to the next one.
    #[test]
    fn dropped_pieces_are_given_again_as_zeroes() {
        let arena = arena(4);
        let first = arena.allocate(PAGE).expect("a page");
        let second = arena.allocate(2 * PAGE - 1).expect("two pages");
        assert_eq!((first.iova(), second.iova()), (1 << 32, (1 << 32) + 4096));
        assert!(arena.allocate(2 * PAGE).is_err(), "one page is left");
        Words::all(&second).store(511, 7, Ordering::Relaxed);
        let place = second.iova();
        drop(second);
        let third = arena.allocate(3 * PAGE).expect("the gap and the rest");
        assert_eq!(third.iova(), place);
        assert_eq!(Words::all(&third).load(511, Ordering::Relaxed), 0);
        assert!(arena.allocate(1).is_err());
        drop(first);
        assert_eq!(arena.allocate(1).expect("the first page").iova(), 1 << 32);
    }

    /// A device holds the pages: bytes that it writes through an older mapping must be
    /// in what is given again.
    #[test]
    fn pinned_pieces_keep_their_pages_and_are_zeroed() {
        let arena = Arena::pinned(1).expect("memory");
        let device = Memory::of_file(arena.file(), 0, PAGE).expect("the device's view");
        let device = Words::new(Arc::new(device), 0, 1).expect("a word");
        for _ in 0..2 {
            let piece = Words::all(&arena.allocate(PAGE).expect("a page"));
            assert_eq!(piece.load(0, Ordering::Relaxed), 0);
            device.store(0, 9, Ordering::Relaxed);
            assert_eq!(piece.load(0, Ordering::Relaxed), 9);
        }
    }

    /// Physical memory: nothing may lie across the end of a run.
    #[test]
    fn pieces_lie_within_one_run() {
        let file = tempfile::tempfile().expect("a file");
        let memory = Arc::new(Memory::anonymous(8 << 12).expect("memory"));
        let runs = vec![(0..3 << 12, 0x10_0000), (3 << 12..8 << 12, 0x70_0000)];
        let arena = Arena::scattered(file, memory, runs);
        let two = |arena: &Arena| arena.allocate(2 << 12).map(|piece| (piece.iova(), piece));
        let first = two(&arena).expect("in the first run");
        let second = two(&arena).expect("in the second");
        assert_eq!((first.0, second.0), (0x10_0000, 0x70_0000));
        assert_eq!(arena.allocate(1).expect("what was left").iova(), 0x10_2000);
        assert_eq!(two(&arena).expect("behind it").0, 0x70_2000);
        assert!(arena.allocate(4 << 12).is_err(), "four pages are in no gap");
    }
}
