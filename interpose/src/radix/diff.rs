//! Where two trees differ, from their pages alone.

use std::ops::Range;
use std::rc::Rc;

use block_core::Device;

use super::{Rules, Tree, span};
use crate::layout::pointer::POINTERS;
use crate::layout::{Class, Pointer};
use crate::pages::{Damage, Page, Pages, What};

/// Entries compared between two yields; a page that is read counts as
/// [`PAGE_STEPS`] of them.
const STEPS: u32 = 256;
const PAGE_STEPS: u32 = 8;

/// What a comparison comes by: ascending and, unless it is told to keep them
/// short, apart from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Every index in the range has another content, or has one in only one of
    /// the trees.
    Changed(Range<u64>),
    /// A page of one of them cannot be had: the range may be changed.
    Damaged {
        /// Which indices.
        indices: Range<u64>,
        /// What is wrong.
        damage: Damage,
    },
}

/// A comparison of two trees. What both share is not read, so it costs what
/// was changed. It holds at most [`Diff::<D>::BUFFERS`] pages.
pub struct Diff<D> {
    pages: Rc<Pages<D>>,
    rules: Rules,
    trees: [Tree; 2],
    /// Nothing before is looked at.
    start: u64,
    /// Most indices of a range that is told.
    longest: u64,
    begun: bool,
    path: Vec<Pair>,
    /// A range that may go on.
    open: Option<Range<u64>>,
    /// Comes when the open range has been told.
    damaged: Option<Difference>,
    steps: u32,
}

/// Two pages that stand for the same indices.
struct Pair {
    level: u8,
    first: u64,
    slot: usize,
    sides: [Side; 2],
}

enum Side {
    Holes,
    Page(Page, Pointer),
    /// A page that there would be if the lower tree were as high as the other.
    Above,
}

/// What an entry says: a pointer, or that the lower tree lies below.
enum Entry {
    Pointer(Pointer),
    Above,
}

type Entries = [Result<Entry, Damage>; 2];

/// What two entries for the same indices come to.
enum Found {
    Nothing,
    /// Different values.
    Value,
    /// Pages to go down to.
    Pair(Pair),
    Damage(Damage),
}

impl<D: Device> Diff<D> {
    /// Pages that a comparison may hold while it asks for another.
    pub const BUFFERS: usize = 2 * super::MAX_HEIGHT as usize;

    /// A comparison of two trees of one class.
    #[must_use]
    pub fn new(pages: Rc<Pages<D>>, class: Class, trees: [Tree; 2]) -> Self {
        let rules = Rules::new(&pages, class);
        Self {
            pages,
            rules,
            trees,
            start: 0,
            longest: u64::MAX,
            begun: false,
            path: Vec::new(),
            open: None,
            damaged: None,
            steps: 0,
        }
    }

    /// Only what differs from index `start` on, in ranges of at most `longest`
    /// indices: then one may begin where the one before ends. What is found
    /// damaged may begin before.
    #[must_use]
    pub fn within(self, start: u64, longest: u64) -> Self {
        Self { start, longest, ..self }
    }

    /// The next difference, or `None` at the end.
    pub async fn next(&mut self) -> Option<Difference> {
        loop {
            if self.damaged.is_some() {
                let open = self.open.take().map(Difference::Changed);
                return open.or_else(|| self.damaged.take());
            }
            self.pause().await;
            let Some((entries, level, first)) = self.place() else {
                return self.open.take().map(Difference::Changed);
            };
            if let Some(range) = self.open.take_if(|open| open.end < first) {
                return Some(Difference::Changed(range));
            }
            let found = self.compare(entries, level, first).await;
            // From here to the next turn of the loop nothing waits: a `next`
            // that was given up is as if it had not been called.
            match self.path.last_mut() {
                Some(pair) => pair.slot += 1,
                None => self.begun = true,
            }
            match found {
                Found::Nothing => {}
                Found::Value => {
                    let start = self.open.take().map_or(first, |open| open.start);
                    let range = start..first + 1;
                    if range.end - range.start >= self.longest {
                        return Some(Difference::Changed(range));
                    }
                    self.open = Some(range);
                }
                Found::Pair(pair) => self.path.push(pair),
                Found::Damage(damage) => {
                    let indices = first..first + span(level);
                    self.damaged = Some(Difference::Damaged { indices, damage });
                }
            }
        }
    }

