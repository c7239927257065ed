//! The power is cut after every single command of a history of volumes. What
//! comes back is the catalog before or after the change that was under way,
//! and no volume ever shows what another one wrote.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block_core::unit::{BLOCK_SIZE, SECTOR_SIZE, SectorRange};
use block_core::{Op, Pool, Request};
use link::{Access, FrontId, VolumeName};

use super::disk::{Medium, SimDisk};
use crate::attach::Claim;
use crate::attachments::Attachments;
use crate::catalog::{DESK_BYTES, Formatting, OpenError};
use crate::config::PoolConfig;
use crate::layout::{Copy, DATA_START, UNIT_BLOCKS, VolumeRecord};
use crate::remembered::Rollback;
use crate::size::Size;
use crate::store::{Means, Store, StoreError};
use block_core::Chance;

const UNITS: u64 = 4;
const BLOCKS: u64 = DATA_START.0 + UNITS * UNIT_BLOCKS;
const UNIT: u64 = UNIT_BLOCKS * BLOCK_SIZE as u64;

type SimStore = Rc<Store<SimDisk>>;

/// Runs a future on the disk until it is ready, or until the disk has executed
/// `limit` commands: then the power is cut.
pub(super) fn drive<T>(disk: &SimDisk, limit: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(ready) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(ready);
        }
        if disk.executed() >= limit {
            return None;
        }
        assert!(disk.step(), "nothing moves any more");
    }
}

