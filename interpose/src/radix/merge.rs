//! Changes, by ascending index, become a new tree: copy on write.

use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use block_core::{Device, Pba};
use thiserror::Error;

use super::beside::{Beside, READS, WRITES};
use super::{Item, Rules, Tree, Walk, first_index, slot, span};
use crate::hash::is_zero;
use crate::layout::pointer::POINTER_BYTES;
use crate::layout::{Class, Epoch, Kind, Pointer};
use crate::pages::{Damage, Page, PageBuf, Pages, PagesError, What};

/// Changes between two yields; a page that is written counts as
/// [`PAGE_STEPS`] of them.
const STEPS: u32 = 256;
const PAGE_STEPS: u32 = 8;

/// Where a merge gets blocks from for the pages it writes.
pub trait Allocate {
    /// Why there is none.
    type Error;

    /// A block for a page. Each is used, once, unless the merge fails.
    fn take_page(&self) -> impl Future<Output = Result<Pba, Self::Error>>;

    /// Whether the merge goes on without a page of the old tree that cannot be
    /// had however often it is read: then what it said is lost. Else the merge
    /// fails.
    fn goes_on_without(&self, damage: &Damage) -> impl Future<Output = bool>;
}

/// How often a page is read that cannot be had: a device may fail for a moment.
pub const TRIES: u32 = 8;

