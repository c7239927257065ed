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

/// Where memory of our own begins for a controller: address 0 stays free.
const FIRST_IOVA: u64 = 1 << 32;

/// Some controllers register memory in large pages only.
const ALIGNMENT: u64 = 2 << 20;

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
        Self { file, range, iova, pieces: Mutex::default() }
    }

    /// `bytes` of memory of its own, a file without a name that nobody can cut. It
    /// takes no more than is touched.
    ///
    /// # Errors
    /// The kernel's.
    pub fn in_memory(bytes: u64) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        Ok(Self::new(sealed_file("vrio-dma", bytes)?, 0..bytes, FIRST_IOVA))
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
        let starts = pieces.iter().map(|piece| piece.range.start).chain([self.range.end]);
        let ends = [self.range.start].into_iter().chain(pieces.iter().map(|piece| piece.range.end));
        let gap = ends.zip(starts).position(|(end, start)| start - end >= bytes as u64);
        let index = gap.ok_or(io::ErrorKind::OutOfMemory)?;
        let start =
            index.checked_sub(1).map_or(self.range.start, |before| pieces[before].range.end);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.file, flags, start, bytes as u64)?;
        let memory = Arc::new(Memory::of_file(&self.file, start, bytes)?);
        let range = start..start + bytes as u64;
        pieces.insert(index, Piece { range, memory: Arc::downgrade(&memory) });
        Ok(DmaMemory::new(memory, self.iova + (start - self.range.start)))
    }
}

/// A file in memory, without a name, whose size is fixed: whoever gets it can not
/// cut it under us.
pub(crate) fn sealed_file(name: &str, bytes: u64) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
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
}
