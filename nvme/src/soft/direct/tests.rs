//! A file that is served directly, with commands under way when something else happens:
//! a kernel that is never done with some (it is asked for the same again and again), or
//! that answers with errors.

mod data;
#[path = "../../../tests/direct_folder/mod.rs"]
mod direct_folder;

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;

use block_core::DmaMemory;
use tempfile::TempDir;

use super::super::namespace::SoftNamespace;
use super::super::open::{FileIo, FileOptions};
use super::super::tests::Host;
use super::*;
use crate::command::{Command, admin, feature, io as opcode};
use crate::registers::{CC, CC_ENTRY_SIZES, CSTS, CSTS_READY};
use crate::sys::Words;

const PAGE: usize = crate::PAGE;
const BYTES: u64 = 4 << 20;

type Rule = fn(&Step, io::Result<usize>) -> io::Result<usize>;

thread_local! {
    /// What the kernel answers, from now on.
    static RULE: Cell<Rule> = const { Cell::new(|_, outcome| outcome) };
    /// What it has done.
    static DONE: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
    /// How often it is not done yet.
    static HOLDS: Cell<u32> = const { Cell::new(0) };
}

fn error<const CODE: i32>(_: &Step, _: io::Result<usize>) -> io::Result<usize> {
    Err(io::Error::from_raw_os_error(CODE))
}

/// Asks again, for as long as it is held.
fn held(_: &Step, outcome: io::Result<usize>) -> io::Result<usize> {
    match HOLDS.get() {
        0 => outcome,
        holds => {
            HOLDS.set(holds - 1);
            Err(io::Error::from_raw_os_error(libc::EAGAIN))
        }
    }
}

/// A driver by hand on a file of 4 MiB, in blocks of 512 bytes if so.
struct Rig {
    host: Host,
    path: PathBuf,
    _folder: TempDir,
}

impl Rig {
    fn new(test: &str, lba_size: LbaSize) -> Option<Self> {
        let folder = direct_folder::direct_folder(test)?;
        let path = folder.path().join("disk");
        let options = FileOptions { path: path.clone(), create: Some(BYTES), io: FileIo::Direct };
        let mut host = Host::over(SoftNamespace::file(&options, lba_size).expect("a namespace"));
        host.add_queue();
        RULE.set(|_, outcome| outcome);
        DONE.take();
        let rig = Self { host, path, _folder: folder };
        rig.disk(|disk| {
            disk.answered = |step, outcome| {
                DONE.with_borrow_mut(|done| done.push(step.clone()));
                RULE.get()(step, outcome)
            };
        });
        Some(rig)
    }

    fn disk<T>(&self, act: impl FnOnce(&mut DirectDisk) -> T) -> T {
        let mut engine = self.host.soft.engine();
        act(engine.namespaces[0].direct().expect("it is direct"))
    }

    fn busy(&self) -> usize {
        self.disk(|disk| disk.busy())
    }

    fn fill(&self, byte: u8) {
        let words = Words::all(&self.host.data);
        for index in 0..16 * PAGE / 8 {
            words.store(index, u64::from_ne_bytes([byte; 8]), Ordering::Relaxed);
        }
    }

    /// The driver's memory from byte `at` on.
    fn memory(&self, at: usize, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        memory::copy_out(&**self.host.data.memory(), at, &mut found);
        found
    }

    fn blocks(&self, opcode: u8, start: u64, count: u32) -> Command {
        Command::blocks(opcode, 1, start, count, 0).with_data(self.host.page(0), self.host.page(1))
    }

    /// Works until the queue has an answer, and what it says of which command.
    fn answer(&mut self, queue: usize) -> (u16, Status) {
        for _ in 0..5_000_000 {
            if let Some(entry) = self.host.take(queue) {
                return (entry.command_id, entry.status.kind());
            }
            self.host.soft.work();
        }
        panic!("no answer");
    }

    fn write(&mut self, byte: u8, start: u64, count: u32) {
        self.fill(byte);
        self.host.expect(1, self.blocks(opcode::WRITE, start, count), Status::SUCCESS);
    }

