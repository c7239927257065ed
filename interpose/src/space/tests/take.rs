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

/// Two fill the same region one after the other: what is given back then goes
/// to one of them.
#[test]
fn a_block_that_is_given_back_is_handed_out_once() {
    run(async {
        let (_, pages) = store(64);
        let space = fresh(&pages, 5000).await;
        assert!((0..2048).chain(4096..5000).all(|pba| space.claim(Pba(pba))));
        let whole = space.take(Purpose::Data, 2048).await;
        assert_eq!(whole, Ok(extent(2048, 2048)));
        checkpoint(&space, &[(2100, Change::Delta(0)), (2101, Change::Delta(0))]).await;
        assert_eq!(space.take(Purpose::Pages, 1).await, Ok(extent(2100, 1)));
        space.give_back(extent(2102, 1));
        assert_eq!(space.take(Purpose::Data, 9).await, Ok(extent(2101, 2)));
        assert_eq!(space.take(Purpose::Pages, 9).await, Err(Full));
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
