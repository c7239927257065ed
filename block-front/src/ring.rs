//! A split virtqueue (virtio 1.2, section 2.7), seen from the device.
//!
//! What the driver writes is read once and believed only within bounds; how
//! far it has come is the one thing that can make the ring as a whole a lie.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::desc::split::Descriptor;

use crate::guest_memory::GuestMemory;
use crate::in_flight::{Lie, Record, Recovered, Twice};
use crate::sys::Span;

/// Largest queue that is served: QEMU's limit.
pub(crate) const MAX_QUEUE_SIZE: u16 = 1024;

/// Bytes of a descriptor (2.7.5).
pub(crate) const DESCRIPTOR_BYTES: usize = 16;

/// Bytes before the entries of both the available and the used ring: flags
/// and index (2.7.6, 2.7.8).
const RING_HEADER: usize = 4;
const AVAILABLE_ENTRY: usize = 2;
const USED_ENTRY: usize = 8;
/// `avail_event` and `used_event`, at the end of each ring.
const EVENT: usize = 2;

const INDEX_AT: usize = 2;

/// Where the three parts of a ring are in the front-end's process
/// (`SET_VRING_ADDR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// Why a ring cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RingError {
    #[error("a ring of {0} entries: the size must be a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u32),
    #[error("a ring's {0} is not aligned")]
    Alignment(&'static str),
    #[error("a ring's {0} lies outside of the guest's memory")]
    Outside(&'static str),
    #[error("the in-flight area has no place for a ring of {0} entries")]
    NoRecord(u16),
    #[error("the record of what is in flight cannot be believed: {0}; reset the guest")]
    Record(#[from] Lie),
}

/// A ring's size, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingSize(u16);

impl RingSize {
    pub(crate) fn new(entries: u32) -> Result<Self, RingError> {
        match u16::try_from(entries) {
            // Zero is no power of two.
            Ok(size) if size.is_power_of_two() && size <= MAX_QUEUE_SIZE => Ok(Self(size)),
            _ => Err(RingError::Size(entries)),
        }
    }

    pub(crate) const fn get(self) -> u16 {
        self.0
    }

    /// The place of a free-running index; the size is a power of two.
    const fn place(self, index: u16) -> usize {
        (index & (self.0 - 1)) as usize
    }
}

/// A ring's three parts, found in guest memory.
#[derive(Debug)]
pub(crate) struct RingMemory {
    size: RingSize,
    descriptors: Span,
    available: Span,
    used: Span,
}

impl RingMemory {
    /// Finds the parts; alignment by 2.7, table of "virtqueue parts".
    pub(crate) fn locate(
        memory: &GuestMemory,
        size: RingSize,
        at: RingAddresses,
    ) -> Result<Self, RingError> {
        let entries = usize::from(size.get());
        let find = |name, address: u64, align: u64, bytes| {
            if !address.is_multiple_of(align) {
                return Err(RingError::Alignment(name));
            }
            let window = memory.window(address, bytes).ok_or(RingError::Outside(name))?;
            // The front-end's addresses say nothing about ours.
            let aligned = window.is_aligned_to(align as usize);
            if aligned { Ok(window) } else { Err(RingError::Alignment(name)) }
        };
        let ring = |entry| RING_HEADER + entry * entries + EVENT;
        Ok(Self {
            size,
            descriptors: find("table", at.descriptors, 16, DESCRIPTOR_BYTES * entries)?,
            available: find("available ring", at.available, 2, ring(AVAILABLE_ENTRY))?,
            used: find("used ring", at.used, 4, ring(USED_ENTRY))?,
        })
    }

    pub(crate) const fn size(&self) -> u16 {
        self.size.get()
    }

    /// A copy of a descriptor; the driver may change the original meanwhile.
    /// `index` is within the table.
    #[inline]
    pub(crate) fn descriptor(&self, index: usize) -> Descriptor {
        descriptor(self.descriptors.load64_pair(index * DESCRIPTOR_BYTES))
    }

    /// Whether any part was taken away.
    pub(crate) fn has_failed(&self) -> bool {
        self.descriptors.has_failed() || self.available.has_failed() || self.used.has_failed()
    }

    #[inline]
    fn put_used(&self, position: u16, head: u16, len: u32) {
        let at = RING_HEADER + self.size.place(position) * USED_ENTRY;
        self.used.store32_pair(at, [head.into(), len]);
    }
}

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_BYTES);

/// A descriptor's two halves: address, and from the lowest bit on size, flags,
/// next (2.7.5).
#[inline]
fn descriptor([addr, rest]: [u64; 2]) -> Descriptor {
    Descriptor::new(addr, rest as u32, (rest >> 32) as u16, (rest >> 48) as u16)
}

/// A descriptor in a copied table.
#[inline]
pub(crate) fn descriptor_of(bytes: &[u8; DESCRIPTOR_BYTES]) -> Descriptor {
    let words = u128::from_le_bytes(*bytes);
    descriptor([words as u64, (words >> 64) as u64])
}

/// The driver claims more available entries than the ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// The driver made something available that is no chain, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadHead {
    /// Its table has no such descriptor.
    Outside,
    /// The chain is in flight already.
    Twice,
}

