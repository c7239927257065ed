//! A journal under load crashes at every command of its disk, is recovered,
//! goes on, and crashes again.
//!
//! The model is a history: the records in the order in which they were
//! appended, and how many of them a flush has answered for. What a recovery
//! finds is a beginning of the history that has at least those. A recovery may
//! cut more off, as it does when a data block did not survive; what comes after
//! is another history with the same beginning.

use std::cell::RefCell;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A superblock: where the journal begins and how many records came before.
#[derive(Clone, Copy, Debug)]
struct Checkpoint {
    start: Start,
    records: usize,
}

/// What may be found after a crash.
#[derive(Clone, Debug)]
struct Model {
    /// All records since the pool was made.
    records: Vec<Record>,
    /// So many are durable.
    flushed: usize,
    /// So many are in every history that there was; none was flushed past
    /// that, except in the last one.
    shared: usize,
    /// What the histories before the last one had after that.
    earlier: Vec<Vec<Record>>,
    /// The superblocks of which a crash leaves one: the durable one, and one
    /// that is being written.
    checkpoints: Vec<Checkpoint>,
}

impl Model {
    fn new() -> Self {
        let start = Start { position: FIRST, mark: 0 };
        let checkpoints = vec![Checkpoint { start, records: 0 }];
        Self { records: vec![], flushed: 0, shared: 0, earlier: vec![], checkpoints }
    }

    /// Whether a crash may leave exactly these records.
    fn allows(&self, found: &[Record]) -> bool {
        if found.len() < self.flushed {
            return false;
        }
        self.records.starts_with(found)
            || self.flushed <= self.shared
                && self.earlier.iter().any(|history| history.starts_with(found))
    }
}

type Shared = Rc<RefCell<Model>>;

struct Load {
    bench: Bench,
    model: Shared,
    history: u32,
}

impl Load {
    fn begin(bench: Bench, model: Model, history: u32, seed: u64) -> Self {
        let mut load = Self { bench, model: Rc::new(RefCell::new(model)), history };
        for task in 0..4 {
            load.spawn_writer(seed.wrapping_add(task));
        }
        load.spawn_checkpointer();
        load
    }

    /// Appends, and flushes sometimes; never ends.
    fn spawn_writer(&mut self, seed: u64) {
        let (journal, model) = (Rc::clone(&self.bench.journal), Rc::clone(&self.model));
        let (clock, history) = (self.bench.driver.clock(), self.history);
        let mut random = SmallRng::seed_from_u64(seed);
        self.bench.driver.spawn(async move {
            loop {
                let count = random.random_range(1..200);
                let admitted = journal.admit(count).await.expect("the disk is good");
                for _ in 0..count {
                    let record = record(history, model.borrow().records.len() as u64);
                    journal.append(&record);
                    model.borrow_mut().records.push(record);
                }
                drop(admitted);
                if random.random_bool(0.4) {
                    let before = model.borrow().records.len();
                    journal.flush().await.expect("the disk is good");
                    let mut model = model.borrow_mut();
                    model.flushed = model.flushed.max(before);
                }
                if random.random_bool(0.1) {
                    clock.sleep(Duration::from_millis(random.random_range(1..200))).await;
                }
            }
        });
    }

    fn spawn_checkpointer(&mut self) {
        let (journal, model) = (Rc::clone(&self.bench.journal), Rc::clone(&self.model));
        let clock = self.bench.driver.clock();
        self.bench.driver.spawn(async move {
            loop {
                clock.sleep(Duration::from_millis(20)).await;
                if journal.used() < RING_BLOCKS / 2 {
                    continue;
                }
                let position = journal.freeze();
                let records = model.borrow().records.len();
                clock.sleep(Duration::from_micros(300)).await;
                let start = Start { position, mark: journal.mark() };
                model.borrow_mut().checkpoints.push(Checkpoint { start, records });
                clock.sleep(Duration::from_micros(100)).await;
                let mut model = model.borrow_mut();
                // What a checkpoint holds is durable with it.
                model.flushed = model.flushed.max(records);
                model.checkpoints.remove(0);
                journal.release(position.next);
            }
        });
    }
}

