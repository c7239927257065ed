//! What a power cut may take: every content that logical blocks have had since
//! they were last durable.
//!
//! A logical block is the unit that power failures leave whole (AWUPF is 0;
//! NVM Command Set 1.0, section 2.1.4). So a write of several may be torn
//! between any two of them, and a 4096-byte write to 512-byte blocks may come
//! out in eight ways mixed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::disorder::Chance;
use super::layers::Layers;
use crate::identify::LbaSize;

#[derive(Debug)]
pub(super) struct Unflushed {
    lba_size: LbaSize,
    /// For each block the durable content, then what was written over, oldest
    /// first. What is in memory now is the last one.
    earlier: BTreeMap<u64, Vec<Content>>,
}

const ZEROES: [u8; crate::PAGE] = [0; crate::PAGE];

/// What a block held; `None`: zeroes, as most of what is written over.
type Content = Option<Box<[u8]>>;

impl Unflushed {
    pub(super) fn new(lba_size: LbaSize) -> Self {
        Self { lba_size, earlier: BTreeMap::new() }
    }

    /// The bytes are about to change.
    pub(super) fn remember(&mut self, range: &Range<u64>, memory: &Layers) {
        for lba in self.lbas(range) {
            let at = (lba << self.lba_size.bits()) as usize;
            let content = memory.content(at, self.lba_size.bytes());
            let is_zero = *content == ZEROES[..content.len()];
            let content = (!is_zero).then(|| content.into());
            self.earlier.entry(lba).or_default().push(content);
        }
    }

    /// The bytes are durable now.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        for lba in self.lbas(range) {
            self.earlier.remove(&lba);
        }
    }

    /// Everything is durable now.
    pub(super) fn forget_all(&mut self) {
        self.earlier.clear();
    }

    /// The power fails: each block comes out with one of its contents.
    pub(super) fn lose(&mut self, memory: &mut Layers, chance: &mut Chance) {
        for (lba, earlier) in std::mem::take(&mut self.earlier) {
            let at = (lba << self.lba_size.bits()) as usize;
            match earlier.get(chance.below(earlier.len() + 1)) {
                Some(Some(content)) => memory.restore(at, content),
                Some(None) => memory.restore(at, &vec![0; self.lba_size.bytes()]),
                None => {}
            }
        }
    }

    fn lbas(&self, range: &Range<u64>) -> Range<u64> {
        range.start >> self.lba_size.bits()..range.end.div_ceil(self.lba_size.bytes() as u64)
    }
}