impl From<Twice> for BadHead {
    fn from(_: Twice) -> Self {
        Self::Twice
    }
}

/// A running ring and how far both sides have come.
#[derive(Debug)]
pub(crate) struct Ring {
    memory: RingMemory,
    /// The next available entry to take.
    next: u16,
    /// How far the driver had come when we last looked.
    seen: u16,
    /// The next used entry to fill.
    used: u16,
    /// The used index that the driver has been shown.
    published: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` was negotiated (2.7.7, 2.7.10).
    event_index: bool,
    /// Whether the driver was told to kick.
    announced: bool,
    /// Nothing is known about what the driver was last told: call it once.
    first_call: bool,
    /// Where what is in flight is written down for a front that comes later.
    record: Option<Record>,
    /// What an earlier front took and did not give back, the oldest last.
    left: Vec<u16>,
}

/// Whether somebody has served a ring before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// Its driver begins with it.
    New,
    /// Its driver may know of requests that were answered.
    Served,
}

impl Ring {
    /// A ring that goes on at available entry `base` (`SET_VRING_BASE`); the
    /// used index is in memory.
    ///
    /// With a record that was used, `base` means nothing: a front-end whose
    /// front has died does not know how far that had come. Each entry taken is
    /// in the used ring or in flight, so that many were taken.
    ///
    /// # Errors
    /// The record cannot be believed.
    pub(crate) fn start(
        memory: RingMemory,
        base: u16,
        event_index: bool,
        record: Option<Record>,
    ) -> Result<(Self, Past), Lie> {
        let used = memory.used.load16(INDEX_AT, Ordering::Acquire);
        let available = memory.available.load16(INDEX_AT, Ordering::Acquire);
        let past = if used == 0 && base == 0 { Past::New } else { Past::Served };
        let mut ring = Self {
            memory,
            next: base,
            seen: base,
            used,
            published: used,
            event_index,
            announced: false,
            first_call: true,
            record: None,
            left: Vec::new(),
        };
        let Some(mut record) = record else { return Ok((ring, past)) };
        match record.recover(used, available)? {
            Recovered::Fresh if base == used => record.begin_use(used),
            // What somebody took before there was a record is in nobody's
            // hands: counting from the used index would take it for new.
            Recovered::Fresh => return Ok((ring, past)),
            Recovered::InFlight(chains) => {
                ring.next = used.wrapping_add(chains.len() as u16);
                ring.seen = ring.next;
                ring.left = chains;
                ring.record = Some(record);
                return Ok((ring, Past::Served));
            }
        }
        ring.record = Some(record);
        Ok((ring, past))
    }

    /// The same ring after the front-end has changed its memory table.
    pub(crate) fn relocate(&mut self, memory: RingMemory) {
        self.memory = memory;
    }

    pub(crate) const fn memory(&self) -> &RingMemory {
        &self.memory
    }

    /// The next available entry: what `GET_VRING_BASE` asks for.
    pub(crate) const fn base(&self) -> u16 {
        self.next
    }

    /// Whether the driver has made an entry available that was not taken.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<bool, Overrun> {
        if self.seen == self.next {
            let seen = self.memory.available.load16(INDEX_AT, Ordering::Acquire);
            if seen.wrapping_sub(self.next) > self.memory.size() {
                return Err(Overrun);
            }
            self.seen = seen;
        }
        Ok(self.seen != self.next)
    }

    /// Takes the next available entry: the head of a chain, which is within
    /// the table, and nothing else is believed of it. Only after
    /// [`Ring::look`] has said that there is one.
    #[inline]
    pub(crate) fn take(&mut self) -> Result<u16, BadHead> {
        debug_assert_ne!(self.seen, self.next);
        let at = RING_HEADER + self.memory.size.place(self.next) * AVAILABLE_ENTRY;
        let head = self.memory.available.load16(at, Ordering::Relaxed);
        if head >= self.memory.size() {
            return Err(BadHead::Outside);
        }
        if let Some(record) = &mut self.record {
            record.begin(head)?;
        }
        self.next = self.next.wrapping_add(1);
        Ok(head)
    }

    /// Whether an earlier front has left chains that were not taken again.
    pub(crate) const fn has_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Takes the oldest chain that an earlier front has left, in the order in
    /// which that took them.
    pub(crate) fn take_left(&mut self) -> Option<u16> {
        self.left.pop()
    }

    /// Leaves to a later front what an earlier one has left.
    pub(crate) fn pass_on(&mut self) {
        self.left.clear();
    }

    /// Puts a chain into the used ring; the driver sees it after
    /// [`Ring::publish`].
    #[inline]
    pub(crate) fn give_back(&mut self, head: u16, written: u32) {
        self.memory.put_used(self.used, head, written);
        self.used = self.used.wrapping_add(1);
        if let Some(record) = &mut self.record {
            record.end(head);
        }
    }

    /// Shows the driver what was given back and says whether it wants to be
    /// called (2.7.7.2, 2.7.10).
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.used);
        if old == new {
            return false;
        }
        self.memory.used.store16(INDEX_AT, new, Ordering::Release);
        self.published = new;
        // The index must be visible before we read whether a call is wanted:
        // the driver writes its wish first and then looks at the index.
        fence(Ordering::SeqCst);
        if let Some(record) = &mut self.record {
            record.commit(new);
        }
        let wanted = if self.event_index {
            let event = RING_HEADER + usize::from(self.memory.size()) * AVAILABLE_ENTRY;
            passed(self.memory.available.load16(event, Ordering::Relaxed), new, old)
        } else {
            let flags = self.memory.available.load16(0, Ordering::Relaxed);
            flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        };
        std::mem::take(&mut self.first_call) || wanted
    }

    /// Whether memory was taken away that the ring needs.
    pub(crate) fn has_failed(&self) -> bool {
        self.memory.has_failed() || self.record.as_ref().is_some_and(Record::has_failed)
    }

    /// Asks the driver to kick at its next entry. The caller puts a full fence
    /// after it and looks once more.
    pub(crate) fn announce(&mut self) {
        if std::mem::replace(&mut self.announced, true) {
            return;
        }
        if self.event_index {
            let event = RING_HEADER + usize::from(self.memory.size()) * USED_ENTRY;
            self.memory.used.store16(event, self.next, Ordering::Relaxed);
        } else {
            self.memory.used.store16(0, 0, Ordering::Relaxed);
        }
    }

    /// Tells the driver that kicks are not needed: the ring is polled. With
    /// event indices, one that lies behind says so by itself.
    #[inline]
    pub(crate) fn conceal(&mut self) {
        if std::mem::replace(&mut self.announced, false) && !self.event_index {
            self.memory.used.store16(0, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
        }
    }
}

/// Whether moving an index from `old` to `new` passes `event` (2.7.10,
/// `vring_need_event`).
const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_also_across_the_wrap() {
        assert!(passed(0, 1, 0));
        assert!(!passed(1, 1, 0));
        assert!(passed(u16::MAX, 0, u16::MAX));
        assert!(passed(u16::MAX, 3, u16::MAX - 2));
        assert!(!passed(3, 3, u16::MAX));
        assert!(!passed(5, 9, 6));
    }
}
