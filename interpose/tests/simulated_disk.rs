//! The simulated disk keeps its word, and breaks it only where a disk may.

mod disk;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use block_core::device::Durability;
use block_core::unit::{BLOCK_SIZE, BlockCount, Extent, Pba, SECTOR_SIZE};
use block_core::{BlockError, Buffer, Device, Pool};
use disk::null::NullDisk;
use disk::{Driver, FailureRates, Fate, Halt, Medium, Options, SimDisk};

const BLOCKS: BlockCount = BlockCount(64);

fn buffers() -> Pool {
    Pool::private(64, 2 * BLOCK_SIZE).expect("memory")
}

fn filled(pool: &Pool, byte: u8) -> Buffer {
    let mut buffer = pool.take().expect("a buffer");
    buffer.fill(byte);
    buffer
}

async fn write(disk: &SimDisk, pool: &Pool, at: u64, byte: u8) -> Result<(), BlockError> {
    let buffer = filled(pool, byte);
    disk.write(Pba(at), buffer, 0..1, Durability::Cached).await.1
}

async fn read(disk: &SimDisk, pool: &Pool, at: u64) -> Result<u8, BlockError> {
    let buffer = filled(pool, 0xaa);
    let (buffer, outcome) = disk.read(Pba(at), buffer, 1..2).await;
    let bytes = &buffer[BLOCK_SIZE..];
    assert!(outcome.is_err() || bytes.iter().all(|byte| *byte == bytes[0]));
    outcome.map(|()| bytes[0])
}

fn sectors(medium: &Medium, at: u64) -> Vec<u8> {
    medium.block(Pba(at)).chunks_exact(SECTOR_SIZE).map(|sector| sector[0]).collect()
}

/// A block was written, flushed, and written twice again: a cut leaves the
/// flushed one or a later one, each sector on its own; over many cuts all
/// sectors of all versions are seen, and whole losses too.
#[test]
fn a_cut_leaves_any_version_since_the_flush_and_none_before() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 1);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 1);
    let run = driver.run(async {
        write(&disk, &pool, 5, 1).await?;
        write(&disk, &pool, 5, 2).await?;
        disk.flush().await?;
        write(&disk, &pool, 5, 3).await?;
        write(&disk, &pool, 5, 4).await
    });
    assert_eq!(run, Ok(Ok(())));
    let mut seen = BTreeSet::new();
    let mut torn = 0;
    for _ in 0..1000 {
        let left = sectors(&disk.cut(), 5);
        torn += usize::from(left.iter().any(|&byte| byte != left[0]));
        seen.extend(left);
    }
    assert_eq!(seen, BTreeSet::from([2, 3, 4]));
    assert!((50..500).contains(&torn), "{torn} of 1000 torn");
    assert_eq!(sectors(&disk.shut_down(), 5), [4; 8]);
}

/// A flush sent while a write is on its way does not cover the write, even if
/// the disk happens to execute the write first.
#[test]
fn a_flush_covers_only_what_had_completed_when_it_was_sent() {
    let (mut covered, mut lost) = (0, 0);
    for seed in 0..200 {
        let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), seed);
        let pool = buffers();
        let mut driver = Driver::new(&disk, seed);
        let written = Cell::new(false);
        let both = driver.run(async {
            tokio::join!(
                async {
                    let outcome = write(&disk, &pool, 5, 1).await;
                    written.set(true);
                    outcome
                },
                async {
                    let write_came_first = written.get();
                    disk.flush().await.map(|()| (write_came_first, written.get()))
                }
            )
        });
        let Ok((Ok(()), Ok((false, executed_before)))) = both else { panic!("{both:?}") };
        covered += usize::from(executed_before);
        let gone = |_: &i32| sectors(&disk.cut(), 5) == [0; 8];
        lost += usize::from(executed_before && (0..20).filter(gone).count() > 0);
    }
    assert!(covered > 20 && lost == covered, "{lost} of {covered} writes could be lost");
}

