//! The journal on a disk that does whatever a disk may do.

mod commit;
mod crash;
mod damage;
mod format;
mod speed;

use std::cell::Cell;
use std::rc::Rc;

use block_core::{BLOCK_SIZE, BlockCount, Extent, Lba, LbaRange, Pba, Pool};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::*;
use crate::disk::{Driver, Medium, Options, SimDisk};
use crate::layout::{EraId, LineId, PoolId, Record, Seal};

/// AES-256-GCM under one key.
struct OneKey {
    key: LessSafeKey,
    next: Cell<u32>,
}

fn keys() -> Rc<dyn Seals> {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("32 bytes");
    Rc::new(OneKey { key: LessSafeKey::new(key), next: Cell::new(1) })
}

fn nonce(seq: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&seq.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Seals for OneKey {
    fn seal(&self, aad: &[u8], bytes: &mut [u8]) -> Option<Seal> {
        let seq = self.next.replace(self.next.get() + 1);
        let tag = self.key.seal_in_place_separate_tag(nonce(seq), Aad::from(aad), bytes).ok()?;
        Some(Seal { tag: tag.as_ref().try_into().ok()?, seq, era: EraId(1) })
    }

    fn open(&self, seal: &Seal, aad: &[u8], bytes: &mut [u8]) -> Option<()> {
        let tag = (seal.era == EraId(1)).then_some(seal.tag.into())?;
        let nonce = nonce(seal.seq);
        self.key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, bytes, 0..).ok()?;
        Some(())
    }
}

const RING_BLOCKS: u64 = 64;

/// Not at a multiple of its size, so that a place and a number differ.
fn ring(blocks: u64) -> Ring {
    let extent = Extent { start: Pba(1024 + 5), count: BlockCount(blocks) };
    Ring::new(PoolId([9; 16]), 0, extent).expect("large enough")
}

const FIRST: Position = Position { next: 1, previous: [0; 16] };

/// A disk with a journal that runs on it.
struct Bench {
    disk: SimDisk,
    keys: Rc<dyn Seals>,
    ring: Ring,
    journal: Rc<Journal<SimDisk>>,
    driver: Driver,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Self::continuing(Medium::new(), keys(), Start { position: FIRST, mark: 0 }, FIRST, seed)
    }

    /// A journal that goes on at `at`, on a disk that holds `medium`, whose
    /// checkpoint says `start`.
    fn continuing(
        medium: Medium,
        keys: Rc<dyn Seals>,
        start: Start,
        at: Position,
        seed: u64,
    ) -> Self {
        let disk = SimDisk::new(medium, Options::new(BlockCount(2048)), seed);
        let ring = ring(RING_BLOCKS);
        let (device, seals) = (Rc::new(disk.clone()), Rc::clone(&keys));
        let buffers = Pool::private(BUFFERS, BLOCK_SIZE).expect("memory");
        let oldest = start.position.next;
        let journal = Journal::new(device, seals, &buffers, ring, at, oldest, start.mark);
        let journal = Rc::new(journal.expect("enough buffers"));
        let mut driver = Driver::new(&disk, seed);
        let ticking = (Rc::clone(&journal), Rc::clone(&journal));
        driver.tick_at(move || ticking.0.deadline(), move |now| ticking.1.tick(now));
        let running = Rc::clone(&journal);
        driver.spawn(async move { running.run().await });
        Self { disk, keys, ring, journal, driver }
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        self.driver.run(self.journal.flush()).expect("nothing stops the disk")
    }

    fn scan(&self, medium: &Medium, start: Start) -> Chain {
        scanned(medium, &*self.keys, &self.ring, start)
    }
}

/// A small record, number `number` of history `history`.
fn record(history: u32, number: u64) -> Record {
    let range = LbaRange { start: Lba(number), count: BlockCount(1) };
    Record::Hole { line: LineId(history), range }
}

fn scanned(medium: &Medium, keys: &dyn Seals, ring: &Ring, start: Start) -> Chain {
    let disk = SimDisk::new(medium.clone(), Options::new(BlockCount(2048)), 1);
    let buffers = Pool::private(5, 3 * BLOCK_SIZE).expect("memory");
    let mut driver = Driver::new(&disk, 1);
    driver.run(scan(&disk, keys, &buffers, ring, start)).expect("nothing stops the disk")
}

/// The records from `from` to the block `end`, and the position after them.
fn replayed(
    medium: &Medium,
    keys: &dyn Seals,
    ring: &Ring,
    from: Position,
    end: u64,
) -> Result<(Vec<(u64, Record)>, Position), ReplayError> {
    let disk = SimDisk::new(medium.clone(), Options::new(BlockCount(2048)), 2);
    let buffers = Pool::private(5, 3 * BLOCK_SIZE).expect("memory");
    let mut driver = Driver::new(&disk, 2);
    let mut found = Vec::new();
    let sink = |number, record| {
        found.push((number, record));
        Ok(())
    };
    let position = driver.run(replay(&disk, keys, &buffers, ring, from, end, sink));
    let position = position.expect("nothing stops the disk")?;
    Ok((found, position))
}
