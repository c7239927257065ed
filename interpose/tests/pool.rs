//! A pool, from making it to opening it again, on a disk that forgets nothing.

mod disk;

use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockCount, Blocks, Chance, Lba, LbaRange, Pool as Buffers};
use disk::{Driver, Medium, Options, SimDisk};
use interpose::vault::{Cost, NewWay, Secret};
use interpose::{CreateOptions, Means, Pool, Settings, Volume};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

const DEVICE: BlockCount = BlockCount(32 * 1024);

fn chance(seed: u64) -> Chance {
    let random = std::cell::RefCell::new(SmallRng::seed_from_u64(seed));
    Chance::new(move || random.borrow_mut().next_u64())
}

fn secret() -> Secret {
    Secret::key_file(vec![7; 32].into())
}

struct World {
    disk: SimDisk,
    driver: Driver,
    pool: Rc<Pool<SimDisk>>,
    buffers: Buffers,
}

fn settings() -> Settings {
    Settings { overlay: 1 << 20, index: 1 << 20, read_cache: 1 << 20, ..Settings::default() }
}

fn make(medium: Medium, seed: u64) -> Medium {
    let disk = SimDisk::new(medium, Options::new(DEVICE), seed);
    let mut driver = Driver::new(&disk, seed);
    let buffers = Buffers::private(512, BLOCK_SIZE).expect("memory");
    let first = NewWay::new("first", &secret(), Cost::default(), &chance(1)).expect("a way");
    let options = CreateOptions { first, journal: Some(BlockCount(256)) };
    let made = Pool::create(Rc::new(disk.clone()), buffers, chance(seed), options);
    driver.run(made).expect("runs").expect("made");
    disk.shut_down()
}

fn open(medium: Medium, seed: u64) -> World {
    let disk = SimDisk::new(medium, Options::new(DEVICE), seed);
    let mut driver = Driver::new(&disk, seed);
    let means = Means {
        device: Rc::new(disk.clone()),
        buffers: Buffers::private(512, BLOCK_SIZE).expect("memory"),
        chance: chance(seed),
        wall: Box::new(|| 1_700_000_000),
    };
    let opened = driver.run(Pool::open(means, &secret(), settings(), None));
    let pool = opened.expect("runs").expect("opens");
    pool.tasks().into_iter().for_each(|task| driver.spawn(task));
    let (deadline, tick) = (Rc::clone(&pool), Rc::clone(&pool));
    driver.tick_at(move || deadline.deadline(), move |now| tick.tick(now));
    let buffers = Buffers::private(64, 40 * BLOCK_SIZE).expect("memory");
    World { disk, driver, pool, buffers }
}

fn range(start: u64, count: u64) -> LbaRange {
    LbaRange { start: Lba(start), count: BlockCount(count) }
}

impl World {
    fn write(&mut self, volume: &Volume<SimDisk>, start: u64, data: &[u8]) {
        let mut buffer = self.buffers.take().expect("a buffer");
        buffer[..data.len()].copy_from_slice(data);
        let blocks = (data.len() / BLOCK_SIZE) as u64;
        let writing = volume.write(range(start, blocks), buffer, 0, Durability::Cached);
        let (_, outcome) = self.driver.run(writing).expect("runs");
        outcome.expect("written");
    }

    fn read(&mut self, volume: &Volume<SimDisk>, start: u64, blocks: u64) -> Vec<u8> {
        let buffer = self.buffers.take().expect("a buffer");
        let (buffer, outcome) =
            self.driver.run(volume.read(range(start, blocks), buffer, 0)).expect("runs");
        outcome.expect("read");
        buffer[..blocks as usize * BLOCK_SIZE].to_vec()
    }
}

