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
use vm_memory::VolatileSlice;

use crate::sys;

/// Most regions that one disk's memory has (`GET_MAX_MEM_SLOTS`); QEMU's
/// machines plug at most 32 memory devices by default, and the table of
/// guarded mappings has places for 64 disks of this many, twice over.
pub(crate) const MAX_REGIONS: usize = 32;

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
    #[error("no region is like the one to remove")]
    Unknown,
}

/// A mapped region.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Mapping,
    spec: RegionSpec,
    /// Where the region begins in the mapping: files of huge pages are mapped
    /// from a huge page's start.
    skip: usize,
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
        let skip = offset % page;
        let bytes = (skip + len).next_multiple_of(page);
        let mapping = Mapping::of_file(file, offset - skip, bytes as usize, true)
            .map_err(RegionError::Map)?;
        Ok(Self { mapping, spec, skip: skip as usize })
    }

    /// What the front-end said about the region.
    pub(crate) const fn spec(&self) -> RegionSpec {
        self.spec
    }

    fn slice(&self) -> VolatileSlice<'_> {
        sys::slice(&self.mapping, self.skip, self.spec.len as usize)
    }
}

/// A piece of a region that is kept at hand: a ring.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Window {
    pub(crate) fn slice(&self) -> VolatileSlice<'_> {
        sys::slice(&self.region.mapping, self.region.skip + self.offset, self.len)
    }

    /// Whether the region was cut under us.
    pub(crate) fn has_failed(&self) -> bool {
        self.region.mapping.has_failed()
    }
}

/// A table of regions, sorted by guest address.
#[derive(Debug, Default)]
pub(crate) struct GuestMemory {
    /// Address and size stand beside the pointer: a search touches no region
    /// that it does not need.
    entries: Vec<(u64, u64, Arc<Region>)>,
}

impl GuestMemory {
    pub(crate) fn new(regions: &[Arc<Region>]) -> Result<Self, RegionError> {
        if regions.len() > MAX_REGIONS {
            return Err(RegionError::TooMany);
        }
        let mut entries: Vec<_> = regions
            .iter()
            .map(|region| (region.spec.guest, region.spec.len, Arc::clone(region)))
            .collect();
        entries.sort_by_key(|entry| entry.0);
        if entries.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err(RegionError::Overlap);
        }
        Ok(Self { entries })
    }

    /// The region that holds guest address `at`, and the place of `at` in it.
    fn find(&self, at: u64) -> Option<(&Arc<Region>, u64)> {
        self.entries.iter().find_map(|(start, len, region)| {
            let offset = at.wrapping_sub(*start);
            (offset < *len).then_some((region, offset))
        })
    }

    /// Whether all of `len` bytes from guest address `at` are there.
    pub(crate) fn holds(&self, mut at: u64, mut len: u64) -> bool {
        loop {
            let Some((region, offset)) = self.find(at) else { return false };
            let room = region.spec.len - offset;
            if len <= room {
                return true;
            }
            len -= room;
            let Some(next) = at.checked_add(room) else { return false };
            at = next;
        }
    }

    /// Copies guest memory from `at` on into `into`.
    pub(crate) fn read(&self, at: u64, into: &mut [u8]) -> Result<(), NotThere> {
        self.each(at, into.len(), |slice, done| {
            slice.copy_to(&mut into[done..done + slice.len()]);
        })
    }

    /// Copies `from` to guest memory from `at` on.
    pub(crate) fn write(&self, at: u64, from: &[u8]) -> Result<(), NotThere> {
        self.each(at, from.len(), |slice, done| {
            slice.copy_from(&from[done..done + slice.len()]);
        })
    }

    /// Calls `copy` with every stretch of `len` bytes from `at` on and the
    /// number of bytes before it. Regions may follow each other without a gap.
    fn each(
        &self,
        at: u64,
        len: usize,
        mut copy: impl FnMut(VolatileSlice<'_>, usize),
    ) -> Result<(), NotThere> {
        let mut done = 0;
        while done < len {
            let address = at.checked_add(done as u64).ok_or(NotThere)?;
            let (region, offset) = self.find(address).ok_or(NotThere)?;
            let step = (region.spec.len - offset).min((len - done) as u64) as usize;
            let slice = region.slice().subslice(offset as usize, step).map_err(|_| NotThere)?;
            copy(slice, done);
            if region.mapping.has_failed() {
                return Err(NotThere);
            }
            done += step;
        }
        Ok(())
    }

    /// `len` bytes at an address of the front-end's process, which must lie in
    /// one region.
    pub(crate) fn window(&self, user: u64, len: usize) -> Option<Window> {
        self.entries.iter().find_map(|(_, _, region)| {
            let offset = user.wrapping_sub(region.spec.user);
            let end = offset.checked_add(len as u64)?;
            (end <= region.spec.len).then(|| Window {
                region: Arc::clone(region),
                offset: offset as usize,
                len,
            })
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
