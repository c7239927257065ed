//! Checking a pool while it is used.

mod disk;
mod world;

use std::cell::Cell;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, Blocks, Pba};
use disk::Fate;
use interpose::check::{CheckOptions, Progress, Report, Wrong};
use interpose::layout::Class;
use interpose::pages::What;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use world::{World, range, unique};

fn check(world: &mut World) -> Report {
    let pool = Rc::clone(&world.pool);
    world.run(pool.check(&CheckOptions::default(), &|_| {})).expect("looks")
}

/// Everything that a pool can do, in an order drawn from a seed, with a check
/// now and then: also in the middle of deletions, and while somebody writes.
fn live(seed: u64) {
    const BLOCKS: u64 = 3000;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut world = World::new(seed);
    let mut volumes = vec![(world.volume("disk", BLOCKS).0, "disk".to_owned())];
    let mut snapshots = Vec::new();
    for step in 0..260 {
        let pool = Rc::clone(&world.pool);
        let (id, name) = &volumes[random.random_range(0..volumes.len())];
        let (id, volume) = (*id, pool.volume(name).expect("there"));
        let count = random.random_range(1..=40);
        let start = random.random_range(0..BLOCKS - count);
        match random.random_range(0..100) {
            0..70 => {
                let first = random.random_range(0..1500);
                world.fill(&volume, start, count, first);
            }
            70..76 => world.run(volume.zero(range(start, count), true)).expect("zeroed"),
            76..84 => snapshots.push((id, world.snapshot(id, &format!("at-{step}")))),
            84..88 if !snapshots.is_empty() => {
                let (_, of) = snapshots[random.random_range(0..snapshots.len())];
                let name = format!("clone-{step}");
                let id = world.run(pool.clone_snapshot(of, &name, Vec::new())).expect("cloned");
                volumes.push((id, name));
            }
            88..91 if !snapshots.is_empty() => {
                let (of, to) = snapshots[random.random_range(0..snapshots.len())];
                world.run(pool.restore(of, to, Vec::new())).expect("restored");
            }
            91..96 if !snapshots.is_empty() => {
                let (_, key) = snapshots.swap_remove(random.random_range(0..snapshots.len()));
                world.run(pool.delete_snapshot(key)).expect("deleted");
            }
            96 => world.checkpoint(),
            97 => {
                world.run(volume.flush()).expect("flushed");
                drop((pool, volume));
                world = world.crash(seed + step);
            }
            _ => {
                let mut buffer = world.buffers.take().expect("a buffer");
                buffer[..BLOCK_SIZE].copy_from_slice(&unique(9000 + step));
                let writing = Rc::clone(&volume);
                let write = async move {
                    let write = writing.write(range(start, 1), buffer, 0, Durability::Cached);
                    write.await.1.expect("written");
                };
                world.driver.spawn(write);
                let report = check(&mut world);
                assert!(report.is_clean(), "seed {seed}, step {step}: {report:?}");
            }
        }
    }
    let report = check(&mut world);
    assert!(report.is_clean(), "seed {seed}: {report:?}");
    assert!(report.data > 500 && report.pages > 50, "{report:?}");
    assert_eq!(report.references, world.pool.figures().usage.references);
}

#[test]
fn a_sound_pool_is_found_sound_whatever_it_does() {
    (1..=6).for_each(live);
}

/// In a window of 16 KiB of counts a pass sees a quarter of the pool.
#[test]
fn little_memory_takes_more_passes_and_finds_the_same() {
    let mut world = World::new(20);
    let (id, volume) = world.volume("disk", 4000);
    for at in 0..60 {
        world.fill(&volume, at * 50, 40, at * 100);
    }
    world.snapshot(id, "one");
    world.fill(&volume, 0, 300, 77_000);
    let whole = check(&mut world);
    assert!(whole.is_clean(), "{whole:?}");
    let pool = Rc::clone(&world.pool);
    let options = CheckOptions { memory: 16 << 10, ..CheckOptions::default() };
    let parts = world.run(pool.check(&options, &|_| {})).expect("looks");
    assert!(parts.is_clean(), "{parts:?}");
    assert_eq!(parts.references, whole.references);
    assert_eq!(parts.data, whole.data);
}

/// A block that rots is named with everybody who shares it: by a snapshot, a
/// clone and a duplicate; who has overwritten it is not named.
#[test]
fn a_rotten_block_is_found_with_all_whom_it_touches() {
    let mut world = World::new(30);
    let pool = Rc::clone(&world.pool);
    let (id, volume) = world.volume("disk", 500);
    world.fill(&volume, 7, 1, 1);
    world.checkpoint();
    let snapshot = world.snapshot(id, "kept");
    world.run(pool.clone_snapshot(snapshot, "copy", Vec::new())).expect("cloned");
    let (_, other) = world.volume("other", 500);
    world.fill(&other, 300, 1, 1);
    world.fill(&volume, 7, 1, 2);
    let clean = check(&mut world);
    assert!(clean.is_clean(), "{clean:?}");
    // Whichever block of the device holds it: the one whose rot readers of the
    // clone and of the other volume notice.
    let copy = pool.volume("copy").expect("there");
    let rotten = (1024..world::DEVICE.0).map(block_core::Pba).find(|&pba| {
        world.disk.flip(pba, 100);
        let mut noticed = |volume, at| world.try_read(volume, at, 1).is_err();
        let both = noticed(&copy, 7) && noticed(&other, 300);
        if !both {
            world.disk.flip(pba, 100);
        }
        both
    });
    let report = check(&mut world);
    assert_eq!(report.faults.len(), 1, "{report:?}");
    let fault = &report.faults[0];
    assert_eq!(Some(fault.pba), rotten);
    assert_eq!(fault.wrong, Wrong::Lost(What::Unopened));
    let mut told: Vec<String> = fault.touches.iter().map(ToString::to_string).collect();
    told.sort();
    assert_eq!(
        told,
        ["snapshot disk@kept block 7", "volume copy block 7", "volume other block 300"]
    );
}

