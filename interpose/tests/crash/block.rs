//! What one block of a volume may hold: its last certain content, and what
//! was done to it since.

use super::content::Content;

/// The oracle's time: rises with everything that begins or ends.
pub type Tick = u64;

/// A change of a block.
#[derive(Clone, Debug)]
pub struct Change {
    pub id: u64,
    /// The sectors that it sets.
    pub mask: u8,
    pub values: Content,
    pub begun: Tick,
    /// When it was answered.
    pub ended: Option<Tick>,
    /// Whether it must survive.
    pub kept: bool,
    /// Whether it may have come before or after others that it overlaps in
    /// time: requests of a volume run in the order of their arrival, what is
    /// done to the whole volume does not.
    pub floats: bool,
    /// Whether it failed, so that it was done or not.
    pub failed: bool,
}

/// A block's past, as far as it matters.
#[derive(Clone, Debug)]
pub struct History {
    pub base: Content,
    pub changes: Vec<Change>,
}

impl History {
    pub fn new(base: Content) -> Self {
        Self { base, changes: Vec::new() }
    }

    /// Nothing is known better any more: it holds this.
    pub fn collapse(&mut self, content: Content) {
        self.base = content;
        self.changes.clear();
    }

    /// Forgets what every future state includes.
    pub fn prune(&mut self) {
        while let Some(first) = self.changes.first() {
            let overlaps = |other: &Change| first.ended.is_none_or(|end| other.begun < end);
            let floating =
                self.changes[1..].iter().any(|it| (it.floats || first.floats) && overlaps(it));
            if !first.kept || first.ended.is_none() || first.failed || floating {
                return;
            }
            let first = self.changes.remove(0);
            first.apply(&mut self.base);
        }
    }

    /// Everything that the block may hold, if it must have what `must` says
    /// and cannot have what `never` says.
    pub fn candidates(
        &self,
        must: impl Fn(&Change) -> bool,
        never: impl Fn(&Change) -> bool,
    ) -> Vec<Content> {
        if self.changes.is_empty() {
            return vec![self.base];
        }
        let changes: Vec<&Change> = self.changes.iter().filter(|change| !never(change)).collect();
        assert!(changes.len() <= 64, "too many changes of one block at a time");
        let needed = changes.iter().zip(0..).filter(|(change, _)| must(change));
        let needed = needed.fold(0u64, |bits, (_, at)| bits | 1 << at);
        let mut search = Search { changes, needed, found: Vec::new(), seen: Vec::new() };
        search.from(0, self.base);
        search.found
    }
}

impl Change {
    fn apply(&self, content: &mut Content) {
        for (at, value) in content.iter_mut().enumerate() {
            if self.mask >> at & 1 != 0 {
                *value = self.values[at];
            }
        }
    }

    /// Whether it comes before the other one in each order.
    fn precedes(&self, other: &Self, is_earlier: bool) -> bool {
        let in_time = self.ended.is_some_and(|end| end < other.begun);
        in_time || is_earlier && !self.floats && !other.floats
    }
}

/// Goes through all orders in which the changes can have been done.
struct Search<'a> {
    changes: Vec<&'a Change>,
    needed: u64,
    found: Vec<Content>,
    seen: Vec<(u64, Content)>,
}

impl Search<'_> {
    fn from(&mut self, done: u64, content: Content) {
        if self.seen.contains(&(done, content)) {
            return;
        }
        self.seen.push((done, content));
        if done & self.needed == self.needed && !self.found.contains(&content) {
            self.found.push(content);
        }
        for next in 0..self.changes.len() {
            if done >> next & 1 == 0 && self.can_follow(done, next) {
                let mut after = content;
                self.changes[next].apply(&mut after);
                self.from(done | 1 << next, after);
                if self.changes[next].failed {
                    self.from(done | 1 << next, content);
                }
            }
        }
    }

    fn can_follow(&self, done: u64, next: usize) -> bool {
        (0..self.changes.len()).all(|other| {
            let open = other != next && done >> other & 1 == 0;
            !(open && self.changes[other].precedes(self.changes[next], other < next))
        })
    }
}
