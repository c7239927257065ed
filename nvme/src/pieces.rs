//! A pool of buffers out of memory that need not be in one piece.

use std::io;

use block_core::{DmaMemory, Pool};

/// `count` buffers of `buffer_bytes`, in as few pieces as `allocate` has them: where
/// memory is scattered (without an IOMMU) only a buffer must be at consecutive addresses.
///
/// # Errors
/// What `allocate` says to the first buffer that it has no memory for.
pub(crate) fn pool(
    allocate: impl Fn(usize) -> io::Result<DmaMemory>,
    count: usize,
    buffer_bytes: usize,
) -> io::Result<Pool> {
    let mut pieces = Vec::new();
    let mut missing = count;
    while missing > 0 {
        let (piece, buffers) = longest(&allocate, missing, buffer_bytes)?;
        pieces.push(piece);
        missing -= buffers;
    }
    Ok(Pool::of_pieces(pieces, buffer_bytes))
}

/// One piece for up to `count` buffers, and for how many.
fn longest(
    allocate: &impl Fn(usize) -> io::Result<DmaMemory>,
    mut count: usize,
    buffer_bytes: usize,
) -> io::Result<(DmaMemory, usize)> {
    loop {
        let bytes = count.checked_mul(buffer_bytes).ok_or(io::ErrorKind::InvalidInput)?;
        match allocate(bytes) {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory && count > 1 => count /= 2,
            outcome => return Ok((outcome?, count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use block_core::{Buffer, Memory};

    use super::*;
    use crate::PAGE;
    use crate::arena::{Arena, HUGE_PAGE};

    /// Huge pages none of which is another's neighbour.
    fn scattered(pages: u64) -> Arena {
        let file = tempfile::tempfile().expect("a file");
        let memory = Memory::anonymous((pages * HUGE_PAGE) as usize).expect("memory");
        let run = |page| (page * HUGE_PAGE..(page + 1) * HUGE_PAGE, (100 - 2 * page) * HUGE_PAGE);
        Arena::scattered(file, Arc::new(memory), (0..pages).map(run).collect())
    }

    /// A server's buffers do not fit into one page, and did not find two that were
    /// neighbours when others had used them before.
    #[test]
    fn a_pool_is_made_of_pages_that_are_no_neighbours() {
        const BYTES: usize = 34 * PAGE;
        let arena = scattered(4);
        let pool = pool(|bytes| arena.allocate(bytes), 4 * 15, BYTES).expect("15 fit into a page");
        let held: Vec<Buffer> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(held.len(), 60);
        let page = |address: u64| address / HUGE_PAGE;
        assert!(held.iter().all(|it| page(it.iova()) == page(it.iova() + BYTES as u64 - 1)));
        let places: HashSet<u64> = held.iter().map(Buffer::iova).collect();
        assert_eq!(places.len(), 60, "no two are one");
        let error = super::pool(|bytes| arena.allocate(bytes), 1, BYTES).expect_err("all is taken");
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    }

    /// One map, one registration: what has the memory in one piece gives it so.
    #[test]
    fn memory_that_is_in_one_piece_stays_so() {
        let arena = Arena::in_memory(64 * PAGE as u64).expect("memory");
        let pool = pool(|bytes| arena.allocate(bytes), 7, 8 * PAGE).expect("memory");
        let held: Vec<Buffer> = std::iter::from_fn(|| pool.take()).collect();
        let places: Vec<u64> = held.iter().map(Buffer::iova).collect();
        assert_eq!(places.len(), 7);
        assert!(places.windows(2).all(|pair| pair[0] + 8 * PAGE as u64 == pair[1]), "{places:x?}");
    }
}