/// Random writes of many sizes over several checkpoints, with a snapshot now
/// and then; everything reads back, also after the pool was closed and opened.
#[test]
fn what_was_written_is_read_before_and_after_opening_again() {
    const BLOCKS: u64 = 2000;
    let mut random = SmallRng::seed_from_u64(5);
    let mut world = open(make(Medium::new(), 1), 2);
    let pool = Rc::clone(&world.pool);
    let made = pool.create_volume("disk", BlockCount(BLOCKS), "tenant", vec![1, 2, 3]);
    let id = world.driver.run(made).expect("runs").expect("made");
    let volume = pool.volume("disk").expect("there");
    let mut model = vec![0u8; BLOCKS as usize * BLOCK_SIZE];
    let mut snapshots = Vec::new();
    for step in 0..600 {
        let count = random.random_range(1..=33);
        let start = random.random_range(0..=BLOCKS - count);
        let mut data = vec![0; count as usize * BLOCK_SIZE];
        for block in data.chunks_mut(BLOCK_SIZE) {
            match random.random_range(0..4) {
                0 => {}
                1 => block.fill(random.random_range(1..=20)),
                _ => random.fill_bytes(block),
            }
        }
        world.write(&volume, start, &data);
        let at = start as usize * BLOCK_SIZE;
        model[at..at + data.len()].copy_from_slice(&data);
        if step % 50 == 10 {
            let name = format!("snapshot-{step}");
            let group = [id];
            let taken = pool.snapshot(&group, &name, false);
            world.driver.run(taken).expect("runs").expect("taken");
            let key = pool.find_snapshot(id, &name).expect("there");
            snapshots.push((key, model.clone()));
        }
        if step % 97 == 50 {
            world.driver.run(pool.checkpoint()).expect("runs").expect("made");
        }
    }
    assert!(pool.figures().since.checkpoints > 3, "{:?}", pool.figures());
    assert!(pool.figures().since.shared > 100);
    let check = |world: &mut World, model: &[u8]| {
        let pool = Rc::clone(&world.pool);
        let volume = pool.volume("disk").expect("there");
        for start in (0..BLOCKS).step_by(25) {
            let at = start as usize * BLOCK_SIZE;
            let read = world.read(&volume, start, 25);
            assert!(read == model[at..at + read.len()], "blocks from {start}");
        }
        for (key, model) in &snapshots {
            for start in (0..BLOCKS).step_by(25) {
                let buffer = world.buffers.take().expect("a buffer");
                let reading = pool.read_snapshot(*key, range(start, 25), buffer, 0);
                let (buffer, outcome) = world.driver.run(reading).expect("runs");
                outcome.expect("read");
                let at = start as usize * BLOCK_SIZE;
                let bytes = 25 * BLOCK_SIZE;
                assert!(buffer[..bytes] == model[at..at + bytes], "{key:?}, from {start}");
            }
        }
    };
    check(&mut world, &model);
    world.driver.run(volume.flush()).expect("runs").expect("flushed");
    drop((volume, pool));
    let medium = world.disk.cut();
    drop(world);
    let mut world = open(medium, 3);
    check(&mut world, &model);
    let pool = Rc::clone(&world.pool);
    world.driver.run(pool.checkpoint()).expect("runs").expect("made");
    check(&mut world, &model);
    for (key, _) in snapshots.iter().take(8) {
        world.driver.run(pool.delete_snapshot(*key)).expect("runs").expect("deleted");
    }
    snapshots_left(&mut world, &pool, snapshots.len() - 8, id);
    let (snapshots, kept) = (snapshots.split_off(8), model);
    drop(snapshots);
    let volume = pool.volume("disk").expect("there");
    for start in (0..BLOCKS).step_by(25) {
        let at = start as usize * BLOCK_SIZE;
        let read = world.read(&volume, start, 25);
        assert!(read == kept[at..at + read.len()], "blocks from {start}");
    }
}

fn snapshots_left(
    world: &mut World,
    pool: &Rc<Pool<SimDisk>>,
    left: usize,
    id: interpose::pool::VolumeId,
) {
    while pool.deletions().0 > 0 {
        world.driver.run(pool.checkpoint()).expect("runs").expect("made");
    }
    assert_eq!(pool.snapshots(id).len(), left);
}
