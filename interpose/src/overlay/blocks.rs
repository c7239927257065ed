//! What became of blocks of the device, those next to each other together: new
//! ones are handed out in order.

use std::ops::Range;

use block_core::Pba;
use smallvec::SmallVec;

use super::BlockChange;
use super::places::Places;
use crate::shelf::{Shelf, Use};

/// Bytes that a group takes beside its blocks: its number and what the tree
/// leaves empty (about a third), its places, the length.
const GROUP_BYTES: usize = 80;

/// Bytes of a block, with what a list that grows leaves empty.
const BLOCK_BYTES: usize = 60;

/// What became of blocks.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    groups: Shelf<Group>,
    len: usize,
}

/// Some of 128 blocks, in order.
#[derive(Debug, Default)]
struct Group {
    places: Places,
    changes: SmallVec<[BlockChange; 1]>,
}

impl Blocks {
    /// What became of a block.
    pub(super) fn get(&self, pba: Pba) -> Option<&BlockChange> {
        let group = self.groups.get(Places::group_of(pba.0))?;
        let at = group.places.find(Places::place_of(pba.0), group.changes.len()).ok()?;
        Some(&group.changes[at])
    }

    /// The same, to be changed.
    pub(super) fn change(&mut self, pba: Pba, usage: Use) -> &mut BlockChange {
        let group = self.groups.work_at(Places::group_of(pba.0), usage);
        group.change(Places::place_of(pba.0), &mut self.len)
    }

    /// Looks at those of a range, in order, or at about `most` of them: whole
    /// groups. Says where to go on, if there are more, in the range or after
    /// it.
    pub(super) fn look(
        &self,
        range: Range<Pba>,
        most: usize,
        mut look: impl FnMut(Pba, &BlockChange),
    ) -> Option<Pba> {
        let mut looked = 0;
        for (number, group) in self.groups.range(Places::group_of(range.start.0)..) {
            let first = Pba(Places::number(number, 0));
            if looked >= most || first >= range.end {
                return Some(first);
            }
            for (place, change) in group.places.iter().zip(&group.changes) {
                look(Pba(first.0 + u64::from(place)), change);
            }
            looked += group.changes.len();
        }
        None
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// About how much memory they take.
    pub(super) fn bytes(&self) -> usize {
        self.groups.len() * GROUP_BYTES + self.len * BLOCK_BYTES
    }

    /// Lets go of a group; whether there was one.
    pub(super) fn drop_some(&mut self) -> bool {
        self.groups.drop_some()
    }
}

impl Group {
    fn change(&mut self, place: u8, len: &mut usize) -> &mut BlockChange {
        let at = match self.places.find(place, self.changes.len()) {
            Ok(at) => at,
            Err(at) => {
                self.places.add(place);
                if at == self.changes.len() {
                    self.changes.push(BlockChange::default());
                } else {
                    self.changes.insert(at, BlockChange::default());
                }
                *len += 1;
                at
            }
        };
        &mut self.changes[at]
    }
}