/// The single block that is missing is what a missing flush looks like; a cut
/// must show it often, whatever else is in the cache.
#[test]
fn a_cut_often_misses_exactly_one_block() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 3);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 3);
    let run = driver.run(async {
        for at in 0..32 {
            write(&disk, &pool, at, 9).await?;
        }
        Ok::<_, BlockError>(())
    });
    assert_eq!(run, Ok(Ok(())));
    let missing = |medium: &Medium| (0..32).filter(|&at| sectors(medium, at) != [9; 8]).count();
    let mut cuts = [0; 33];
    (0..1600).for_each(|_| cuts[missing(&disk.cut())] += 1);
    for count in [0, 1, 31, 32] {
        assert!(cuts[count] >= 30, "{} cuts of 1600 missed {count} of 32", cuts[count]);
    }
}

/// What was written through, or to a disk without a cache, is there; a command
/// that never completed may be there as well, in part.
#[test]
fn a_completed_write_is_durable_without_a_cache_and_a_waiting_one_torn() {
    let disk = SimDisk::new(Medium::new(), Options::without_cache(BLOCKS), 4);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 4);
    assert_eq!(driver.run(write(&disk, &pool, 1, 7)), Ok(Ok(())));
    driver.spawn({
        let (disk, pool) = (disk.clone(), pool.clone());
        async move { assert_eq!(write(&disk, &pool, 2, 8).await, Ok(())) }
    });
    disk.stop_after(disk.operations());
    assert_eq!((driver.settle(), disk.waiting()), (Err(Halt::Stopped), 1));
    let seen: BTreeSet<_> = (0..64)
        .map(|_| {
            let left = disk.cut();
            assert_eq!(sectors(&left, 1), [7; 8]);
            sectors(&left, 2)
        })
        .collect();
    assert!(seen.len() > 3, "{seen:?}");

    let cached = SimDisk::new(Medium::new(), Options::new(BLOCKS), 4);
    let through = async {
        write(&cached, &pool, 3, 5).await?;
        let buffer = filled(&pool, 6);
        cached.write(Pba(3), buffer, 0..2, Durability::Through).await.1
    };
    assert_eq!(Driver::new(&cached, 4).run(through), Ok(Ok(())));
    for _ in 0..32 {
        let left = cached.cut();
        assert_eq!((sectors(&left, 3), sectors(&left, 4)), (vec![6; 8], vec![6; 8]));
    }
}

/// A run is its seed: every step of it, its cuts and its clock; another seed
/// is another order.
#[test]
fn the_same_seed_is_the_same_run() {
    fn run(seed: u64) -> (Vec<u64>, u64, Vec<u8>) {
        let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), seed);
        let (pool, order) = (buffers(), Rc::new(RefCell::new(Vec::new())));
        let mut driver = Driver::new(&disk, seed);
        for at in 0..16 {
            let (disk, pool, order) = (disk.clone(), pool.clone(), Rc::clone(&order));
            driver.spawn(async move {
                assert_eq!(write(&disk, &pool, at, 1).await, Ok(()));
                order.borrow_mut().push(at);
            });
        }
        driver.settle().expect("the disk goes on");
        let left = (0..16).flat_map(|at| sectors(&disk.cut(), at)).collect();
        let order = order.borrow().clone();
        (order, driver.clock().now().nanos(), left)
    }
    assert_eq!(run(1), run(1));
    let orders: BTreeSet<_> = (0..20).map(|seed| run(seed).0).collect();
    assert_eq!(orders.len(), 20);
}

/// Commands of many tasks are on their way together, and some are given up:
/// each answer goes to the one who asked.
#[test]
fn everybody_gets_his_own_answer() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 13);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 13);
    let done = Rc::new(Cell::new(0));
    for at in 0..16 {
        let (disk, pool, done) = (disk.clone(), pool.clone(), Rc::clone(&done));
        driver.spawn(async move {
            for byte in at as u8 * 8..at as u8 * 8 + 8 {
                assert_eq!(write(&disk, &pool, at, byte).await, Ok(()));
                tokio::select! {
                    biased;
                    _ = read(&disk, &pool, at) => panic!("read at once"),
                    () = std::future::ready(()) => {}
                }
                assert_eq!(read(&disk, &pool, at).await, Ok(byte));
                done.set(done.get() + 1);
            }
        });
    }
    driver.settle().expect("the disk goes on");
    assert_eq!((done.get(), disk.waiting(), pool.available()), (16 * 8, 0, 64));
}

