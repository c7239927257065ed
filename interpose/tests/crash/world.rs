//! Guests at work on an open pool, and the oracle that watches them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, SECTOR_SIZE, SectorRange};
use block_core::{BlockError, Buffer, Op, Ordered, Request};
use interpose::{Pool, WhenFull};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

use super::content::{self, Content, ZERO};
use super::disk::{Driver, SimDisk, VirtualClock};
use super::machine::request_buffer;
use super::model::{Key, Model, name};

const SECTORS: u64 = (BLOCK_SIZE / SECTOR_SIZE) as u64;

/// Most blocks of a request.
const MOST_BLOCKS: u64 = 32;

/// A volume that guests work on.
type Served = Ordered<Rc<interpose::Volume<SimDisk>>>;

/// How a workload is.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// Blocks of a volume, at most.
    pub most_blocks: usize,
    /// Requests at a time.
    pub guests: usize,
    /// Whether the device may fail: then requests may, too.
    pub faulty: bool,
    /// Whether volumes and snapshots come and go.
    pub control: bool,
}

/// A pool at work.
pub struct World {
    pub pool: Rc<Pool<SimDisk>>,
    pub disk: SimDisk,
    pub model: Rc<RefCell<Model>>,
    pub habits: Habits,
    pub random: RefCell<SmallRng>,
    pub clock: VirtualClock,
    ordered: RefCell<BTreeMap<Key, Rc<Served>>>,
    scratch: Rc<block_core::Scratch>,
    /// What is left to do.
    budget: Cell<usize>,
    working: Cell<usize>,
    left: Notify,
    is_logged: bool,
}

impl World {
    pub fn new(
        pool: Rc<Pool<SimDisk>>,
        disk: &SimDisk,
        model: Rc<RefCell<Model>>,
        habits: Habits,
        (seed, clock): (u64, VirtualClock),
    ) -> Rc<Self> {
        Rc::new(Self {
            pool,
            disk: disk.clone(),
            model,
            habits,
            random: RefCell::new(SmallRng::seed_from_u64(seed)),
            clock,
            ordered: RefCell::default(),
            scratch: Rc::new(tokio::sync::Mutex::new(Some(request_buffer()))),
            budget: Cell::new(0),
            working: Cell::new(0),
            left: Notify::new(),
            is_logged: std::env::var_os("VRIO_LOG").is_some(),
        })
    }

    /// Sets guests to work, so many requests in all; ready when all have
    /// gone home.
    pub fn work(
        self: &Rc<Self>,
        driver: &mut Driver,
        requests: usize,
    ) -> impl Future<Output = ()> + use<> {
        self.budget.set(requests);
        self.working.set(self.habits.guests + usize::from(self.habits.control));
        for _ in 0..self.habits.guests {
            let world = Rc::clone(self);
            driver.spawn(async move {
                while world.spend() {
                    world.request().await;
                }
                world.leave();
            });
        }
        if self.habits.control {
            let world = Rc::clone(self);
            driver.spawn(async move {
                while world.spend() {
                    world.control().await;
                }
                world.leave();
            });
        }
        let world = Rc::clone(self);
        async move {
            while world.working.get() > 0 {
                world.left.notified().await;
            }
        }
    }

    fn spend(&self) -> bool {
        let left = self.budget.get();
        self.budget.set(left.saturating_sub(1));
        left > 0
    }

    /// No guest begins another request.
    pub fn stop(&self) {
        self.budget.set(0);
    }

    fn leave(&self) {
        self.working.set(self.working.get() - 1);
        self.left.notify_one();
    }

    pub fn draw(&self, below: u64) -> u64 {
        self.random.borrow_mut().random_range(0..below.max(1))
    }

    pub fn pick<T: Clone>(&self, among: &[T]) -> Option<T> {
        among.choose(&mut *self.random.borrow_mut()).cloned()
    }

    /// What serves a volume's requests: the same for all.
    fn serving(&self, key: Key) -> Option<Rc<Served>> {
        if let Some(ordered) = self.ordered.borrow().get(&key) {
            return Some(Rc::clone(ordered));
        }
        let volume = self.pool.volume(&name(key))?;
        let ordered = Rc::new(Ordered::new(volume, Rc::clone(&self.scratch), 0));
        self.ordered.borrow_mut().insert(key, Rc::clone(&ordered));
        Some(ordered)
    }

    pub fn forget(&self, key: Key) {
        self.ordered.borrow_mut().remove(&key);
    }

