//! The journal on a disk that does whatever a disk may do.

mod commit;
mod crash;
mod damage;
mod format;
mod ring;
mod speed;

use std::cell::Cell;
use std::rc::Rc;

use block_core::{BLOCK_SIZE, BlockCount, Chance, Extent, Lba, LbaRange, Pba, Pool};

use super::*;
use crate::disk::null::NullDisk;
use crate::disk::{Driver, Medium, Options, SimDisk};
use crate::layout::fixed::MIN_DEVICE_BLOCKS;
use crate::layout::{EraId, LineId, PoolId, Record, Seal};
use crate::vault::{Cost, NewWay, Secret, UnlockError, Vault};

/// The keys of a pool of their own, on a disk of their own.
fn keys() -> Rc<Vault> {
    let drawn = Cell::new(1u64);
    let chance = Chance::new(move || drawn.replace(drawn.get().wrapping_mul(0x9e37_79b9) + 1));
    let device = Rc::new(NullDisk::new(MIN_DEVICE_BLOCKS, |_| false));
    let buffers = Pool::private(2, BLOCK_SIZE).expect("memory");
    let secret = Secret::key_file(vec![7; 32].into());
    let way = NewWay::new("test", &secret, Cost::LEAST, &chance).expect("a good secret");
    let mut driver = Driver::new(&SimDisk::new(Medium::new(), Options::new(BlockCount(1)), 1), 1);
    let vault = driver.run(async move {
        let vault = Vault::create(device, buffers, POOL, way, chance).await?;
        vault.begin_era().await.expect("room for an era");
        Ok::<_, UnlockError>(vault)
    });
    Rc::new(vault.expect("the disk completes at once").expect("the disk is good"))
}

const POOL: PoolId = PoolId([9; 16]);

const RING_BLOCKS: u64 = 64;

/// Not at a multiple of its size, so that a place and a number differ.
fn ring(blocks: u64) -> Ring {
    let extent = Extent { start: Pba(1024 + 5), count: BlockCount(blocks) };
    Ring::new(0, extent).expect("large enough")
}

const FIRST: Position = Position { next: 1, previous: [0; 16] };

/// A disk with a journal that runs on it.
struct Bench {
    disk: SimDisk,
    keys: Rc<Vault>,
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
    fn continuing(medium: Medium, keys: Rc<Vault>, start: Start, at: Position, seed: u64) -> Self {
        let disk = SimDisk::new(medium, Options::new(BlockCount(2048)), seed);
        let ring = ring(RING_BLOCKS);
        let (device, vault) = (Rc::new(disk.clone()), Rc::clone(&keys));
        let buffers = Pool::private(BUFFERS, BLOCK_SIZE).expect("memory");
        let oldest = start.position.next;
        let journal = Journal::new(device, vault, &buffers, ring, at, oldest, start.mark);
        let journal = Rc::new(journal.expect("enough buffers"));
        let mut driver = Driver::new(&disk, seed);
        let ticking = (Rc::clone(&journal), Rc::clone(&journal));
        driver.tick_at(move || ticking.0.deadline(), move |now| ticking.1.tick(now));
        for task in 0..TASKS {
            let running = Rc::clone(&journal);
            driver.spawn(async move { running.run(task).await });
        }
        Self { disk, keys, ring, journal, driver }
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        self.driver.run(self.journal.flush()).expect("nothing stops the disk")
    }

    fn scan(&self, medium: &Medium, start: Start) -> Chain {
        scanned(medium, &self.keys, &self.ring, start)
    }
}

/// A small record, number `number` of history `history`.
fn record(history: u32, number: u64) -> Record {
    let range = LbaRange { start: Lba(number), count: BlockCount(1) };
    Record::Hole { line: LineId(history), range }
}

fn scanned(medium: &Medium, keys: &Vault, ring: &Ring, start: Start) -> Chain {
    let disk = SimDisk::new(medium.clone(), Options::new(BlockCount(2048)), 1);
    let buffers = Pool::private(5, 3 * BLOCK_SIZE).expect("memory");
    let mut driver = Driver::new(&disk, 1);
    driver.run(scan(&disk, keys, &buffers, ring, start)).expect("nothing stops the disk")
}

/// The records from `from` to the block `end`, and the position after them.
fn replayed(
    medium: &Medium,
    keys: &Vault,
    ring: &Ring,
    from: Position,
    end: u64,
) -> Result<(Vec<(u64, Record)>, Position), ReplayError> {
    let disk = SimDisk::new(medium.clone(), Options::new(BlockCount(2048)), 2);
    let buffers = Pool::private(5, 3 * BLOCK_SIZE).expect("memory");
    let mut driver = Driver::new(&disk, 2);
    let mut found = Vec::new();
    let position = driver.run(async {
        let mut reader = Reader::new(&disk, keys, &buffers, ring, from, end);
        loop {
            let at = reader.position();
            let sink = |record| {
                found.push((at.next, record));
                Ok(())
            };
            if !reader.next(sink).await? {
                return Ok(at);
            }
        }
    });
    let position = position.expect("nothing stops the disk")?;
    Ok((found, position))
}
