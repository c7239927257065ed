//! What became of blocks of the device, those next to each other together: new
//! ones are handed out in order.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::slice;

use block_core::Pba;
use smallvec::SmallVec;

use super::BlockChange;
use super::places::{Iter, Places};

/// Bytes that a group takes beside its blocks: the key, its places, the length,
/// and what the tree leaves empty (about a third).
const GROUP_BYTES: usize = 80;

/// Bytes of a block, with what a list that grows leaves empty.
const BLOCK_BYTES: usize = 60;

/// What became of blocks.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    groups: BTreeMap<u64, Group>,
    /// The group of the block that was stored last, and its number; it is not
    /// among the others. New blocks are handed out in order, so the next one is
    /// in it too and is not searched for.
    filling: (u64, Group),
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
        let number = Places::group_of(pba.0);
        let is_filling = number == self.filling.0;
        let group = if is_filling { &self.filling.1 } else { self.groups.get(&number)? };
        group.places.find(Places::place_of(pba.0)).ok().map(|at| &group.changes[at])
    }

    /// The same, to be changed.
    pub(super) fn change(&mut self, pba: Pba) -> &mut BlockChange {
        let number = Places::group_of(pba.0);
        let is_filling = number == self.filling.0;
        let filling = &mut self.filling.1;
        let group = if is_filling { filling } else { self.groups.entry(number).or_default() };
        group.change(Places::place_of(pba.0), &mut self.len)
    }

    /// The same of a block that was stored.
    pub(super) fn store(&mut self, pba: Pba) -> &mut BlockChange {
        let number = Places::group_of(pba.0);
        if number != self.filling.0 {
            let next = self.groups.remove(&number).unwrap_or_default();
            let (number, filled) = std::mem::replace(&mut self.filling, (number, next));
            if !filled.changes.is_empty() {
                self.groups.insert(number, filled);
            }
        }
        self.filling.1.change(Places::place_of(pba.0), &mut self.len)
    }

    /// Those from a block on, in order.
    pub(super) fn from(&self, from: Pba) -> From<'_> {
        let first = Places::group_of(from.0);
        let filling = Some((self.filling.0, &self.filling.1));
        let filling = filling.filter(|&(number, _)| number >= first);
        let groups = self.groups.range(first..).peekable();
        let mut blocks =
            From { groups, filling, group: 0, places: Iter::default(), changes: [].iter() };
        if blocks.next_group() == Some(first) {
            let before =
                blocks.places.clone().take_while(|&place| place < Places::place_of(from.0));
            for _ in 0..before.count() {
                blocks.next();
            }
        }
        blocks
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// About how much memory they take.
    pub(super) fn bytes(&self) -> usize {
        (self.groups.len() + 1) * GROUP_BYTES + self.len * BLOCK_BYTES
    }

    /// Lets go of a group; whether there was one.
    pub(super) fn drop_some(&mut self) -> bool {
        self.filling = Default::default();
        self.groups.pop_first().is_some()
    }
}

impl Group {
    fn change(&mut self, place: u8, len: &mut usize) -> &mut BlockChange {
        let at = match self.places.find(place) {
            Ok(at) => at,
            Err(at) => {
                self.places.add(place);
                self.changes.insert(at, BlockChange::default());
                *len += 1;
                at
            }
        };
        &mut self.changes[at]
    }
}

/// Blocks in order, and what became of them.
pub(super) struct From<'a> {
    groups: Peekable<btree_map::Range<'a, u64, Group>>,
    /// The group that is not among the others, until its turn comes.
    filling: Option<(u64, &'a Group)>,
    group: u64,
    places: Iter,
    changes: slice::Iter<'a, BlockChange>,
}

impl From<'_> {
    /// Goes on to the next group; says its number.
    fn next_group(&mut self) -> Option<u64> {
        let next = self.groups.peek().map(|&(&number, _)| number);
        let (number, group) = match self.filling {
            Some((number, _)) if next.is_none_or(|next| number < next) => self.filling.take()?,
            _ => self.groups.next().map(|(&number, group)| (number, group))?,
        };
        (self.group, self.places, self.changes) =
            (number, group.places.iter(), group.changes.iter());
        Some(number)
    }
}

impl<'a> Iterator for From<'a> {
    type Item = (Pba, &'a BlockChange);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let (Some(place), Some(change)) = (self.places.next(), self.changes.next()) {
                return Some((Pba(Places::number(self.group, place)), change));
            }
            self.next_group()?;
        }
    }
}