/// Why a merge came to nothing. The tree it began with is as it was; what was
/// reported as killed is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MergeError<E> {
    /// A page of the old tree cannot be had.
    #[error("{0}")]
    Damaged(#[from] Damage),
    /// A page of the new tree cannot be written.
    #[error("{0}")]
    Unwritten(#[from] PagesError),
    /// There is no block for a page.
    #[error("{0}")]
    Unallocated(E),
    /// An index that the tree does not have, or that does not ascend, or a
    /// value that cannot stand there.
    #[error("a change of a tree is one that cannot be")]
    Impossible,
    /// An earlier step failed or was given up.
    #[error("the merge is over")]
    Over,
}

/// A tree that is being rewritten.
///
/// Every pointer that is replaced, at any level, goes to `killed` with its
/// level (0: a value) exactly once. Pages are written behind the merge, up to
/// 16 at a time; the new tree is there when [`Merge::finish`] says so. The
/// merge holds at most [`Merge::<D, A, K>::BUFFERS`] pages.
pub struct Merge<D, A, K> {
    pages: Rc<Pages<D>>,
    allocator: A,
    killed: K,
    rules: Rules,
    birth: Epoch,
    old: Tree,
    height: u8,
    root: Pointer,
    /// The open pages, from the highest down.
    path: Vec<Node>,
    /// The least index that may come next.
    next: u64,
    beside: Beside,
    is_sound: bool,
    steps: u32,
}

struct Node {
    level: u8,
    first: u64,
    was: Pointer,
    content: Content,
    keep: bool,
}

enum Content {
    Holes,
    /// The page is lost, and so is whatever this pointer stands for.
    Lost(Pointer),
    Read(Page),
    Changed(PageBuf),
}

type Step<T, A> = Result<T, MergeError<<A as Allocate>::Error>>;

impl<D: Device + 'static, A: Allocate, K: FnMut(Pointer, u8)> Merge<D, A, K> {
    /// Pages that a merge may hold while it asks for another.
    pub const BUFFERS: usize = super::MAX_HEIGHT as usize + WRITES + READS + Walk::<D>::BUFFERS;

    /// Begins to rewrite `tree`, which gets at least the least height; the
    /// pages that are written have the birth given.
    ///
    /// # Errors
    /// When the tree's root cannot be.
    pub async fn new(
        pages: Rc<Pages<D>>,
        allocator: A,
        class: Class,
        tree: Tree,
        birth: Epoch,
        least_height: u8,
        killed: K,
    ) -> Step<Self, A> {
        let rules = Rules::new(&pages, class);
        let height = tree.height.max(least_height);
        assert!(height <= super::MAX_HEIGHT, "the caller has checked the size");
        let root = rules.root(&tree)?;
        let mut merge = Self {
            pages,
            allocator,
            killed,
            rules,
            birth,
            old: tree,
            height,
            root,
            path: Vec::with_capacity(height.into()),
            next: 0,
            beside: Beside::default(),
            is_sound: true,
            steps: 0,
        };
        if !root.is_hole() {
            merge.raise().await;
        }
        Ok(merge)
    }

    /// Puts pages above the old root: it becomes the first entry of the lowest.
    async fn raise(&mut self) {
        for level in (self.old.height + 1..=self.height).rev() {
            let mut page = self.pages.blank().await;
            if level == self.old.height + 1 {
                page[..POINTER_BYTES].copy_from_slice(&self.root.encode());
            }
            let content = Content::Changed(page);
            let was = Pointer::HOLE;
            self.path.push(Node { level, first: 0, was, content, keep: true });
        }
        if self.height > self.old.height {
            self.root = Pointer::HOLE;
        }
    }

    /// Says that an index comes soon, so that the page that has it is read
    /// meanwhile: ascending. `false` when enough are on their way; ask again
    /// after the next change.
    pub fn expect(&mut self, index: u64) -> bool {
        let first = first_index(index, 1);
        if self.beside.ahead.last().is_some_and(|last| last >= first) || first < self.next {
            return true;
        }
        if self.beside.ahead.len() == READS {
            return false;
        }
        let (pages, rules, old) = (Rc::clone(&self.pages), self.rules, self.old);
        self.beside.ahead.push(first, async move {
            let mut pointer = rules.root(&old)?;
            for level in (1..=old.height).rev() {
                if pointer.is_an_end() || index >= old.capacity() {
                    break;
                }
                let load = pages.load_ahead(&pointer.seal, rules.binding(level, pointer.pba));
                let Some(page) = load.await? else { break };
                if level == 1 {
                    return Ok(Some(page));
                }
                pages.keep(&page);
                pointer = rules.entry(&page, pointer.pba, level, slot(index, level))?;
            }
            Ok(None)
        });
        true
    }

    /// What lies at an index that is not behind the merge.
    ///
    /// # Errors
    /// When a page on the way cannot be had or written.
    pub async fn value(&mut self, index: u64) -> Step<Pointer, A> {
        self.begin(index, index)?;
        if index == self.capacity() {
            return Err(MergeError::Impossible);
        }
        self.go_to(index, 1).await?;
        let value = self.entry(index)?;
        self.is_sound = true;
        Ok(value)
    }

    /// Puts a value at an index above all that were changed so far. The same
    /// pointer as before changes no page; what was there is killed all the
    /// same, for whoever counts pointers has counted the new one.
    ///
    /// # Errors
    /// When a page on the way cannot be had or written.
    pub async fn put(&mut self, index: u64, pointer: Pointer) -> Step<(), A> {
        if !self.rules.admit(&pointer, 0) {
            self.is_sound = false;
            return Err(MergeError::Impossible);
        }
        let pointer = if pointer.is_hole() { Pointer::HOLE } else { pointer };
        self.begin(index, index.saturating_add(1))?;
        if self.has_worked_enough() {
            self.pause().await;
        }
        if !self.is_at(index, 1) {
            self.go_to(index, 1).await?;
        }
        let was = self.entry(index)?;
        if was != pointer && !(was.is_hole() && pointer.is_hole()) {
            if !self.is_changing() {
                self.begin_change().await;
            }
            self.set(index, pointer);
        }
        self.kill(was, 0);
        self.is_sound = true;
        Ok(())
    }

    /// Makes holes of a range of indices, which begins above all that were
    /// changed so far. What lies behind the tree's last index is left out.
    ///
    /// # Errors
    /// When a page in the range cannot be had or one on the way written.
    pub async fn clear(&mut self, range: Range<u64>) -> Step<(), A> {
        let end = range.end.min(self.capacity());
        if range.start >= end {
            return Ok(());
        }
        self.begin(range.start, end)?;
        let mut at = range.start;
        while at < end {
            if self.has_worked_enough() {
                self.pause().await;
            }
            at = self.clear_next(at, end).await?;
        }
        self.is_sound = true;
        Ok(())
    }

    /// Clears the largest subtree that begins at an index and ends before
    /// `end`, or finds a hole there. Returns where it ends.
    async fn clear_next(&mut self, at: u64, end: u64) -> Step<u64, A> {
        let fits = |level: &u8| at.is_multiple_of(span(*level)) && at + span(*level) <= end;
        let mut level = (0..=self.height).rev().find(fits).unwrap_or(0);
        // A page that was changed and begins here was put above the old root:
        // it is not part of what there was.
        if let Some(Node { level: raised, first, content: Content::Changed(_), .. }) =
            self.path.last()
            && *first == at
        {
            level = level.min(raised - 1);
        }
        let reached = self.go_down(at, level + 1).await?;
        if reached > level + 1 {
            return Ok(first_index(at, reached - 1) + span(reached - 1));
        }
        let was = if level == self.height { self.root } else { self.entry(at)? };
        if !was.is_hole() {
            if level > 0 && !was.is_lost() {
                self.kill_below(was, level).await?;
            }
            if level == self.height {
                self.root = Pointer::HOLE;
            } else {
                self.begin_change().await;
                self.set(at, Pointer::HOLE);
            }
            self.kill(was, level);
        }
        Ok(at + span(level))
    }

    async fn kill_below(&mut self, pointer: Pointer, level: u8) -> Step<(), A> {
        let Some(tree) = Tree::new(pointer, level) else { return Ok(()) };
        let mut walk = Walk::new(Rc::clone(&self.pages), self.rules.class, tree, 0, None);
        while let Some(item) = self.beside.attend(walk.next()).await {
            match item {
                Item::Value { pointer, .. } => self.kill(pointer, 0),
                // The highest is reported by the caller.
                Item::Page { pointer, level: below, .. } if below < level => {
                    self.kill(pointer, below);
                }
                Item::Page { .. } => {}
                Item::Damaged { damage, .. } if damage.what == What::GivenUp => {}
                Item::Damaged { pointer, level: below, damage, .. } => {
                    let tried = try_again(
                        &self.pages,
                        self.rules,
                        &self.allocator,
                        &pointer,
                        below,
                        damage,
                    );
                    match self.beside.attend(tried).await? {
                        Some(_) => Box::pin(self.kill_below(pointer, below)).await?,
                        None if damage.what == What::Malformed => continue,
                        None => {}
                    }
                    if below < level {
                        self.kill(pointer, below);
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes what is left. The tree is new when all is written; a device
    /// flush makes it durable. When it fails no write is on its way any more,
    /// so after an error of another step this is how to wait for that.
    ///
    /// # Errors
    /// When a page cannot be had or written, or an earlier step failed.
    pub async fn finish(mut self) -> Step<Tree, A> {
        let closed = self.close_all().await;
        let written = self.beside.end().await;
        closed?;
        written?;
        Ok(Tree { root: self.root, height: self.height })
    }

    async fn close_all(&mut self) -> Step<(), A> {
        self.begin(self.next, self.next)?;
        while let Some(node) = self.path.pop() {
            self.close(node).await?;
        }
        Ok(())
    }

    const fn capacity(&self) -> u64 {
        Tree { root: self.root, height: self.height }.capacity()
    }

    /// A step begins. It is not sound until it ends.
    fn begin(&mut self, index: u64, next: u64) -> Step<(), A> {
        if !std::mem::replace(&mut self.is_sound, false) {
            return Err(MergeError::Over);
        }
        if index < self.next || index > next || next > self.capacity() {
            return Err(MergeError::Impossible);
        }
        self.next = next;
        Ok(())
    }

    /// Whether the last open page is the one at a level that has an index.
    fn is_at(&self, index: u64, level: u8) -> bool {
        let has = |node: &Node| node.level == level && first_index(index, level) == node.first;
        self.path.last().is_some_and(has)
    }

    /// Opens the page at a level that has an index.
    async fn go_to(&mut self, index: u64, level: u8) -> Step<(), A> {
        self.leave(index, level).await?;
        while self.path.last().is_none_or(|node| node.level > level) {
            self.open(index).await?;
        }
        Ok(())
    }

    /// The same, but not below a hole. Returns the level of the last page that
    /// is open, one more than the tree's height if none is.
    async fn go_down(&mut self, index: u64, level: u8) -> Step<u8, A> {
        self.leave(index, level).await?;
        let mut reached = self.path.last().map_or(self.height + 1, |node| node.level);
        while reached > level {
            let below = if self.path.is_empty() { self.root } else { self.entry(index)? };
            if below.is_hole() {
                break;
            }
            self.open(index).await?;
            reached -= 1;
        }
        Ok(reached)
    }

    /// Closes the pages that an index is not in, and those below a level.
    async fn leave(&mut self, index: u64, level: u8) -> Step<(), A> {
        let is_left =
            |node: &mut Node| node.level < level || first_index(index, node.level) != node.first;
        while let Some(node) = self.path.pop_if(is_left) {
            self.close(node).await?;
        }
        Ok(())
    }

    /// Opens the page below the last open one that has an index.
    async fn open(&mut self, index: u64) -> Step<(), A> {
        let (was, level) = match self.path.last() {
            Some(node) => (self.entry(index)?, node.level - 1),
            None => (self.root, self.height),
        };
        let first = first_index(index, level);
        let (content, keep) = match was.kind {
            Kind::Hole => (Content::Holes, level > 1),
            Kind::Lost => (Content::Lost(was), level > 1),
            Kind::Data | Kind::Page => match self.load(&was, level, first).await {
                // What readers use now they will use anew.
                Ok(page) => (Content::Read(page), level > 1 || self.pages.keeps(&was.seal)),
                Err(MergeError::Damaged(damage)) => {
                    (self.content_of(&was, level, damage).await?, level > 1)
                }
                Err(error) => return Err(error),
            },
        };
        self.path.push(Node { level, first, was, content, keep });
        Ok(())
    }

    /// What a page says that could not be had at first.
    async fn content_of(&mut self, was: &Pointer, level: u8, damage: Damage) -> Step<Content, A> {
        let tried = try_again(&self.pages, self.rules, &self.allocator, was, level, damage);
        Ok(match self.beside.attend(tried).await? {
            Some(page) => Content::Read(page),
            None if self.rules.class == Class::Map => {
                Content::Lost(Pointer::lost(was.pba, self.birth))
            }
            None => Content::Holes,
        })
    }

    async fn load(&mut self, pointer: &Pointer, level: u8, first: u64) -> Step<Page, A> {
        let binding = self.rules.binding(level, pointer.pba);
        if level > 1 {
            let load = self.pages.load(&pointer.seal, binding);
            return Ok(self.beside.attend(load).await?);
        }
        if self.beside.ahead.expects(first)
            && let Some(page) = self.beside.expected().await?
            && page.seal() == pointer.seal
        {
            return Ok(page);
        }
        let load = self.pages.load_once(&pointer.seal, binding);
        Ok(self.beside.attend(load).await?)
    }

    /// Writes a page that was changed, or makes a hole of it, and tells the
    /// page above.
    async fn close(&mut self, node: Node) -> Step<(), A> {
        let Content::Changed(page) = node.content else { return Ok(()) };
        let pointer = if is_zero(&page) {
            Pointer::HOLE
        } else {
            self.steps += PAGE_STEPS;
            self.beside.room().await?;
            let taken = self.beside.attend(self.allocator.take_page()).await;
            let pba = taken.map_err(MergeError::Unallocated)?;
            let binding = self.rules.binding(node.level, pba);
            let (seal, write) = self.pages.begin_write(binding, page, node.keep)?;
            self.beside.start(write).await;
            Pointer { seal, pba, birth: self.birth, kind: Kind::Page }
        };
        self.kill(node.was, node.level);
        if self.path.is_empty() {
            self.root = pointer;
        } else {
            self.begin_change().await;
            self.set(node.first, pointer);
        }
        Ok(())
    }

    fn kill(&mut self, pointer: Pointer, level: u8) {
        if !pointer.is_an_end() {
            (self.killed)(pointer, level);
        }
    }

    /// The entry for an index in the last open page.
    fn entry(&self, index: u64) -> Step<Pointer, A> {
        let Some(node) = self.path.last() else { return Ok(self.root) };
        let page: &[u8] = match &node.content {
            Content::Holes => return Ok(Pointer::HOLE),
            Content::Lost(pointer) => return Ok(*pointer),
            Content::Read(page) => page,
            Content::Changed(page) => page,
        };
        let (at, level) = (node.was.pba, node.level);
        Ok(self.rules.entry(page, at, level, slot(index, level))?)
    }

    /// Whether the last open page is being changed already.
    fn is_changing(&self) -> bool {
        matches!(self.path.last(), Some(Node { content: Content::Changed(_), .. }))
    }

    /// Makes a page of its own of the last open one, to be changed.
    async fn begin_change(&mut self) {
        let Some(node) = self.path.last_mut() else { return };
        let page = match std::mem::replace(&mut node.content, Content::Holes) {
            Content::Holes => self.beside.attend(self.pages.blank()).await,
            Content::Lost(pointer) => {
                let mut page = self.beside.attend(self.pages.blank()).await;
                let entries = page.as_chunks_mut::<POINTER_BYTES>().0;
                entries.fill(pointer.encode());
                page
            }
            Content::Read(page) => self.beside.attend(self.pages.own(page)).await,
            Content::Changed(page) => page,
        };
        node.content = Content::Changed(page);
    }

    /// Changes the entry for an index in the last open page, which is being
    /// changed.
    fn set(&mut self, index: u64, pointer: Pointer) {
        let Some(Node { level, content: Content::Changed(page), .. }) = self.path.last_mut() else {
            return;
        };
        let at = slot(index, *level) * POINTER_BYTES;
        page[at..at + POINTER_BYTES].copy_from_slice(&pointer.encode());
    }

    fn has_worked_enough(&mut self) -> bool {
        self.steps += 1;
        self.steps >= STEPS
    }

    async fn pause(&mut self) {
        self.steps = 0;
        self.beside.attend(turn::yield_now()).await;
    }
}

/// A page that could not be had, if it can be after all; nothing when the merge
/// goes on without it.
async fn try_again<D: Device, A: Allocate>(
    pages: &Pages<D>,
    rules: Rules,
    allocator: &A,
    pointer: &Pointer,
    level: u8,
    mut damage: Damage,
) -> Step<Option<Page>, A> {
    for _ in 1..TRIES {
        // What opens and says what cannot be says so again.
        if damage.what == What::Malformed {
            break;
        }
        turn::yield_now().await;
        match pages.load_once(&pointer.seal, rules.binding(level, pointer.pba)).await {
            Ok(page) => return Ok(Some(page)),
            Err(again) => damage = again,
        }
    }
    if allocator.goes_on_without(&damage).await { Ok(None) } else { Err(damage.into()) }
}
