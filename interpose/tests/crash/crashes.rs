//! Cuts the power at each operation of a run, and looks at what is left.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use block_core::Device;
use block_core::unit::BlockCount;
use interpose::{CheckOptions, Pool, Settings, WhenFull};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::content::ZERO;
use super::disk::{FailureRates, Medium, Options, SimDisk};
use super::machine::{DEVICE, Machine, crowded_pool, empty_pool, settings};
use super::model::{Key, Model};
use super::observe::{Seen, observe};
use super::world::{Habits, World};

/// One in so many recoveries is itself cut off at each of its operations.
const RECOVERIES_CUT: u64 = 96;

/// One in so many recovered pools goes on with its work.
const GOES_ON: u64 = 48;

/// Requests of a recovered pool that goes on.
const REQUESTS_AFTER: usize = 16;

/// How often a recovery is cut off, at most: recoveries of recoveries.
const DEEPEST: usize = 2;

/// Checkpoints after which every deletion is done.
const MOST_CHECKPOINTS: usize = 64;

/// How long to wait for a pool that may write blocks anew, each time.
const REWRITING: Duration = Duration::from_millis(1);

/// Blocks of an empty pool on [`DEVICE`] that are free or pages of the heap.
const USABLE: u64 = 14_212;

/// Pages that an empty pool may have: of its catalog, and of seals, which stay
/// where blocks were.
const PAGES_OF_NOTHING: u64 = 16;

/// A run from a seed.
pub struct Run {
    seed: u64,
    options: Options,
    settings: Settings,
    rates: FailureRates,
    /// Blocks of the crowd, if the pool has one.
    crowd: Option<u64>,
    random: RefCell<SmallRng>,
    points: Cell<u64>,
}

impl Run {
    pub fn new(seed: u64) -> Rc<Self> {
        let mut random = SmallRng::seed_from_u64(seed);
        let options = match random.random_range(0..8) {
            0 => Options::without_cache(DEVICE),
            _ => Options::new(DEVICE),
        };
        let mut settings = settings();
        settings.index *= random.random_range(0..4usize).min(1);
        settings.read_cache *= random.random_range(0..2usize);
        settings.overlay >>= random.random_range(0..3);
        let (random, points) = (RefCell::new(random), Cell::new(0));
        let (rates, crowd) = (FailureRates::default(), None);
        Rc::new(Self { seed, options, settings, rates, crowd, random, points })
    }

    /// The same on a device of which so many commands fail while guests are at
    /// work.
    pub fn faulty(seed: u64, rates: FailureRates) -> Rc<Self> {
        let run = Self::new(seed);
        let random = RefCell::new(run.random.borrow().clone());
        let (options, settings, points) = (run.options, run.settings, Cell::new(0));
        Rc::new(Self { seed, options, settings, rates, crowd: None, random, points })
    }

    /// The same on a pool that is almost full: what is freed is soon written
    /// again, and some writes find no room.
    pub fn crowded(seed: u64) -> Rc<Self> {
        let run = Self::new(seed);
        let random = RefCell::new(run.random.borrow().clone());
        let (options, rates, points) = (run.options, run.rates, Cell::new(0));
        let index = if seed.is_multiple_of(8) { run.settings.index } else { 0 };
        let settings = Settings { index, full: WhenFull::Fail, ..run.settings };
        let crowd = Some(crowded_pool(options).1);
        Rc::new(Self { seed, options, settings, rates, crowd, random, points })
    }

    /// Crash points that were looked at.
    pub fn points(&self) -> u64 {
        self.points.get()
    }

    fn draw(&self, below: u64) -> u64 {
        self.random.borrow_mut().random_range(0..below)
    }

    /// Lives so many lives, of so many requests; each begins with what the
    /// cut at the end of the one before has left.
    pub fn live(self: &Rc<Self>, lives: usize, requests: usize, habits: Habits) {
        let _told = Told(self.seed);
        let mut medium = match self.crowd {
            Some(_) => crowded_pool(self.options).0,
            None => empty_pool(self.options, self.seed),
        };
        let mut blocks = self.options.blocks;
        let model = Rc::new(RefCell::new(Model::default()));
        for life in 0..lives {
            let options = Options { blocks, ..self.options };
            let mut machine = Machine::new(medium, options, self.draw(u64::MAX));
            let (run, watched) = (Rc::clone(self), Rc::clone(&model));
            machine.watch(Rc::new(move |disk| {
                run.crash(disk.cut(), disk.blocks(), &watched.borrow(), 0);
            }));
            let opened = machine.open(self.draw(u64::MAX), self.settings);
            let pool = opened.expect("what is left of a pool can be opened");
            if life > 0 {
                let seen = machine.run(observe(&pool));
                model.borrow_mut().adopt(&seen);
            }
            let work = (self.draw(u64::MAX), machine.driver().clock());
            let world = World::new(pool, &machine.disk, Rc::clone(&model), habits, work);
            if life == 0 && !habits.control {
                machine.run(async {
                    world.create().await;
                    world.create().await;
                });
            }
            machine.disk.fail_some(self.rates);
            let work = world.work(machine.driver(), requests);
            machine.run(work);
            machine.disk.heal();
            if habits.faulty {
                let seen = machine.run(observe(&world.pool));
                model.borrow().check(&seen);
            } else if self.draw(2) == 0 {
                machine.run(come_to_rest(&world, self.crowd));
            }
            (medium, blocks) = (machine.disk.cut(), machine.disk.blocks());
        }
    }

