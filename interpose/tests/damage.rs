//! A page of the pool that rots fails what needs it, and nothing else.

mod disk;
mod world;

use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockError, Blocks, Pba};
use interpose::check::{CheckOptions, Fault, Report, Wrong};
use interpose::layout::Class;
use world::{World, range, unique};

fn check(world: &mut World) -> Report {
    let pool = Rc::clone(&world.pool);
    let options = CheckOptions { data: false, ..CheckOptions::default() };
    world.run(pool.check(&options, &|_| {})).expect("looks")
}

/// Turns a bit of a page of that class that has the first block of a volume,
/// or of any if it belongs to none.
fn rot(world: &mut World, class: Class, touched: &str) -> Pba {
    for pba in world.disk.cut().written().into_iter().filter(|pba| pba.0 >= 1024) {
        world.disk.flip(pba, 4000);
        let report = check(world);
        let is_it = |fault: &Fault| {
            let mut touches = fault.touches.iter();
            let here =
                touched.is_empty() || touches.any(|it| it.name == touched && it.range.start.0 == 0);
            fault.pba == pba && fault.class == class && here
        };
        if report.faults.iter().any(is_it) {
            return pba;
        }
        world.disk.flip(pba, 4000);
    }
    panic!("no page of {class:?} has a part in '{touched}'");
}

/// A leaf of one volume's map rots, and its guest writes to a block below it.
/// The checkpoint that has to merge this goes on, so does everybody else; what
/// the page said fails to be read, and is named by the check; what is written
/// anew is there, and when all of it was trimmed the volume is sound again.
#[test]
fn a_damaged_page_of_a_map_fails_its_blocks_and_nothing_else() {
    let mut world = World::new(1);
    let (_, other) = world.volume("other", 1000);
    let (_, volume) = world.volume("disk", 1000);
    world.fill(&volume, 0, 300, 1);
    world.fill(&other, 0, 300, 1000);
    world.checkpoint();
    let page = rot(&mut world, Class::Map, "disk");

    world.fill(&volume, 5, 1, 77);
    world.fill(&other, 5, 1, 78);
    world.checkpoint();
    world.fill(&volume, 6, 1, 79);
    world.run(volume.flush()).expect("flushed");
    let mut world = world.crash(2);
    let (volume, other) =
        ["disk", "other"].map(|name| world.pool.volume(name).expect("there")).into();
    world.checkpoint();
    assert_eq!(world.pool.figures().read_only, None);
    for (at, number) in [(5, 77), (6, 79)] {
        assert_eq!(world.read(&volume, at, 1), unique(number));
    }
    assert_eq!(world.read(&other, 5, 1), unique(78));
    let lost = world.try_read(&volume, 7, 1);
    assert_eq!(lost.err(), Some(BlockError::Medium), "and not as zeroes");
    assert_eq!(world.read(&volume, 128, 1), unique(129));

    let report = check(&mut world);
    assert_eq!(report.incomplete, None);
    let told: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
    let given_up =
        |it: &&String| it.starts_with(&format!("block {} (a page of a map) was", page.0));
    assert_eq!(told.iter().filter(given_up).count(), 1, "{told:?}");
    let named = "delete it: volume disk blocks 0..5, volume disk blocks 7..128";
    assert!(told.iter().any(|it| it.ends_with(named)), "{told:?}");
    // The blocks that the page named stay counted: their space is lost.
    let unnamed = |fault: &&Fault| fault.wrong == Wrong::Unnamed(1);
    assert_eq!(report.faults.iter().filter(unnamed).count(), 128);
    assert_eq!(report.faults.len(), 129, "{told:?}");

    world.run(volume.zero(range(7, 121), true)).expect("zeroed");
    world.fill(&volume, 0, 5, 200);
    world.checkpoint();
    assert_eq!(world.read(&volume, 7, 121), vec![0; 121 * BLOCK_SIZE]);
    assert!(check(&mut world).faults.iter().all(|fault| fault.wrong == Wrong::Unnamed(1)));
}

