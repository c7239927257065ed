//! After a key was rotated: what volumes hold is sealed anew, beside guests.

mod disk;
mod world;

use std::rc::Rc;
use std::time::Duration;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, Blocks};
use interpose::check::CheckOptions;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use world::{World, range, unique};

/// Keys that the domain of all volumes has.
fn keys(world: &World) -> usize {
    let domains = world.pool.domains();
    domains.iter().find(|domain| domain.name == "tenant").expect("there").keys.len()
}

/// Lets the rewriting go on, and checkpoints be made, until so many keys are
/// left.
fn wait_for_keys(world: &mut World, left: usize) {
    for _ in 0..100 {
        if keys(world) == left {
            return;
        }
        world.driver.pass(Duration::from_millis(20)).expect("runs");
        world.checkpoint();
    }
    panic!("{} keys are left, not {left}", keys(world));
}

fn expect_sound(world: &mut World) {
    let pool = Rc::clone(&world.pool);
    let report = world.run(pool.check(&CheckOptions::default(), &|_| {})).expect("looks");
    assert!(report.is_clean() && report.erased == 0, "{report:?}");
}

/// A tenant rotates its key because the old one is known. Without a word
/// everything that it has is under the new one some time later, equal blocks
/// are still stored once, and the old key is destroyed.
#[test]
fn what_volumes_hold_gets_the_new_key_and_the_old_one_is_destroyed() {
    let mut world = World::new(1);
    let pool = Rc::clone(&world.pool);
    let (_, one) = world.volume("one", 1000);
    let (_, other) = world.volume("other", 1000);
    world.fill(&one, 0, 300, 1);
    world.fill(&other, 500, 300, 1);
    world.checkpoint();
    let stored = pool.figures().usage;
    world.run(pool.rotate("tenant")).expect("rotated");
    world.run(pool.rotate("tenant")).expect("rotated");
    assert_eq!(keys(&world), 3);
    wait_for_keys(&mut world, 1);
    assert_eq!(pool.rewriting(), None);
    world.checkpoint();
    let now = pool.figures().usage;
    assert_eq!((now.data, now.references), (stored.data, stored.references));
    expect_sound(&mut world);
    drop((pool, one, other));
    let mut world = world.crash(2);
    let whole: Vec<u8> = (1..301).flat_map(unique).collect();
    for (name, at) in [("one", 0), ("other", 500)] {
        let volume = world.pool.volume(name).expect("there");
        assert!(world.read(&volume, at, 300) == whole, "{name} is as it was");
    }
    expect_sound(&mut world);
}

/// A snapshot keeps its blocks and so the key, however long. A volume that is
/// restored to it gets the new one. When the snapshot is gone, so is the key.
#[test]
fn a_snapshot_keeps_the_old_key_until_it_is_deleted() {
    let mut world = World::new(3);
    let pool = Rc::clone(&world.pool);
    let (id, volume) = world.volume("disk", 1000);
    world.fill(&volume, 0, 100, 1);
    let snapshot = world.snapshot(id, "kept");
    world.fill(&volume, 50, 100, 1000);
    world.run(pool.rotate("tenant")).expect("rotated");
    for _ in 0..20 {
        world.driver.pass(Duration::from_millis(50)).expect("runs");
        world.checkpoint();
    }
    assert_eq!(keys(&world), 2);
    world.run(pool.restore(id, snapshot, Vec::new())).expect("restored");
    world.run(pool.delete_snapshot(snapshot)).expect("deleted");
    wait_for_keys(&mut world, 1);
    let whole: Vec<u8> = (1..101).flat_map(unique).collect();
    assert!(world.read(&volume, 0, 100) == whole);
    expect_sound(&mut world);
}

/// A guest overwrites a block while it is being written anew. What was read of
/// it is of the past then, and must not come back.
#[test]
fn what_a_guest_writes_meanwhile_is_not_replaced() {
    for seed in 0..25 {
        let mut world = World::new(100 + seed);
        let pool = Rc::clone(&world.pool);
        let (_, volume) = world.volume("disk", 200);
        world.fill(&volume, 0, 40, 1);
        world.checkpoint();
        let mut random = SmallRng::seed_from_u64(seed);
        let mut contents: Vec<u64> = (1..41).collect();
        world.run(pool.rotate("tenant")).expect("rotated");
        for number in 0..150 {
            let at = random.random_range(0..40);
            contents[at as usize] = 1000 + number % 70;
            let mut buffer = world.buffers.take().expect("a buffer");
            buffer[..BLOCK_SIZE].copy_from_slice(&unique(contents[at as usize]));
            let write = volume.write(range(at, 1), buffer, 0, Durability::Cached);
            world.run(write).1.expect("written");
            let sleep =
                world.driver.clock().sleep(Duration::from_micros(random.random_range(0..80)));
            world.run(sleep);
        }
        wait_for_keys(&mut world, 1);
        for (at, content) in contents.iter().enumerate() {
            assert!(world.read(&volume, at as u64, 1) == unique(*content), "seed {seed}: {at}");
        }
        expect_sound(&mut world);
    }
}

/// The power fails in the middle. What is left to do is done after the next
/// opening, by itself.
#[test]
fn a_crash_in_the_middle_is_made_up_for() {
    for seed in 0..10 {
        let mut world = World::new(200 + seed);
        let pool = Rc::clone(&world.pool);
        let (_, volume) = world.volume("disk", 1000);
        world.fill(&volume, 0, 400, 1);
        world.checkpoint();
        world.run(pool.rotate("tenant")).expect("rotated");
        world.driver.pass(Duration::from_millis(5 * seed)).expect("runs");
        let done = pool.rewriting().map_or(0, |rewriting| rewriting.rewritten.0);
        assert!(done < 400, "{done} are done already");
        drop((pool, volume));
        let mut world = world.crash(300 + seed);
        wait_for_keys(&mut world, 1);
        let volume = world.pool.volume("disk").expect("there");
        let whole: Vec<u8> = (1..401).flat_map(unique).collect();
        assert!(world.read(&volume, 0, 400) == whole, "seed {seed}");
        expect_sound(&mut world);
    }
}
