//! Opened guest blocks, by the seal that names them.
//!
//! Clones of one image share their blocks, so they share what is kept here: the
//! second one to boot reads what the first one brought. A seal names one
//! content for ever, so nothing here can be stale.

use std::cell::RefCell;

use block_core::BLOCK_SIZE;

use crate::layout::DomainId;

/// No slot.
const NONE: u32 = u32::MAX;

/// Opened blocks in bounded memory; what was read least lately makes room.
pub struct ReadCache {
    inner: RefCell<Inner>,
}

impl ReadCache {
    /// An empty cache whose blocks take at most `bytes`, and what it
    /// notes of each another 28. With less than a block's it is off.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { inner: RefCell::new(Inner::new((bytes / BLOCK_SIZE).min(NONE as usize - 1))) }
    }

    /// Copies the block that `Seal::key` names into `block`, if it is here.
    pub fn get(&self, key: u64, block: &mut [u8]) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let Some(slot) = inner.find(key) else { return false };
        block.copy_from_slice(inner.block(slot));
        if inner.newest != slot {
            inner.unlink(slot);
            inner.link_newest(slot);
        }
        true
    }

    /// Keeps the opened block that `Seal::key` names.
    pub fn put(&self, key: u64, domain: DomainId, block: &[u8]) {
        let inner = &mut *self.inner.borrow_mut();
        if inner.find(key).is_some() {
            return;
        }
        let Some(slot) = inner.room() else { return };
        inner.entries[slot as usize].key = key;
        inner.entries[slot as usize].domain = domain;
        inner.block_mut(slot).copy_from_slice(block);
        inner.chain(slot);
        inner.link_newest(slot);
    }

    /// Overwrites and drops all blocks of a domain: its key was erased. Walks
    /// the whole cache, a few milliseconds per GiB.
    pub fn purge(&self, domain: DomainId) {
        let inner = &mut *self.inner.borrow_mut();
        let mut slot = inner.newest;
        while slot != NONE {
            let entry = inner.entries[slot as usize];
            if entry.domain == domain {
                inner.drop_block(slot);
            }
            slot = entry.older;
        }
    }

    /// How many blocks are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.borrow().len
    }

    /// Whether no block is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many blocks there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.inner.borrow().entries.len()
    }
}

/// What is known of a slot. A slot in use is in one chain of equal buckets and
/// in the row from newest to oldest; a free one is in the chain of free ones.
#[derive(Clone, Copy, Default)]
struct Entry {
    key: u64,
    domain: DomainId,
    next: u32,
    newer: u32,
    older: u32,
}

struct Inner {
    entries: Box<[Entry]>,
    /// The first slot of each chain.
    buckets: Box<[u32]>,
    newest: u32,
    oldest: u32,
    /// The first of those that were dropped.
    free: u32,
    /// Slots from here on were never used; their memory was never touched.
    unused: u32,
    len: usize,
    /// The blocks, from `start` on, where a page begins: copies between pages
    /// at the same offset are the fast ones.
    bytes: Vec<u8>,
    start: usize,
}

