//! Physical Region Pages: from two pointers to pieces of memory (NVMe Base
//! 2.0, section 4.1.1).

use std::sync::atomic::Ordering;

use super::windows::{Place, Windows};
use crate::PAGE;
use crate::completion::Status;

/// Consecutive bytes of one window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) place: Place,
    pub(super) bytes: usize,
}

/// Finds all memory that `bytes` bytes from these pointers are in, before any
/// of it is touched. `pieces` is room that the caller keeps; neighbours become
/// one piece.
pub(super) fn resolve(
    windows: &Windows,
    (prp1, prp2): (u64, u64),
    bytes: usize,
    pieces: &mut Vec<Piece>,
) -> Result<(), Status> {
    pieces.clear();
    if !prp1.is_multiple_of(4) {
        return Err(Status::PRP_OFFSET);
    }
    let first = bytes.min(PAGE - offset_in_page(prp1));
    add(windows, prp1, first, pieces)?;
    let rest = bytes - first;
    if rest == 0 {
        Ok(())
    } else if rest <= PAGE {
        add_page(windows, prp2, rest, pieces)
    } else {
        walk(windows, prp2, rest, pieces)
    }
}

/// Follows a list: whole pages except the last. The last pointer of a list
/// page leads to the next list page when more pages than one remain.
fn walk(
    windows: &Windows,
    mut list: u64,
    mut rest: usize,
    pieces: &mut Vec<Piece>,
) -> Result<(), Status> {
    if !list.is_multiple_of(8) {
        return Err(Status::PRP_OFFSET);
    }
    loop {
        let entries = (PAGE - offset_in_page(list)) / 8;
        let words = windows.words(list, entries).ok_or(Status::DATA_TRANSFER)?;
        for index in 0..entries {
            // The doorbell was loaded with Acquire after the driver wrote this.
            let entry = words.load(index, Ordering::Relaxed);
            if index + 1 == entries && rest > PAGE {
                if !entry.is_multiple_of(PAGE as u64) {
                    return Err(Status::PRP_OFFSET);
                }
                list = entry;
                break;
            }
            let part = rest.min(PAGE);
            add_page(windows, entry, part, pieces)?;
            rest -= part;
            if rest == 0 {
                return Ok(());
            }
        }
    }
}

fn add_page(
    windows: &Windows,
    iova: u64,
    bytes: usize,
    pieces: &mut Vec<Piece>,
) -> Result<(), Status> {
    if !iova.is_multiple_of(PAGE as u64) {
        return Err(Status::PRP_OFFSET);
    }
    add(windows, iova, bytes, pieces)
}

#[inline]
fn add(windows: &Windows, iova: u64, bytes: usize, pieces: &mut Vec<Piece>) -> Result<(), Status> {
    let place = windows.find(iova, bytes).ok_or(Status::DATA_TRANSFER)?;
    match pieces.last_mut() {
        Some(last) if place.is_after(last.place, last.bytes) => last.bytes += bytes,
        _ => pieces.push(Piece { place, bytes }),
    }
    Ok(())
}

const fn offset_in_page(iova: u64) -> usize {
    (iova % PAGE as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::super::windows::Registry;
    use super::*;
    use crate::sys::Words;
    use block_core::DmaMemory;

    const DATA_PAGES: usize = 1100;

    struct Host {
        windows: Windows,
        data: DmaMemory,
        lists: DmaMemory,
    }

    impl Host {
        fn new() -> Self {
            let registry = Registry::default();
            let data = registry.allocate(DATA_PAGES * PAGE).expect("memory");
            let lists = registry.allocate(4 * PAGE).expect("memory");
            let mut windows = Windows::default();
            windows.refresh(&registry);
            Self { windows, data, lists }
        }

        fn page(&self, index: usize) -> u64 {
            self.data.iova() + (index * PAGE) as u64
        }

        fn list(&self, index: usize, value: u64) {
            Words::all(&self.lists).store(index, value, Ordering::Relaxed);
        }

        fn resolve(&self, prp1: u64, prp2: u64, bytes: usize) -> Result<Vec<(u64, usize)>, Status> {
            let mut pieces = Vec::new();
            resolve(&self.windows, (prp1, prp2), bytes, &mut pieces)?;
            Ok(pieces.iter().map(|piece| (self.windows.iova(piece.place), piece.bytes)).collect())
        }
    }

    #[test]
    fn one_and_two_pages_need_no_list_and_may_start_inside_a_page() {
        let host = Host::new();
        let at = host.page(0) + 512;
        assert_eq!(host.resolve(at, 0, 512), Ok(vec![(at, 512)]));
        let apart = host.resolve(at, host.page(5), PAGE);
        assert_eq!(apart, Ok(vec![(at, PAGE - 512), (host.page(5), 512)]));
    }

    #[test]
    fn a_list_that_ends_with_its_page_is_not_followed_further() {
        let host = Host::new();
        for entry in 0..512 {
            host.list(entry, host.page(2 * (entry % 500) + 1));
        }
        // 512 entries and PRP1: the last entry is data, not a chain.
        let pieces = host.resolve(host.page(0), host.lists.iova(), 513 * PAGE).expect("valid");
        assert_eq!(pieces.iter().map(|piece| piece.1).sum::<usize>(), 513 * PAGE);
        // The last entry of a list page that starts at its end: only a chain fits.
        host.list(511, host.lists.iova() + PAGE as u64);
        host.list(512, host.page(9));
        host.list(513, host.page(11));
        let chained = host.resolve(host.page(0), host.lists.iova() + 511 * 8, 3 * PAGE);
        let expected = [0, 9, 11].map(|index| (host.page(index), PAGE));
        assert_eq!(chained, Ok(expected.to_vec()));
    }

    #[test]
    fn every_wrong_pointer_has_its_status() {
        let host = Host::new();
        let (page, list) = (host.page(0), host.lists.iova());
        let offset = Err(Status::PRP_OFFSET);
        let outside = Err(Status::DATA_TRANSFER);
        assert_eq!(host.resolve(page + 2, 0, 512), offset);
        assert_eq!(host.resolve(page, page + 8, 2 * PAGE), offset);
        assert_eq!(host.resolve(page, list + 4, 3 * PAGE), offset);
        assert_eq!(host.resolve(0, 0, 512), outside);
        assert_eq!(host.resolve(page, 0, 2 * PAGE), outside);
        assert_eq!(host.resolve(page, u64::MAX - 7, 3 * PAGE), outside);
        assert_eq!(host.resolve(page, list, 3 * PAGE), outside, "zero pointers in the list");
        host.list(0, page + 512);
        assert_eq!(host.resolve(page, list, 3 * PAGE), offset);
        host.list(511, list + 8);
        assert_eq!(host.resolve(page, list + 511 * 8, 4 * PAGE), offset, "a chain into a page");
    }

    /// A chain that leads to itself: the length bounds the walk.
    #[test]
    fn a_loop_of_lists_ends() {
        let host = Host::new();
        for entry in 0..512 {
            host.list(entry, host.lists.iova());
        }
        let pieces = host.resolve(host.page(0), host.lists.iova(), 600 * PAGE).expect("all valid");
        assert_eq!(pieces.iter().map(|piece| piece.1).sum::<usize>(), 600 * PAGE);
        // Each list page has one pointer only, its chain: no data ever comes.
        let stuck = host.resolve(host.page(0), host.lists.iova() + 511 * 8, 3 * PAGE);
        assert!(stuck.is_ok());
    }
}
