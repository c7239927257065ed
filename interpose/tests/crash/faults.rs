//! Devices that lie and fail: whatever is read is right or an error.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, BlockCount, Lba, LbaRange, Pba};
use block_core::{Blocks, Device};
use interpose::pool::ReadOnly;
use interpose::{OpenError, Pool};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::content::{self, Content};
use super::crashes::Run;
use super::disk::{FailureRates, Fate, Medium, Options, SimDisk};
use super::machine::{DEVICE, Failure, JOURNAL, Machine, empty_pool, request_buffer, settings};
use super::model::{Model, name};
use super::observe::observe;
use super::world::{Habits, World};

const OPTIONS: Options = Options { blocks: DEVICE, volatile_cache: true };

const STEADY: Habits = Habits { most_blocks: 48, guests: 4, faulty: false, control: false };

/// The four places of superblocks.
const SUPERBLOCKS: [[Pba; 2]; 2] = [[Pba(0), Pba(8192)], [Pba(1), Pba(8193)]];

/// Begins the heap: keys and journal lie before it.
const HEAP: u64 = 1024 + JOURNAL.0;

/// A pool at rest with some volumes and snapshots, and what they hold.
fn pool_at_rest(seed: u64) -> (Medium, Model, Options) {
    let mut machine = Machine::new(empty_pool(OPTIONS, seed), OPTIONS, seed);
    let pool = machine.open(seed, settings()).expect("an empty pool");
    let model = Rc::new(RefCell::new(Model::default()));
    let clock = machine.driver().clock();
    let habits = Habits { control: true, ..STEADY };
    let world = World::new(pool, &machine.disk, Rc::clone(&model), habits, (seed, clock));
    machine.run(async {
        world.create().await;
        world.create().await;
    });
    let work = world.work(machine.driver(), 150);
    machine.run(work);
    machine.run(world.checkpoint());
    let seen = machine.run(observe(&world.pool));
    model.borrow_mut().adopt(&seen);
    let model = model.borrow().clone();
    // It may have grown.
    let options = Options { blocks: machine.disk.blocks(), ..OPTIONS };
    (machine.disk.shut_down(), model, options)
}

/// Each block of each volume, one at a time; `None` where it cannot be read.
async fn read_each(pool: &Rc<Pool<SimDisk>>) -> BTreeMap<(String, u64), Option<Content>> {
    let mut seen = BTreeMap::new();
    for status in pool.volumes() {
        let volume = pool.volume(&status.name).expect("it was just there");
        for lba in 0..status.blocks.0 {
            let range = LbaRange { start: Lba(lba), count: BlockCount(1) };
            let (buffer, outcome) = volume.read(range, request_buffer(), 0).await;
            let content = outcome.ok().map(|()| {
                content::parse(&buffer[..BLOCK_SIZE]).expect("what can be read is whole")
            });
            seen.insert((status.name.clone(), lba), content);
        }
    }
    seen
}

/// How many blocks cannot be read; those that can be are what they must be.
fn check_each(model: &Model, seen: &BTreeMap<(String, u64), Option<Content>>) -> usize {
    let mut errors = 0;
    for (key, volume) in &model.volumes {
        for (lba, block) in (0..).zip(&volume.blocks) {
            match seen.get(&(name(*key), lba)) {
                Some(Some(content)) => {
                    let allowed = block.candidates(|change| change.kept, |_| false);
                    assert!(allowed.contains(content), "v{key}: block {lba} is {content:?}");
                }
                Some(None) => errors += 1,
                None => panic!("v{key}: block {lba} is not there"),
            }
        }
    }
    errors
}

