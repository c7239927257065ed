//! Bugs that were found once, each with its story.

mod disk;
mod world;

use std::rc::Rc;
use std::time::Duration;

use block_core::device::Durability;
use block_core::unit::SectorRange;
use block_core::{BLOCK_SIZE, BlockCount, BlockError, Blocks, Op, Ordered, Request};
use interpose::check::CheckOptions;
use world::{World, range, unique};

fn expect_sound(world: &mut World) {
    let pool = Rc::clone(&world.pool);
    let report = world.run(pool.check(&CheckOptions::default(), &|_| {})).expect("looks");
    assert!(report.is_clean(), "{report:?}");
}

/// A guest writes what is there already, in the epoch in which it was written:
/// the map has the same pointer before and after, and the new reference was
/// counted while the old one was not given up. The block was never free again.
#[test]
fn a_block_rewritten_as_it_was_costs_no_reference() {
    let mut world = World::new(1);
    let (_, volume) = world.volume("disk", 100);
    for _ in 0..3 {
        world.fill(&volume, 0, 1, 1);
        world.checkpoint();
        assert_eq!(world.pool.figures().usage.references, 1);
        expect_sound(&mut world);
    }
    world.run(volume.zero(range(0, 1), true)).expect("zeroed");
    world.checkpoint();
    assert_eq!(world.pool.figures().usage.data, 0);
}

