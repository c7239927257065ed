//! Everything that a tree points at, in the order of its indices.

use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;

use block_core::Device;

use super::ahead::Ahead;
use super::{Rules, Tree, slot, span};
use crate::layout::pointer::POINTERS;
use crate::layout::{Class, Epoch, Pointer};
use crate::pages::{Damage, Page, Pages, What};

/// Pages of level 1 that are read before they are needed.
const AHEAD: usize = 8;

/// Entries looked at between two yields; a page that is opened counts as
/// [`PAGE_STEPS`] of them.
const STEPS: u32 = 256;
const PAGE_STEPS: u32 = 8;

/// What a walk comes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A value that is not a hole.
    Value {
        /// Where it lies in the tree.
        index: u64,
        /// Where it lies on the device.
        pointer: Pointer,
    },
    /// A page, after everything below it.
    Page {
        /// Where it lies.
        pointer: Pointer,
        /// How far it is above the values, which have 0.
        level: u8,
        /// The first index below it.
        first: u64,
    },
    /// Indices of which nothing is known.
    Damaged {
        /// Which ones.
        indices: Range<u64>,
        /// The page that cannot be had, or says what cannot be; in the latter
        /// case it follows as [`Item::Page`] too. Or what stands where a page
        /// was given up.
        pointer: Pointer,
        /// That page's level; of what was given up, that of the indices.
        level: u8,
        /// What is wrong with it.
        damage: Damage,
    },
}

/// A walk over a tree. It holds at most [`Walk::<D>::BUFFERS`] pages; those
/// that it reads are not kept, but for the upper ones.
pub struct Walk<D> {
    pages: Rc<Pages<D>>,
    rules: Rules,
    tree: Tree,
    born_after: Option<Epoch>,
    from: u64,
    begun: bool,
    path: Vec<Node>,
    ahead: Ahead,
    steps: u32,
}

struct Node {
    page: Page,
    pointer: Pointer,
    level: u8,
    first: u64,
    /// The next place to look at.
    slot: usize,
}