    /// Opens what a cut has left, and looks at it.
    fn crash(self: &Rc<Self>, medium: Medium, blocks: BlockCount, model: &Model, depth: usize) {
        self.points.set(self.points.get() + 1);
        let options = Options { blocks, ..self.options };
        let mut machine = Machine::new(medium, options, self.draw(u64::MAX));
        let is_watched = depth < DEEPEST && self.draw(RECOVERIES_CUT) == 0;
        if is_watched {
            let (run, model) = (Rc::clone(self), model.clone());
            machine.watch(Rc::new(move |disk| {
                run.crash(disk.cut(), disk.blocks(), &model, depth + 1);
            }));
        }
        let opened = machine.open(self.draw(u64::MAX), self.settings);
        let pool = opened.expect("what a cut leaves of a pool can be opened");
        assert_eq!(pool.figures().read_only, None, "a cut is no damage");
        let seen = machine.run(observe(&pool));
        model.check(&seen);
        if !is_watched && self.draw(GOES_ON) == 0 {
            let mut model = model.clone();
            model.adopt(&seen);
            self.go_on(&mut machine, pool, model);
        }
    }

    fn go_on(&self, machine: &mut Machine, pool: Rc<Pool<SimDisk>>, model: Model) {
        let habits = Habits { most_blocks: 24, guests: 3, faulty: false, control: true };
        let work = (self.draw(u64::MAX), machine.driver().clock());
        let model = Rc::new(RefCell::new(model));
        let world = World::new(pool, &machine.disk, model, habits, work);
        let work = world.work(machine.driver(), REQUESTS_AFTER);
        machine.run(work);
        machine.run(come_to_rest(&world, self.crowd));
        if self.draw(2) == 0 {
            machine.run(empty(&world, self.crowd));
        }
    }
}

/// Ends every deletion. Then each block of the device is accounted for.
async fn come_to_rest(world: &World, crowd: Option<u64>) {
    end_rewriting(world).await;
    let hidden = end_deletions(world).await;
    let seen = observe(&world.pool).await;
    world.model.borrow().check(&seen);
    check_space(world, &seen, hidden, crowd.unwrap_or(0));
    check_pool(world, crowd).await;
}

/// Waits until what old keys seal was written anew, or as long as there may be
/// no room for it.
async fn end_rewriting(world: &World) {
    world.checkpoint().await;
    for _ in 0..MOST_CHECKPOINTS {
        world.clock.sleep(REWRITING).await;
        if world.pool.rewriting().is_none() {
            return;
        }
    }
}

async fn check_pool(world: &World, crowd: Option<u64>) {
    let options = CheckOptions { data: crowd.is_none(), ..CheckOptions::default() };
    let report = world.pool.check(&options, &|_| {}).await.expect("no fault");
    let is_clean = report.faults.is_empty() && report.usage.is_none();
    assert!(is_clean && report.incomplete.is_none(), "{report:?}");
}

/// Makes checkpoints until every deletion is done. Returns how many snapshots
/// wait for one of those that begin as them.
async fn end_deletions(world: &World) -> usize {
    for _ in 0..MOST_CHECKPOINTS {
        world.checkpoint().await;
        if world.pool.deletions() == (0, 0) {
            return world.pool.kept_for_clones();
        }
    }
    panic!("deletions do not end: {:?}", world.pool.deletions());
}

/// Deletes everything. Then there is nothing but free space and the pages of
/// an empty pool.
async fn empty(world: &World, crowd: Option<u64>) {
    let keys: Vec<Key> = world.model.borrow().volumes.keys().copied().collect();
    for key in keys {
        while world.delete_snapshot(key).await {}
        world.delete(key).await;
    }
    assert_eq!(end_deletions(world).await, 0, "nothing is left that something begins as");
    let usage = world.pool.figures().usage;
    let left = crowd.unwrap_or(0);
    assert_eq!((usage.data, usage.references), (left, left), "{usage:?}");
    assert!(left > 0 || usage.pages <= PAGES_OF_NOTHING, "{usage:?}");
    check_pool(world, crowd).await;
}

/// What is used and what is free is all there is, and what is used is what
/// the oracle needs.
fn check_space(world: &World, seen: &BTreeMap<String, Seen>, hidden: usize, crowd: u64) {
    let figures = world.pool.figures();
    let usage = figures.usage;
    if figures.total == DEVICE {
        let sum = figures.free.0 + usage.data + usage.pages;
        assert_eq!(sum, USABLE, "blocks are lost, or free and used: {figures:?}");
    }
    let mut distinct = HashSet::new();
    let mut pointers = 0;
    for volume in seen.values() {
        let blocks = volume.snapshots.values().flatten().chain(&volume.blocks);
        for content in blocks.filter(|content| **content != ZERO) {
            distinct.insert((&volume.domain, content));
            pointers += 1;
        }
    }
    let (data, references) = (usage.data - crowd, usage.references - crowd);
    let adds_up = distinct.len() as u64 <= data && data <= references;
    // What is hidden refers to blocks, too.
    let adds_up = adds_up && (references <= pointers || hidden > 0);
    assert!(adds_up, "{} contents at {pointers} places take {usage:?}", distinct.len());
}

/// Says how to repeat a run that fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("to repeat: VRIO_SEED={seed} cargo test -p interpose --test crash one_seed");
        }
    }
}
