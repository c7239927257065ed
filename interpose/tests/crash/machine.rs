//! A machine that runs a pool on a simulated disk, and dies when it is
//! dropped.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::device::Durability;
use block_core::unit::{BLOCK_SIZE, BlockCount, Lba, LbaRange, MAX_REQUEST_BLOCKS, SECTOR_SIZE};
use block_core::{Blocks, Buffer, Chance, Pool as Buffers};
use interpose::vault::{Cost, NewWay, Secret};
use interpose::{CreateOptions, Means, OpenError, Pool, Settings, WhenFull};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thiserror::Error;
use zeroize::Zeroizing;

use super::content;
use super::disk::{Driver, Halt, Medium, Options, SimDisk};

/// The smallest device that a pool can have.
pub const DEVICE: BlockCount = BlockCount(16 * 1024);

/// The journal of most tests: so small that it goes round often.
pub const JOURNAL: BlockCount = BlockCount(64);

const REQUESTS: usize = 64;

thread_local! {
    /// Memory for pages, which one machine after the other uses.
    static PAGES: RefCell<Vec<Buffers>> = const { RefCell::new(Vec::new()) };
    static BUFFERS: Buffers = Buffers::private(REQUESTS, (MAX_REQUEST_BLOCKS + 1) * BLOCK_SIZE)
        .expect("memory for requests");
}

/// What a guest's request brings along.
pub fn request_buffer() -> Buffer {
    BUFFERS.with(Buffers::take).expect("a buffer for a request")
}

pub fn secret() -> Secret {
    Secret::key_file(Zeroizing::new(vec![7; 32]))
}

pub fn chance(seed: u64) -> Chance {
    let random = RefCell::new(SmallRng::seed_from_u64(seed));
    Chance::new(move || random.borrow_mut().random())
}

/// Little memory, so that everything that is bounded meets its bound.
pub fn settings() -> Settings {
    Settings {
        page_cache: 0,
        overlay: 256 << 10,
        index: 32 << 10,
        read_cache: 64 << 10,
        full: WhenFull::Wait,
        read_only: false,
    }
}

/// What to do at each crash point of a machine's life.
pub type Watch = Rc<dyn Fn(&SimDisk)>;

pub struct Machine {
    pub disk: SimDisk,
    /// Dropped before the pages are lent to the next machine.
    driver: Option<Driver>,
    pool: Option<Rc<Pool<SimDisk>>>,
    pages: Buffers,
}

/// Why a pool was not opened.
#[derive(Debug, Error)]
pub enum Failure {
    #[error("the machine stopped: {0:?}")]
    Halt(Halt),
    #[error(transparent)]
    Open(OpenError),
}

impl Machine {
    /// A machine with a disk, and no pool open.
    pub fn new(medium: Medium, options: Options, seed: u64) -> Self {
        let disk = SimDisk::new(medium, options, seed);
        let driver = Some(Driver::new(&disk, seed));
        let kept = PAGES.with(|pages| pages.borrow_mut().pop());
        let pages = kept.unwrap_or_else(|| {
            Buffers::private(Settings::LEAST_PAGES, BLOCK_SIZE).expect("memory for pages")
        });
        Self { disk, driver, pool: None, pages }
    }

    /// Has `watch` look at the disk after each of its operations.
    pub fn watch(&mut self, watch: Watch) {
        let (seen, disk) = (Rc::new(Cell::new(0)), self.disk.clone());
        let due = {
            let (seen, disk) = (Rc::clone(&seen), disk.clone());
            move || (disk.operations() != seen.get()).then_some(block_core::Time::ZERO)
        };
        self.driver().tick_at(due, move |_| {
            seen.set(disk.operations());
            watch(&disk);
        });
    }

    /// Opens the pool on the disk and runs what it does by itself.
    pub fn open(&mut self, seed: u64, settings: Settings) -> Result<Rc<Pool<SimDisk>>, Failure> {
        let means = Means {
            device: Rc::new(self.disk.clone()),
            buffers: self.pages.clone(),
            chance: chance(seed),
            wall: Box::new(|| 0),
        };
        let secret = secret();
        let opening = Pool::open(means, &secret, settings, None);
        let pool = self.driver().run(opening).map_err(Failure::Halt)?.map_err(Failure::Open)?;
        pool.tasks().into_iter().for_each(|task| self.driver().spawn(task));
        let (due, told) = (Rc::downgrade(&pool), Rc::downgrade(&pool));
        self.driver().tick_at(
            move || due.upgrade()?.deadline(),
            move |now| {
                if let Some(pool) = told.upgrade() {
                    pool.tick(now);
                }
            },
        );
        self.pool = Some(Rc::clone(&pool));
        Ok(pool)
    }

    pub fn driver(&mut self) -> &mut Driver {
        self.driver.as_mut().expect("it is taken only when the machine is dropped")
    }

    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> T {
        self.driver().run(future).expect("the machine goes on")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        (self.driver, self.pool) = (None, None);
        if self.pages.available() == self.pages.count() {
            PAGES.with(|pages| pages.borrow_mut().push(self.pages.clone()));
        }
    }
}

/// The volume that a crowded pool is full of.
pub const CROWD: &str = "crowd";

/// Blocks that a crowded pool has left: little more than its reserve, so that
/// what is freed is soon written again.
const LEFT: u64 = 800;

/// A device with a pool that is almost full, and how many blocks its crowd
/// has. Made once in a process.
pub fn crowded_pool(options: Options) -> (Medium, u64) {
    thread_local! {
        static CROWDED: RefCell<Option<(Medium, u64)>> = const { RefCell::new(None) };
    }
    let made = CROWDED.with(|crowded| crowded.borrow().clone());
    made.unwrap_or_else(|| {
        let made = crowd(options);
        CROWDED.with(|crowded| crowded.replace(Some(made.clone())));
        made
    })
}

fn crowd(options: Options) -> (Medium, u64) {
    const AT_A_TIME: u64 = 32;
    let mut machine = Machine::new(empty_pool(options, 0), options, 0);
    let pool = machine.open(0, Settings { index: 0, ..settings() }).expect("an empty pool");
    let blocks = machine.run(async {
        pool.create_volume(CROWD, DEVICE, CROWD, Vec::new()).await.expect("a volume");
        let volume = pool.volume(CROWD).expect("it was just made");
        let mut at = 0;
        while pool.figures().free.0 > LEFT + 2 * AT_A_TIME {
            let mut buffer = request_buffer();
            for (number, sector) in (at * 8..).zip(buffer.chunks_exact_mut(SECTOR_SIZE)) {
                content::fill(u64::MAX - number, sector);
            }
            let range = LbaRange { start: Lba(at), count: BlockCount(AT_A_TIME) };
            let written = volume.write(range, buffer, 0, Durability::Cached).await.1;
            written.expect("there is room");
            at += AT_A_TIME;
        }
        pool.checkpoint().await.expect("the device does not fail");
        at
    });
    (machine.disk.shut_down(), blocks)
}

/// A device with an empty pool.
pub fn empty_pool(options: Options, seed: u64) -> Medium {
    let mut machine = Machine::new(Medium::new(), options, seed);
    let chance = chance(seed);
    let first = NewWay::new("test", &secret(), Cost::LEAST, &chance).expect("a way");
    let create = CreateOptions { first, journal: Some(JOURNAL) };
    let device = Rc::new(machine.disk.clone());
    let creating = Pool::create(device, machine.pages.clone(), chance, create);
    machine.run(creating).expect("a pool");
    machine.disk.shut_down()
}
