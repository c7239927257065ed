//! Descriptor chains (virtio 1.2, section 2.7.5): from a head that a hostile
//! driver chose to a list of pieces of guest memory that exist.
//!
//! A chain is two byte streams, what the device reads and what it writes.
//! Where the driver cut them into descriptors means nothing. Every descriptor
//! and every indirect table is copied once; only the copy is looked at.

use virtio_queue::desc::split::Descriptor;

use crate::guest_memory::{GuestMemory, NotThere};
use crate::ring::{DESCRIPTOR_BYTES, MAX_QUEUE_SIZE, RingMemory, descriptor_of};

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

/// Room for the pieces of one chain.
pub(crate) type Pieces = [Piece; MAX_PIECES];

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
#[inline]
pub(crate) fn walk(
    head: u16,
    ring: &RingMemory,
    memory: &GuestMemory,
    indirect: bool,
    copy: &mut TableCopy,
    pieces: &mut Pieces,
) -> Walked {
    plain(head, ring, memory, indirect, pieces)
        .unwrap_or_else(|| general(head, ring, memory, indirect, copy, pieces))
}

/// The chain that nearly every request is, in the ring or in a table of its
/// own: header, one buffer, status. Another is walked from its head again, and
/// nothing that was seen of it here is believed.
#[inline]
fn plain(
    head: u16,
    ring: &RingMemory,
    memory: &GuestMemory,
    indirect: bool,
    pieces: &mut Pieces,
) -> Option<Walked> {
    let first = ring.descriptor(head.into());
    let [header, data, status] = if first.refers_to_indirect_table() {
        let mut table = [[0; DESCRIPTOR_BYTES]; 3];
        let bytes = table.as_flattened_mut();
        if first.has_next() || !indirect || first.len() as usize != bytes.len() {
            return None;
        }
        memory.read(first.addr().0, bytes).ok()?;
        three(descriptor_of(&table[0]), |index| table.get(index).map(descriptor_of))?
    } else {
        three(first, |index| (index < ring.size().into()).then(|| ring.descriptor(index)))?
    };
    let outgoing = !data.is_write_only();
    if header.is_write_only() || !status.is_write_only() {
        return None;
    }
    for (piece, descriptor) in pieces.iter_mut().zip([header, data, status]) {
        *piece = [descriptor.addr().0, descriptor.len().into()];
        if descriptor.len() == 0 || !memory.holds(piece[0], piece[1]) {
            return None;
        }
    }
    let [header, data, status] = [header, data, status].map(|one| u64::from(one.len()));
    let (readable, readable_bytes, writable_bytes) = match outgoing {
        true => (2, header + data, status),
        false => (1, header, data + status),
    };
    let status = Some(pieces[2][0] + (status - 1));
    Some(Walked { readable, pieces: 3, readable_bytes, writable_bytes, status, lied: false })
}

/// The three descriptors of a chain that has no more, and no indirect table.
#[inline]
fn three(first: Descriptor, at: impl Fn(usize) -> Option<Descriptor>) -> Option<[Descriptor; 3]> {
    let next = |of: &Descriptor| at(of.has_next().then(|| of.next())?.into());
    let second = next(&first)?;
    let third = next(&second)?;
    let ends = !third.has_next();
    let tables = [&first, &second, &third].into_iter().any(Descriptor::refers_to_indirect_table);
    (ends && !tables).then_some([first, second, third])
}

/// Where the next descriptor comes from.
enum Table<'a> {
    Ring(&'a RingMemory),
    /// The copy of an indirect table.
    Copy(&'a [[u8; DESCRIPTOR_BYTES]]),
}

impl Table<'_> {
    const fn len(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.size() as usize,
            Self::Copy(entries) => entries.len(),
        }
    }
}