/// One bit of a block that was flushed long ago turns. Whoever needs the block
/// is told; all others read what they wrote.
#[test]
fn rot_is_an_error_for_those_who_read_it_and_for_nobody_else() {
    let (medium, model, options) = pool_at_rest(1);
    let blocks: usize = model.volumes.values().map(|volume| volume.blocks.len()).sum();
    let (mut some, mut none, mut refused) = (0, 0, 0);
    let mut random = SmallRng::seed_from_u64(1);
    for at in medium.written() {
        let mut rotten = medium.clone();
        rotten.flip(at, random.random_range(0..BLOCK_SIZE * 8));
        let mut machine = Machine::new(rotten, options, at.0);
        match machine.open(at.0, settings()) {
            Ok(pool) => {
                let seen = machine.run(read_each(&pool));
                match check_each(&model, &seen) {
                    0 => none += 1,
                    errors if errors < blocks => some += 1,
                    _ => {}
                }
            }
            Err(Failure::Open(_)) => refused += 1,
            Err(Failure::Halt(why)) => panic!("{why:?}"),
        }
    }
    println!("{some} damaged some blocks, {none} none that volumes need, {refused} the pool");
    assert!(some > 10, "guests' blocks are among those that rot");
    assert!(none > 0, "some are there twice, or belong to snapshots");
    assert!(refused < 12, "only the catalog is needed to open a pool");
}

/// The device says that it wrote and did not, or wrote elsewhere, in one of
/// fifty blocks of the heap. Neither the guests at work nor those who come
/// after a restart read anything else than what they wrote.
#[test]
fn misdirected_and_lost_writes_are_never_read_as_data() {
    let mut errors = 0;
    for seed in 0..12 {
        let mut machine = Machine::new(empty_pool(OPTIONS, seed), OPTIONS, seed);
        let pool = machine.open(seed, settings()).expect("an empty pool");
        let model = Rc::new(RefCell::new(Model::default()));
        let clock = machine.driver().clock();
        let habits = Habits { faulty: true, ..STEADY };
        let world = World::new(pool, &machine.disk, Rc::clone(&model), habits, (seed, clock));
        machine.run(async {
            world.create().await;
            world.create().await;
        });
        let mut random = SmallRng::seed_from_u64(seed);
        let is_heap = |at: u64| at >= HEAP && !(8192..9216).contains(&at);
        let mut written: Vec<Pba> = Vec::new();
        machine.disk.divert(move |at, _| {
            if !is_heap(at.0) || random.random_range(0..50) != 0 {
                written.push(at);
                return Fate::Lands;
            }
            let elsewhere = written.choose(&mut random).filter(|elsewhere| is_heap(elsewhere.0));
            elsewhere.map_or(Fate::Lost, |elsewhere| Fate::At(*elsewhere))
        });
        let work = world.work(machine.driver(), 200);
        machine.run(work);
        machine.disk.heal();
        machine.run(async {
            let keys: Vec<u64> = model.borrow().volumes.keys().copied().collect();
            world.flush(keys[0]).await;
            // The mark that says so follows within 100 ms.
            world.clock.sleep(std::time::Duration::from_millis(300)).await;
        });
        let left = machine.disk.shut_down();
        drop((world, machine));
        let mut machine = Machine::new(left, OPTIONS, seed);
        match machine.open(seed + 100, settings()) {
            Ok(pool) => {
                let seen = machine.run(read_each(&pool));
                errors += check_each(&model.borrow(), &seen);
            }
            Err(Failure::Open(why)) => println!("seed {seed}: {why}"),
            Err(Failure::Halt(why)) => panic!("{why:?}"),
        }
    }
    assert!(errors > 0, "some of what was lost is needed");
}

/// One copy of a superblock tears: the other one opens the pool. Both copies
/// of a generation are gone: nobody can say what was flushed last.
#[test]
fn one_copy_of_a_superblock_is_enough_and_none_is_refused() {
    let (medium, model, options) = pool_at_rest(2);
    let open = |torn: &[Pba]| {
        let mut medium = medium.clone();
        torn.iter().for_each(|at| medium.flip(*at, 900));
        let mut machine = Machine::new(medium, options, 2);
        let pool = machine.open(3, settings())?;
        let seen = machine.run(observe(&pool));
        model.check(&seen);
        assert_eq!(pool.figures().read_only, None);
        // The bad copy was written anew.
        drop(pool);
        Ok::<Medium, Failure>(machine.disk.shut_down())
    };
    for [a, b] in SUPERBLOCKS {
        for torn in [a, b] {
            open(&[torn]).expect("the other copy is good");
        }
        let refused = open(&[a, b]);
        assert!(matches!(refused, Err(Failure::Open(OpenError::Superblocks))));
    }
    let [first, second] = SUPERBLOCKS;
    open(&[first[0], second[1]]).expect("one copy of each is good");
}

