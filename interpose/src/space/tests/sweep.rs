use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::pages::disk::run;
use crate::space::layout::PAGE_COUNT;

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

/// A block is shared again while the checkpoint that kills its last pointer is
/// made: it is nobody's in the counts, and not free.
#[test]
fn what_is_referred_to_meanwhile_stays_taken() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        let block = space.take(Purpose::Data, 2).await.expect("free").start;
        let second = Pba(block.0 + 1);
        checkpoint(&space, &[(block.0, Change::Delta(1))]).await;
        let free = space.allocatable();
        let changes = [(block, Change::Delta(-1)), (second, Change::Delta(0))];
        let swept = space.sweep(changes, Some(BlockCount(1)), &|_| true).await.expect("swept");
        assert_eq!(swept.freed().0, 0);
        assert_eq!(published(&space, swept).await, []);
        assert_eq!((space.taken().0, space.durable_count(block)), (2, Some(0)));
        assert_eq!(space.allocatable(), free);
        checkpoint(&space, &[(block.0, Change::Delta(1)), (second.0, Change::Delta(1))]).await;
        assert_eq!((space.taken().0, space.durable_count(second)), (0, Some(1)));
    });
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

/// A pool that grew twice, whose segments have one and two levels of
/// directory.
const SEGMENTS: [u64; 3] = [600_000, 604_000, 900_000];

async fn grown() -> (Rc<Pages<Disk>>, Space<Disk>) {
    let (_, pages) = store(40);
    let space = fresh(&pages, SEGMENTS[0]).await;
    for to in &SEGMENTS[1..] {
        let grown = space.grow(BlockCount(*to)).await.expect("grown");
        let mut swept = space.sweep([], None, &|_| false).await.expect("swept");
        swept.grow(grown);
        published(&space, swept).await;
    }
    (pages, space)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Changes anywhere, in any number of pages below any number of directory
    /// pages of several segments: each arrives, and nothing else does.
    #[test]
    fn every_change_arrives_where_it_belongs(
        first in prop::collection::btree_set(0..SEGMENTS[2], 1..400),
        again in prop::collection::vec(any::<prop::sample::Index>(), 1..40),
    ) {
        run(async move {
            let (pages, space) = grown().await;
            let all: Vec<u64> = first.iter().copied().collect();
            let again = again.iter().map(|index| *index.get(&all)).collect();
            let mut model: BTreeMap<Pba, u16> = BTreeMap::new();
            for blocks in [&first, &again] {
                let mut changes = BTreeMap::new();
                for pba in blocks.iter().copied().map(Pba) {
                    match space.load_count(pba).await.expect("whole") {
                        PAGE_COUNT if model.contains_key(&pba) => {
                            changes.insert(pba, Change::Gone);
                            model.remove(&pba);
                        }
                        0 => {
                            assert!(space.claim(pba));
                            changes.insert(pba, Change::Page);
                            model.insert(pba, PAGE_COUNT);
                        }
                        _ => {}
                    }
                }
                let changes: Vec<_> = changes.into_iter().map(|(pba, c)| (pba.0, c)).collect();
                checkpoint(&space, &changes).await;
            }
            let free = space.allocatable();
            pages.purge();
            let space = opened(&pages, space.roots()).await;
            assert_eq!(space.allocatable(), free);
            space.verify_directory(|fault| panic!("{fault}")).await;
            let homes: Vec<Extent> = space.roots().iter().map(|r| r.segment.homes()).collect();
            let fixed = homes.into_iter().chain([extent(0, FIXED)]);
            let mut expected: BTreeMap<Pba, u16> = model;
            for fixed in fixed {
                expected.extend((fixed.start.0..fixed.end().0).map(|pba| (Pba(pba), PAGE_COUNT)));
            }
            let mut counts = BTreeMap::new();
            for region in 0..space.regions() {
                let whole = space.counts(region).await.expect("whole");
                counts.extend(whole.iter().filter(|(_, count)| *count > 0));
            }
            assert_eq!(counts, expected);
            assert_eq!(free.0, SEGMENTS[2] - expected.len() as u64);
        });
    }
}