/// What a recovery found.
struct Recovered {
    chain: Chain,
    checkpoint: Checkpoint,
    /// Each with its block.
    records: Vec<(u64, Record)>,
}

/// Recovers what a crash left, for each superblock that it may have left, and
/// holds it against the model.
fn recover(load: &Load, medium: &Medium, random: &mut SmallRng) -> Recovered {
    let model = load.model.borrow();
    let which = random.random_range(0..model.checkpoints.len());
    let mut chosen = None;
    for (index, checkpoint) in model.checkpoints.iter().enumerate() {
        let start = checkpoint.start;
        let chain = load.bench.scan(medium, start);
        assert_eq!(chain.verdict, Verdict::Whole, "{chain:?} from {checkpoint:?}");
        let (keys, ring) = (&load.bench.keys, &load.bench.ring);
        let (records, end) =
            replayed(medium, keys, ring, start.position, chain.end.next).expect("scanned");
        assert_eq!(end, chain.end);
        let mut found = model.records[..checkpoint.records].to_vec();
        found.extend(records.iter().map(|(_, record)| record.clone()));
        assert!(model.allows(&found), "{} of {} found", found.len(), model.records.len());
        if index == which {
            chosen = Some(Recovered { chain, checkpoint: *checkpoint, records });
        }
    }
    chosen.expect("there is always a superblock")
}

/// Goes on after a recovery that cuts at some block past the mark.
fn go_on(load: &Load, medium: Medium, found: &Recovered, random: &mut SmallRng) -> Load {
    let from = found.checkpoint.start.position;
    let least = (found.chain.mark + 1).max(from.next);
    let cut = random.random_range(least..=found.chain.end.next);
    let (_, at) =
        replayed(&medium, &load.bench.keys, &load.bench.ring, from, cut).expect("scanned");
    let kept = found.records.iter().take_while(|(number, _)| *number < cut);
    let model = load.model.borrow();
    let mut records = model.records[..found.checkpoint.records].to_vec();
    records.extend(kept.map(|(_, record)| record.clone()));
    let shared = records.len();
    let mut earlier = model.earlier.clone();
    earlier.push(model.records.clone());
    earlier.retain(|history| history.starts_with(&records));
    // What a crash left on the disk the next one leaves too.
    let (flushed, start) = (shared, Start { position: from, mark: found.chain.mark });
    let checkpoints = vec![found.checkpoint];
    let model = Model { records, flushed, shared, earlier, checkpoints };
    let seed = random.random();
    let keys = Rc::clone(&load.bench.keys);
    let bench = Bench::continuing(medium, keys, start, at, seed);
    Load::begin(bench, model, load.history + 1, seed)
}

/// Lets the load run until the disk has done so many commands more.
fn run_for(load: &mut Load, operations: u64) {
    let disk = load.bench.disk.clone();
    let goal = disk.operations() + operations;
    let done = std::future::poll_fn(|context| {
        context.waker().wake_by_ref();
        let done = disk.operations() >= goal;
        if done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    });
    load.bench.driver.run(done).expect("the load never ends");
}

/// Lets the load run and crashes it after each of the next `operations`
/// commands; every so often what a crash left goes on, `depth` times over.
fn crash_all_the_way(mut load: Load, operations: u64, depth: u32, random: &mut SmallRng) -> u64 {
    let mut crashes = 0;
    for _ in 0..operations {
        run_for(&mut load, 1);
        let left = load.bench.disk.cut();
        let found = recover(&load, &left, random);
        crashes += 1;
        if depth > 0 && random.random_bool(0.04) {
            let next = go_on(&load, left, &found, random);
            crashes += crash_all_the_way(next, operations / 2, depth - 1, random);
        }
    }
    crashes
}

#[test]
fn what_was_flushed_is_there_after_every_crash() {
    let mut crashes = 0;
    for seed in 0..12 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut load = Load::begin(Bench::new(seed), Model::new(), 1, seed);
        // Up to three times around the ring.
        run_for(&mut load, seed * 25);
        crashes += crash_all_the_way(load, 60, 3, &mut random);
    }
    println!("{crashes} crashes");
    assert!(crashes > 1000, "{crashes} crashes");
}
