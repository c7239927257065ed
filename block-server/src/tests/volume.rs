//! A raw volume against a model that is an array of sectors.

use std::cell::RefCell;
use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, BlockCount, Extent, Pba, SECTOR_SIZE, SectorRange};
use block_core::{BlockError, Op, Ordered, Pool, Request, Served};
use proptest::prelude::*;
use turn::Executor;

use super::disk::{Medium, SimDisk};
use crate::extents::RawVolume;

const BLOCKS: u64 = 24;
const SECTORS: u64 = BLOCKS * 8;

/// Three extents, out of order, with other people's blocks around them.
fn extents() -> [Extent; 3] {
    let extent = |start, count| Extent { start: Pba(start), count: BlockCount(count) };
    [extent(40, 5), extent(10, 11), extent(60, 8)]
}

struct Rig {
    disk: SimDisk,
    volume: Rc<Ordered<RawVolume<SimDisk>>>,
    executor: Executor,
    pool: Pool,
    served: Rc<RefCell<Vec<(usize, Served)>>>,
}

impl Rig {
    fn new(seed: u64) -> Self {
        let mut medium = Medium::default();
        (0..80).for_each(|at| medium.set(at, [0xee; BLOCK_SIZE]));
        for extent in extents() {
            (extent.start.0..extent.end().0).for_each(|at| medium.set(at, [0; BLOCK_SIZE]));
        }
        let disk = SimDisk::new(medium, 80, seed);
        let scratch = Pool::private(1, BLOCK_SIZE).expect("memory").take();
        let scratch = Rc::new(tokio::sync::Mutex::new(scratch));
        let raw = RawVolume::new(Rc::new(disk.clone()), BlockCount(BLOCKS), &extents());
        let volume = Ordered::new(raw, scratch, 99);
        Self {
            disk,
            volume: Rc::new(volume),
            executor: Executor::new(64),
            pool: Pool::private(64, 7 * BLOCK_SIZE).expect("memory"),
            served: Rc::default(),
        }
    }

    fn start(&mut self, number: usize, request: Request) {
        let (volume, served) = (Rc::clone(&self.volume), Rc::clone(&self.served));
        let task = async move {
            let answer = volume.serve(request).await;
            served.borrow_mut().push((number, answer));
        };
        self.executor.spawn(task).expect("room");
    }

    fn request(&self, op: Op, start: u64, count: u32, fill: u8) -> Request {
        let range = SectorRange::new(start, count).expect("a range");
        let buffer = (op == Op::Read || op.carries_data()).then(|| {
            let mut buffer = self.pool.take().expect("a buffer");
            buffer.fill(0xdd);
            let data = range.offset_in_block()..range.offset_in_block() + range.bytes() as usize;
            buffer[data].fill(fill);
            buffer
        });
        Request { op, range: Some(range), buffer }
    }

    fn finish(&mut self) {
        loop {
            self.executor.run(0);
            if !self.disk.step() {
                break;
            }
        }
    }

    fn serve(&mut self, request: Request) -> Served {
        self.start(0, request);
        self.finish();
        self.served.borrow_mut().pop().expect("an answer").1
    }

    /// The volume's sectors: each holds one byte value throughout.
    fn sectors(&self) -> Vec<u8> {
        let blocks = extents().into_iter().flat_map(|extent| extent.start.0..extent.end().0);
        let bytes: Vec<u8> = blocks.flat_map(|at| self.disk.peek(at)).collect();
        bytes
            .chunks_exact(SECTOR_SIZE)
            .map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector");
                sector[0]
            })
            .collect()
    }
}

fn apply(model: &mut [u8], op: Op, start: u64, count: u32, fill: u8) {
    let range = SectorRange::new(start, count).expect("a range");
    match op {
        Op::Write | Op::WriteThrough => model[start as usize..range.end() as usize].fill(fill),
        Op::WriteZeroes | Op::WriteZeroesUnmap | Op::WriteZeroesThrough => {
            model[start as usize..range.end() as usize].fill(0);
        }
        Op::Discard => {
            let covered = range.blocks_covered();
            let first = covered.start.0 as usize * 8;
            model[first..first + covered.count.0 as usize * 8].fill(0);
        }
        Op::Read | Op::Flush => {}
    }
}