/// Any chain.
fn general(
    head: u16,
    ring: &RingMemory,
    memory: &GuestMemory,
    indirect: bool,
    copy: &mut TableCopy,
    pieces: &mut Pieces,
) -> Walked {
    let mut walk = Walk { memory, pieces, found: Walked::default() };
    let mut table = Table::Ring(ring);
    let mut index = usize::from(head);
    // So many descriptors are in the table: with one more, it is a circle.
    let mut left = table.len();
    while left > 0 && index < table.len() {
        left -= 1;
        let descriptor = match table {
            Table::Ring(ring) => ring.descriptor(index),
            Table::Copy(entries) => descriptor_of(&entries[index]),
        };
        if !descriptor.refers_to_indirect_table() {
            walk.add(&descriptor);
        } else if let Table::Ring(_) = table {
            // INDIRECT with NEXT (2.7.5.3.1) is a lie, and so is an indirect
            // table that was not negotiated.
            walk.found.lied |= descriptor.has_next() || !indirect;
            let Some(entries) = copied(&descriptor, memory, limit(ring.size()), copy) else {
                break;
            };
            table = Table::Copy(entries);
            (index, left) = (0, entries.len());
            continue;
        } else {
            walk.found.lied = true;
        }
        if !descriptor.has_next() {
            return walk.found;
        }
        index = usize::from(descriptor.next());
    }
    walk.found.lied = true;
    walk.found
}

/// Copies the indirect table that `at` refers to, if there can be one.
fn copied<'a>(
    at: &Descriptor,
    memory: &GuestMemory,
    limit: usize,
    copy: &'a mut TableCopy,
) -> Option<&'a [[u8; DESCRIPTOR_BYTES]]> {
    let bytes = at.len() as usize;
    let entries = bytes / DESCRIPTOR_BYTES;
    let fits = entries > 0 && entries <= limit && bytes.is_multiple_of(DESCRIPTOR_BYTES);
    let into = copy.get_mut(..bytes).filter(|_| fits)?;
    memory.read(at.addr().0, into).ok()?;
    Some(into.as_chunks().0)
}

struct Walk<'a> {
    memory: &'a GuestMemory,
    pieces: &'a mut Pieces,
    found: Walked,
}

impl Walk<'_> {
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
        // What follows the last piece of its stream belongs to it.
        let stream = if writable { found.readable } else { 0 };
        match self.pieces[stream..found.pieces].last_mut() {
            Some([start, size]) if *start + *size == at => *size += len,
            _ => {
                let Some(free) = self.pieces.get_mut(found.pieces) else {
                    // The count stays with the pieces that are there.
                    found.lied = true;
                    return;
                };
                *free = [at, len];
                found.pieces += 1;
                found.readable += usize::from(!writable);
            }
        }
        match writable {
            true => found.writable_bytes += len,
            false => found.readable_bytes += len,
        }
    }
}

/// Where the first piece has all of `len` bytes from `skip` on: nearly always,
/// since a guest's buffer of one block is one piece.
#[inline]
fn whole(pieces: &[Piece], skip: u64, len: usize) -> Option<u64> {
    let &[at, size] = pieces.first()?;
    (skip < size && len as u64 <= size - skip).then(|| at + skip)
}

/// Calls `each` with the address and size of every stretch of `len` bytes,
/// `skip` bytes into the stream that `pieces` are.
fn stretches(
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
#[inline]
pub(crate) fn read(
    memory: &GuestMemory,
    pieces: &[Piece],
    skip: u64,
    into: &mut [u8],
) -> Result<(), NotThere> {
    match whole(pieces, skip, into.len()) {
        Some(at) => memory.read(at, into),
        None => gather(memory, pieces, skip, into),
    }
}

/// A copy of `N` bytes of the stream, from `skip` on.
#[inline]
pub(crate) fn read_array<const N: usize>(
    memory: &GuestMemory,
    pieces: &[Piece],
    skip: u64,
) -> Result<[u8; N], NotThere> {
    let mut bytes = [0; N];
    match whole(pieces, skip, N) {
        Some(at) => memory.read(at, &mut bytes)?,
        None => gather(memory, pieces, skip, &mut bytes)?,
    }
    Ok(bytes)
}

fn gather(
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
#[inline(always)] // Its second caller is cold.
pub(crate) fn write(
    memory: &GuestMemory,
    pieces: &[Piece],
    skip: u64,
    from: &[u8],
) -> Result<(), NotThere> {
    match whole(pieces, skip, from.len()) {
        Some(at) => memory.write(at, from),
        None => scatter(memory, pieces, skip, from),
    }
}

fn scatter(memory: &GuestMemory, pieces: &[Piece], skip: u64, from: &[u8]) -> Result<(), NotThere> {
    let mut done = 0;
    stretches(pieces, skip, from.len() as u64, |at, len| {
        memory.write(at, &from[done..done + len])?;
        done += len;
        Ok(())
    })
}

#[cfg(test)]
mod tests;
