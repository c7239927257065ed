//! Guest memory: what a front-end has shared with a disk, by guest address.
//!
//! A table of regions never changes. A new table is a new [`GuestMemory`],
//! which shares the regions that stay; requests begun under the old one end
//! under it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use block_core::Mapping;
use rustix::fs::{FsWord, fstat, fstatfs};
use thiserror::Error;

use crate::sys::Span;

/// Most regions that one disk's memory has (`GET_MAX_MEM_SLOTS`); QEMU's
/// machines plug at most 32 memory devices by default, and the table of
/// guarded mappings has places for 64 disks of this many, twice over.
pub(crate) const MAX_REGIONS: usize = 32;

/// Most bytes that one disk keeps mapped, also of memory that was replaced and
/// that requests still use: all disks share 128 TiB of address space. A table
/// that replaces another is mapped beside it.
pub(crate) const MAX_MAPPED: u64 = 16 << 40;

/// `statfs` types of file systems, from linux/magic.h.
const HUGETLBFS: FsWord = 0x958458f6;
const FUSE: FsWord = 0x65735546;

/// The page size of x86-64.
const PAGE: u64 = 4096;

/// Guest memory does not hold what was asked for, or not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotThere;

/// One region as the front-end describes it (vhost-user, "Memory region
/// description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionSpec {
    /// Guest physical address of the first byte.
    pub(crate) guest: u64,
    /// Size in bytes.
    pub(crate) len: u64,
    /// Address of the first byte in the front-end's process.
    pub(crate) user: u64,
    /// Where the region begins in its file, in bytes.
    pub(crate) offset: u64,
}

impl RegionSpec {
    /// Whether both have a guest address in common. The ends are numbers.
    pub(crate) const fn overlaps(&self, other: &Self) -> bool {
        self.guest < other.guest.saturating_add(other.len)
            && other.guest < self.guest.saturating_add(self.len)
    }
}

/// Why a region cannot be mapped.
#[derive(Debug, Error)]
pub(crate) enum RegionError {
    #[error("a region of {len:#x} bytes at guest address {guest:#x} is empty or wraps around")]
    Range { guest: u64, len: u64 },
    #[error(
        "a region says it has {len:#x} bytes from {offset:#x} of its file, which has {size:#x}"
    )]
    File { offset: u64, len: u64, size: u64 },
    #[error("a region lies on a FUSE file system, where a page fault can wait for ever")]
    Fuse,
    #[error("the kernel does not map a region (is the guest's memory shared, share=on?): {0}")]
    Map(#[source] io::Error),
    #[error("a region's file cannot be looked at: {0}")]
    Stat(#[source] io::Error),
    #[error("two regions share a guest address")]
    Overlap,
    #[error("more than {MAX_REGIONS} regions")]
    TooMany,
    #[error(
        "a region of {0:#x} bytes and what is mapped already are more than the \
         {MAX_MAPPED:#x} bytes that a disk may map; give the guest less memory"
    )]
    Budget(u64),
    #[error("no region is like the one to remove")]
    Unknown,
}

/// A mapped region.
#[derive(Debug)]
pub(crate) struct Region {
    span: Span,
    spec: RegionSpec,
}

impl Region {
    /// Maps a region. May take long; not for the worker.
    pub(crate) fn map(spec: RegionSpec, file: &File) -> Result<Self, RegionError> {
        let RegionSpec { guest, len, user, offset } = spec;
        let ends = [guest.checked_add(len), user.checked_add(len)];
        if len == 0 || ends.contains(&None) {
            return Err(RegionError::Range { guest, len });
        }
        let stat = |error: rustix::io::Errno| RegionError::Stat(error.into());
        let size = fstat(file.as_fd()).map_err(stat)?.st_size as u64;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(RegionError::File { offset, len, size });
        }
        let system = fstatfs(file.as_fd()).map_err(stat)?;
        let page = match system.f_type {
            FUSE => return Err(RegionError::Fuse),
            HUGETLBFS => (system.f_bsize as u64).max(PAGE),
            _ => PAGE,
        };
        // Files of huge pages are mapped from a huge page's start.
        let skip = offset % page;
        let bytes = (skip + len).next_multiple_of(page);
        let mapping = Mapping::of_file(file, offset - skip, bytes as usize, true)
            .map_err(RegionError::Map)?;
        let span = Span::new(Arc::new(mapping), skip as usize, len as usize);
        Ok(Self { span: span.ok_or(RegionError::Range { guest, len })?, spec })
    }

    /// The region's bytes.
    pub(crate) const fn span(&self) -> &Span {
        &self.span
    }

    /// What the front-end said about the region.
    pub(crate) const fn spec(&self) -> RegionSpec {
        self.spec
    }
}

