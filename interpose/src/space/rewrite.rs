//! Writing pages of counts anew, and the directory above them.
//!
//! Pages are rewritten several at a time and end in the order in which they
//! were begun, so a directory page begins when the last page below it that
//! changed has its seal.

use block_core::{BlockCount, Device, Extent, Pba};

use super::directory::{entries, entry_at, free_in, locate, malformed};
use super::layout::{
    COUNT_BYTES, ENTRIES, ENTRY_BYTES, Entry, MAX_LEVELS, PAGE_COUNT, SegmentRoot,
};
use super::sweep::{Change, Group, Step, SweepError};
use super::window::Window;
use crate::pages::{PageBuf, Pages};

/// Pages that are rewritten at once.
const WIDTH: usize = 16;

/// What became of a page of counts.
pub(super) struct Rewritten {
    /// Among the pool's.
    pub(super) region: u32,
    /// So many of its counts are 0; nothing if it is as it was.
    pub(super) zeroes: Option<u16>,
    /// The blocks that are named and whose count is 0.
    pub(super) freed: Vec<Extent>,
    /// The same for those that somebody refers to meanwhile.
    pub(super) kept: Vec<Pba>,
    pub(super) usage: UsageChange,
}

/// So many more blocks have a use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UsageChange {
    pub(super) data: i64,
    pub(super) references: i64,
    pub(super) pages: i64,
}

impl UsageChange {
    fn count(&mut self, old: u16, new: u16) {
        match (old, new) {
            (0, PAGE_COUNT) => self.pages += 1,
            (PAGE_COUNT, 0) => self.pages -= 1,
            _ => {
                self.data += i64::from(new > 0) - i64::from(old > 0);
                self.references += i64::from(new) - i64::from(old);
            }
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.data += other.data;
        self.references += other.references;
        self.pages += other.pages;
    }
}

/// Writes every page that the groups, which ascend, name, and those above
/// them, to their other homes. Tells `each` of the pages of counts, ascending.
/// Returns the roots of what was written.
pub(super) async fn rewrite<D: Device>(
    pages: &Pages<D>,
    roots: &[SegmentRoot],
    mut groups: impl Iterator<Item = Result<Group, SweepError>>,
    is_kept: &dyn Fn(Pba) -> bool,
    mut each: impl FnMut(&Rewritten),
) -> Result<Vec<SegmentRoot>, SweepError> {
    let mut next = roots.to_vec();
    let mut window = Window::new(WIDTH);
    let mut directory = Directory::default();
    // Nothing begins after a failure, and what had begun ends before it is
    // told: a write that is still on its way must not meet the next sweep's.
    let mut failed = None;
    let mut pages_done = 0;
    loop {
        while failed.is_none() && window.has_room() {
            match groups.next() {
                Some(Ok(group)) => {
                    let at = Place { segment: group.segment, level: 0, page: group.page };
                    let work = Work::Counts(group);
                    window.push(rewrite_page(pages, roots[at.segment], at, work, is_kept));
                }
                Some(Err(error)) => failed = Some(error),
                None => break,
            }
        }
        let whole = match window.next().await {
            None if let Some(error) = failed => return Err(error),
            None => match directory.close_lowest() {
                Some(whole) => Some(whole),
                None => return Ok(next),
            },
            Some(Err(error)) => {
                failed.get_or_insert(error);
                None
            }
            Some(Ok(Done { at, entry, counts })) => {
                counts.iter().for_each(&mut each);
                let is_top = at.level == roots[at.segment].segment.levels();
                match entry {
                    Some(entry) if is_top => {
                        next[at.segment].top = entry;
                        None
                    }
                    Some(entry) => directory.put(at, entry),
                    None => None,
                }
            }
        };
        if let Some((at, entries)) = whole.filter(|_| failed.is_none()) {
            let work = Work::Entries(entries);
            window.push(rewrite_page(pages, roots[at.segment], at, work, is_kept));
        }
        pages_done += 1;
        if pages_done % WIDTH == 0 {
            turn::yield_now().await;
        }
    }
}

/// A page of some segment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    segment: usize,
    level: u8,
    page: u64,
}

impl Place {
    fn parent(self) -> Self {
        Self { level: self.level + 1, page: self.page / ENTRIES, ..self }
    }
}

type Entries = Vec<(usize, Entry)>;

/// Directory pages whose entries are being gathered, one of each level.
#[derive(Default)]
struct Directory {
    open: [Option<(Place, Entries)>; MAX_LEVELS as usize],
}

impl Directory {
    /// Adds the entry of a page; returns the page that has all its entries
    /// because this one belongs to another.
    fn put(&mut self, child: Place, entry: Entry) -> Option<(Place, Entries)> {
        let parent = child.parent();
        let entry = ((child.page % ENTRIES) as usize, entry);
        let open = &mut self.open[usize::from(child.level)];
        match open {
            Some((place, entries)) if *place == parent => {
                entries.push(entry);
                None
            }
            _ => open.replace((parent, vec![entry])),
        }
    }

    fn close_lowest(&mut self) -> Option<(Place, Entries)> {
        self.open.iter_mut().find_map(Option::take)
    }
}

enum Work {
    Counts(Group),
    Entries(Entries),
}

struct Done {
    at: Place,
    /// Of its new version, if it needs one.
    entry: Option<Entry>,
    counts: Option<Rewritten>,
}

async fn rewrite_page<D: Device>(
    pages: &Pages<D>,
    root: SegmentRoot,
    at: Place,
    work: Work,
    is_kept: &dyn Fn(Pba) -> bool,
) -> Result<Done, SweepError> {
    match work {
        Work::Counts(group) => rewrite_counts(pages, &root, at, &group, is_kept).await,
        Work::Entries(entries) => rewrite_entries(pages, &root, at, &entries).await,
    }
}

