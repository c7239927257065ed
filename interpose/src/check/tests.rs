use std::cell::RefCell;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockCount, Blocks, Chance, Lba, LbaRange, Pool as Buffers};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::{CheckOptions, Fault, Wrong};
use crate::disk::{Driver, Medium, Options, SimDisk};
use crate::layout::{Epoch, Kind, LineId, Pointer};
use crate::read::Pointers;
use crate::vault::{Cost, NewWay, Secret};
use crate::{CreateOptions, Means, Pool, Settings};

const DEVICE: BlockCount = BlockCount(16 * 1024);

/// A pool with a volume, `disk`, of which ten blocks are written, and a
/// snapshot and a clone of it.
struct Ground {
    driver: Driver,
    pool: Rc<Pool<SimDisk>>,
}

impl Ground {
    fn new() -> Self {
        let disk = SimDisk::new(Medium::new(), Options::new(DEVICE), 1);
        let mut driver = Driver::new(&disk, 1);
        let random = RefCell::new(SmallRng::seed_from_u64(1));
        let chance = Chance::new(move || random.borrow_mut().next_u64());
        let buffers = Buffers::private(512, BLOCK_SIZE).expect("memory");
        let secret = Secret::key_file(vec![7; 32].into());
        let first = NewWay::new("first", &secret, Cost::LEAST, &chance).expect("a way");
        let options = CreateOptions { first, journal: Some(BlockCount(64)) };
        let device = Rc::new(disk.clone());
        let made = Pool::create(Rc::clone(&device), buffers.clone(), chance.clone(), options);
        driver.run(made).expect("runs").expect("made");
        let means = Means { device, buffers, chance, wall: Box::new(|| 0) };
        let opened = driver.run(Pool::open(means, &secret, Settings::default(), None));
        let pool = opened.expect("runs").expect("opens");
        pool.tasks().into_iter().for_each(|task| driver.spawn(task));
        let mut this = Self { driver, pool };
        this.begin();
        this
    }

    fn begin(&mut self) {
        let pool = Rc::clone(&self.pool);
        let blocks = Buffers::private(1, 10 * BLOCK_SIZE).expect("memory");
        let begin = async {
            let made = pool.create_volume("disk", BlockCount(100), "tenant", Vec::new());
            let id = made.await.expect("made");
            let volume = pool.volume("disk").expect("there");
            let mut buffer = blocks.take().expect("a buffer");
            SmallRng::seed_from_u64(2).fill_bytes(&mut buffer);
            let range = LbaRange { start: Lba(0), count: BlockCount(10) };
            volume.write(range, buffer, 0, Durability::Cached).await.1.expect("written");
            pool.snapshot(&[id], "kept", false).await.expect("taken");
            let kept = pool.find_snapshot(id, "kept").expect("there");
            pool.clone_snapshot(kept, "copy", Vec::new()).await.expect("cloned");
            pool.checkpoint().await.expect("made");
        };
        self.driver.run(begin).expect("runs");
    }

    /// What a block of the volume is.
    fn pointer(&mut self, lba: u64) -> Pointer {
        let core = Rc::clone(&self.pool.core);
        let mut pointers: Pointers = [Pointer::HOLE; block_core::unit::MAX_REQUEST_BLOCKS + 1];
        let range = LbaRange { start: Lba(lba), count: BlockCount(1) };
        let id = core.state.borrow().catalog.volume_named("disk").expect("there").id;
        let line = core.head(id).expect("there").line;
        let found = core.resolve(crate::catalog::head_of(line), range, &mut pointers[..1]);
        self.driver.run(found).expect("runs").expect("found");
        pointers[0]
    }

    /// Makes what was changed durable, and checks.
    fn faults(&mut self) -> Vec<Fault> {
        let pool = Rc::clone(&self.pool);
        let options = CheckOptions::default();
        let check = async {
            pool.checkpoint().await.expect("made");
            pool.check(&options, &|_| {}).await.expect("looks")
        };
        let report = self.driver.run(check).expect("runs");
        assert_eq!(report.incomplete, None);
        report.faults
    }
}

fn told(fault: &Fault) -> Vec<String> {
    let mut told: Vec<String> = fault.touches.iter().map(ToString::to_string).collect();
    told.sort();
    told
}

/// A block has fewer references counted than name it: sooner or later it would
/// be overwritten. It is named with everybody who has it.
#[test]
fn a_count_that_is_too_low_is_named_with_all_who_have_the_block() {
    let mut ground = Ground::new();
    assert_eq!(ground.faults(), []);
    let pba = ground.pointer(7).pba;
    ground.pool.core.state.borrow_mut().active.unrefer(pba);
    let faults = ground.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!((faults[0].pba, faults[0].wrong), (pba, Wrong::Uncounted(1)));
    assert_eq!(
        told(&faults[0]),
        ["snapshot disk@kept block 7", "volume copy block 7", "volume disk block 7"]
    );
}

/// A reference is counted that nobody has: the block would never be free
/// again. Whoever has it is named.
#[test]
fn a_count_that_is_too_high_is_named() {
    let mut ground = Ground::new();
    let pointer = ground.pointer(3);
    {
        let mut state = ground.pool.core.state.borrow_mut();
        let epoch = state.catalog.epoch();
        let pointer = Pointer { birth: epoch, kind: Kind::Data, ..pointer };
        // The reference is that of a line that there is not: no map gets it.
        let nobody = LineId(state.catalog.next_line().0 + 1);
        state.active.share((nobody, Epoch(0)), Lba(50), pointer);
    }
    let faults = ground.faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!((faults[0].pba, faults[0].wrong), (pointer.pba, Wrong::Unnamed(1)));
    assert!(told(&faults[0]).contains(&"volume disk block 3".to_owned()), "{faults:?}");
}