    fn content(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        File::open(&self.path).and_then(|file| file.read_exact_at(&mut found, at)).expect("bytes");
        found
    }
}

/// The point at which data gets corrupted: a driver whose controller was reset uses its
/// memory again, and the kernel writes there what was asked before.
#[test]
fn a_reset_is_over_when_the_kernel_has_let_go() {
    let Some(mut rig) = Rig::new("a reset with reads under way", LbaSize::B4096) else { return };
    rig.write(7, 0, 2);
    let mut waited = 0;
    for round in 0..200 {
        for id in 0..6 {
            rig.host.begin(1, rig.blocks(opcode::READ, 0, 2).with_id(id));
        }
        rig.host.bus.write32(CC, CC_ENTRY_SIZES);
        while rig.host.bus.read32(CSTS) & CSTS_READY != 0 {
            rig.host.soft.work();
            waited += u32::from(rig.busy() > 0);
            let over = rig.host.bus.read32(CSTS) & CSTS_READY == 0;
            assert!(!over || rig.busy() == 0, "round {round}: the memory is the driver's already");
        }
        rig.fill(round as u8);
        rig.host.start_again();
        rig.host.add_queue();
        assert!(rig.memory(0, 16 * PAGE).iter().all(|&byte| byte == round as u8));
    }
    assert!(waited > 0, "no read was ever under way");
}

/// Power cuts, removal, the end of the controller's way to memory: when the call returns
/// the kernel has nothing.
#[test]
fn whoever_takes_something_away_waits_for_the_kernel() {
    let Some(mut rig) = Rig::new("power cuts with reads under way", LbaSize::B4096) else { return };
    rig.write(7, 0, 2);
    let ends: [fn(&Host); 4] = [
        |host| host.soft.power_cut(3),
        |host| host.soft.host_died(4),
        |host| {
            host.soft.inject(super::super::Fault::Removal);
            host.soft.inject(super::super::Fault::Return { seed: 5 });
        },
        |host| {
            host.soft.cut_off();
            assert_eq!(host.soft.work(), 0);
            // It comes anew.
            let _ = host.soft.bus();
            host.bus.write32(CC, CC_ENTRY_SIZES);
            host.soft.work();
        },
    ];
    for end in ends {
        RULE.set(held);
        HOLDS.set(40);
        for id in 0..6 {
            rig.host.begin(1, rig.blocks(opcode::READ, 0, 2).with_id(id));
        }
        assert_eq!(rig.busy(), 6);
        end(&rig.host);
        assert_eq!(rig.busy(), 0);
        assert_eq!(rig.host.bus.read32(CSTS) & CSTS_READY, 0);
        RULE.set(|_, outcome| outcome);
        rig.host.start_again();
        rig.host.add_queue();
        rig.host.expect(1, rig.blocks(opcode::READ, 0, 1), Status::SUCCESS);
    }
}

/// A driver of another process closes memory that a read still fills: it is told when that
/// has ended, and its completion is there.
#[test]
fn memory_that_is_closed_or_dropped_outlives_what_is_under_way() {
    let Some(mut rig) = Rig::new("memory dropped under a read", LbaSize::B4096) else { return };
    rig.write(7, 0, 1);
    let extra = rig.host.bus.allocate(PAGE).expect("memory");
    let (iova, weak) = (extra.iova(), Arc::downgrade(extra.memory()));
    let read = |iova| Command::blocks(opcode::READ, 1, 0, 1, 0).with_data(iova, 0);
    RULE.set(held);
    HOLDS.set(u32::MAX);
    rig.host.begin(1, read(iova).with_id(1));
    drop(extra);
    let refresh = |rig: &Rig| -> DmaMemory {
        let other = rig.host.bus.allocate(PAGE).expect("memory");
        rig.host.soft.work();
        other
    };
    let _other = refresh(&rig);
    assert!(weak.strong_count() > 0, "the kernel writes to memory that is not there");
    HOLDS.set(0);
    assert_eq!(rig.answer(1), (1, Status::SUCCESS));
    let _another = refresh(&rig);
    assert_eq!(weak.strong_count(), 0);
    HOLDS.set(30);
    rig.host.begin(1, rig.blocks(opcode::READ, 0, 1).with_id(2));
    assert_eq!(rig.busy(), 1);
    rig.host.soft.close_memory(rig.host.page(0));
    assert_eq!(rig.busy(), 0);
    assert_eq!(rig.host.take(1).map(|entry| entry.command_id), Some(2));
    let closed = rig.blocks(opcode::READ, 0, 1);
    rig.host.expect(1, closed, Status::DATA_TRANSFER);
}

