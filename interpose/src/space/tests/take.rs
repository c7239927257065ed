use super::*;
use crate::pages::disk::run;
use crate::space::layout::{PAGE_COUNT, homes_blocks};

/// A new pool has everything but its fixed places and homes, and says so.
#[test]
fn a_new_pool_is_free_but_for_its_fixed_places() {
    run(async {
        let (disk, pages) = store(64);
        let blocks = 300_000;
        let space = fresh(&pages, blocks).await;
        let taken = FIXED + homes_blocks(BlockCount(blocks)).0;
        assert_eq!(space.allocatable().0, blocks - taken);
        assert_eq!(disk.writes.get(), 1 + 1 + 1, "a page of each level");
        for (pba, count) in [(0, PAGE_COUNT), (taken - 1, PAGE_COUNT), (taken, 0), (blocks - 1, 0)]
        {
            assert_eq!(space.load_count(Pba(pba)).await, Ok(count), "{pba}");
            assert_eq!(space.durable_count(Pba(pba)), Some(count), "{pba}");
        }
        assert_eq!(space.load_count(Pba(blocks)).await, Ok(PAGE_COUNT));
        assert_eq!(space.verify_directory(|fault| panic!("{fault}")).await, 2 + 1);
    });
}

/// Guests' blocks and pages fill regions of their own, in ascending order,
/// also when they are taken in turn.
#[test]
fn purposes_do_not_interleave() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 20_000).await;
        let mut taken = [Vec::new(), Vec::new()];
        for _ in 0..100 {
            for purpose in Purpose::ALL {
                taken[purpose as usize].push(space.take(purpose, 5).await.expect("free"));
            }
        }
        for runs in &taken {
            assert!(runs.windows(2).all(|pair| pair[0].end() == pair[1].start), "{runs:?}");
        }
        let regions = taken.map(|runs| runs[0].start.0 / REGION_BLOCKS);
        assert_ne!(regions[0], regions[1]);
    });
}

/// With the task beside it, a busy worker's takes find the next region open.
#[test]
fn takes_rarely_wait_when_regions_are_opened_ahead() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 60_000).await;
        let takes = async {
            let mut waited = 0;
            for _ in 0..2500 {
                if space.try_take(Purpose::Data, 16).is_none() {
                    waited += 1;
                    space.take(Purpose::Data, 16).await.expect("free");
                }
                turn::yield_now().await;
            }
            waited
        };
        let mut ahead = pin!(space.keep_ahead());
        let mut takes = pin!(takes);
        let waited = poll_fn(|context| {
            assert!(ahead.as_mut().poll(context).is_pending());
            takes.as_mut().poll(context)
        })
        .await;
        assert!(waited <= 1, "{waited} takes waited");
    });
}

/// The last free blocks are in the region that the other purpose fills.
#[test]
fn a_pool_is_full_only_when_nothing_is_left() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        space.take(Purpose::Pages, 1).await.expect("free");
        let mut left = space.allocatable().0;
        while left > 0 {
            let extent = space.take(Purpose::Data, 100).await.expect("free");
            left -= extent.count.0;
            assert_eq!(space.allocatable().0, left);
        }
        assert_eq!(space.take(Purpose::Data, 1).await, Err(Full));
        assert_eq!(space.take(Purpose::Pages, 1).await, Err(Full));
        let back = extent(4000, 3);
        space.give_back(back);
        space.give_back(back);
        assert_eq!(space.allocatable().0, 3, "what is free is not given back twice");
        assert_eq!(space.take(Purpose::Pages, 9).await, Ok(back));
        space.set_aside(back);
        assert_eq!(space.take(Purpose::Data, 1).await, Err(Full));
    });
}

/// A killed block must not be overwritten while a read of it may run, nor
/// before the tree that does not name it is durable.
#[test]
fn what_is_killed_comes_back_when_its_checkpoint_is_published() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        let block = space.take(Purpose::Data, 1).await.expect("free").start;
        checkpoint(&space, &[(block.0, Change::Delta(1))]).await;
        assert_eq!((space.taken().0, space.durable_count(block)), (0, Some(1)));
        let free = space.allocatable();

        let swept =
            space.sweep([(block, Change::Delta(-1))], None, &|_| false).await.expect("swept");
        assert_eq!(swept.freed().0, 1);
        assert_eq!(space.load_count(block).await, Ok(1));
        assert_eq!(space.allocatable(), free);
        published(&space, swept).await;
        assert_eq!(space.load_count(block).await, Ok(0));
        assert_eq!(space.allocatable().0, free.0 + 1);
    });
}

