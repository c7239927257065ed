//! Descriptor chains (virtio 1.2, section 2.7.5): from a head that a hostile
//! driver chose to a list of pieces of guest memory that exist.
//!
//! A chain is two byte streams, what the device reads and what it writes.
//! Where the driver cut them into descriptors means nothing. Every descriptor
//! and every indirect table is copied once; only the copy is looked at.

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::ByteValued;

use crate::guest_memory::{GuestMemory, NotThere};
use crate::ring::{DESCRIPTOR_BYTES, MAX_QUEUE_SIZE, RingMemory};

/// Most data segments that a driver is told to use (`seg_max`).
pub(crate) const SEG_MAX: u16 = 126;

/// Most pieces that one chain may have: the data, and header and status when
/// each has its own descriptor.
pub(crate) const MAX_PIECES: usize = SEG_MAX as usize + 2;

/// Most descriptors in a chain on a queue of `size`. The specification says
/// the queue's size; drivers on small queues count only what stands in the
/// ring itself and fill indirect tables up to `seg_max`.
const fn limit(size: u16) -> usize {
    if size as usize > MAX_PIECES { size as usize } else { MAX_PIECES }
}

/// A piece of guest memory: address and size in bytes. An array, so that the
/// kernel supplies the zeroed table page by page.
pub(crate) type Piece = [u64; 2];

/// Room for one indirect table.
pub(crate) type TableCopy = [u8; MAX_QUEUE_SIZE as usize * DESCRIPTOR_BYTES];

/// What a walk found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked {
    /// The first so many pieces are read by the device, the rest written.
    pub(crate) readable: usize,
    /// How many pieces there are.
    pub(crate) pieces: usize,
    /// Bytes that the device may read.
    pub(crate) readable_bytes: u64,
    /// Bytes that the device may write.
    pub(crate) writable_bytes: u64,
    /// Where the last writable byte is: the status.
    pub(crate) status: Option<u64>,
    /// Whether the chain lied: it must not be served.
    pub(crate) lied: bool,
}

/// Walks the chain from `head`, which is within the table. Where it lies, the
/// walk goes on as far as it is bounded, to find the status byte.
pub(crate) fn walk(
    head: u16,
    ring: &RingMemory,
    memory: &GuestMemory,
    indirect: bool,
    copy: &mut TableCopy,
    pieces: &mut [Piece],
) -> Walked {
    let size = ring.size();
    let mut walk = Walk { memory, pieces, found: Walked::default() };
    let mut index = head;
    for _ in 0..size {
        let descriptor = ring.descriptor(index);
        if descriptor.refers_to_indirect_table() {
            // INDIRECT with NEXT (2.7.5.3.1) is a lie, and so is an indirect
            // table that was not negotiated.
            walk.found.lied |= descriptor.has_next() || !indirect;
            walk.table(&descriptor, limit(size), copy);
            return walk.found;
        }
        walk.add(&descriptor);
        if !descriptor.has_next() {
            return walk.found;
        }
        index = descriptor.next();
        if index >= size {
            break;
        }
    }
    walk.found.lied = true;
    walk.found
}

struct Walk<'a> {
    memory: &'a GuestMemory,
    pieces: &'a mut [Piece],
    found: Walked,
}

impl Walk<'_> {
    fn table(&mut self, at: &Descriptor, limit: usize, copy: &mut TableCopy) {
        let bytes = at.len() as usize;
        let entries = bytes / DESCRIPTOR_BYTES;
        let fits = entries > 0 && entries <= limit && bytes.is_multiple_of(DESCRIPTOR_BYTES);
        if !fits || self.memory.read(at.addr().0, &mut copy[..bytes]).is_err() {
            self.found.lied = true;
            return;
        }
        let mut index = 0;
        for _ in 0..entries {
            let raw = &copy[index * DESCRIPTOR_BYTES..(index + 1) * DESCRIPTOR_BYTES];
            let mut descriptor = RawDescriptor::default();
            descriptor.as_mut_slice().copy_from_slice(raw);
            let descriptor = Descriptor::from(descriptor);
            if descriptor.refers_to_indirect_table() {
                self.found.lied = true;
            } else {
                self.add(&descriptor);
            }
            if !descriptor.has_next() {
                return;
            }
            index = usize::from(descriptor.next());
            if index >= entries {
                break;
            }
        }
        self.found.lied = true;
    }

    fn add(&mut self, descriptor: &Descriptor) {
        let (at, len) = (descriptor.addr().0, u64::from(descriptor.len()));
        let found = &mut self.found;
        if len == 0 || !self.memory.holds(at, len) {
            found.lied = true;
            return;
        }
        let writable = descriptor.is_write_only();
        if writable {
            found.status = Some(at + (len - 1));
        } else if found.writable_bytes > 0 {
            // What the device reads comes first (2.7.4.2).
            found.lied = true;
            return;
        }
        let direction =
            if writable { &mut found.writable_bytes } else { &mut found.readable_bytes };
        let first = *direction == 0;
        *direction += len;
        if !first {
            let last = &mut self.pieces[found.pieces - 1];
            if last[0] + last[1] == at {
                last[1] += len;
                return;
            }
        }
        let Some(free) = self.pieces.get_mut(found.pieces) else {
            found.lied = true;
            // The count stays with the pieces that are there.
            *direction -= len;
            return;
        };
        *free = [at, len];
        found.pieces += 1;
        found.readable += usize::from(!writable);
    }
}

/// Calls `each` with the address and size of every stretch of `len` bytes,
/// `skip` bytes into the stream that `pieces` are.
pub(crate) fn stretches(
    pieces: &[Piece],
    mut skip: u64,
    mut len: u64,
    mut each: impl FnMut(u64, usize) -> Result<(), NotThere>,
) -> Result<(), NotThere> {
    for &[at, size] in pieces {
        if len == 0 {
            return Ok(());
        }
        if skip >= size {
            skip -= size;
            continue;
        }
        let step = (size - skip).min(len);
        each(at + skip, step as usize)?;
        len -= step;
        skip = 0;
    }
    if len == 0 { Ok(()) } else { Err(NotThere) }
}

/// Copies `into.len()` bytes out of the stream, from `skip` on.
pub(crate) fn read(
    memory: &GuestMemory,
    pieces: &[Piece],
    skip: u64,
    into: &mut [u8],
) -> Result<(), NotThere> {
    let mut done = 0;
    stretches(pieces, skip, into.len() as u64, |at, len| {
        memory.read(at, &mut into[done..done + len])?;
        done += len;
        Ok(())
    })
}

/// Copies `from` into the stream, from `skip` on.
pub(crate) fn write(
    memory: &GuestMemory,
    pieces: &[Piece],
    skip: u64,
    from: &[u8],
) -> Result<(), NotThere> {
    let mut done = 0;
    stretches(pieces, skip, from.len() as u64, |at, len| {
        memory.write(at, &from[done..done + len])?;
        done += len;
        Ok(())
    })
}

#[cfg(test)]
mod tests;
