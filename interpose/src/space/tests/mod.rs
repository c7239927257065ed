mod damage;
mod model;
mod sweep;
mod take;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use block_core::{BLOCK_SIZE, BlockCount, Extent, Pba, Pool};

use super::layout::{Segment, SegmentRoot};
use super::*;
use crate::both::both;
use crate::pages::disk::{Disk, vault};

/// A disk and a store over it.
fn store(buffers: usize) -> (Rc<Disk>, Rc<Pages<Disk>>) {
    let disk = Rc::new(Disk::default());
    let buffers = Pool::private(buffers, BLOCK_SIZE).expect("memory");
    (Rc::clone(&disk), Rc::new(Pages::new(disk, vault(), buffers)))
}

fn extent(start: u64, count: u64) -> Extent {
    Extent { start: Pba(start), count: BlockCount(count) }
}

/// A new pool's counts, whose first blocks are fixed places and then homes.
async fn formatted(pages: &Pages<Disk>, blocks: u64) -> SegmentRoot {
    let segment = Segment::new(extent(0, blocks), Pba(FIXED)).expect("fits");
    format(pages, segment, &[extent(0, FIXED)]).await.expect("written")
}

const FIXED: u64 = 7;

async fn opened(pages: &Rc<Pages<Disk>>, roots: Vec<SegmentRoot>) -> Space<Disk> {
    let (space, damage) = Space::open(Rc::clone(pages), roots).await;
    assert_eq!(damage, []);
    space
}

async fn fresh(pages: &Rc<Pages<Disk>>, blocks: u64) -> Space<Disk> {
    opened(pages, vec![formatted(pages, blocks).await]).await
}

/// Publishes and releases.
async fn published(space: &Space<Disk>, swept: Swept) -> Vec<Extent> {
    let published = space.publish(swept);
    space.release(published).await
}

/// Sweeps, publishes and releases.
async fn checkpoint(space: &Space<Disk>, changes: &[(u64, Change)]) {
    let changes = changes.iter().map(|&(pba, change)| (Pba(pba), change));
    let swept = space.sweep(changes, None, &|_| false).await.expect("swept");
    assert_eq!(published(space, swept).await, []);
}
