//! Counts against references: of the blocks that fit into the memory for it.

use std::collections::BTreeMap;

use block_core::{Extent, Pba};

use super::report::MOST_FAULTS;
use crate::layout::Class;
use crate::layout::superblock::Usage;
use crate::space::Counts;
use crate::space::layout::PAGE_COUNT;

/// Blocks that a tally can have at least: a region's.
const LEAST: usize = crate::space::layout::REGION_BLOCKS as usize;

/// The counts of some blocks, less the references that were found.
pub(super) struct Tally {
    first: Option<u64>,
    left: Vec<u16>,
    most: usize,
    /// Blocks whose counts cannot be had.
    unknown: Vec<Extent>,
    has_unknown: bool,
    /// Named too often: so many times.
    over: BTreeMap<u64, (Class, u64)>,
    /// How many more there were of them.
    pub(super) omitted: u64,
    /// What all counts say, of this tally and all others.
    pub(super) usage: Usage,
    pub(super) references: u64,
}

impl Tally {
    /// A tally in `memory` bytes.
    pub(super) const fn new(memory: usize) -> Self {
        let most = memory / size_of::<u16>();
        Self {
            first: None,
            left: Vec::new(),
            most: if most < LEAST { LEAST } else { most },
            unknown: Vec::new(),
            has_unknown: false,
            over: BTreeMap::new(),
            omitted: 0,
            usage: Usage { data: 0, references: 0, pages: 0 },
            references: 0,
        }
    }

    /// The next counts, which are added up, and kept if `keep` says so and
    /// there is room: says whether they were.
    pub(super) fn put(&mut self, counts: &Counts, keep: bool) -> bool {
        let keep = keep && self.make_room(counts.blocks());
        for (_, count) in counts.iter() {
            match count {
                0 => {}
                PAGE_COUNT => self.usage.pages += 1,
                count => {
                    self.usage.data += 1;
                    self.usage.references += u64::from(count);
                }
            }
            if keep {
                self.left.push(count);
            }
        }
        keep
    }

    /// The same for blocks whose counts cannot be had.
    pub(super) fn put_unknown(&mut self, blocks: Extent, keep: bool) -> bool {
        let keep = keep && self.make_room(blocks);
        self.has_unknown = true;
        if keep {
            self.unknown.push(blocks);
            self.left.resize(self.left.len() + blocks.count.0 as usize, 0);
        }
        keep
    }

    fn make_room(&mut self, blocks: Extent) -> bool {
        self.first.get_or_insert(blocks.start.0);
        self.left.len() + blocks.count.0 as usize <= self.most
    }

    /// Whether some counts could not be had.
    pub(super) const fn has_unknown(&self) -> bool {
        self.has_unknown
    }

    /// A pointer names a block.
    pub(super) fn refer(&mut self, pba: Pba, class: Class) {
        let place = self.first.and_then(|first| pba.0.checked_sub(first));
        let Some(place) = place else { return };
        let Some(left) = self.left.get_mut(place as usize) else { return };
        let is_page = class != Class::Data;
        self.references += u64::from(!is_page);
        match (*left, is_page) {
            (PAGE_COUNT, true) => *left = 0,
            (1..PAGE_COUNT, false) => *left -= 1,
            _ if self.unknown.iter().any(|extent| extent.start <= pba && pba < extent.end()) => {}
            _ if self.over.len() == MOST_FAULTS && !self.over.contains_key(&pba.0) => {
                self.omitted += 1;
            }
            _ => self.over.entry(pba.0).or_insert((class, 0)).1 += 1,
        }
    }

    /// Blocks that are named more often than they are counted.
    pub(super) fn uncounted(&self) -> impl Iterator<Item = (Pba, Class, u64)> + '_ {
        self.over.iter().map(|(&pba, &(class, times))| (Pba(pba), class, times))
    }

    /// Blocks that are counted more often than they are named.
    pub(super) fn unnamed(&self) -> impl Iterator<Item = (Pba, Class, u64)> + '_ {
        let left = (self.first.unwrap_or(0)..).zip(&self.left).filter(|(_, left)| **left > 0);
        left.map(|(pba, &left)| match left {
            PAGE_COUNT => (Pba(pba), Class::Map, 1),
            left => (Pba(pba), Class::Data, u64::from(left)),
        })
    }
}
