//! Buffers: page-aligned, made at start-up, and moved, never shared.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use crate::mapping::Memory;
use crate::sys;
use crate::unit::BLOCK_SIZE;

/// Memory that a device may reach, and the address at which it sees it.
#[derive(Clone, Debug)]
pub struct DmaMemory {
    memory: Arc<Memory>,
    iova: u64,
}

impl DmaMemory {
    /// `memory`, which a device reaches at I/O virtual address `iova`.
    #[must_use]
    pub const fn new(memory: Arc<Memory>, iova: u64) -> Self {
        Self { memory, iova }
    }

    /// Memory that no device reaches: private copies, tests.
    ///
    /// # Errors
    /// The kernel's, when it has no memory to give.
    pub fn private(bytes: usize) -> std::io::Result<Self> {
        Ok(Self { memory: Arc::new(Memory::anonymous(bytes)?), iova: 0 })
    }

    /// Where the memory is in this process.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where the memory begins for the device.
    #[must_use]
    pub const fn iova(&self) -> u64 {
        self.iova
    }
}

/// Buffers of one size, cut out of pieces of memory at start-up. A buffer
/// that is dropped goes back to its pool.
#[derive(Clone, Debug)]
pub struct Pool {
    pieces: Rc<[Rc<Piece>]>,
    free: Free,
    buffer_bytes: usize,
    count: usize,
}

type Free = Rc<RefCell<Vec<Place>>>;

/// What a buffer is a part of, and where it goes back to.
#[derive(Debug)]
struct Piece {
    number: u32,
    dma: DmaMemory,
    buffer_bytes: usize,
    free: Free,
}

/// Where a buffer begins.
#[derive(Clone, Copy, Debug)]
struct Place {
    piece: u32,
    block: u32,
}

impl Pool {
    /// Cuts `dma` into buffers of `buffer_bytes`, a multiple of
    /// [`BLOCK_SIZE`].
    ///
    /// The caller gives the memory up: it can have one pool, once.
    ///
    /// # Panics
    /// If `buffer_bytes` is not a positive multiple of the block size, or the
    /// memory has had a pool: both are mistakes in the caller's code.
    #[must_use]
    pub fn new(dma: DmaMemory, buffer_bytes: usize) -> Self {
        Self::of_pieces(vec![dma], buffer_bytes)
    }

    /// [`Pool::new`] of several pieces of memory, which need not be neighbours: a buffer
    /// lies within one.
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn of_pieces(pieces: Vec<DmaMemory>, buffer_bytes: usize) -> Self {
        assert!(buffer_bytes > 0 && buffer_bytes.is_multiple_of(BLOCK_SIZE));
        let claimed = pieces.iter().all(|dma| dma.memory.claim());
        assert!(claimed, "the memory has a pool already");
        let blocks = (buffer_bytes / BLOCK_SIZE) as u32;
        let places = pieces.iter().zip(0..).flat_map(|(dma, piece)| {
            let count = (dma.memory.len() / buffer_bytes) as u32;
            (0..count).map(move |index| Place { piece, block: index * blocks })
        });
        let mut free: Vec<Place> = places.collect();
        free.reverse(); // The first is taken first.
        let (count, free) = (free.len(), Rc::new(RefCell::new(free)));
        let pieces = pieces.into_iter().zip(0..).map(|(dma, number)| {
            Rc::new(Piece { number, dma, buffer_bytes, free: Rc::clone(&free) })
        });
        Self { pieces: pieces.collect(), free: Rc::clone(&free), buffer_bytes, count }
    }

    /// A pool of `count` private buffers, which no device reaches.
    ///
    /// # Errors
    /// The kernel's, when it has no memory to give.
    pub fn private(count: usize, buffer_bytes: usize) -> std::io::Result<Self> {
        Ok(Self::new(DmaMemory::private(count * buffer_bytes)?, buffer_bytes))
    }

    /// A buffer with whatever its last user left in it, or `None` when all
    /// are in use.
    #[must_use]
    pub fn take(&self) -> Option<Buffer> {
        let Place { piece, block } = self.free.borrow_mut().pop()?;
        Some(Buffer { piece: Rc::clone(&self.pieces[piece as usize]), block })
    }

    /// How many buffers are free.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.borrow().len()
    }

    /// How many buffers there are, free or not.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes in each buffer.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }
}

/// A page-aligned piece of memory with one owner.
pub struct Buffer {
    piece: Rc<Piece>,
    block: u32,
}

impl Buffer {
    fn offset(&self) -> usize {
        self.block as usize * BLOCK_SIZE
    }

    /// The memory that the buffer is a part of, the offset in it and the size.
    /// As long as the buffer lives, nobody else has this part: the place left
    /// the free list when the buffer was made and returns when it is dropped.
    pub(crate) fn part(&self) -> (&Memory, usize, usize) {
        (&self.piece.dma.memory, self.offset(), self.piece.buffer_bytes)
    }

    /// Where a device finds the buffer's first byte.
    #[must_use]
    pub fn iova(&self) -> u64 {
        self.piece.dma.iova + self.offset() as u64
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        sys::bytes(self)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        sys::bytes_mut(self)
    }
}

impl Drop for Buffer {
    #[inline(never)] // What may hold a buffer is dropped more often than one that does.
    fn drop(&mut self) {
        let place = Place { piece: self.piece.number, block: self.block };
        self.piece.free.borrow_mut().push(place);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.iova(), self.piece.buffer_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_free_again_and_no_two_share_a_byte() {
        let pool = Pool::private(3, BLOCK_SIZE).expect("memory");
        let mut held: Vec<Buffer> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(held.len(), 3);
        for (mark, buffer) in (1..).zip(held.iter_mut()) {
            assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK_SIZE));
            buffer.fill(mark);
        }
        for (mark, buffer) in (1..).zip(held.iter()) {
            assert!(buffer.iter().all(|&byte| byte == mark));
        }
        held.pop();
        assert_eq!(pool.available(), 1);
    }

    /// What the end of a piece is too short for is left, and the device finds each
    /// buffer in its piece.
    #[test]
    fn a_pool_of_pieces_has_no_buffer_across_two() {
        let piece = |blocks: usize, iova| {
            let memory = Memory::anonymous(blocks * BLOCK_SIZE).expect("memory");
            DmaMemory::new(Arc::new(memory), iova)
        };
        let pool = Pool::of_pieces(vec![piece(5, 0x10_0000), piece(2, 0x70_0000)], 2 * BLOCK_SIZE);
        let mut held: Vec<Buffer> = std::iter::from_fn(|| pool.take()).collect();
        let iovas: Vec<u64> = held.iter().map(Buffer::iova).collect();
        assert_eq!((pool.count(), &iovas[..]), (3, &[0x10_0000, 0x10_2000, 0x70_0000][..]));
        for (mark, buffer) in (1..).zip(held.iter_mut()) {
            buffer.fill(mark);
        }
        for (mark, buffer) in (1..).zip(held.iter()) {
            assert!(buffer.iter().all(|&byte| byte == mark));
        }
        drop(held.pop());
        assert_eq!(pool.take().expect("the dropped one").iova(), 0x70_0000);
    }

    #[test]
    #[should_panic(expected = "the memory has a pool already")]
    fn one_memory_cannot_feed_two_pools() {
        let dma = DmaMemory::private(BLOCK_SIZE).expect("memory");
        let _first = Pool::new(dma.clone(), BLOCK_SIZE);
        let _second = Pool::new(dma, BLOCK_SIZE);
    }
}
