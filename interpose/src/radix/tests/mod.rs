//! Trees against maps: what a merge makes, a search finds and a walk comes by
//! is what a sorted map says; every pointer that goes is named once.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use block_core::{BLOCK_SIZE, Pba, Pool};

use super::*;
use crate::layout::pointer::POINTER_BYTES;
use crate::layout::{Epoch, EraId, Seal};
use crate::pages::disk::{Disk, run, vault};

mod cost;
mod damage;
mod model;

/// Values lie in the lower half of the disk, pages in the upper.
const FIRST_PAGE: u64 = Disk::BLOCKS / 2;

/// Buffers that are enough for one merge and one search, and hardly more.
const FEW: usize = Merge::<Disk, Blocks, fn(Pointer, u8)>::BUFFERS + 2;

struct Ground {
    disk: Rc<Disk>,
    pages: Rc<Pages<Disk>>,
    blocks: Blocks,
    values: Cell<u32>,
    few: bool,
}

/// Block after block; fails when told to.
#[derive(Clone, Default)]
struct Blocks {
    taken: Rc<RefCell<Vec<u64>>>,
    most: Rc<Cell<Option<usize>>>,
    goes_on: Rc<Cell<bool>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NoBlock;

impl Allocate for Blocks {
    type Error = NoBlock;

    async fn take_page(&self) -> Result<Pba, NoBlock> {
        turn::yield_now().await;
        let mut taken = self.taken.borrow_mut();
        if self.most.get().is_some_and(|most| taken.len() >= most) {
            return Err(NoBlock);
        }
        let pba = FIRST_PAGE + taken.len() as u64;
        taken.push(pba);
        Ok(Pba(pba))
    }

    async fn goes_on_without(&self, _: &Damage) -> bool {
        self.goes_on.get()
    }
}

impl Ground {
    fn new(buffers: usize) -> Self {
        let few = buffers <= FEW;
        let disk = Rc::new(Disk::default());
        let buffers = Pool::private(buffers, BLOCK_SIZE).expect("memory");
        let pages = Rc::new(Pages::new(Rc::clone(&disk), vault(), buffers));
        Self { disk, pages, blocks: Blocks::default(), values: Cell::new(0), few }
    }

    /// A value that there was not before.
    fn value(&self, birth: Epoch) -> Pointer {
        let number = self.values.replace(self.values.get() + 1) + 1;
        let seal = Seal { tag: [number as u8; 16], seq: number, era: EraId(9) };
        Pointer { seal, pba: Pba(u64::from(number) % FIRST_PAGE), birth, kind: Kind::Data }
    }

    async fn merge<K: FnMut(Pointer, u8)>(
        &self,
        tree: Tree,
        birth: u32,
        least_height: u8,
        killed: K,
    ) -> Merge<Disk, Blocks, K> {
        let (pages, blocks) = (Rc::clone(&self.pages), self.blocks.clone());
        Merge::new(pages, blocks, Class::Map, tree, Epoch(birth), least_height, killed)
            .await
            .expect("a root that can be")
    }

    /// A tree with fresh values at these indices.
    async fn plant(&self, tree: Tree, birth: u32, height: u8, indices: &[u64]) -> Tree {
        let mut merge = self.merge(tree, birth, height, |_, _| ()).await;
        for &index in indices {
            merge.put(index, self.value(Epoch(birth))).await.expect("put");
        }
        merge.finish().await.expect("written")
    }

    async fn items(&self, tree: Tree, born_after: Option<Epoch>) -> Vec<Item> {
        let mut walk = Walk::new(Rc::clone(&self.pages), Class::Map, tree, 0, born_after);
        let mut items = Vec::new();
        while let Some(item) = walk.next().await {
            items.push(item);
        }
        items
    }
}