fn any_change() -> impl Strategy<Value = (Op, u64, u32)> {
    let op = prop_oneof![
        6 => Just(Op::Write),
        2 => Just(Op::WriteThrough),
        1 => Just(Op::WriteZeroes),
        1 => Just(Op::WriteZeroesUnmap),
        1 => Just(Op::WriteZeroesThrough),
        1 => Just(Op::Discard),
    ];
    // Few blocks, so that most changes overlap others, and the seams between
    // extents (sectors 40 and 128) are in reach.
    (op, 0..SECTORS - 1, 1..40u32).prop_map(|(op, start, count)| {
        let near = if start % 2 == 0 { 30 + start % 24 } else { start };
        (op, near, count.min((SECTORS - near) as u32))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Concurrent changes of parts of the same blocks: the volume must end as
    /// if they had run one after the other, in the order of their order
    /// numbers. A lost merge shows up as a sector of an older change.
    #[test]
    fn overlapping_changes_behave_as_if_they_ran_in_the_order_of_their_numbers(
        changes in prop::collection::vec(any_change(), 1..40),
        seed: u64,
        pause in 1..6usize,
    ) {
        let mut rig = Rig::new(seed);
        for (number, &(op, start, count)) in changes.iter().enumerate() {
            let request = rig.request(op, start, count, number as u8 + 1);
            rig.start(number, request);
            if number % pause == 0 {
                rig.executor.run(number);
                rig.disk.step();
            }
        }
        rig.finish();
        let mut served = std::mem::take(&mut *rig.served.borrow_mut());
        prop_assert_eq!(served.len(), changes.len());
        served.sort_by_key(|(_, answer)| answer.word);
        let mut model = vec![0; SECTORS as usize];
        for (at, (number, answer)) in served.iter().enumerate() {
            prop_assert_eq!(answer.outcome, Ok(()));
            prop_assert_eq!(answer.word, at as u64, "order numbers have no gap");
            let (op, start, count) = changes[*number];
            apply(&mut model, op, start, count, *number as u8 + 1);
        }
        prop_assert_eq!(rig.sectors(), model);
        for at in (0..80).filter(|at| !extents().iter().any(|e| (e.start.0..e.end().0).contains(at))) {
            prop_assert_eq!(rig.disk.peek(at), [0xee; BLOCK_SIZE], "another's block {}", at);
        }
    }
}

#[test]
fn a_read_across_extents_brings_each_sector_from_its_place() {
    let mut rig = Rig::new(1);
    for sector in 0..SECTORS {
        let request = rig.request(Op::Write, sector, 1, sector as u8 + 1);
        rig.serve(request).outcome.expect("written");
    }
    let read = rig.request(Op::Read, 33, 20, 0);
    let answer = rig.serve(read);
    answer.outcome.expect("read");
    let buffer = answer.buffer.expect("data");
    for sector in 33..53u64 {
        let from = (sector - 32) as usize * SECTOR_SIZE;
        assert_eq!(buffer[from], sector as u8 + 1, "sector {sector}");
    }
}

#[test]
fn what_lies_outside_or_contradicts_itself_is_refused_and_changes_nothing() {
    let mut rig = Rig::new(2);
    let before = rig.sectors();
    for op in [Op::Read, Op::Write, Op::WriteThrough, Op::Discard, Op::WriteZeroes] {
        let request = rig.request(op, SECTORS - 1, 2, 1);
        assert_eq!(rig.serve(request).outcome, Err(BlockError::OutOfRange), "{op:?}");
        let far =
            Request { range: SectorRange::new(1 << 50, u32::MAX), ..rig.request(op, 0, 1, 1) };
        assert_eq!(rig.serve(far).outcome, Err(BlockError::OutOfRange), "{op:?}");
        let nowhere = Request { range: None, ..rig.request(op, 0, 1, 1) };
        assert_eq!(rig.serve(nowhere).outcome, Err(BlockError::Malformed), "{op:?}");
    }
    for op in [Op::Read, Op::Write] {
        // Seven blocks of buffer: eight, or seven that need an eighth to merge.
        let too_long = Request { range: SectorRange::new(0, 57), ..rig.request(op, 0, 1, 1) };
        assert_eq!(rig.serve(too_long).outcome, Err(BlockError::Malformed), "{op:?}");
        let bare = Request { buffer: None, ..rig.request(op, 0, 1, 1) };
        assert_eq!(rig.serve(bare).outcome, Err(BlockError::Malformed), "{op:?}");
    }
    let no_spare = Request { range: SectorRange::new(1, 55), ..rig.request(Op::Write, 0, 1, 1) };
    assert_eq!(rig.serve(no_spare).outcome, Err(BlockError::Malformed));
    assert_eq!(rig.sectors(), before);
    assert_eq!(rig.pool.available(), rig.pool.count(), "every buffer came back");
}

/// A guest with a write-through cache is told that a write is durable.
#[test]
fn a_power_cut_loses_no_write_that_was_flushed_or_written_through() {
    for seed in 0..50 {
        let mut rig = Rig::new(seed);
        let flushed = rig.request(Op::Write, 3, 7, 1);
        rig.serve(flushed).outcome.expect("written");
        let answer = rig.serve(Request { op: Op::Flush, range: None, buffer: None });
        assert_eq!((answer.outcome, answer.word), (Ok(()), 99), "a flush tells the verifier");
        let through = rig.request(Op::WriteThrough, 37, 9, 2);
        rig.serve(through).outcome.expect("written");
        // Zeroes over flushed data, both ends inside of a block.
        let zeroes = rig.request(Op::WriteZeroesThrough, 5, 3, 0);
        rig.serve(zeroes).outcome.expect("zeroed");
        let left = SimDisk::new(rig.disk.cut(), 80, seed);
        rig.disk = left;
        let sectors = rig.sectors();
        assert_eq!(sectors[3..10], [1, 1, 0, 0, 0, 1, 1]);
        assert!(sectors[37..46].iter().all(|&byte| byte == 2));
    }
}
