//! A pool on a simulated disk, and what it takes to use it.

// Each test uses a part of it.
#![allow(dead_code, unreachable_pub)]

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{
    BLOCK_SIZE, BlockCount, BlockError, Blocks, Chance, Lba, LbaRange, Pool as Buffers,
};
use interpose::pool::{SnapshotKey, VolumeId};
use interpose::vault::{Cost, NewWay, Secret};
use interpose::{CreateOptions, Means, Pool, Settings, Volume};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use crate::disk::{Driver, Medium, Options, SimDisk};

pub const DEVICE: BlockCount = BlockCount(32 * 1024);

pub struct World {
    pub disk: SimDisk,
    pub driver: Driver,
    pub pool: Rc<Pool<SimDisk>>,
    pub buffers: Buffers,
}

pub fn chance(seed: u64) -> Chance {
    let random = RefCell::new(SmallRng::seed_from_u64(seed));
    Chance::new(move || random.borrow_mut().next_u64())
}

pub fn secret() -> Secret {
    Secret::key_file(vec![7; 32].into())
}

/// Little memory for changes, so that checkpoints come often.
pub fn settings() -> Settings {
    Settings { overlay: 1 << 20, index: 1 << 20, read_cache: 0, ..Settings::default() }
}

pub fn range(start: u64, count: u64) -> LbaRange {
    LbaRange { start: Lba(start), count: BlockCount(count) }
}

/// A block that nothing else has.
pub fn unique(number: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    SmallRng::seed_from_u64(number ^ 0x756e_6971_7565).fill_bytes(&mut block);
    block
}

/// A new pool.
pub fn make(seed: u64) -> Medium {
    let disk = SimDisk::new(Medium::new(), Options::new(DEVICE), seed);
    let mut driver = Driver::new(&disk, seed);
    let buffers = Buffers::private(512, BLOCK_SIZE).expect("memory");
    let first = NewWay::new("first", &secret(), Cost::LEAST, &chance(1)).expect("a way");
    let options = CreateOptions { first, journal: Some(BlockCount(256)) };
    let made = Pool::create(Rc::new(disk.clone()), buffers, chance(seed), options);
    driver.run(made).expect("runs").expect("made");
    disk.shut_down()
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::open(make(seed), seed + 1, settings())
    }

    pub fn open(medium: Medium, seed: u64, settings: Settings) -> Self {
        let disk = SimDisk::new(medium, Options::new(DEVICE), seed);
        let mut driver = Driver::new(&disk, seed);
        let means = Means {
            device: Rc::new(disk.clone()),
            buffers: Buffers::private(512, BLOCK_SIZE).expect("memory"),
            chance: chance(seed),
            wall: Box::new(|| 1_700_000_000),
        };
        let opened = driver.run(Pool::open(means, &secret(), settings, None));
        let pool = opened.expect("runs").expect("opens");
        pool.tasks().into_iter().for_each(|task| driver.spawn(task));
        let (deadline, tick) = (Rc::clone(&pool), Rc::clone(&pool));
        driver.tick_at(move || deadline.deadline(), move |now| tick.tick(now));
        let buffers = Buffers::private(64, 40 * BLOCK_SIZE).expect("memory");
        Self { disk, driver, pool, buffers }
    }

    /// What a crash leaves, opened again.
    pub fn crash(self, seed: u64) -> Self {
        let medium = self.disk.cut();
        drop(self);
        Self::open(medium, seed, settings())
    }

    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.driver.run(future).expect("runs")
    }

    pub fn volume(&mut self, name: &str, blocks: u64) -> (VolumeId, Rc<Volume<SimDisk>>) {
        let pool = Rc::clone(&self.pool);
        let made = pool.create_volume(name, BlockCount(blocks), "tenant", Vec::new());
        let id = self.run(made).expect("made");
        (id, pool.volume(name).expect("there"))
    }

    pub fn write(&mut self, volume: &Volume<SimDisk>, start: u64, data: &[u8]) {
        for (number, part) in data.chunks(32 * BLOCK_SIZE).enumerate() {
            let mut buffer = self.buffers.take().expect("a buffer");
            buffer[..part.len()].copy_from_slice(part);
            let blocks = (part.len() / BLOCK_SIZE) as u64;
            let at = range(start + 32 * number as u64, blocks);
            let (_, outcome) = self.run(volume.write(at, buffer, 0, Durability::Cached));
            outcome.expect("written");
        }
    }

    /// Blocks that nothing else has, from `start` on.
    pub fn fill(&mut self, volume: &Volume<SimDisk>, start: u64, blocks: u64, number: u64) {
        let data: Vec<u8> = (0..blocks).flat_map(|at| unique(number + at)).collect();
        self.write(volume, start, &data);
    }

    pub fn try_read(
        &mut self,
        volume: &Volume<SimDisk>,
        start: u64,
        blocks: u64,
    ) -> Result<Vec<u8>, BlockError> {
        let mut all = Vec::new();
        for at in (start..start + blocks).step_by(32) {
            let count = 32.min(start + blocks - at);
            let buffer = self.buffers.take().expect("a buffer");
            let (buffer, outcome) = self.run(volume.read(range(at, count), buffer, 0));
            outcome?;
            all.extend_from_slice(&buffer[..count as usize * BLOCK_SIZE]);
        }
        Ok(all)
    }

    pub fn read(&mut self, volume: &Volume<SimDisk>, start: u64, blocks: u64) -> Vec<u8> {
        self.try_read(volume, start, blocks).expect("read")
    }

    pub fn checkpoint(&mut self) {
        let pool = Rc::clone(&self.pool);
        self.run(pool.checkpoint()).expect("made");
    }

    pub fn snapshot(&mut self, id: VolumeId, name: &str) -> SnapshotKey {
        let pool = Rc::clone(&self.pool);
        self.run(pool.snapshot(&[id], name, false)).expect("taken");
        pool.find_snapshot(id, name).expect("there")
    }
}