/// A snapshot has the damaged page too. Deleting the volume and the snapshot
/// ends, and leaves everybody else alone.
#[test]
fn what_a_damaged_page_belongs_to_can_be_deleted() {
    let mut world = World::new(3);
    let pool = Rc::clone(&world.pool);
    let (_, other) = world.volume("other", 1000);
    let (id, volume) = world.volume("disk", 1000);
    world.fill(&volume, 0, 300, 1);
    world.fill(&other, 0, 300, 1000);
    world.checkpoint();
    let snapshot = world.snapshot(id, "kept");
    world.checkpoint();
    rot(&mut world, Class::Map, "disk");
    world.fill(&volume, 5, 1, 77);
    world.checkpoint();
    let report = check(&mut world);
    let touches = report.faults.iter().flat_map(|fault| &fault.touches);
    let told: Vec<String> = touches.map(ToString::to_string).collect();
    assert!(told.contains(&"snapshot disk@kept blocks 0..128".to_owned()), "{told:?}");
    assert!(told.contains(&"volume disk blocks 6..128".to_owned()), "{told:?}");

    world.run(pool.delete_snapshot(snapshot)).expect("deleted");
    world.run(pool.delete_volume(id)).expect("deleted");
    (0..20).for_each(|_| world.checkpoint());
    assert_eq!(pool.deletions(), (0, 0));
    assert_eq!(pool.figures().read_only, None);
    assert_eq!(world.read(&other, 0, 300).len(), 300 * BLOCK_SIZE);
    assert!(check(&mut world).faults.iter().all(|fault| fault.wrong == Wrong::Unnamed(1)));
}

/// A page of seals rots, and a block is stored next to those that it has: the
/// pool goes on, and nothing is read otherwise.
#[test]
fn a_damaged_page_of_seals_costs_shares_and_no_block() {
    let mut world = World::new(5);
    let (_, volume) = world.volume("disk", 1000);
    world.fill(&volume, 0, 10, 1);
    world.checkpoint();
    let page = rot(&mut world, Class::Seals, "");
    world.fill(&volume, 10, 10, 11);
    world.checkpoint();
    assert!(check(&mut world).faults.iter().all(|fault| fault.pba != page));
    assert_eq!(world.pool.figures().read_only, None);
    world.fill(&volume, 100, 20, 1);
    assert_eq!(world.read(&volume, 0, 20), world.read(&volume, 100, 20));
}

/// For a while the device reads one page badly: this is no reason to give up
/// what is on it. When it reads nothing at all the pool takes no changes, and
/// is whole when the device is.
#[test]
fn a_page_that_cannot_be_read_for_a_moment_is_not_given_up() {
    let mut world = World::new(7);
    let (_, volume) = world.volume("disk", 1000);
    world.fill(&volume, 0, 300, 1);
    world.checkpoint();
    let page = rot(&mut world, Class::Map, "disk");
    world.disk.flip(page, 4000);
    drop(check(&mut world));
    let mut buffer = world.buffers.take().expect("a buffer");
    buffer[..BLOCK_SIZE].copy_from_slice(&unique(77));
    let write = volume.write(range(5, 1), buffer, 0, Durability::Cached);
    world.run(write).1.expect("written");
    world.disk.fail_reads(page);
    for at in [0, 1, 8192, 8193] {
        world.disk.fail_reads(Pba(at));
    }
    let pool = Rc::clone(&world.pool);
    world.run(pool.checkpoint()).expect_err("nothing can be read");
    assert!(pool.figures().read_only.is_some());
    drop((pool, volume));
    world.disk.heal();
    let mut world = world.crash(8);
    let volume = world.pool.volume("disk").expect("there");
    assert_eq!(world.read(&volume, 7, 1), unique(8));
    let report = check(&mut world);
    assert!(report.is_clean(), "{report:?}");
}
