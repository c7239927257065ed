//! The unsafe part of the tests: handing addresses to the driver.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use virtio_driver::{VirtioBlkQueue, iovec};
use vm_memory::{FileOffset, MmapRegion};

/// Asks for a read or a write of `pieces` (offset and size) of `memory`.
pub fn transfer(
    queue: &mut VirtioBlkQueue<'_, usize>,
    write: bool,
    at: u64,
    memory: &MmapRegion<()>,
    pieces: &[(usize, usize)],
    context: usize,
) -> io::Result<()> {
    let vector: Vec<iovec> = pieces
        .iter()
        .map(|&(offset, len)| {
            assert!(offset + len <= memory.size());
            iovec { iov_base: memory.as_ptr().wrapping_add(offset).cast(), iov_len: len }
        })
        .collect();
    // SAFETY: the vector is whole and its pieces lie within the region, which
    // the caller keeps until the request has ended; the tests look at it only
    // through volatile slices.
    unsafe {
        match write {
            true => queue.writev(at, vector.as_ptr(), vector.len(), context),
            false => queue.readv(at, vector.as_ptr(), vector.len(), context),
        }
    }
}

/// A private mapping of a file, as QEMU makes it without share=on.
pub fn map_privately(file: &File, bytes: usize) -> MmapRegion<()> {
    let file = FileOffset::new(file.try_clone().expect("clone"), 0);
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    MmapRegion::build(Some(file), bytes, protection, flags).expect("map")
}