    /// With `VRIO_LOG`: what happens.
    pub fn log(&self, what: impl FnOnce() -> String) {
        if self.is_logged {
            eprintln!("{:>6} {}", self.disk.operations(), what());
        }
    }

    /// One request of a guest.
    pub async fn request(&self) {
        let keys: Vec<Key> = self.model.borrow().volumes.keys().copied().collect();
        let Some(key) = self.pick(&keys) else {
            self.clock.sleep(std::time::Duration::from_micros(50)).await;
            return;
        };
        match self.draw(100) {
            0..45 => self.write(key, true, Op::Write).await,
            45..58 => self.write(key, false, Op::Write).await,
            58..63 => self.write(key, self.draw(2) == 0, Op::WriteThrough).await,
            63..75 => self.flush(key).await,
            75..87 => self.clear(key).await,
            87..98 => self.read(key).await,
            98 => self.clock.sleep(std::time::Duration::from_millis(40)).await,
            _ => self.clock.sleep(std::time::Duration::from_millis(400)).await,
        }
    }

    fn size(&self, key: Key) -> u64 {
        self.model.borrow().volumes.get(&key).map_or(0, |volume| volume.size() as u64)
    }

    /// A range of whole blocks, or of any sectors.
    fn range(&self, key: Key, is_whole: bool) -> Option<SectorRange> {
        let size = self.size(key);
        if size == 0 {
            return None;
        }
        let (start, most) = (self.draw(size), [1, 1, 4, 9, MOST_BLOCKS][self.draw(5) as usize]);
        let blocks = 1 + self.draw(most.min(size - start));
        if is_whole {
            return SectorRange::new(start * SECTORS, (blocks * SECTORS) as u32);
        }
        let first = start * SECTORS + self.draw(SECTORS);
        let most = (start + blocks.min(4)) * SECTORS - first;
        SectorRange::new(first, 1 + self.draw(most) as u32)
    }

    async fn write(&self, key: Key, is_whole: bool, op: Op) {
        let (Some(range), Some(ordered)) = (self.range(key, is_whole), self.serving(key)) else {
            return;
        };
        let contents = self.new_contents(range.blocks_touched().count.0 as usize);
        let mut buffer = request_buffer();
        let edits = edits(range, &contents);
        for (at, sector) in (range.start()..range.end())
            .zip(buffer[range.offset_in_block()..].chunks_exact_mut(SECTOR_SIZE))
        {
            let block = (at / SECTORS - range.start() / SECTORS) as usize;
            content::fill(contents[block][(at % SECTORS) as usize], sector);
        }
        self.change(key, range, edits, op, Some(buffer), &ordered).await;
    }

    /// New contents, some seen before, some zero, some twice in a row.
    fn new_contents(&self, blocks: usize) -> Vec<Content> {
        let mut model = self.model.borrow_mut();
        let mut contents = Vec::with_capacity(blocks);
        for _ in 0..blocks {
            let fresh = [(); 8].map(|()| model.number());
            let last = contents.last().copied().unwrap_or(fresh);
            let content = match self.draw(20) {
                0..10 => fresh,
                10..16 => self.pick(&model.lately).unwrap_or(fresh),
                16..18 => ZERO,
                _ => last,
            };
            if content == fresh {
                model.remember(content);
            }
            contents.push(content);
        }
        contents
    }

    async fn clear(&self, key: Key) {
        let is_whole = self.draw(3) != 0;
        let (Some(range), Some(ordered)) = (self.range(key, is_whole), self.serving(key)) else {
            return;
        };
        let ops = [Op::Discard, Op::WriteZeroes, Op::WriteZeroesUnmap, Op::WriteZeroesThrough];
        let op = ops[self.draw(4) as usize];
        let blocks = range.blocks_touched().count.0 as usize;
        let mut edits = edits(range, &vec![ZERO; blocks]);
        if op == Op::Discard {
            edits.iter_mut().filter(|(mask, _)| *mask != u8::MAX).for_each(|(mask, _)| *mask = 0);
        }
        self.change(key, range, edits, op, None, &ordered).await;
    }

    async fn change(
        &self,
        key: Key,
        range: SectorRange,
        edits: Vec<(u8, Content)>,
        op: Op,
        buffer: Option<Buffer>,
        ordered: &Served,
    ) {
        let first = range.blocks_touched().start.0 as usize;
        let (version, begun) = (self.version(key), self.model.borrow_mut().tick());
        let id = self.model.borrow_mut().begin(key, first, &edits, false);
        let request = Request { op, range: Some(range), buffer };
        self.log(|| format!("{id}: {op:?} v{key} {range:?} {edits:?}"));
        let served = ordered.serve(request).await;
        self.log(|| format!("{id}: {:?}", served.outcome));
        self.judge(key, version, served.outcome, || format!("{op:?} at {range:?}"));
        let through = op.writes_through();
        let worked = served.outcome.is_ok();
        let mut model = self.model.borrow_mut();
        model.end(key, id, worked, through);
        if through && worked {
            model.keep(begun);
        }
    }