    /// The entries to compare next, their level and their first index.
    fn place(&mut self) -> Option<(Entries, u8, u64)> {
        while self.path.pop_if(|pair| pair.slot == POINTERS).is_some() {}
        let Some(pair) = self.path.last() else {
            let height = self.trees[0].height.max(self.trees[1].height);
            return (!self.begun).then(|| ([0, 1].map(|side| self.top(side, height)), height, 0));
        };
        let entries = [0, 1].map(|side| self.entry(pair, side));
        let level = pair.level - 1;
        Some((entries, level, pair.first + pair.slot as u64 * span(level)))
    }

    fn top(&self, side: usize, height: u8) -> Result<Entry, Damage> {
        let tree = &self.trees[side];
        let root = self.rules.root(tree)?;
        let is_lower = tree.height < height && !root.is_hole();
        Ok(if is_lower { Entry::Above } else { Entry::Pointer(root) })
    }

    fn entry(&self, pair: &Pair, side: usize) -> Result<Entry, Damage> {
        match &pair.sides[side] {
            Side::Page(page, pointer) => {
                let entry = self.rules.entry(page, pointer.pba, pair.level, pair.slot);
                entry.map(Entry::Pointer)
            }
            Side::Above if pair.slot == 0 => self.top(side, pair.level - 1),
            Side::Above | Side::Holes => Ok(Entry::Pointer(Pointer::HOLE)),
        }
    }

    async fn compare(&mut self, entries: Entries, level: u8, first: u64) -> Found {
        if first + span(level) <= self.start {
            return Found::Nothing;
        }
        let (one, other) = match entries {
            [Ok(one), Ok(other)] => (one, other),
            [Err(damage), _] | [_, Err(damage)] => return Found::Damage(damage),
        };
        if is_same(&one, &other) {
            return Found::Nothing;
        }
        for entry in [&one, &other] {
            if let Entry::Pointer(lost) = entry
                && lost.is_lost()
            {
                let (pba, class) = (lost.pba, self.rules.class);
                return Found::Damage(Damage { pba, class, what: What::GivenUp });
            }
        }
        if level == 0 {
            return Found::Value;
        }
        let mut sides = [Side::Holes, Side::Holes];
        for (side, entry) in sides.iter_mut().zip([one, other]) {
            *side = match entry {
                Entry::Above => Side::Above,
                Entry::Pointer(pointer) if pointer.is_hole() => Side::Holes,
                Entry::Pointer(pointer) => match self.load(&pointer, level).await {
                    Ok(page) => Side::Page(page, pointer),
                    Err(damage) => return Found::Damage(damage),
                },
            };
        }
        Found::Pair(Pair { level, first, slot: 0, sides })
    }

    async fn load(&mut self, pointer: &Pointer, level: u8) -> Result<Page, Damage> {
        self.steps += PAGE_STEPS;
        let binding = self.rules.binding(level, pointer.pba);
        if level > 1 {
            self.pages.load(&pointer.seal, binding).await
        } else {
            self.pages.load_once(&pointer.seal, binding).await
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

/// Equal seals are equal contents; when a pointer was written says nothing.
fn is_same(one: &Entry, other: &Entry) -> bool {
    match (one, other) {
        (Entry::Pointer(one), Entry::Pointer(other)) => {
            one.is_hole() && other.is_hole()
                || one.kind == other.kind && one.seal == other.seal && one.pba == other.pba
        }
        _ => false,
    }
}