/// A region's counts are being read while the next ones become the durable
/// ones: what was read is old, and says that a block in use is free.
#[test]
fn counts_that_were_replaced_while_they_were_read_are_read_again() {
    for turns in 0..30 {
        run(async move {
            let (_, pages) = store(64);
            let space = fresh(&pages, 5000).await;
            let blocks = 2048..4096;
            let first = blocks.start;
            assert!(space.claim(Pba(first)));
            checkpoint(&space, &[(first, Change::Delta(1))]).await;
            let space = opened(&pages, space.roots()).await;
            assert!((first + 1..first + 9).all(|pba| space.claim(Pba(pba))));
            let changes = (first + 1..first + 9).map(|pba| (Pba(pba), Change::Delta(1)));
            let changes = [(Pba(first), Change::Delta(1))].into_iter().chain(changes);
            let swept = space.sweep(changes, None, &|_| false).await.expect("swept");
            // The region is the emptiest when the others are filled.
            for (start, end) in [(0, first), (blocks.end, 5000)] {
                assert!((start..end).all(|pba| space.claim(Pba(pba))));
            }
            pages.purge();
            let replace = async {
                for _ in 0..turns {
                    turn::yield_now().await;
                }
                published(&space, swept).await
            };
            let reads = async {
                let count = space.load_count(Pba(first)).await;
                (count, space.published())
            };
            let (((count, published), taken), _) =
                both(both(reads, space.take(Purpose::Data, 1)), replace).await;
            assert_eq!(count, Ok(1 + published as u16), "after {turns} turns");
            assert_eq!(taken, Ok(extent(first + 9, 1)), "after {turns} turns");
        });
    }
}

/// A block whose deallocation is on its way must not be written meanwhile.
#[test]
fn long_runs_stay_taken_until_they_are_deallocated() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 9000).await;
        let whole = space.take(Purpose::Data, 2048).await.expect("free");
        let next = space.take(Purpose::Data, 500).await.expect("free");
        assert_eq!(whole.end(), next.start, "two regions");
        let free = space.allocatable().0;
        let one = |pba, change| (Pba(pba), change);
        let born = (whole.start.0..next.start.0 + 10).map(|pba| one(pba, Change::Delta(1)));
        let swept = space.sweep(born, Some(BlockCount(8)), &|_| false).await.expect("swept");
        assert_eq!(published(&space, swept).await, []);

        // The last two died before they were durable: free all the same.
        let killed = (whole.start.0 + 2..next.start.0 + 10).map(|pba| one(pba, Change::Delta(-1)));
        let never = (next.start.0 + 10..next.start.0 + 12).map(|pba| one(pba, Change::Delta(0)));
        let alone = [one(whole.start.0, Change::Delta(-1))];
        let changes = alone.into_iter().chain(killed).chain(never);
        let swept = space.sweep(changes, Some(BlockCount(8)), &|_| false).await.expect("swept");
        let freed = swept.freed().0;
        let runs = published(&space, swept).await;
        assert_eq!(runs, [extent(whole.start.0 + 2, whole.count.0 - 2 + 12)]);
        assert_eq!(space.allocatable().0, free + freed - runs[0].count.0);
        space.give_back(runs[0]);
        assert_eq!(space.allocatable().0, free + freed);
    });
}

/// What grows is there when the superblock that names it is, and after a crash
/// before that it is not.
#[test]
fn a_pool_grows_by_a_segment_with_counts_of_its_own() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        let roots = space.roots();
        let grown = space.grow(BlockCount(8000)).await.expect("grown");
        let before = space.allocatable().0;
        let mut swept = space.sweep([], None, &|_| false).await.expect("swept");
        swept.grow(grown);
        assert_eq!(swept.roots().len(), 2);
        assert_eq!(space.total().0, 5000);
        published(&space, swept).await;
        let homes = homes_blocks(BlockCount(3000)).0;
        assert_eq!((space.total().0, space.allocatable().0), (8000, before + 3000 - homes));
        for (pba, count) in [(4999, 0), (5000, PAGE_COUNT), (5000 + homes, 0)] {
            assert_eq!(space.load_count(Pba(pba)).await, Ok(count), "{pba}");
        }
        assert!(matches!(
            space.grow(BlockCount(8004)).await,
            Err(GrowError::Size { by: BlockCount(4) })
        ));
        assert_eq!(opened(&pages, roots).await.total().0, 5000);
        let again = opened(&pages, space.roots()).await;
        assert_eq!(again.allocatable(), space.allocatable());
    });
}

/// A TiB's worth of levels: pages far apart are swept in one pass, each once.
#[test]
fn a_sweep_writes_each_page_that_changed_once() {
    run(async {
        let (disk, pages) = store(64);
        let blocks = Disk::BLOCKS;
        let space = fresh(&pages, blocks).await;
        let far: Vec<Pba> = (0..512).map(|region| Pba(region * REGION_BLOCKS + 2040)).collect();
        assert!(far.iter().all(|&pba| space.claim(pba)));
        let before = disk.writes.get();
        let changes = far.iter().map(|&pba| (pba, Change::Page));
        let swept = space.sweep(changes, None, &|_| false).await.expect("swept");
        assert_eq!(disk.writes.get() - before, 512 + 4 + 1);
        published(&space, swept).await;
        pages.purge();
        let space = opened(&pages, space.roots()).await;
        for pba in far {
            assert_eq!(space.load_count(pba).await, Ok(PAGE_COUNT));
        }
        assert_eq!(space.verify_directory(|fault| panic!("{fault}")).await, 4 + 1);
    });
}
