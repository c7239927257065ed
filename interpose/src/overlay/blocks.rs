//! What became of blocks of the device, those next to each other together: new
//! ones are handed out in order.

use std::collections::BTreeMap;

use block_core::Pba;
use smallvec::SmallVec;

use super::BlockChange;

/// Bits of a block's number that say where in its group it is.
const PLACE_BITS: u32 = 6;

/// Bytes that a group takes beside its blocks: the key, the length, and what
/// the tree leaves empty (about a third).
const GROUP_BYTES: usize = 60;

/// Bytes of a block, with what a list that grows leaves empty.
const BLOCK_BYTES: usize = 60;

/// What became of blocks.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    groups: BTreeMap<u64, SmallVec<[(u8, BlockChange); 1]>>,
    len: usize,
}

const fn place_of(pba: Pba) -> u8 {
    pba.0 as u8 & ((1 << PLACE_BITS) - 1)
}

impl Blocks {
    /// What became of a block.
    pub(super) fn get(&self, pba: Pba) -> Option<&BlockChange> {
        let group = self.groups.get(&(pba.0 >> PLACE_BITS))?;
        let at = group.binary_search_by_key(&place_of(pba), |(place, _)| *place).ok()?;
        Some(&group[at].1)
    }

    /// The same, to be changed.
    pub(super) fn change(&mut self, pba: Pba) -> &mut BlockChange {
        let group = self.groups.entry(pba.0 >> PLACE_BITS).or_default();
        let at = match group.binary_search_by_key(&place_of(pba), |(place, _)| *place) {
            Ok(at) => at,
            Err(at) => {
                group.insert(at, (place_of(pba), BlockChange::default()));
                self.len += 1;
                at
            }
        };
        &mut group[at].1
    }

    /// Those from a block on, in order.
    pub(super) fn from(&self, from: Pba) -> impl Iterator<Item = (Pba, BlockChange)> + '_ {
        self.groups
            .range(from.0 >> PLACE_BITS..)
            .flat_map(|(&group, blocks)| {
                let pba = move |place| Pba(group << PLACE_BITS | u64::from(place));
                blocks.iter().map(move |&(place, change)| (pba(place), change))
            })
            .skip_while(move |(pba, _)| *pba < from)
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
        self.groups.pop_first().is_some()
    }
}