async fn rewrite_counts<D: Device>(
    pages: &Pages<D>,
    root: &SegmentRoot,
    at: Place,
    group: &Group,
    is_kept: &dyn Fn(Pba) -> bool,
) -> Result<Done, SweepError> {
    let start = root.segment.region_start(at.page);
    let mut rewritten = Rewritten {
        region: group.region,
        zeroes: None,
        freed: Vec::new(),
        kept: Vec::new(),
        usage: UsageChange::default(),
    };
    let freed = |rewritten: &mut Rewritten, place: u16| {
        let pba = Pba(start.0 + u64::from(place));
        match rewritten.freed.last_mut() {
            _ if is_kept(pba) => rewritten.kept.push(pba),
            Some(last) if last.end() == pba => last.count.0 += 1,
            _ => rewritten.freed.push(Extent { start: pba, count: BlockCount(1) }),
        }
    };
    if group.steps.iter().all(|step| step.taken && step.change == Change::Delta(0)) {
        // They were free before they were taken.
        group.steps.iter().for_each(|step| freed(&mut rewritten, step.place));
        return Ok(Done { at, entry: None, counts: Some(rewritten) });
    }
    let mut page = Old::load(pages, root, at).await?;
    let counts = page.bytes.as_chunks_mut::<COUNT_BYTES>().0;
    for step in &group.steps {
        let count = &mut counts[usize::from(step.place)];
        let old = u16::from_le_bytes(*count);
        let new = apply(old, step).ok_or(SweepError::Impossible {
            pba: Pba(start.0 + u64::from(step.place)),
            count: old,
            taken: step.taken,
            change: step.change,
        })?;
        *count = new.to_le_bytes();
        page.free = page.free + u64::from(new == 0) - u64::from(old == 0);
        if new == 0 {
            freed(&mut rewritten, step.place);
        }
        rewritten.usage.count(old, new);
    }
    rewritten.zeroes = Some(page.free as u16);
    let entry = Some(page.write(pages, root, at).await?);
    Ok(Done { at, entry, counts: Some(rewritten) })
}

/// The count after a step, if it can be: a taken block's durable count is 0,
/// and only a taken one's changes from 0.
fn apply(count: u16, step: &Step) -> Option<u16> {
    let page = count == PAGE_COUNT;
    match step.change {
        _ if step.taken && count != 0 => None,
        Change::Delta(0) => Some(count),
        _ if !step.taken && count == 0 => None,
        Change::Page => (count == 0).then_some(PAGE_COUNT),
        Change::Gone => page.then_some(0),
        Change::Delta(_) if page => None,
        Change::Delta(delta) => {
            let sum = u16::try_from(i32::from(count).checked_add(delta)?).ok()?;
            (sum < PAGE_COUNT).then_some(sum)
        }
    }
}

async fn rewrite_entries<D: Device>(
    pages: &Pages<D>,
    root: &SegmentRoot,
    at: Place,
    entries: &Entries,
) -> Result<Done, SweepError> {
    let mut page = Old::load(pages, root, at).await?;
    for (place, entry) in entries {
        let below = root.segment.below(at.level - 1, at.page * ENTRIES + *place as u64);
        let old = entry_at(&page.bytes, *place, below).ok_or(page.malformed(root, at))?;
        page.free = page.free + entry.free(below) - old.free(below);
        let byte = place * ENTRY_BYTES;
        page.bytes[byte..byte + ENTRY_BYTES].copy_from_slice(&entry.encode());
    }
    let entry = Some(page.write(pages, root, at).await?);
    Ok(Done { at, entry, counts: None })
}

/// The durable version of a page, to be changed.
struct Old {
    entry: Entry,
    bytes: PageBuf,
    free: u64,
    /// Whether the next version is worth keeping.
    keep: bool,
}

impl Old {
    async fn load<D: Device>(
        pages: &Pages<D>,
        root: &SegmentRoot,
        at: Place,
    ) -> Result<Self, SweepError> {
        let below = root.segment.below(at.level, at.page);
        let entry = locate(pages, root, at.level, at.page).await?;
        let Entry::Written { seal, home, free } = entry else {
            return Ok(Self { entry, bytes: pages.blank().await, free: below, keep: true });
        };
        let binding = root.segment.binding(at.level, at.page, home);
        // A page of counts that nobody needed since the last sweep is not
        // needed after this one either.
        let keep = at.level > 0 || pages.cached(&seal).is_some();
        let page = pages.load_once(&seal, binding).await?;
        let sound = if at.level == 0 {
            free_in(&page, below) == Some(free)
        } else {
            entries(root, at.level, at.page, &page, free).is_some()
        };
        if !sound {
            return Err(malformed(&binding).into());
        }
        Ok(Self { entry, bytes: pages.own(page).await, free, keep })
    }

    async fn write<D: Device>(
        self,
        pages: &Pages<D>,
        root: &SegmentRoot,
        at: Place,
    ) -> Result<Entry, SweepError> {
        let home = self.entry.next_home();
        let binding = root.segment.binding(at.level, at.page, home);
        let seal = pages.write(binding, self.bytes, self.keep).await?;
        Ok(Entry::Written { seal, home, free: self.free })
    }

    fn malformed(&self, root: &SegmentRoot, at: Place) -> SweepError {
        let home = match self.entry {
            Entry::Written { home, .. } => home,
            Entry::Untouched => self.entry.next_home(),
        };
        malformed(&root.segment.binding(at.level, at.page, home)).into()
    }
}