/// After its last command nothing happens any more; the machine dies with it,
/// and buffers that were on their way come home when it is cleared away.
#[test]
fn a_stopped_disk_answers_nobody() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 6);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 6);
    disk.stop_after(10);
    let done = Cell::new(0);
    let halt = driver.run(async {
        loop {
            assert_eq!(write(&disk, &pool, 1, 1).await, Ok(()));
            done.set(done.get() + 1);
        }
    });
    assert_eq!(halt, Err::<(), _>(Halt::Stopped));
    assert!(disk.has_stopped() && !disk.step());
    assert_eq!(disk.operations(), 10);
    assert!((9..=10).contains(&done.get()));
    assert_eq!(pool.available() + disk.waiting(), 64);
}

#[test]
fn tasks_that_wait_for_each_other_are_stuck_and_time_helps_those_that_sleep() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 7);
    let mut driver = Driver::new(&disk, 7);
    assert_eq!(driver.run(std::future::pending::<()>()), Err(Halt::Stuck));
    let before = driver.clock().now();
    assert_eq!(driver.pass(Duration::from_secs(3600)), Ok(()));
    assert!(driver.clock().now() - before >= Duration::from_secs(3600));

    let (ticks, start) = (Rc::new(Cell::new(0)), driver.clock().now());
    let (seen, told) = (Rc::clone(&ticks), Rc::clone(&ticks));
    let due = move || (seen.get() < 5).then(|| start + Duration::from_secs(60 * seen.get()));
    driver.tick_at(due, move |_| told.set(told.get() + 1));
    assert_eq!(driver.pass(Duration::from_secs(200)), Ok(()));
    assert_eq!(ticks.get(), 4);
}

#[test]
fn what_fails_says_so_and_leaves_a_block_old_or_new() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 8);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 8);
    disk.fail_writes(Pba(3));
    let mut seen = BTreeSet::new();
    for byte in 1..60 {
        assert_eq!(driver.run(write(&disk, &pool, 3, byte)), Ok(Err(BlockError::Medium)));
        seen.insert(disk.peek(Pba(3))[0] == byte);
    }
    assert_eq!(seen.len(), 2);
    disk.heal();
    assert_eq!(driver.run(write(&disk, &pool, 3, 1)), Ok(Ok(())));
    disk.fail_reads(Pba(3));
    assert_eq!(driver.run(read(&disk, &pool, 3)), Ok(Err(BlockError::Medium)));
    assert_eq!(driver.run(read(&disk, &pool, 4)), Ok(Ok(0)));
    disk.heal();
    assert_eq!(driver.run(read(&disk, &pool, 3)), Ok(Ok(1)));
    disk.fail_some(FailureRates { flushes: 500_000, ..FailureRates::default() });
    let failed = (0..100).filter(|_| driver.run(disk.flush()) != Ok(Ok(()))).count();
    assert!((20..80).contains(&failed), "{failed} of 100 flushes failed");
}

#[test]
fn rot_and_stray_writes_are_where_they_were_put() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 9);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 9);
    disk.divert(|at, _| match at.0 {
        1 => Fate::At(Pba(2)),
        3 => Fate::Lost,
        _ => Fate::Lands,
    });
    for at in [1, 3, 4] {
        assert_eq!(driver.run(write(&disk, &pool, at, 7)), Ok(Ok(())));
    }
    let found: Vec<u8> = (1..5).map(|at| disk.peek(Pba(at))[0]).collect();
    assert_eq!(found, [0, 7, 0, 7]);
    disk.flip(Pba(4), 8 * 100 + 3);
    assert_eq!(disk.peek(Pba(4))[100], 7 ^ 8);
    disk.flip(Pba(4), 8 * 100 + 3);
    assert_eq!(driver.run(read(&disk, &pool, 4)), Ok(Ok(7)));
}

