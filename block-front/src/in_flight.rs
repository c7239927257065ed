//! What is under way, written down where it outlives this process
//! (vhost-user, "Inflight I/O tracking", split rings).
//!
//! The front-end keeps a piece of shared memory for us, with a record for
//! each queue: which chains were taken and not given back, and in which order.
//! A front that comes later reads it and goes on where this one ended, at
//! whichever instruction that was. On the path the record is only written;
//! what is in flight is known from private memory, for the front-end can
//! change the record at any time.

mod recovery;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use thiserror::Error;

use crate::guest_memory::{Region, RegionError, RegionSpec};
use crate::ring::{MAX_QUEUE_SIZE, RingSize};
use crate::sys::Span;

pub(crate) use recovery::{Lie, Recovered};

/// The version of a record that is used; zero is one that was never used.
const VERSION: u16 = 1;

/// Where a record's fields are (`QueueRegionSplit`).
const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_AT: usize = 14;
const HEADER: usize = 16;

/// Where an entry's fields are (`DescStateSplit`).
const IN_FLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const ENTRY: usize = 16;

/// Records begin on a cache line of their own.
const ALIGNMENT: usize = 64;

const _: () = assert!(HEADER.is_multiple_of(8) && ENTRY.is_multiple_of(8));
const _: () = assert!(COUNTER_AT + size_of::<u64>() == ENTRY && USED_AT + 2 == HEADER);

/// An area as messages describe it (`VhostUserInflight`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AreaSpec {
    /// Bytes.
    pub(crate) len: u64,
    /// Where it begins in its file, in bytes.
    pub(crate) offset: u64,
    pub(crate) queues: u16,
    /// Entries of each queue.
    pub(crate) entries: u16,
}

/// Why an area cannot be made or used.
#[derive(Debug, Error)]
pub(crate) enum AreaError {
    #[error("an in-flight area for {queues} queues of {entries} entries")]
    Shape { queues: u16, entries: u16 },
    #[error(
        "an in-flight area of {len:#x} bytes at {offset:#x} of its file, where {needed:#x} are needed"
    )]
    Size { len: u64, offset: u64, needed: u64 },
    #[error("the in-flight area cannot be mapped: {0}")]
    Map(#[from] RegionError),
    #[error("the kernel has no memory for an in-flight area: {0}")]
    Make(#[source] io::Error),
}

/// Bytes of a queue's record.
const fn record_bytes(entries: u16) -> usize {
    (HEADER + entries as usize * ENTRY).next_multiple_of(ALIGNMENT)
}

/// Bytes of an area, if there can be one of this shape.
fn area_bytes(queues: u16, entries: u16, most_queues: u16) -> Result<usize, AreaError> {
    if queues == 0 || queues > most_queues || entries == 0 || entries > MAX_QUEUE_SIZE {
        return Err(AreaError::Shape { queues, entries });
    }
    Ok(usize::from(queues) * record_bytes(entries))
}

/// Makes the memory of an area, zeroed. Nobody can cut it: it is sealed.
pub(crate) fn make(
    queues: u16,
    entries: u16,
    most_queues: u16,
) -> Result<(AreaSpec, OwnedFd), AreaError> {
    let len = area_bytes(queues, entries, most_queues)? as u64;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("in-flight", flags)
        .and_then(|file| {
            // Pages that are there already cannot be missing later.
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len)?;
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, seals)?;
            Ok(file)
        })
        .map_err(|error| AreaError::Make(error.into()))?;
    Ok((AreaSpec { len, offset: 0, queues, entries }, file))
}

/// An area that the front-end has handed over: the records of a disk's queues.
#[derive(Debug)]
pub(crate) struct Area {
    region: Region,
    spec: AreaSpec,
}

impl Area {
    /// Maps an area. Its contents are looked at when a ring starts.
    pub(crate) fn map(spec: AreaSpec, file: &File, most_queues: u16) -> Result<Self, AreaError> {
        let AreaSpec { len, offset, queues, entries } = spec;
        let needed = area_bytes(queues, entries, most_queues)? as u64;
        if len < needed || !offset.is_multiple_of(ALIGNMENT as u64) {
            return Err(AreaError::Size { len, offset, needed });
        }
        let region = RegionSpec { guest: 0, len: needed, user: 0, offset };
        Ok(Self { region: Region::map(region, file)?, spec })
    }

    /// The record of a queue with a ring of `size`, if the area has one that
    /// is large enough.
    pub(crate) fn record(&self, queue: usize, size: RingSize) -> Option<Record> {
        if queue >= usize::from(self.spec.queues) || size.get() > self.spec.entries {
            return None;
        }
        let bytes = record_bytes(self.spec.entries);
        let span = self.region.span().part(queue * bytes, bytes)?;
        Some(Record {
            span,
            entries: self.spec.entries,
            taken: vec![false; usize::from(size.get())].into_boxed_slice(),
            batch: Vec::with_capacity(usize::from(size.get())),
            last: 0,
            counter: 0,
        })
    }
}

/// A queue's record, which this process alone writes while the ring runs.
///
/// The order of its stores is what a later front relies on, so each is a
/// release: the stores before it are visible wherever it is. That is enough,
/// for a process that dies has made a prefix of its stores.
#[derive(Debug)]
pub(crate) struct Record {
    span: Span,
    entries: u16,
    /// Which heads are in flight. The record says the same, for a later front.
    taken: Box<[bool]>,
    /// Given back and not yet shown to the driver.
    batch: Vec<u16>,
    /// The head that was given back last.
    last: u16,
    /// The number of the next chain.
    counter: u64,
}

/// The driver offers a chain that is still in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Twice;

impl Record {
    /// A chain was taken from the ring. `head` is within the ring.
    pub(crate) fn begin(&mut self, head: u16) -> Result<(), Twice> {
        if std::mem::replace(&mut self.taken[usize::from(head)], true) {
            return Err(Twice);
        }
        self.span.store64(entry(head) + COUNTER_AT, self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.span.store8(entry(head) + IN_FLIGHT_AT, 1, Ordering::Release);
        Ok(())
    }

    /// A chain was put into the used ring, whose index is not moved yet.
    pub(crate) fn end(&mut self, head: u16) {
        self.span.store16(entry(head) + NEXT_AT, self.last, Ordering::Release);
        self.span.store16(LAST_BATCH_AT, head, Ordering::Release);
        self.last = head;
        self.batch.push(head);
    }

    /// The used ring's index is `used` now, and covers all that has ended.
    pub(crate) fn commit(&mut self, used: u16) {
        for head in self.batch.drain(..) {
            self.taken[usize::from(head)] = false;
            self.span.store8(entry(head) + IN_FLIGHT_AT, 0, Ordering::Release);
        }
        self.span.store16(USED_AT, used, Ordering::Release);
    }

    /// Whether the record's memory was taken away.
    pub(crate) fn has_failed(&self) -> bool {
        self.span.has_failed()
    }
}

/// Where the entry of a head is in a record.
const fn entry(head: u16) -> usize {
    HEADER + head as usize * ENTRY
}

#[cfg(test)]
pub(crate) mod tests;
