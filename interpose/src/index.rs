//! The dedup index: from a hash to where such a block may be.
//!
//! It is advice. What it names is compared with the seals before anything
//! refers to it; what it does not name is stored once more. So it may forget,
//! and nothing of it is on the device.
//!
//! ```text
//! line    nine entries, 7 bytes each | used u8                    64 bytes
//! entry   (fingerprint u20 << 36 | pba u36), little-endian         7 bytes
//! ```
//!
//! A hash has two lines, and an entry knows both: the second follows from the
//! first and the fingerprint, and the first from the second. So an entry can
//! move out of the way of another, and lines fill evenly: the index forgets
//! nothing before it is all but full.

use std::cell::{Cell, RefCell};

use block_core::{BLOCK_SIZE, Buffer, Pba, Pool};
use smallvec::SmallVec;

use crate::layout::pointer::MAX_BLOCKS;
use crate::layout::record::Hash;

const LINE_BYTES: usize = 64;
const ENTRY_BYTES: usize = 7;
const ENTRIES: usize = 9;

type Line = [u8; LINE_BYTES];

/// Where a line says how many of its entries are used.
const USED_AT: usize = ENTRIES * ENTRY_BYTES;

const PBA_BITS: u32 = 36;
const FINGERPRINT_BITS: u32 = 20;
const ENTRY_MASK: u64 = (1 << (PBA_BITS + FINGERPRINT_BITS)) - 1;

/// Bytes of memory for each block that the index is made for: nine entries to
/// 64 bytes, filled to 0.89.
pub const BYTES_PER_BLOCK: usize = 8;

/// Most places that a hash can name.
pub const MAX_CANDIDATES: usize = 2 * ENTRIES;

/// Above so many 256ths of all places, looking for an entry that could move
/// costs more than what it saves from being forgotten.
const CROWDED: usize = 252;

const _: () = assert!(USED_AT + 1 == LINE_BYTES);
const _: () = assert!(ENTRY_BYTES as u32 * 8 == PBA_BITS + FINGERPRINT_BITS);
const _: () = assert!(MAX_BLOCKS == 1 << PBA_BITS);

/// From hashes to blocks, in bounded memory.
pub struct Index {
    memory: RefCell<Memory>,
    lines: usize,
    len: Cell<usize>,
}