/// A write waits while its volume is made smaller, and then lies behind the
/// volume's end: there it came back when the volume grew again.
#[test]
fn a_late_write_does_not_land_behind_the_end_of_a_volume_that_shrank() {
    let mut refused = 0;
    for seed in 0..60 {
        let mut world = World::new(100 + seed);
        let (id, volume) = world.volume("disk", 100);
        world.fill(&volume, 0, 100, 1);
        let mut buffer = world.buffers.take().expect("a buffer");
        buffer[..BLOCK_SIZE].copy_from_slice(&unique(500));
        let pool = Rc::clone(&world.pool);
        let (resized, written) = world.run(async {
            tokio::join!(
                pool.resize_volume(id, BlockCount(10), Vec::new()),
                volume.write(range(50, 1), buffer, 0, Durability::Cached),
            )
        });
        resized.expect("made smaller");
        match written.1 {
            Ok(()) => {}
            Err(BlockError::OutOfRange) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        world.run(pool.resize_volume(id, BlockCount(100), Vec::new())).expect("made larger");
        assert_eq!(world.read(&volume, 10, 90), vec![0; 90 * BLOCK_SIZE], "seed {seed}");
    }
    assert!(refused > 5, "{refused} writes came late");
}

/// A block loses its last reference and is shared anew while a checkpoint
/// that knows only the former is being made. Then its durable count is 0, and
/// after a crash it was handed out, or could never be counted again.
#[test]
fn a_block_shared_while_a_checkpoint_gives_it_up_is_whole_after_a_crash() {
    let mut shared = 0;
    for seed in 0..40 {
        let mut world = World::new(200 + seed);
        let (_, volume) = world.volume("disk", 4000);
        world.fill(&volume, 3900, 1, 1);
        world.checkpoint();
        // What the checkpoint comes by before.
        (0..30).for_each(|at| world.fill(&volume, at * 128, 1, 100 + at));
        world.fill(&volume, 3900, 1, 2);
        let mut buffer = world.buffers.take().expect("a buffer");
        buffer[..BLOCK_SIZE].copy_from_slice(&unique(1));
        let (pool, clock) = (Rc::clone(&world.pool), world.driver.clock());
        let before = pool.figures().since.shared;
        let made = world.run(async {
            let write = async {
                clock.sleep(Duration::from_micros(seed * 10)).await;
                volume.write(range(3901, 1), buffer, 0, Durability::Cached).await.1
            };
            tokio::join!(pool.checkpoint(), write)
        });
        assert_eq!(made, (Ok(()), Ok(())));
        shared += pool.figures().since.shared - before;
        world.run(volume.flush()).expect("flushed");
        drop((pool, volume));
        let mut world = world.crash(300 + seed);
        let volume = world.pool.volume("disk").expect("there");
        world.fill(&volume, 100, 90, 1000);
        world.checkpoint();
        assert_eq!(world.read(&volume, 3901, 1), unique(1), "seed {seed}");
        expect_sound(&mut world);
    }
    assert!(shared > 5, "{shared} blocks were shared in time");
}

/// Fronts come and go, and no guest writes. Each attachment is a record in the
/// journal; only writes asked for a checkpoint, so the journal was full one day
/// and nobody could attach or detach any more.
#[test]
fn a_pool_to_which_nobody_writes_empties_its_journal() {
    let mut world = World::new(500);
    let (id, _) = world.volume("disk", 10);
    for number in 0..600u32 {
        let pool = Rc::clone(&world.pool);
        let attributes = number.to_le_bytes().to_vec();
        world.run(pool.set_attributes(id, attributes)).expect("stored");
    }
    let (ring, used) = world.pool.figures().journal;
    assert!(used < ring / 4 * 3, "{used} of {ring}");
}

/// A guest writes one sector. The rest of the block was read before the volume
/// was restored and written after it: the block was neither what the snapshot
/// had nor what it was made of.
#[test]
fn a_part_of_a_block_is_not_merged_with_what_was_before_a_restore() {
    const SECTOR: usize = 512;
    let (mut before, mut after) = (0, 0);
    for seed in 0..60 {
        let mut world = World::new(400 + seed);
        let (id, volume) = world.volume("disk", 10);
        let kept = unique(1);
        world.write(&volume, 0, &kept);
        let snapshot = world.snapshot(id, "kept");
        world.fill(&volume, 0, 1, 2);
        let scratch = Rc::new(tokio::sync::Mutex::new(world.buffers.take()));
        let ordered = Ordered::new(Rc::clone(&volume), scratch, 0);
        let mut buffer = world.buffers.take().expect("a buffer");
        buffer[SECTOR..2 * SECTOR].fill(7);
        let sectors = SectorRange::new(1, 1);
        let request = if seed % 2 == 0 {
            Request { op: Op::Write, range: sectors, buffer: Some(buffer) }
        } else {
            Request { op: Op::WriteZeroes, range: sectors, buffer: None }
        };
        let (pool, clock) = (Rc::clone(&world.pool), world.driver.clock());
        let (restored, served) = world.run(async {
            let restore = async {
                clock.sleep(Duration::from_nanos(seed * 600)).await;
                pool.restore(id, snapshot, Vec::new()).await
            };
            tokio::join!(biased; restore, ordered.serve(request))
        });
        restored.expect("restored");
        assert_eq!(served.outcome, Ok(()));
        let mut changed = kept.clone();
        changed[SECTOR..2 * SECTOR].fill(if seed % 2 == 0 { 7 } else { 0 });
        let found = world.read(&volume, 0, 1);
        before += usize::from(found == kept);
        after += usize::from(found == changed);
        assert!(found == kept || found == changed, "seed {seed}: a part is of the past");
    }
    assert!(before > 5 && after > 5, "{before} before, {after} after");
}

/// A guest's write finds that the device has lost its cache just after somebody
/// asked for a checkpoint and before it begins. None was made any more, and who
/// waited for it waited for ever.
#[test]
fn who_waits_for_a_checkpoint_is_told_that_the_pool_takes_no_changes() {
    for seed in 0..40 {
        let mut world = World::new(300 + seed);
        let (_, volume) = world.volume("disk", 100);
        world.fill(&volume, 0, 100, 1);
        world.disk.lose_cache();
        let mut buffer = world.buffers.take().expect("a buffer");
        buffer[..BLOCK_SIZE].copy_from_slice(&unique(500));
        let pool = Rc::clone(&world.pool);
        let (written, checkpoint) = world.run(async {
            tokio::join!(volume.write(range(50, 1), buffer, 0, Durability::Cached), async {
                pool.checkpoint().await
            })
        });
        assert!(written.1.is_err() && checkpoint.is_err(), "seed {seed}");
    }
}

/// A pool is told to grow while a checkpoint is being made that has just looked
/// whether it shall. That one forgot the wish, and its superblock said that the
/// pool had blocks of which it had no counts.
#[test]
fn a_pool_that_is_told_to_grow_during_a_checkpoint_grows() {
    for seed in 0..120 {
        let mut world = World::new(400 + seed);
        let (_, volume) = world.volume("disk", 100);
        world.fill(&volume, 0, 100, 1);
        world.disk.grow(BlockCount(world::DEVICE.0 + 4096));
        let pool = Rc::clone(&world.pool);
        let (checkpoint, grown) = world.run(async {
            tokio::join!(pool.checkpoint(), async {
                for _ in 0..seed {
                    turn::yield_now().await;
                }
                pool.grow().await
            })
        });
        checkpoint.expect("made");
        assert_eq!(grown, Ok(BlockCount(world::DEVICE.0 + 4096)), "seed {seed}");
        expect_sound(&mut world);
    }
}