/// A table of regions, sorted by guest address.
#[derive(Debug, Default)]
pub(crate) struct GuestMemory {
    /// Guest address and what is there: a search touches no region.
    entries: Vec<(u64, Span)>,
    /// By address in the front-end's process; for rings.
    users: Vec<(u64, Span)>,
    regions: Vec<Arc<Region>>,
}

impl GuestMemory {
    pub(crate) fn new(regions: &[Arc<Region>]) -> Result<Self, RegionError> {
        if regions.len() > MAX_REGIONS {
            return Err(RegionError::TooMany);
        }
        let mut entries: Vec<_> =
            regions.iter().map(|region| (region.spec.guest, region.span.clone())).collect();
        entries.sort_by_key(|entry| entry.0);
        if entries.windows(2).any(|pair| pair[0].0 + pair[0].1.len() as u64 > pair[1].0) {
            return Err(RegionError::Overlap);
        }
        let users = regions.iter().map(|region| (region.spec.user, region.span.clone())).collect();
        Ok(Self { entries, users, regions: regions.to_vec() })
    }

    /// The regions that the table keeps mapped.
    pub(crate) fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// What holds guest address `at`, the place of `at` in it, and how many
    /// bytes there are from there on, at least one.
    #[inline]
    fn find(&self, at: u64) -> Option<(&Span, usize, usize)> {
        self.entries.iter().find_map(|(start, span)| {
            let offset = at.wrapping_sub(*start) as usize;
            (offset < span.len()).then(|| (span, offset, span.len() - offset))
        })
    }

    /// Whether all of `len` bytes from guest address `at` are there.
    #[inline]
    pub(crate) fn holds(&self, at: u64, len: u64) -> bool {
        let Some((_, _, room)) = self.find(at) else { return false };
        len <= room as u64 || self.continues(at, room, len)
    }

    /// Whether the regions behind the first, which has `room` bytes from `at`
    /// on, hold the rest of `len`. They may follow each other without a gap.
    #[cold]
    fn continues(&self, mut at: u64, mut room: usize, mut len: u64) -> bool {
        while len > room as u64 {
            len -= room as u64;
            let Some(next) = at.checked_add(room as u64) else { return false };
            let Some((_, _, more)) = self.find(next) else { return false };
            (at, room) = (next, more);
        }
        true
    }