impl Inner {
    fn new(slots: usize) -> Self {
        let bytes = vec![0; (slots + 1) * BLOCK_SIZE];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE) % BLOCK_SIZE;
        Self {
            entries: vec![Entry::default(); slots].into(),
            buckets: vec![NONE; slots].into(),
            newest: NONE,
            oldest: NONE,
            free: NONE,
            unused: 0,
            len: 0,
            bytes,
            start,
        }
    }

    fn find(&self, key: u64) -> Option<u32> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut slot = self.buckets[self.bucket(key)];
        while slot != NONE {
            let entry = &self.entries[slot as usize];
            if entry.key == key {
                return Some(slot);
            }
            slot = entry.next;
        }
        None
    }

    /// A slot that is in no chain: a free one, or the oldest block's.
    fn room(&mut self) -> Option<u32> {
        if self.free != NONE {
            let slot = self.free;
            self.free = self.entries[slot as usize].next;
            return Some(slot);
        }
        if (self.unused as usize) < self.entries.len() {
            self.unused += 1;
            return Some(self.unused - 1);
        }
        let slot = self.oldest;
        if slot == NONE {
            return None;
        }
        self.unlink(slot);
        self.unchain(slot);
        Some(slot)
    }

    fn drop_block(&mut self, slot: u32) {
        overwrite(self.block_mut(slot));
        self.unlink(slot);
        self.unchain(slot);
        self.entries[slot as usize].next = self.free;
        self.free = slot;
    }

    /// Keys of one era follow each other; the multiplication spreads them.
    fn bucket(&self, key: u64) -> usize {
        let spread = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((u128::from(spread) * self.buckets.len() as u128) >> 64) as usize
    }

    fn chain(&mut self, slot: u32) {
        let bucket = self.bucket(self.entries[slot as usize].key);
        self.entries[slot as usize].next = self.buckets[bucket];
        self.buckets[bucket] = slot;
        self.len += 1;
    }

    fn unchain(&mut self, slot: u32) {
        let Entry { key, next, .. } = self.entries[slot as usize];
        let bucket = self.bucket(key);
        let mut before = self.buckets[bucket];
        if before == slot {
            self.buckets[bucket] = next;
        } else {
            while self.entries[before as usize].next != slot {
                before = self.entries[before as usize].next;
            }
            self.entries[before as usize].next = next;
        }
        self.len -= 1;
    }

    fn link_newest(&mut self, slot: u32) {
        let newest = std::mem::replace(&mut self.newest, slot);
        let entry = &mut self.entries[slot as usize];
        (entry.newer, entry.older) = (NONE, newest);
        match newest {
            NONE => self.oldest = slot,
            newest => self.entries[newest as usize].newer = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Entry { newer, older, .. } = self.entries[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
    }

    fn block(&self, slot: u32) -> &[u8] {
        let at = self.start + slot as usize * BLOCK_SIZE;
        &self.bytes[at..at + BLOCK_SIZE]
    }

    fn block_mut(&mut self, slot: u32) -> &mut [u8] {
        let at = self.start + slot as usize * BLOCK_SIZE;
        &mut self.bytes[at..at + BLOCK_SIZE]
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let used = self.unused as usize * BLOCK_SIZE;
        overwrite(&mut self.bytes[self.start..self.start + used]);
    }
}

/// Zeroes that the compiler must believe somebody looks at. `zeroize` writes
/// byte by byte, seconds for a cache of some GiB.
fn overwrite(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn block(key: u64) -> [u8; BLOCK_SIZE] {
        let mut block = [key as u8; BLOCK_SIZE];
        block[..8].copy_from_slice(&key.to_le_bytes());
        block
    }

    fn holds(cache: &ReadCache, key: u64) -> bool {
        let mut out = [0xee; BLOCK_SIZE];
        let found = cache.get(key, &mut out);
        assert!(!found || out == block(key), "another block under key {key}");
        found
    }

    #[test]
    fn with_no_memory_it_is_off() {
        let cache = ReadCache::new(BLOCK_SIZE - 1);
        cache.put(1, DomainId(1), &block(1));
        cache.purge(DomainId(1));
        assert!(!holds(&cache, 1) && cache.is_empty() && cache.capacity() == 0);
    }

    /// A domain was erased: not even the memory of the process may hold its
    /// blocks any more, while the neighbours' stay.
    #[test]
    fn a_purged_domain_leaves_no_byte_behind() {
        let cache = ReadCache::new(8 * BLOCK_SIZE);
        (1..=8).for_each(|key| cache.put(key, DomainId(key as u32 % 2), &block(key)));
        cache.purge(DomainId(1));
        assert_eq!(cache.len(), 4);
        for key in 1..=8 {
            assert_eq!(holds(&cache, key), key % 2 == 0, "key {key}");
        }
        let inner = cache.inner.borrow();
        let whole = inner.bytes[inner.start..][..8 * BLOCK_SIZE].chunks(BLOCK_SIZE);
        let odd = whole.filter(|bytes| bytes[8..].iter().any(|byte| byte % 2 == 1));
        assert_eq!(odd.count(), 0);
        assert!(!inner.bytes.contains(&7));
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Get(u64),
        Put(u64),
        Purge(u32),
    }

    fn deed() -> impl Strategy<Value = Deed> {
        // Keys of two eras, as seals make them.
        let key = || (0..2u64, 1..12u64).prop_map(|(era, seq)| era << 32 | seq);
        prop_oneof![
            10 => key().prop_map(Deed::Get),
            10 => key().prop_map(Deed::Put),
            1 => (0..3u32).prop_map(Deed::Purge),
        ]
    }

    proptest! {
        /// The model is a list of keys, newest first, cut at the capacity.
        #[test]
        fn it_keeps_what_was_used_last(slots in 1..16usize, deeds in vec(deed(), 0..400)) {
            let cache = ReadCache::new(slots * BLOCK_SIZE);
            let mut model: Vec<u64> = Vec::new();
            let domain = |key: u64| DomainId(key as u32 % 3);
            for deed in deeds {
                match deed {
                    Deed::Get(key) => {
                        let place = model.iter().position(|&kept| kept == key);
                        prop_assert_eq!(holds(&cache, key), place.is_some());
                        if let Some(place) = place {
                            model[..=place].rotate_right(1);
                        }
                    }
                    Deed::Put(key) => {
                        cache.put(key, domain(key), &block(key));
                        if !model.contains(&key) {
                            model.insert(0, key);
                            model.truncate(slots);
                        }
                    }
                    Deed::Purge(number) => {
                        cache.purge(DomainId(number));
                        model.retain(|&key| domain(key) != DomainId(number));
                    }
                }
                prop_assert_eq!(cache.len(), model.len());
            }
            for key in (0..2).flat_map(|era| (1..12).map(move |seq| era << 32 | seq)) {
                prop_assert_eq!(holds(&cache, key), model.contains(&key));
            }
        }
    }
}