impl<D: Device + 'static> Walk<D> {
    /// Pages that a walk may hold while it asks for another.
    pub const BUFFERS: usize = super::MAX_HEIGHT as usize + AHEAD;

    /// A walk from an index on, past all that was not born after an epoch.
    #[must_use]
    pub fn new(
        pages: Rc<Pages<D>>,
        class: Class,
        tree: Tree,
        from: u64,
        born_after: Option<Epoch>,
    ) -> Self {
        let rules = Rules::new(&pages, class);
        let (path, ahead) = (Vec::with_capacity(tree.height.into()), Ahead::default());
        Self { pages, rules, tree, born_after, from, begun: false, path, ahead, steps: 0 }
    }

    /// Where another walk may begin to come by exactly what this one has not:
    /// the first index that nothing was said of. `None` as long as a page
    /// whose indices are behind has not been reported: a few items later there
    /// is one again.
    #[must_use]
    pub fn cursor(&self) -> Option<u64> {
        let Some(node) = self.path.last() else {
            return Some(if self.begun { self.tree.capacity() } else { self.from });
        };
        let at = node.first + node.slot as u64 * span(node.level - 1);
        (node.slot < POINTERS).then_some(at)
    }

    /// The next item, or `None` at the end.
    pub async fn next(&mut self) -> Option<Item> {
        if !self.begun
            && let Some(damaged) = self.begin().await
        {
            return Some(damaged);
        }
        loop {
            self.pause().await;
            let node = self.path.last_mut()?;
            if node.slot == POINTERS {
                let Node { pointer, level, first, .. } = *node;
                self.path.pop();
                return Some(Item::Page { pointer, level, first });
            }
            let (below, slot) = (node.level - 1, node.slot);
            let first = node.first + slot as u64 * span(below);
            let entry = self.rules.entry(&node.page, node.pointer.pba, node.level, slot);
            let (pointer, level) = (node.pointer, node.level);
            match entry {
                Ok(pointer) if !is_wanted(&pointer, self.born_after) => node.slot += 1,
                Ok(pointer) if pointer.is_lost() => {
                    node.slot += 1;
                    return Some(self.given_up(pointer, below, first));
                }
                Ok(pointer) if below == 0 => {
                    node.slot += 1;
                    return Some(Item::Value { index: first, pointer });
                }
                Ok(pointer) => {
                    if let Some(damaged) = self.enter(pointer, below, first).await {
                        return Some(damaged);
                    }
                }
                Err(damage) => {
                    node.slot += 1;
                    let indices = first..first + span(below);
                    return Some(Item::Damaged { indices, pointer, level, damage });
                }
            }
        }
    }

    fn given_up(&self, pointer: Pointer, level: u8, first: u64) -> Item {
        let damage = Damage { pba: pointer.pba, class: self.rules.class, what: What::GivenUp };
        Item::Damaged { indices: first..first + span(level), pointer, level, damage }
    }

    async fn begin(&mut self) -> Option<Item> {
        let height = self.tree.height;
        let damaged = match self.rules.root(&self.tree) {
            _ if self.from >= self.tree.capacity() => None,
            Ok(root) if !is_wanted(&root, self.born_after) => None,
            Ok(root) if root.is_lost() => Some(self.given_up(root, height, 0)),
            Ok(root) => self.enter(root, height, 0).await,
            Err(damage) => Some(Item::Damaged {
                indices: 0..span(height),
                pointer: self.tree.root,
                level: height,
                damage,
            }),
        };
        self.begun = true;
        damaged
    }

    /// Goes down to a page. The place above moves on in the same step, so
    /// that a walk whose `next` was given up goes on where it was.
    async fn enter(&mut self, pointer: Pointer, level: u8, first: u64) -> Option<Item> {
        self.steps += PAGE_STEPS;
        if level == 1 {
            self.read_ahead();
        }
        let loaded = self.load(&pointer, level, first).await;
        if let Some(above) = self.path.last_mut() {
            above.slot += 1;
        }
        match loaded {
            Ok(page) => {
                let slot = if self.from > first { slot(self.from, level) } else { 0 };
                self.path.push(Node { page, pointer, level, first, slot });
                None
            }
            Err(damage) => {
                let indices = first..first + span(level);
                Some(Item::Damaged { indices, pointer, level, damage })
            }
        }
    }

    async fn load(&mut self, pointer: &Pointer, level: u8, first: u64) -> Result<Page, Damage> {
        let binding = self.rules.binding(level, pointer.pba);
        if level > 1 {
            return self.pages.load(&pointer.seal, binding).await;
        }
        if self.ahead.expects(first) {
            let taken = poll_fn(|context| {
                self.ahead.poll(context);
                self.ahead.take()
            });
            if let Some(page) = taken.await? {
                return Ok(page);
            }
        }
        let mut load = pin!(self.pages.load_once(&pointer.seal, binding));
        poll_fn(|context| {
            self.ahead.poll(context);
            load.as_mut().poll(context)
        })
        .await
    }

    /// Asks for the pages of level 1 that come next below the page at the end
    /// of the path.
    fn read_ahead(&mut self) {
        let Some(node) = self.path.last() else { return };
        let next = match self.ahead.last() {
            Some(last) if last >= node.first => slot(last, 2) + 1,
            _ => node.slot,
        };
        for slot in next..POINTERS {
            if self.ahead.len() == AHEAD {
                break;
            }
            let entry = self.rules.entry(&node.page, node.pointer.pba, node.level, slot);
            let Ok(pointer) = entry else { continue };
            if is_wanted(&pointer, self.born_after) && !pointer.is_lost() {
                let (pages, binding) = (Rc::clone(&self.pages), self.rules.binding(1, pointer.pba));
                let first = node.first + slot as u64 * span(1);
                let read = async move { pages.load_ahead(&pointer.seal, binding).await };
                self.ahead.push(first, read);
            }
        }
    }

    async fn pause(&mut self) {
        self.steps += 1;
        if self.steps >= STEPS {
            self.steps = 0;
            turn::yield_now().await;
        }
    }
}

fn is_wanted(pointer: &Pointer, born_after: Option<Epoch>) -> bool {
    !pointer.is_hole() && born_after.is_none_or(|bound| pointer.birth > bound)
}