/// The controller was reset: writes that were answered are gone, one that was
/// under way fails, and what had been flushed is still there.
#[test]
fn a_lost_cache_takes_answered_writes_with_it_but_no_flushed_ones() {
    let mut lost = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), seed);
        let pool = buffers();
        let mut driver = Driver::new(&disk, seed);
        let first = driver.run(async {
            write(&disk, &pool, 1, 1).await?;
            disk.flush().await?;
            write(&disk, &pool, 2, 2).await
        });
        assert_eq!(first, Ok(Ok(())));
        let under_way = driver.run(async {
            tokio::join!(biased; write(&disk, &pool, 3, 3), async { disk.lose_cache() }).0
        });
        assert_eq!(under_way, Ok(Err(BlockError::Lost)));
        assert_eq!(disk.peek(Pba(1))[0], 1);
        lost += usize::from(disk.peek(Pba(2)) == [0; BLOCK_SIZE]);
        assert_eq!(driver.run(write(&disk, &pool, 4, 4)), Ok(Err(BlockError::Lost)));
        assert_eq!(driver.run(disk.flush()), Ok(Err(BlockError::Lost)));
    }
    assert!((5..45).contains(&lost), "the write was lost {lost} times of 50");
}

#[test]
fn deallocated_blocks_are_noise_or_zero_or_old_and_zeroed_ones_zero() {
    let disk = SimDisk::new(Medium::new(), Options::new(BLOCKS), 11);
    let pool = buffers();
    let mut driver = Driver::new(&disk, 11);
    let run = driver.run(async {
        for at in 0..64 {
            write(&disk, &pool, at, 1).await?;
        }
        disk.deallocate(Extent { start: Pba(0), count: BlockCount(48) }).await?;
        disk.write_zeroes(Extent { start: Pba(48), count: BlockCount(8) }, true).await
    });
    assert_eq!(run, Ok(Ok(())));
    let kinds: Vec<u8> = (0..64)
        .map(|at| match disk.peek(Pba(at)) {
            block if block == [0; BLOCK_SIZE] => 0,
            block if block == [1; BLOCK_SIZE] => 1,
            _ => 2,
        })
        .collect();
    assert_eq!(BTreeSet::from_iter(&kinds[..48]).len(), 3);
    assert_eq!(kinds[48..56], [0; 8]);
    assert_eq!(kinds[56..], [1; 8]);
}

/// A clone of a medium is another medium, however much they share.
#[test]
fn a_cloned_medium_does_not_change_with_its_original() {
    let mut medium = Medium::new();
    for at in [0, 63, 64, 4095, 1 << 20, (1 << 36) - 1] {
        medium.set(Pba(at), &[1; BLOCK_SIZE]);
    }
    let clone = medium.clone();
    medium.set(Pba(64), &[2; BLOCK_SIZE]);
    medium.set(Pba(63), &[0; BLOCK_SIZE]);
    medium.flip(Pba(4095), 0);
    assert_eq!((clone.block(Pba(64))[0], medium.block(Pba(64))[0]), (1, 2));
    assert_eq!((clone.block(Pba(4095))[0], medium.block(Pba(4095))[0]), (1, 0));
    let written: Vec<u64> = clone.written().iter().map(|at| at.0).collect();
    assert_eq!(written, [0, 63, 64, 4095, 1 << 20, (1 << 36) - 1]);
    assert!(!medium.written().contains(&Pba(63)));
}

#[test]
fn a_null_disk_keeps_what_it_should_and_counts_all() {
    let disk = NullDisk::new(BLOCKS, |at| at.0 >= 32);
    let pool = buffers();
    let sim = SimDisk::new(Medium::new(), Options::new(BLOCKS), 12);
    let bytes = Driver::new(&sim, 12).run(async {
        let buffer = filled(&pool, 3);
        let (buffer, _) = disk.write(Pba(31), buffer, 0..2, Durability::Cached).await;
        disk.flush().await.expect("always");
        let (buffer, _) = disk.read(Pba(31), buffer, 0..2).await;
        (buffer[0], buffer[BLOCK_SIZE])
    });
    assert_eq!((bytes, disk.kept()), (Ok((3, 0)), 1));
    let counts = disk.counts();
    assert_eq!((counts.writes, counts.blocks_written, counts.blocks_read), (1, 2, 2));
    assert_eq!(counts.flushes, 1);
}