/// A page of the pool that belongs to no volume rots: it is named, with what it
/// is, and nothing else is.
#[test]
fn rotten_pages_of_seals_and_counts_are_named_for_what_they_are() {
    let mut world = World::new(50);
    let (_, volume) = world.volume("disk", 500);
    world.fill(&volume, 0, 100, 1);
    world.checkpoint();
    let is_heap = |pba: &Pba| pba.0 >= 1280 && !(8192..9216).contains(&pba.0);
    let mut named = Vec::new();
    for pba in world.disk.cut().written().into_iter().filter(is_heap) {
        world.disk.flip(pba, 300);
        let report = check(&mut world);
        world.disk.flip(pba, 300);
        for fault in report.faults.iter().filter(|fault| fault.pba == pba) {
            assert_eq!(fault.wrong, Wrong::Lost(What::Unopened), "{fault}");
            if fault.class != Class::Data && fault.class != Class::Map {
                assert_eq!(fault.touches, [], "{fault}");
                assert_eq!(report.faults.len(), 1, "{report:?}");
                named.push(fault.class);
            }
        }
    }
    for class in [Class::Seals, Class::Counts, Class::Directory, Class::Catalog] {
        assert!(named.contains(&class), "{class:?} is not among {named:?}");
    }
    assert!(check(&mut world).is_clean());
}

/// The device writes a block to where another one lies, and says that all is
/// well. Both are named: what was overwritten, and what is not there.
#[test]
fn a_misdirected_write_is_two_damaged_blocks() {
    let mut world = World::new(60);
    let (_, one) = world.volume("one", 500);
    let (_, other) = world.volume("other", 500);
    let last = Rc::new(Cell::new(None));
    let seen = Rc::clone(&last);
    world.disk.divert(move |at, _| {
        seen.set(Some(at));
        Fate::Lands
    });
    world.fill(&one, 7, 1, 1);
    let victim = last.get().expect("written");
    let seen = Rc::clone(&last);
    world.disk.divert(move |at, _| {
        seen.set(Some(at));
        Fate::At(victim)
    });
    world.fill(&other, 9, 1, 2);
    let lost = last.get().expect("written");
    world.disk.heal();
    world.checkpoint();
    let report = check(&mut world);
    let mut told: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
    told.sort();
    let mut expected = [(victim, "one block 7"), (lost, "other block 9")].map(|(pba, of)| {
        let what = "(a guest's block) is not what was written there";
        format!("block {} {what}: volume {of}", pba.0)
    });
    expected.sort();
    assert_eq!(told, expected);
    assert!(world.try_read(&one, 7, 1).is_err() && world.try_read(&other, 9, 1).is_err());
}

/// A bounded check takes its time, and does not hold up a checkpoint.
#[test]
fn a_bounded_check_takes_its_time_and_holds_nobody_up() {
    let mut world = World::new(40);
    let pool = Rc::clone(&world.pool);
    let (_, volume) = world.volume("disk", 2000);
    world.fill(&volume, 0, 1000, 1);
    let done = Rc::new(Cell::new(None));
    let (told, checking, clock) = (Rc::clone(&done), Rc::clone(&pool), world.driver.clock());
    let began = clock.now();
    let watch = world.driver.clock();
    world.driver.spawn(async move {
        let rate = NonZeroU32::new(500);
        let options = CheckOptions { blocks_per_second: rate, ..CheckOptions::default() };
        let seen = Cell::new(0);
        let progress = |progress: Progress| seen.set(seen.get().max(progress.done));
        let report = checking.check(&options, &progress).await.expect("looks");
        assert!(seen.get() >= 1000);
        told.set(Some((report, watch.now())));
    });
    let mut checkpoints = 0;
    while done.take().is_none_or(|(report, ended)| {
        assert!(report.is_clean(), "{report:?}");
        assert!(ended.since(began) > Duration::from_secs(2), "{:?}", ended.since(began));
        false
    }) {
        world.fill(&volume, checkpoints % 1000, 20, 5000 + checkpoints * 20);
        world.checkpoint();
        checkpoints += 1;
        world.driver.pass(Duration::from_millis(50)).expect("runs");
        assert!(checkpoints < 400, "it never ends");
    }
    assert!(checkpoints > 20, "{checkpoints}");
    // What was held for the check is free again.
    world.checkpoint();
    let report = check(&mut world);
    assert!(report.is_clean(), "{report:?}");
}
