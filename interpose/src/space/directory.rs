//! From a segment's root to the entry of one of its pages.

use block_core::Device;

use super::layout::{COUNT_BYTES, ENTRIES, ENTRY_BYTES, Entry, SegmentRoot};
use crate::layout::Binding;
use crate::pages::{Damage, Pages, What};

/// The entry of a page, read from the directory above it.
pub(crate) async fn locate<D: Device>(
    pages: &Pages<D>,
    root: &SegmentRoot,
    level: u8,
    page: u64,
) -> Result<Entry, Damage> {
    let mut entry = root.top;
    for above in (level + 1..=root.segment.levels()).rev() {
        let Entry::Written { seal, home, .. } = entry else { return Ok(Entry::Untouched) };
        let step = Step::new(root, level, page, above);
        let binding = root.segment.binding(above, step.page, home);
        entry = step.entry(&pages.load(&seal, binding).await?).ok_or(malformed(&binding))?;
    }
    Ok(entry)
}

/// The same if everything on the way is at hand; what is malformed never is.
pub(crate) fn locate_at_hand<D: Device>(
    pages: &Pages<D>,
    root: &SegmentRoot,
    level: u8,
    page: u64,
) -> Option<Entry> {
    let mut entry = root.top;
    for above in (level + 1..=root.segment.levels()).rev() {
        let Entry::Written { seal, home, .. } = entry else { return Some(Entry::Untouched) };
        let step = Step::new(root, level, page, above);
        let binding = root.segment.binding(above, step.page, home);
        entry = pages.peek(&seal, &binding, |bytes| step.entry(bytes))??;
    }
    Some(entry)
}

/// One directory page on the way down.
struct Step {
    /// Which page of its level.
    page: u64,
    /// Which of its entries leads on.
    place: usize,
    /// How many blocks lie below that entry.
    below: u64,
}

impl Step {
    fn new(root: &SegmentRoot, level: u8, page: u64, above: u8) -> Self {
        let child = page / ENTRIES.pow(u32::from(above - 1 - level));
        let below = root.segment.below(above - 1, child);
        Self { page: child / ENTRIES, place: (child % ENTRIES) as usize, below }
    }

    fn entry(&self, page: &[u8]) -> Option<Entry> {
        entry_at(page, self.place, self.below)
    }
}

/// An entry of a directory page with `below` blocks below it.
pub(crate) fn entry_at(page: &[u8], place: usize, below: u64) -> Option<Entry> {
    Entry::decode(page.as_chunks::<ENTRY_BYTES>().0.get(place)?, below)
}

/// All entries of a directory page, whose free blocks must add up to `free`.
pub(crate) fn entries<'a>(
    root: &'a SegmentRoot,
    level: u8,
    page: u64,
    bytes: &'a [u8],
    free: u64,
) -> Option<impl Iterator<Item = (Entry, u64)> + 'a> {
    let all = move || {
        let children = page * ENTRIES..(page + 1) * ENTRIES;
        children.zip(bytes.as_chunks::<ENTRY_BYTES>().0).map(move |(child, bytes)| {
            let below = root.segment.below(level - 1, child);
            let entry = Entry::decode(bytes, below)?;
            // Past the end there is nothing to be written.
            (below > 0 || entry == Entry::Untouched).then_some((entry, below))
        })
    };
    let sum: u64 = all().try_fold(0, |sum, child| child.map(|(e, below)| sum + e.free(below)))?;
    (sum == free).then(|| all().flatten())
}

/// A count of a counts page.
pub(crate) fn count_at(page: &[u8], place: u16) -> u16 {
    let at = usize::from(place) * COUNT_BYTES;
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// How many of a counts page's `blocks` counts are 0; those past the end must
/// be.
pub(crate) fn free_in(page: &[u8], blocks: u64) -> Option<u64> {
    let (counts, past) = page.split_at(blocks as usize * COUNT_BYTES);
    let free = counts.as_chunks::<COUNT_BYTES>().0.iter().filter(|&count| *count == [0; 2]).count();
    past.iter().all(|&byte| byte == 0).then_some(free as u64)
}

pub(crate) fn malformed(binding: &Binding) -> Damage {
    Damage { pba: binding.pba, class: binding.class, what: What::Malformed }
}