/// Reads, writes and flushes fail now and then, also those of the journal and
/// of checkpoints, and the power is cut at each operation. What a flush has
/// answered is there, what failed is old or new.
#[test]
fn failing_commands_cost_no_flushed_block() {
    let habits = Habits { faulty: true, ..STEADY };
    for seed in 0..8 {
        let rare = FailureRates { reads: 4000, writes: 4000, flushes: 10_000 };
        let rates = match seed % 4 {
            0 => FailureRates { writes: 40_000, ..FailureRates::default() },
            1 => FailureRates { reads: 40_000, ..FailureRates::default() },
            2 => FailureRates { flushes: 40_000, ..FailureRates::default() },
            _ => rare,
        };
        Run::faulty(seed, rates).live(2, 60, habits);
    }
}

/// The controller is reset and has lost its cache. Answered writes may be gone,
/// and from then on nobody is told that anything is durable: the pool takes no
/// changes and says why. Opened anew on what is left it has all that was
/// flushed.
#[test]
fn a_lost_cache_costs_no_flushed_block() {
    for seed in 0..20 {
        let mut machine = Machine::new(empty_pool(OPTIONS, seed), OPTIONS, seed);
        let pool = machine.open(seed, settings()).expect("an empty pool");
        let model = Rc::new(RefCell::new(Model::default()));
        let clock = machine.driver().clock();
        let habits = Habits { faulty: true, ..STEADY };
        let world = World::new(pool, &machine.disk, Rc::clone(&model), habits, (seed, clock));
        machine.run(world.create());
        let work = world.work(machine.driver(), 1000);
        let mut polls = 200 + seed * 37;
        let lost = machine.driver().run(async {
            tokio::select! {
                biased;
                () = work => panic!("there is more to do"),
                () = std::future::poll_fn(|context| {
                    polls -= 1;
                    context.waker().wake_by_ref();
                    if polls == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
                }) => {}
            }
        });
        lost.expect("the machine goes on");
        machine.disk.lose_cache();
        if seed % 2 == 1 {
            // Guests notice before the pool does.
            machine.run(world.clock.sleep(std::time::Duration::from_micros(seed * 2)));
        }
        world.stop();
        machine.run(world.pool.checkpoint()).expect_err("nothing can be written");
        assert_eq!(world.pool.figures().read_only, Some(ReadOnly::Lost));
        let left = machine.disk.shut_down();
        drop((world, machine));
        let mut machine = Machine::new(left, OPTIONS, seed);
        let pool = machine.open(seed + 100, settings()).expect("no more than a crash");
        let seen = machine.run(observe(&pool));
        model.borrow().check(&seen);
    }
}

/// Two machines go on with the same work on copies of a pool. With the same
/// chance they write the same bytes; with chance of their own, as it must be,
/// not one sealed block is the same, so no nonce was used twice with a key.
#[test]
fn copies_of_a_pool_never_seal_alike() {
    let (medium, model, options) = pool_at_rest(4);
    let go_on = |chance: u64| {
        let mut machine = Machine::new(medium.clone(), options, 5);
        let pool = machine.open(chance, settings()).expect("a copy");
        let model = Rc::new(RefCell::new(model.clone()));
        let clock = machine.driver().clock();
        let world = World::new(pool, &machine.disk, model, STEADY, (5, clock));
        let work = world.work(machine.driver(), 80);
        machine.run(work);
        machine.run(world.checkpoint());
        machine.disk.shut_down()
    };
    let alike = |one: &Medium, other: &Medium| {
        let written = one.written();
        let new = written.iter().filter(|at| one.block(**at) != medium.block(**at));
        let new: Vec<&Pba> = new.collect();
        assert!(new.len() > 100, "there is something to compare");
        new.iter().filter(|at| one.block(***at) == other.block(***at)).count() * 100 / new.len()
    };
    let [one, same, other] = [6, 6, 7].map(go_on);
    assert_eq!(alike(&one, &same), 100);
    assert_eq!(alike(&one, &other), 0);
}