/// The ring holds what it was given by itself, whoever else lets go of it; one that is
/// dropped with reads under way lets go of it when they have ended.
#[test]
fn a_ring_keeps_memory_until_the_kernel_is_done_with_it() {
    let Some(folder) = direct_folder::direct_folder("memory of a ring") else { return };
    let path = folder.path().join("data");
    std::fs::write(&path, [7; 4 * PAGE]).expect("a file");
    for takes in [true, false] {
        let (mut ring, _bell) = Ring::new(File::open(&path).expect("it"), 2).expect("a ring");
        let memory = Arc::new(Memory::anonymous(4 * PAGE).expect("memory"));
        let weak = Arc::downgrade(&memory);
        let part = |page| Part::new(&memory, page * PAGE, PAGE);
        ring.begin(0, &Operation::Read(0, &[part(0)]));
        ring.begin(1, &Operation::Read(PAGE as u64, &[part(1), part(3)]));
        drop(memory);
        ring.tell();
        assert_eq!((ring.busy(), weak.strong_count() > 0), (2, true));
        while takes && ring.busy() > 0 {
            ring.wait().expect("they end");
            while let Some((place, outcome)) = ring.take() {
                let bytes = [PAGE, 2 * PAGE][usize::from(place)];
                assert_eq!(outcome.expect("read"), bytes);
            }
        }
        if !takes {
            drop(ring);
        }
        assert_eq!(weak.strong_count(), 0);
    }
}

/// An abort says that it did not help, the command ends in its own time; a deletion of the
/// queue is answered after the last of its commands, which takes the room kept for it.
#[test]
fn aborts_and_deletions_do_not_give_back_what_the_kernel_has() {
    let Some(mut rig) = Rig::new("a deletion with reads under way", LbaSize::B4096) else { return };
    RULE.set(held);
    HOLDS.set(u32::MAX);
    for id in 0..3 {
        rig.host.begin(1, rig.blocks(opcode::READ, 0, 2).with_id(id));
    }
    assert_eq!(rig.host.expect(0, Command::abort(1, 1), Status::SUCCESS), 1, "not aborted");
    let delete = Command::delete_queue(admin::DELETE_SUBMISSION_QUEUE, 1);
    rig.host.begin(0, delete.with_id(40));
    // Neither twice, nor the queue that its completions go to, nor one of its number.
    rig.host.expect(0, delete, Status::INVALID_QUEUE_ID);
    let ring = Command::delete_queue(admin::DELETE_COMPLETION_QUEUE, 1);
    rig.host.expect(0, ring, Status::INVALID_QUEUE_DELETION);
    rig.host.begin(1, rig.blocks(opcode::READ, 0, 2).with_id(9));
    for _ in 0..100 {
        rig.host.soft.work();
    }
    assert!(rig.host.take(0).is_none() && rig.host.take(1).is_none());
    assert_eq!(rig.busy(), 3, "nothing is fetched from a queue that goes");
    HOLDS.set(0);
    let mut ended: Vec<u16> = (0..3).map(|_| rig.answer(1).0).collect();
    ended.sort_unstable();
    assert_eq!((ended, rig.answer(0)), (vec![0, 1, 2], (40, Status::SUCCESS)));
    rig.host.expect(0, ring, Status::SUCCESS);
}

