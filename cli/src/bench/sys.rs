//! Memory that the device reaches too, and the calls that lend it out.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use virtio_driver::{VirtioBlkQueue, iovec};

/// Most pieces that the data of one request is cut into.
pub(super) const MOST_SEGMENTS: usize = 256;

/// One buffer per slot, in shared memory. A slot is either ours, and then
/// [`Arena::bytes`] shows it, or lent to the device.
pub(super) struct Arena {
    memory: NonNull<u8>,
    len: usize,
    memfd: OwnedFd,
    slot_len: usize,
    lent: Box<[bool]>,
}

// SAFETY: the mapping belongs to this value alone and every access to it from
// this process goes through `&self` or `&mut self`.
unsafe impl Send for Arena {}

impl Arena {
    /// Maps `slots` buffers of at least `slot_len` bytes, page-aligned, all zero.
    pub(super) fn new(slots: usize, slot_len: usize) -> io::Result<Self> {
        let slot_len = slot_len.next_multiple_of(4096);
        let len = slots
            .checked_mul(slot_len)
            .filter(|&len| len > 0 && isize::try_from(len).is_ok())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let memfd = memfd_create("vrio-bench", MemfdFlags::CLOEXEC)?;
        ftruncate(&memfd, len as u64)?;
        // SAFETY: a fresh shared mapping of a file this process just made and
        // sized; the address is the kernel's choice, so it replaces nothing.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                &memfd,
                0,
            )
        }?;
        let memory = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { memory, len, memfd, slot_len, lent: vec![false; slots].into() })
    }

    pub(super) fn address(&self) -> usize {
        self.memory.as_ptr() as usize
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn fd(&self) -> RawFd {
        self.memfd.as_raw_fd()
    }

    /// The first `len` bytes of a slot that is ours.
    pub(super) fn bytes(&self, slot: usize, len: usize) -> &[u8] {
        let start = self.start_of_own(slot, len);
        // SAFETY: `start_of_own` checked that the bytes lie in the mapping and
        // that no request in flight names them. The device is handed addresses
        // only in requests, and virtio lets it write nowhere else; one that
        // does can spoil this run's verification.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }
    }

    /// The first `len` bytes of a slot that is ours, to be filled.
    pub(super) fn bytes_mut(&mut self, slot: usize, len: usize) -> &mut [u8] {
        let start = self.start_of_own(slot, len);
        // SAFETY: as in `bytes`; `&mut self` makes this the only view.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) }
    }

    /// Queues a read of `len` bytes at byte `offset` into the slot and lends it.
    pub(super) fn read(
        &mut self,
        queue: &mut VirtioBlkQueue<'static, u16>,
        slot: usize,
        offset: u64,
        len: usize,
        segment: usize,
    ) -> io::Result<()> {
        let pieces = Pieces::cut(self.start_of_own(slot, len), len, segment);
        // SAFETY: the pieces lie inside the slot, which stays mapped until this
        // arena is dropped, after the connection to the device; it is marked
        // lent below, so no reference to it exists until the device answered.
        unsafe { queue.readv(offset, pieces.list.as_ptr(), pieces.count, slot as u16) }?;
        self.lent[slot] = true;
        Ok(())
    }

    /// Queues a write of the slot's first `len` bytes to byte `offset` and
    /// lends the slot.
    pub(super) fn write(
        &mut self,
        queue: &mut VirtioBlkQueue<'static, u16>,
        slot: usize,
        offset: u64,
        len: usize,
        segment: usize,
    ) -> io::Result<()> {
        let pieces = Pieces::cut(self.start_of_own(slot, len), len, segment);
        // SAFETY: as in `read`.
        unsafe { queue.writev(offset, pieces.list.as_ptr(), pieces.count, slot as u16) }?;
        self.lent[slot] = true;
        Ok(())
    }

    /// The device answered: the slot is ours again.
    pub(super) fn take_back(&mut self, slot: usize) {
        self.lent[slot] = false;
    }

    fn start_of_own(&self, slot: usize, len: usize) -> NonNull<u8> {
        assert!(!self.lent[slot] && len <= self.slot_len);
        // SAFETY: `slot` indexes `lent`, which has one entry per slot of the
        // mapping, so the offset stays inside it.
        unsafe { self.memory.add(slot * self.slot_len) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: address and length are those of our own mapping; references
        // into it borrow `self`. The device has a mapping of its own.
        let unmapped = unsafe { munmap(self.memory.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A request's data as the device is told it.
struct Pieces {
    list: [iovec; MOST_SEGMENTS],
    count: usize,
}

impl Pieces {
    fn cut(start: NonNull<u8>, len: usize, segment: usize) -> Self {
        let count = len.div_ceil(segment);
        assert!(count <= MOST_SEGMENTS);
        let mut list = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST_SEGMENTS];
        for (i, piece) in list[..count].iter_mut().enumerate() {
            let begin = i * segment;
            piece.iov_base = start.as_ptr().wrapping_add(begin).cast();
            piece.iov_len = segment.min(len - begin);
        }
        Self { list, count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_share_bytes() {
        let mut arena = Arena::new(3, 1000).expect("12 KiB of memory");
        for slot in 0..3 {
            arena.bytes_mut(slot, 4096).fill(slot as u8 + 1);
        }
        for slot in 0..3 {
            assert!(arena.bytes(slot, 4096).iter().all(|&byte| byte == slot as u8 + 1));
        }
    }

    #[test]
    #[should_panic = "lent"]
    fn a_lent_slot_cannot_be_looked_at() {
        let mut arena = Arena::new(2, 512).expect("8 KiB of memory");
        arena.lent[1] = true;
        arena.bytes(1, 512);
    }

    #[test]
    fn pieces_cover_the_data_without_gap() {
        let mut bytes = [0u8; 5000];
        let start = NonNull::from(&mut bytes).cast::<u8>();
        let pieces = Pieces::cut(start, 5000, 2048);
        let lengths: Vec<usize> = pieces.list[..pieces.count].iter().map(|p| p.iov_len).collect();
        assert_eq!(lengths, [2048, 2048, 904]);
        assert_eq!(pieces.list[2].iov_base as usize, start.as_ptr() as usize + 4096);
    }
}