pub(super) async fn open(disk: &SimDisk, formatting: Formatting) -> Result<SimStore, OpenError> {
    let desks = Pool::private(1, DESK_BYTES).expect("memory");
    let scratch = Pool::private(1, BLOCK_SIZE).expect("memory").take();
    let scratch = Rc::new(tokio::sync::Mutex::new(scratch));
    let drawn = std::cell::Cell::new(disk.executed() as u64 + 1);
    let chance = Chance::new(move || {
        drawn.set(drawn.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
        drawn.get()
    });
    let means = Means {
        name: "disk".to_owned(),
        device: RefCell::new(Rc::new(disk.clone())),
        desks,
        scratch,
        transfers: crate::store::Transfers::new(Pool::private(2, BLOCK_SIZE).expect("memory")),
        chance,
        wall: || 0,
        pages: Pool::private(1, BLOCK_SIZE).expect("memory"),
        unlock: None,
        pool: PoolConfig::default(),
        rollback: Rollback::Unnoticed,
    };
    Ok(Rc::new(Store::open(means, formatting).await?.0))
}

pub(super) fn name(text: &str) -> VolumeName {
    VolumeName::new(text).expect("a name")
}

pub(super) fn front(number: u8) -> FrontId {
    FrontId([number; 16])
}

/// What somebody who looks from outside sees of a catalog, by name.
fn catalog(store: &Store<SimDisk>) -> Vec<Seen> {
    let mut seen: Vec<Seen> = store.volumes().iter().map(|volume| seen(&volume.record())).collect();
    seen.sort();
    seen
}

type Seen = (VolumeName, u64, u64, u32, Vec<(bool, [u8; 16])>);

fn seen(record: &VolumeRecord) -> Seen {
    let fronts = record.attachments.iter();
    let fronts = fronts.map(|(access, who)| (access == Access::Write, who.front.0)).collect();
    (record.name.clone(), record.blocks.0, record.generation, record.order_epoch, fronts)
}

/// What the history has come to when the power goes.
#[derive(Clone, Default)]
struct Ledger {
    /// The catalog after each change that was answered.
    answered: Vec<Vec<Seen>>,
    /// Whether a change is under way since.
    changing: bool,
    /// Blocks of each volume that hold its mark, durably.
    written: Vec<(VolumeName, std::ops::Range<u64>)>,
}

struct History {
    store: SimStore,
    pool: Pool,
    ledger: Rc<RefCell<Ledger>>,
}

impl History {
    async fn change(&self, change: impl Future<Output = Result<(), StoreError>>) {
        self.ledger.borrow_mut().changing = true;
        change.await.expect("the change works");
        let mut ledger = self.ledger.borrow_mut();
        ledger.answered.push(catalog(&self.store));
        ledger.changing = false;
    }

    async fn create(&self, text: &str, units: u64) {
        self.change(async {
            self.store.create(name(text), Size(units * UNIT), false, None).await.map(|_| ())
        })
        .await;
    }

    async fn resize(&self, text: &str, blocks: u64) {
        let size = Size(blocks * BLOCK_SIZE as u64);
        for (of, range) in &mut self.ledger.borrow_mut().written {
            if of.as_str() == text {
                range.end = range.end.min(blocks);
            }
        }
        self.change(async { self.store.resize(&name(text), size, true).await.map(|_| ()) }).await;
    }

    async fn delete(&self, text: &str) {
        self.ledger.borrow_mut().written.retain(|(of, _)| of.as_str() != text);
        self.change(self.store.delete(&name(text), false)).await;
    }

    /// Writes the volume's mark into every 16th block, and flushes.
    async fn fill(&self, text: &str) {
        let volume = self.store.volume(&name(text)).expect("it is there");
        let blocks = volume.record().blocks.0;
        for block in (0..blocks).step_by(16) {
            let mut buffer = self.pool.take().expect("a buffer");
            buffer.fill(mark(text));
            let range = SectorRange::new(block * 8, 8);
            let request = Request { op: Op::Write, range, buffer: Some(buffer) };
            volume.requests.serve(request).await.outcome.expect("written");
        }
        let flush = Request { op: Op::Flush, range: None, buffer: None };
        volume.requests.serve(flush).await.outcome.expect("flushed");
        self.ledger.borrow_mut().written.push((name(text), 0..blocks));
    }

    async fn run(&self) {
        self.create("a", 1).await;
        self.fill("a").await;
        self.create("b", 2).await;
        self.fill("b").await;
        let a = self.store.volume(&name("a")).expect("there");
        let hold = RefCell::new(None);
        self.change(async {
            let attached = self.store.attach(&a, claim(1), None).await;
            *hold.borrow_mut() = Some(attached.expect("free").hold);
            Ok(())
        })
        .await;
        let hold = hold.take().expect("attached");
        self.change(self.store.detach(&a, &hold)).await;
        self.resize("a", 2 * UNIT_BLOCKS).await;
        self.delete("b").await;
        self.create("c", 2).await;
        self.fill("c").await;
        self.change(async {
            self.store.attach(&a, claim(2), None).await.expect("free");
            Ok(())
        })
        .await;
        self.change(async { self.store.force_detach(&name("a"), None).await.map(|_| ()) }).await;
        self.resize("a", 5).await;
        self.resize("c", UNIT_BLOCKS / 2 + 3).await;
        self.resize("c", UNIT_BLOCKS).await;
        self.create("d", 2).await;
    }
}

const CHANGES: usize = 13;

/// A volume's blocks are filled with the letter of its name.
fn mark(name: &str) -> u8 {
    name.as_bytes()[0]
}

fn check_contents(store: &Store<SimDisk>, disk: &SimDisk, ledger: &Ledger, when: &str) {
    for volume in store.volumes() {
        let record = volume.record();
        let mark = mark(record.name.as_str());
        let durable = ledger.written.iter().find(|(name, _)| *name == record.name);
        let blocks = record.extents.iter().flat_map(|extent| extent.start.0..extent.end().0);
        for (lba, pba) in (0..record.blocks.0).zip(blocks) {
            let block = disk.peek(pba);
            let marked = block.iter().all(|&byte| byte == mark);
            if durable.is_some_and(|(_, range)| range.contains(&lba)) && lba % 16 == 0 {
                assert!(marked, "{when}: flushed block {lba} of {} is lost", record.name);
            }
            // What a volume lost when it shrank must not be there again when
            // it grows, though nobody else ever had it.
            let cut = durable.is_some_and(|(_, range)| !range.contains(&lba)) && !ledger.changing;
            for sector in block.chunks_exact(SECTOR_SIZE) {
                let own =
                    sector.iter().all(|&byte| byte == 0 || byte == mark && lba % 16 == 0 && !cut);
                assert!(own, "{when}: block {lba} of {} holds {}", record.name, sector[0]);
            }
        }
    }
}

/// Runs the history up to the cut. Says what was known then.
fn run_until(disk: &SimDisk, limit: usize) -> (Ledger, bool) {
    let ledger: Rc<RefCell<Ledger>> = Rc::default();
    let history = async {
        let store = open(disk, Formatting::IfBlank).await.expect("a blank device");
        let pool = Pool::private(2, BLOCK_SIZE).expect("memory");
        History { store, pool, ledger: Rc::clone(&ledger) }.run().await;
    };
    let ended = drive(disk, limit, history).is_some();
    (ledger.take(), ended)
}

#[test]
fn after_a_power_cut_at_any_command_the_catalog_is_old_or_new_and_shows_nobody_elses_data() {
    let whole = SimDisk::new(Medium::default(), BLOCKS, 0);
    let (ledger, ended) = run_until(&whole, usize::MAX);
    assert!(ended && ledger.answered.len() == CHANGES, "{} changes", ledger.answered.len());
    let (total, states) = (whole.executed(), ledger.answered);
    for limit in 0..=total {
        let when = format!("cut after {limit} of {total}");
        let disk = SimDisk::new(Medium::default(), BLOCKS, limit as u64);
        let (ledger, _) = run_until(&disk, limit);
        let disk = SimDisk::new(disk.cut(), BLOCKS, limit as u64);
        let store = drive(&disk, usize::MAX, open(&disk, Formatting::IfBlank));
        let store = store.expect("no cut").unwrap_or_else(|error| panic!("{when}: {error}"));
        let (found, nothing) = (catalog(&store), Vec::new());
        let answered = ledger.answered.len();
        let before = ledger.answered.last().unwrap_or(&nothing);
        let next = states.get(answered).filter(|_| ledger.changing).unwrap_or(before);
        assert!(
            found == *before || found == *next,
            "{when}: {found:?}, not {before:?} or {next:?}"
        );
        check_contents(&store, &disk, &ledger, &when);
    }
}

#[test]
fn a_power_cut_while_the_catalog_is_put_right_changes_nothing() {
    let disk = SimDisk::new(Medium::default(), BLOCKS, 0);
    run_until(&disk, usize::MAX);
    let mut medium = disk.shut_down();
    // Both ways round: copy A of one record is lost, copy B of another one,
    // and a superblock.
    medium.set(Copy::A.record(0).0, [7; BLOCK_SIZE]);
    medium.set(Copy::B.record(1).0, [0; BLOCK_SIZE]);
    medium.set(Copy::B.superblock().0, [1; BLOCK_SIZE]);
    let expected = {
        let disk = SimDisk::new(medium.clone(), BLOCKS, 0);
        let store = drive(&disk, usize::MAX, open(&disk, Formatting::IfBlank)).expect("no cut");
        catalog(&store.expect("one copy is enough"))
    };
    assert_eq!(expected.len(), 3);
    for limit in 0.. {
        let disk = SimDisk::new(medium.clone(), BLOCKS, limit as u64);
        let ended = drive(&disk, limit, open(&disk, Formatting::IfBlank)).is_some();
        let disk = SimDisk::new(disk.cut(), BLOCKS, limit as u64);
        let store = drive(&disk, usize::MAX, open(&disk, Formatting::IfBlank)).expect("no cut");
        assert_eq!(catalog(&store.expect("one copy is enough")), expected, "cut after {limit}");
        if ended {
            break;
        }
    }
}

fn claim(number: u8) -> Claim {
    Claim { front: front(number), incarnation: 1, access: Access::Write, settled: 0, had: false }
}

fn opened(medium: Medium, blocks: u64, formatting: Formatting) -> Result<SimStore, OpenError> {
    let disk = SimDisk::new(medium, blocks, 0);
    drive(&disk, usize::MAX, open(&disk, formatting)).expect("no cut")
}

fn formatted() -> Medium {
    let disk = SimDisk::new(Medium::default(), BLOCKS, 0);
    drive(&disk, usize::MAX, open(&disk, Formatting::IfBlank)).expect("no cut").expect("blank");
    disk.shut_down()
}

#[test]
fn a_device_that_is_not_ours_is_left_alone_until_formatting_is_asked_for() {
    let mut foreign = Medium::default();
    foreign.set(5, [1; BLOCK_SIZE]);
    let refused = opened(foreign.clone(), BLOCKS, Formatting::IfBlank).err();
    assert_eq!(refused, Some(OpenError::NotFormatted));
    assert!(opened(foreign, BLOCKS, Formatting::IfForeign).is_ok());
    let refused = opened(Medium::default(), DATA_START.0, Formatting::IfForeign).err();
    assert!(matches!(refused, Some(OpenError::TooSmall(_))), "{refused:?}");
}

/// A formatting was cut off, and then the device was given to something else,
/// which left the second superblock where it was. Nobody has asked to format
/// it now, and that one line of ours must not cost what lies on it.
#[test]
fn what_came_after_a_formatting_that_was_cut_off_is_left_alone() {
    let begun = {
        let disk = SimDisk::new(Medium::default(), BLOCKS, 0);
        // Two reads of superblocks, the first blocks, both superblocks begun.
        drive(&disk, 6, open(&disk, Formatting::IfBlank));
        disk.shut_down()
    };
    assert!(opened(begun.clone(), BLOCKS, Formatting::IfBlank).is_ok(), "begun anew");
    for at in [0, 16] {
        let mut foreign = begun.clone();
        foreign.set(0, [0; BLOCK_SIZE]);
        foreign.set(at, [1; BLOCK_SIZE]);
        let refused = opened(foreign.clone(), BLOCKS, Formatting::IfBlank).err();
        assert_eq!(refused, Some(OpenError::NotFormatted), "block {at}");
        assert!(opened(foreign, BLOCKS, Formatting::IfForeign).is_ok());
    }
}

/// A large volume is deleted while others work. Its space went back to the
/// device in one command, for as long as that takes.
#[test]
fn space_goes_back_to_the_device_in_pieces() {
    const MIB: u64 = 1 << 20;
    let disk = SimDisk::new(Medium::default(), DATA_START.0 + 40 * UNIT_BLOCKS, 0);
    let deleted = async {
        let store = open(&disk, Formatting::IfBlank).await.expect("blank");
        let free = store.free();
        store.create(name("a"), Size(40 * MIB), false, None).await.expect("room");
        store.delete(&name("a"), false).await.expect("nobody has it");
        assert_eq!(store.free(), free);
    };
    drive(&disk, usize::MAX, deleted).expect("no cut");
    let pieces = disk.deallocated.borrow();
    assert_eq!(pieces.iter().map(|piece| piece.count.bytes()).sum::<u64>(), 40 * MIB);
    assert!(pieces.iter().all(|piece| piece.count.bytes() <= 16 * MIB), "{pieces:?}");
}

/// `format = true` stays in the configuration; it must not wipe the volumes
/// at the next start, nor a device that was ours and is damaged.
#[test]
fn formatting_that_was_asked_for_destroys_no_volume() {
    let disk = SimDisk::new(formatted(), BLOCKS, 0);
    let made = async {
        let store = open(&disk, Formatting::IfForeign).await.expect("ours");
        store.create(name("kept"), Size(UNIT), false, None).await.expect("room");
    };
    drive(&disk, usize::MAX, made).expect("no cut");
    let medium = disk.shut_down();
    let store = opened(medium.clone(), BLOCKS, Formatting::IfForeign).expect("ours");
    assert_eq!(store.volumes().len(), 1);
    let mut damaged = medium.clone();
    for copy in [Copy::A, Copy::B] {
        let mut block = damaged.block(copy.superblock().0);
        block[20] ^= 1;
        damaged.set(copy.superblock().0, block);
    }
    assert_eq!(opened(damaged, BLOCKS, Formatting::IfForeign).err(), Some(OpenError::Damaged));
    let mut overwritten = medium.clone();
    overwritten.set(0, [1; BLOCK_SIZE]);
    let refused = opened(overwritten, BLOCKS, Formatting::IfForeign).err();
    assert_eq!(refused, Some(OpenError::Overwritten));
    let refused = opened(medium.clone(), BLOCKS - 1, Formatting::IfForeign).err();
    assert!(matches!(refused, Some(OpenError::Shrunk { .. })), "{refused:?}");
    assert!(opened(medium, BLOCKS + 1, Formatting::IfForeign).is_ok(), "a grown device is fine");
}

#[test]
fn a_record_that_is_lost_twice_is_not_taken_for_a_free_place() {
    let mut medium = formatted();
    for copy in [Copy::A, Copy::B] {
        medium.set(copy.record(40).0, [0; BLOCK_SIZE]);
    }
    let refused = opened(medium, BLOCKS, Formatting::IfBlank).err();
    assert_eq!(refused, Some(OpenError::RecordLost(40)));
}

/// A device that refuses one write of the catalog: the change fails, and
/// nothing of it is left, in memory or after a restart.
#[test]
fn a_change_that_cannot_be_stored_has_not_happened() {
    for copy in [Copy::A, Copy::B] {
        let disk = SimDisk::new(formatted(), BLOCKS, 0);
        let worked = async {
            let store = open(&disk, Formatting::IfBlank).await.expect("ours");
            let a = store.create(name("a"), Size(UNIT), false, None).await.expect("room");
            let free = store.free();
            disk.broken.set(Some(copy.record(0).0));
            let grown = store.resize(&name("a"), Size(2 * UNIT), false).await.map(|_| ());
            match copy {
                // It could not be put back either: the space stays taken.
                Copy::A => assert!(matches!(grown, Err(StoreError::Commit(_))), "{grown:?}"),
                // One durable copy is enough for an answer...
                Copy::B => assert!(grown.is_ok(), "{grown:?}"),
            }
            // ...but the place is not changed again before the other one is.
            let again = store.resize(&name("a"), Size(3 * UNIT), false).await.map(|_| ());
            assert!(matches!(again, Err(StoreError::Commit(_))), "{again:?}");
            assert!(store.free() < free);
            disk.broken.set(None);
            a.record().blocks.0
        };
        let blocks = drive(&disk, usize::MAX, worked).expect("no cut");
        let store = opened(disk.shut_down(), BLOCKS, Formatting::IfBlank).expect("ours");
        assert_eq!(store.volume(&name("a")).expect("there").record().blocks.0, blocks);
        assert_eq!(
            store.volume(&name("a")).expect("there").record().attachments,
            Attachments::None
        );
    }
}