/// A completion queue of 8 takes 7: with as many commands under way an eighth is not
/// fetched, and none is lost.
#[test]
fn room_for_completions_is_kept_for_what_is_under_way() {
    let Some(mut rig) = Rig::new("a full completion queue", LbaSize::B4096) else { return };
    RULE.set(held);
    HOLDS.set(u32::MAX);
    for id in 0..7 {
        rig.host.begin(1, rig.blocks(opcode::READ, 0, 1).with_id(id));
    }
    assert_eq!(rig.busy(), 7);
    HOLDS.set(0);
    while rig.busy() > 0 {
        rig.host.soft.work();
    }
    HOLDS.set(u32::MAX);
    rig.host.begin(1, rig.blocks(opcode::READ, 0, 1).with_id(7));
    assert_eq!(rig.busy(), 0, "its completion would have no room");
    let taken: Vec<u16> = (0..7).map(|_| rig.answer(1).0).collect();
    assert_eq!(taken.iter().sum::<u16>(), 21);
    HOLDS.set(0);
    assert_eq!(rig.answer(1), (7, Status::SUCCESS));
}

/// A flush waits for no write that has not ended, and covers those that have. Without a
/// cache, or past it, a change is durable when it ends: also when the cache was turned off
/// while the write was under way.
#[test]
fn flushes_cover_what_has_ended_and_changes_are_durable_when_they_must_be() {
    let Some(mut rig) = Rig::new("flushes", LbaSize::B4096) else { return };
    rig.write(1, 0, 1);
    let hold_writes: Rule = |step, outcome| match step {
        Step::Write(_) => held(step, outcome),
        _ => outcome,
    };
    RULE.set(hold_writes);
    HOLDS.set(u32::MAX);
    rig.host.begin(1, rig.blocks(opcode::WRITE, 8, 1).with_id(1));
    DONE.take();
    rig.host.begin(1, Command::flush(1).with_id(2));
    assert_eq!(rig.answer(1), (2, Status::SUCCESS));
    assert!(DONE.take().contains(&Step::Sync));
    rig.host.expect(0, Command::set_feature(feature::WRITE_CACHE, 0), Status::SUCCESS);
    HOLDS.set(0);
    DONE.take();
    assert_eq!(rig.answer(1), (1, Status::SUCCESS));
    assert_eq!(DONE.take().last(), Some(&Step::Sync), "begun with the cache, ended without");
    // A write that begins without the cache is durable by itself.
    rig.write(2, 16, 1);
    assert_eq!(DONE.take(), [Step::Write(16 << 12..17 << 12)]);
    rig.host.expect(1, Command::blocks(opcode::WRITE_ZEROES, 1, 16, 1, 0), Status::SUCCESS);
    assert_eq!(DONE.take(), [Step::Clear(16 << 12..17 << 12), Step::Sync]);
}

/// The orderly end: CSTS.SHST says that it is over when nothing is under way, and all of
/// it is written out.
#[test]
fn a_shutdown_waits_for_what_is_under_way() {
    let Some(mut rig) = Rig::new("a shutdown with writes under way", LbaSize::B4096) else {
        return;
    };
    RULE.set(held);
    HOLDS.set(u32::MAX);
    rig.fill(3);
    rig.host.begin(1, rig.blocks(opcode::WRITE, 3, 1).with_id(1));
    let configuration = rig.host.bus.read32(CC);
    rig.host.bus.write32(CC, configuration | crate::registers::CC_SHUTDOWN);
    let is_over = |rig: &Rig| {
        let status = rig.host.bus.read32(CSTS) & crate::registers::CSTS_SHUTDOWN_MASK;
        status == crate::registers::CSTS_SHUTDOWN_COMPLETE
    };
    for _ in 0..100 {
        rig.host.soft.work();
        assert!(!is_over(&rig));
    }
    HOLDS.set(0);
    assert_eq!(rig.answer(1), (1, Status::SUCCESS));
    rig.host.soft.work();
    assert!(is_over(&rig) && rig.busy() == 0);
    assert_eq!(rig.content(3 << 12, PAGE), vec![3; PAGE]);
}