impl Index {
    /// An empty index of `bytes` of memory. With less than a line's it
    /// is off: it keeps nothing and names nothing.
    ///
    /// # Errors
    /// The kernel's, when it has no memory to give.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let lines = bytes / LINE_BYTES;
        Ok(Self { memory: RefCell::new(Memory::new(lines)?), lines, len: Cell::new(0) })
    }

    /// Remembers that a block with this hash is at `pba`. When there is no
    /// room, another entry is forgotten, and the block that it named returned.
    pub fn insert(&self, hash: &Hash, pba: Pba) -> Option<Pba> {
        let spot = self.spot(hash)?;
        let entry = spot.entry(pba)?;
        let mut memory = self.memory.borrow_mut();
        let lines = memory.lines_mut();
        if spot.lines.iter().any(|&line| place_of(&lines[line], entry).is_some()) {
            return None;
        }
        let Some(line) = self.line_with_room(lines, &spot) else {
            return Some(replace(lines, &spot, entry));
        };
        push(&mut lines[line], entry);
        self.len.set(self.len.get() + 1);
        None
    }

    /// Blocks that may have this hash: those that have it and were not
    /// forgotten, and about one in 2^20 / 18 of the others.
    pub fn candidates(&self, hash: &Hash) -> Candidates {
        let mut found = Candidates::new();
        let Some(spot) = self.spot(hash) else { return found };
        let memory = self.memory.borrow();
        let lines = memory.lines();
        let [first, second] = spot.lines.map(|line| &lines[line]);
        // Both lines come from memory together, not one after the other.
        std::hint::black_box(first[USED_AT] ^ second[USED_AT]);
        collect(first, spot.fingerprint, &mut found);
        if spot.lines[0] != spot.lines[1] {
            collect(second, spot.fingerprint, &mut found);
        }
        found
    }

    /// Forgets that a block with this hash is at `pba`, if it was remembered.
    pub fn remove(&self, hash: &Hash, pba: Pba) {
        let Some(spot) = self.spot(hash) else { return };
        let Some(entry) = spot.entry(pba) else { return };
        let mut memory = self.memory.borrow_mut();
        for line in spot.lines {
            let line = &mut memory.lines_mut()[line];
            if let Some(place) = place_of(line, entry) {
                remove(line, place);
                self.len.set(self.len.get() - 1);
                return;
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        if let Some(bytes) = &mut self.memory.borrow_mut().bytes {
            bytes.fill(0);
        }
        self.len.set(0);
    }

    /// How many blocks are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many blocks it is made for; it forgets none before.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.lines * LINE_BYTES / BYTES_PER_BLOCK
    }

    fn spot(&self, hash: &Hash) -> Option<Spot> {
        if self.lines == 0 {
            return None;
        }
        let [a, b, c, d, e, f, g, h, ..] = *hash;
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        // The line takes the upper bits of the number, the fingerprint the
        // lowest ones: they tell different things.
        let first = scale(number, self.lines);
        let fingerprint = number & ((1 << FINGERPRINT_BITS) - 1);
        Some(Spot { lines: [first, self.other_line(first, fingerprint)], fingerprint })
    }

    /// The second line of an entry from its first, and back.
    fn other_line(&self, line: usize, fingerprint: u64) -> usize {
        let sum = scale((fingerprint + 1).wrapping_mul(GOLDEN), self.lines);
        if sum >= line { sum - line } else { sum + self.lines - line }
    }

    /// The emptier one of the spot's lines; if both are full, one whose entry
    /// could move into its other line.
    fn line_with_room(&self, lines: &mut [Line], spot: &Spot) -> Option<usize> {
        let [first, second] = spot.lines;
        let line = if used(&lines[second]) < used(&lines[first]) { second } else { first };
        if used(&lines[line]) < ENTRIES {
            return Some(line);
        }
        if self.len.get() * 256 >= self.lines * ENTRIES * CROWDED {
            return None;
        }
        for line in spot.lines {
            for place in 0..ENTRIES {
                let entry = entry_at(&lines[line], place);
                let other = self.other_line(line, entry >> PBA_BITS);
                if used(&lines[other]) < ENTRIES {
                    remove(&mut lines[line], place);
                    push(&mut lines[other], entry);
                    return Some(line);
                }
            }
        }
        None
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number's share of all numbers as a share of `of`.
fn scale(number: u64, of: usize) -> usize {
    ((u128::from(number) * of as u128) >> 64) as usize
}

/// Where entries of a hash may be, and what they begin with.
struct Spot {
    lines: [usize; 2],
    fingerprint: u64,
}

impl Spot {
    /// An entry for this place; `None` for a block that no pool has, and for
    /// block 0, which is no guest's: no entry is zero.
    fn entry(&self, pba: Pba) -> Option<u64> {
        let guests = pba.0 > 0 && pba.0 < MAX_BLOCKS;
        guests.then_some(self.fingerprint << PBA_BITS | pba.0)
    }
}

/// The lines' bytes. A buffer is page-aligned, so a line is one of the CPU's
/// cache, and is mapped with large pages where there are some: lines are looked
/// at in no order.
struct Memory {
    bytes: Option<Buffer>,
}

impl Memory {
    /// Memory that the kernel supplies when it is first used: an index of many
    /// GiB is made at once.
    fn new(lines: usize) -> std::io::Result<Self> {
        let bytes = (lines * LINE_BYTES).next_multiple_of(BLOCK_SIZE);
        let bytes = if bytes == 0 { None } else { Pool::private(1, bytes)?.take() };
        Ok(Self { bytes })
    }

    fn lines(&self) -> &[Line] {
        self.bytes.as_deref().map_or(&[], |bytes| bytes.as_chunks().0)
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        self.bytes.as_deref_mut().map_or(&mut [], |bytes| bytes.as_chunks_mut().0)
    }
}

fn used(line: &Line) -> usize {
    usize::from(line[USED_AT])
}

fn push(line: &mut Line, entry: u64) {
    set_entry(line, used(line), entry);
    line[USED_AT] += 1;
}

/// Closes the gap with the last entry.
fn remove(line: &mut Line, place: usize) {
    line[USED_AT] -= 1;
    let last = entry_at(line, used(line));
    set_entry(line, place, last);
}

/// Puts the entry over one of the spot's, whichever its bits say; returns what
/// that one named.
fn replace(lines: &mut [Line], spot: &Spot, entry: u64) -> Pba {
    let victim = scale(entry.wrapping_mul(GOLDEN), MAX_CANDIDATES);
    let line = &mut lines[spot.lines[victim / ENTRIES]];
    let old = entry_at(line, victim % ENTRIES);
    set_entry(line, victim % ENTRIES, entry);
    Pba(old & (MAX_BLOCKS - 1))
}

fn entries(line: &Line) -> impl Iterator<Item = u64> {
    (0..used(line).min(ENTRIES)).map(|place| entry_at(line, place))
}

fn place_of(line: &Line, entry: u64) -> Option<usize> {
    entries(line).position(|there| there == entry)
}

fn collect(line: &Line, fingerprint: u64, found: &mut Candidates) {
    for entry in entries(line) {
        if entry >> PBA_BITS == fingerprint {
            found.push(Pba(entry & (MAX_BLOCKS - 1)));
        }
    }
}

fn entry_at(line: &Line, place: usize) -> u64 {
    let at = place * ENTRY_BYTES;
    let bytes = line[at..].first_chunk().expect("an entry and one byte more");
    u64::from_le_bytes(*bytes) & ENTRY_MASK
}

fn set_entry(line: &mut Line, place: usize, entry: u64) {
    let at = place * ENTRY_BYTES;
    line[at..at + ENTRY_BYTES].copy_from_slice(&entry.to_le_bytes()[..ENTRY_BYTES]);
}

/// Places that a hash names: seldom more than one.
pub type Candidates = SmallVec<[Pba; 2]>;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn hash(number: u64) -> Hash {
        SmallRng::seed_from_u64(number).random()
    }

    /// The promise of eight bytes a block: a full house of unique blocks is
    /// remembered whole, and is found, with hardly anybody else's block.
    #[test]
    fn it_holds_what_it_is_made_for_and_a_little_more_before_it_forgets() {
        let index = Index::new(1 << 20).expect("memory");
        let mut forgot = None;
        for number in 1..=index.lines as u64 * ENTRIES as u64 {
            let loses = index.insert(&hash(number), Pba(number)).is_some();
            if loses && forgot.is_none() {
                forgot = Some(number as usize - 1);
            }
        }
        let forgot = forgot.expect("no more than its memory");
        assert!(forgot >= index.capacity(), "forgot at {forgot} of {}", index.capacity());

        index.clear();
        let blocks = index.capacity() as u64;
        (1..=blocks).for_each(|number| assert_eq!(index.insert(&hash(number), Pba(number)), None));
        assert_eq!(index.len(), index.capacity());
        let mut strangers = 0;
        for number in 1..=blocks {
            let found = index.candidates(&hash(number));
            assert!(found.contains(&Pba(number)), "block {number} was forgotten");
            strangers += found.len() - 1;
        }
        // About 16 of 2^20 fingerprints meet in two lines at this load.
        assert!(strangers < 20, "{strangers} strangers among {blocks}");
    }

    #[test]
    fn with_no_memory_it_is_off() {
        let index = Index::new(LINE_BYTES - 1).expect("memory");
        assert_eq!(index.insert(&hash(1), Pba(1)), None);
        assert_eq!((index.candidates(&hash(1)).len(), index.len()), (0, 0));
        index.remove(&hash(1), Pba(1));
        index.clear();
        assert_eq!(index.capacity(), 0);
    }

    /// Block 0 is a superblock and a line's empty places are zero; a block past
    /// the largest pool would spill into the fingerprint.
    #[test]
    fn it_takes_no_block_that_cannot_be_a_guests() {
        let index = Index::new(1024).expect("memory");
        assert_eq!(index.insert(&[0; 16], Pba(0)), None);
        assert_eq!(index.insert(&[0; 16], Pba(MAX_BLOCKS)), None);
        assert_eq!((index.len(), index.candidates(&[0; 16]).len()), (0, 0));
        index.insert(&[0xff; 16], Pba(MAX_BLOCKS - 1));
        assert_eq!(index.candidates(&[0xff; 16]).to_vec(), [Pba(MAX_BLOCKS - 1)]);
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Insert(u8, u8),
        Remove(u8, u8),
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            4 => (any::<u8>(), 1..40u8).prop_map(|(hash, pba)| Deed::Insert(hash, pba)),
            1 => (any::<u8>(), 1..40u8).prop_map(|(hash, pba)| Deed::Remove(hash, pba)),
        ]
    }

    proptest! {
        /// A small index is mostly full, so that entries move and are forgotten
        /// all the time. What it says of a hash is what was inserted for it,
        /// less what it admitted to have forgotten or was told to forget.
        #[test]
        fn it_names_what_it_was_told_and_did_not_forget(
            lines in 1..12usize,
            deeds in vec(deed(), 0..600),
        ) {
            let index = Index::new(lines * LINE_BYTES).expect("memory");
            // Each pair has a block of its own: one that is forgotten is known.
            let pba = |hash: u8, pba: u8| Pba(u64::from(hash) << 8 | u64::from(pba));
            let mut model = BTreeMap::new();
            for deed in deeds {
                match deed {
                    Deed::Insert(number, block) => {
                        let forgotten = index.insert(&hash(number.into()), pba(number, block));
                        model.insert(pba(number, block), number);
                        if let Some(forgotten) = forgotten {
                            prop_assert!(model.remove(&forgotten).is_some());
                        }
                    }
                    Deed::Remove(number, block) => {
                        index.remove(&hash(number.into()), pba(number, block));
                        model.remove(&pba(number, block));
                    }
                }
                prop_assert_eq!(index.len(), model.len());
            }
            for number in 0..=255 {
                let mut found = index.candidates(&hash(number.into()));
                found.sort_unstable();
                let told = model.iter().filter(|(_, of)| **of == number).map(|(pba, _)| *pba);
                prop_assert_eq!(found.to_vec(), told.collect::<Vec<_>>());
            }
        }
    }
}