    pub fn can_be_full(&self) -> bool {
        self.pool.settings().full == WhenFull::Fail
    }

    /// What a volume is, as far as requests to it may fail when that changes.
    fn version(&self, key: Key) -> Option<u64> {
        self.model.borrow().volumes.get(&key).map(|volume| volume.version)
    }

    fn judge(
        &self,
        key: Key,
        version: Option<u64>,
        outcome: Result<(), BlockError>,
        what: impl Fn() -> String,
    ) {
        let changed = self.version(key) != version || self.model.borrow().pending.is_some();
        let gone = matches!(outcome, Err(BlockError::OutOfRange | BlockError::NotAttached));
        let full = outcome == Err(BlockError::NoSpace) && self.can_be_full();
        let fine = outcome.is_ok() || self.habits.faulty || full || changed && gone;
        assert!(fine, "{} to {} fails: {outcome:?}", what(), name(key));
    }

    pub async fn flush(&self, key: Key) {
        let Some(ordered) = self.serving(key) else { return };
        let (version, begun) = (self.version(key), self.model.borrow_mut().tick());
        let request = Request { op: Op::Flush, range: None, buffer: None };
        let served = ordered.serve(request).await;
        self.judge(key, version, served.outcome, || "a flush".to_owned());
        if served.outcome.is_ok() {
            self.model.borrow_mut().keep(begun);
        }
    }

    async fn read(&self, key: Key) {
        let (Some(range), Some(ordered)) = (self.range(key, true), self.serving(key)) else {
            return;
        };
        let begun = self.model.borrow_mut().tick();
        let version = self.version(key);
        let mut allowed = self.readable(key, range, begun);
        self.reading(key, 1);
        let buffer = Some(request_buffer());
        let served = ordered.serve(Request { op: Op::Read, range: Some(range), buffer }).await;
        self.reading(key, -1);
        self.judge(key, version, served.outcome, || format!("a read at {range:?}"));
        if self.version(key) != version || served.outcome.is_err() {
            return;
        }
        let later = self.readable(key, range, begun);
        allowed.iter_mut().zip(later).for_each(|(allowed, later)| allowed.extend(later));
        let buffer = served.buffer.expect("a read's buffer comes back");
        for (at, block) in buffer.chunks_exact(BLOCK_SIZE).take(allowed.len()).enumerate() {
            let content = content::parse(block);
            let good = content.is_some_and(|content| allowed[at].contains(&content));
            let lba = range.blocks_touched().start.0 + at as u64;
            let name = name(key);
            let past = &self.model.borrow().volumes[&key].blocks[lba as usize];
            assert!(good, "{name}: block {lba} is {content:?}, not {:?}: {past:?}", allowed[at]);
        }
    }

    fn readable(&self, key: Key, range: SectorRange, begun: u64) -> Vec<Vec<Content>> {
        let model = self.model.borrow();
        let Some(volume) = model.volumes.get(&key) else { return Vec::new() };
        let range = range.blocks_touched();
        let blocks = volume.blocks.iter().skip(range.start.0 as usize).take(range.count.0 as usize);
        let must = |change: &super::block::Change| {
            !change.failed && change.ended.is_some_and(|ended| ended < begun)
        };
        blocks.map(|block| block.candidates(must, |_| false)).collect()
    }

    pub fn reading(&self, key: Key, more: isize) {
        let mut model = self.model.borrow_mut();
        if let Some(volume) = model.volumes.get_mut(&key) {
            volume.reading = volume.reading.wrapping_add_signed(more);
        }
    }
}

/// What a change of sectors is to each block.
fn edits(range: SectorRange, contents: &[Content]) -> Vec<(u8, Content)> {
    let first = range.start() / SECTORS;
    let masks = contents.iter().zip(first..).map(|(content, block)| {
        let covered = |at: &u64| (range.start()..range.end()).contains(&(block * SECTORS + at));
        let mask = (0..SECTORS).filter(covered).fold(0u8, |mask, at| mask | 1 << at);
        (mask, *content)
    });
    masks.collect()
}