    /// Copies guest memory from `at` on into `into`.
    #[inline(always)] // A few bytes are then copied without a call.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> Result<(), NotThere> {
        let (span, offset, room) = self.find(at).ok_or(NotThere)?;
        if into.len() > room {
            return self.read_on(at, room, into);
        }
        span.read(offset, into);
        if span.has_failed() { Err(NotThere) } else { Ok(()) }
    }

    /// Reads what lies in more than one region, the first of which has `room`
    /// bytes.
    #[cold]
    fn read_on(&self, at: u64, room: usize, into: &mut [u8]) -> Result<(), NotThere> {
        let (first, rest) = into.split_at_mut(room);
        self.read(at, first)?;
        self.read(at.checked_add(room as u64).ok_or(NotThere)?, rest)
    }

    /// Copies `from` to guest memory from `at` on.
    #[inline(always)] // As above: a status is one byte.
    pub(crate) fn write(&self, at: u64, from: &[u8]) -> Result<(), NotThere> {
        let (span, offset, room) = self.find(at).ok_or(NotThere)?;
        if from.len() > room {
            return self.write_on(at, room, from);
        }
        span.write(offset, from);
        if span.has_failed() { Err(NotThere) } else { Ok(()) }
    }

    /// Writes to more than one region, the first of which has `room` bytes.
    #[cold]
    fn write_on(&self, at: u64, room: usize, from: &[u8]) -> Result<(), NotThere> {
        let (first, rest) = from.split_at(room);
        self.write(at, first)?;
        self.write(at.checked_add(room as u64).ok_or(NotThere)?, rest)
    }

    /// `len` bytes at an address of the front-end's process, which must lie in
    /// one region.
    pub(crate) fn window(&self, user: u64, len: usize) -> Option<Span> {
        self.users.iter().find_map(|(start, span)| {
            let offset = user.wrapping_sub(*start);
            span.part(usize::try_from(offset).ok()?, len)
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Guest memory of a temporary file, as regions of (guest address, size).
    pub(crate) fn memory(layout: &[(u64, u64)]) -> (GuestMemory, File) {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(layout.iter().map(|region| region.1.next_multiple_of(PAGE)).sum())
            .expect("grow");
        let mut offset = 0;
        let regions: Vec<_> = layout
            .iter()
            .map(|&(guest, len)| {
                let spec = RegionSpec { guest, len, user: guest + (1 << 40), offset };
                offset += len.next_multiple_of(PAGE);
                Arc::new(Region::map(spec, &file).expect("map"))
            })
            .collect();
        (GuestMemory::new(&regions).expect("no overlap"), file)
    }

    /// A guest whose memory was plugged in pieces sends one buffer that spans
    /// two of them.
    #[test]
    fn a_buffer_may_span_two_regions_but_not_a_gap() {
        let (memory, _file) = memory(&[(0x1000, 0x1000), (0x2000, 0x800), (0x4000, 0x1000)]);
        memory.write(0x1ffe, &[1, 2, 3, 4]).expect("there");
        let mut read = [0; 4];
        memory.read(0x1ffe, &mut read).expect("there");
        assert_eq!(read, [1, 2, 3, 4]);
        assert!(memory.holds(0x1000, 0x1800));
        assert!(!memory.holds(0x1000, 0x1801));
        assert!(!memory.holds(0xfff, 2));
        assert_eq!(memory.read(0x27fe, &mut read), Err(NotThere));
        assert_eq!(memory.write(u64::MAX - 1, &read), Err(NotThere));
    }

    #[test]
    fn a_ring_must_lie_in_one_region() {
        let (memory, _file) = memory(&[(0x1000, 0x1000), (0x2000, 0x1000)]);
        assert!(memory.window((1 << 40) + 0x1800, 0x800).is_some());
        assert!(memory.window((1 << 40) + 0x1800, 0x801).is_none());
        assert!(memory.window(u64::MAX, 2).is_none());
    }

    #[test]
    fn regions_that_overlap_or_lie_about_their_file_are_refused() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(0x3000).expect("grow");
        let spec = |guest, len, offset| RegionSpec { guest, len, user: guest, offset };
        let map = |guest, len, offset| Region::map(spec(guest, len, offset), &file);
        assert!(matches!(map(0, 0x1000, 0x2800), Err(RegionError::File { .. })));
        assert!(matches!(map(0, 0x1000, u64::MAX), Err(RegionError::File { .. })));
        assert!(matches!(map(0, 0, 0), Err(RegionError::Range { .. })));
        assert!(matches!(map(u64::MAX, 2, 0), Err(RegionError::Range { .. })));
        let pair = [map(0, 0x1001, 0), map(0x1000, 0x1000, 0)].map(|m| Arc::new(m.expect("map")));
        assert!(matches!(GuestMemory::new(&pair), Err(RegionError::Overlap)));
    }

    /// Another process cuts the file in the middle of a copy.
    #[test]
    fn memory_that_was_taken_away_is_not_there() {
        let (memory, file) = memory(&[(0, 0x4000)]);
        file.set_len(0x1000).expect("shrink");
        assert_eq!(memory.read(0x2000, &mut [0; 16]), Err(NotThere));
        assert_eq!(memory.read(0, &mut [0; 16]), Err(NotThere), "nothing in it can be believed");
    }
}
