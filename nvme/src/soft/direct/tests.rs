//! A file that is served directly, with commands under way when something else happens:
//! a kernel that is never done with some (it is asked for the same again and again), or
//! that answers with errors.

#[path = "../../../tests/direct_folder/mod.rs"]
mod direct_folder;

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::Ordering;

use block_core::DmaMemory;
use tempfile::TempDir;

use super::super::file::{FileIo, FileOptions};
use super::super::namespace::SoftNamespace;
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

/// PRP1 may point anywhere in its page, in steps of four bytes: what the kernel does not
/// take so goes through other memory, up to the largest transfer.
#[test]
fn unaligned_memory_of_every_size_is_read_and_written() {
    for (lba_size, unit) in [(LbaSize::B4096, PAGE), (LbaSize::B512, 512)] {
        let Some(mut rig) = Rig::new("unaligned memory", lba_size) else { return };
        let list = rig.host.bus.allocate(PAGE).expect("memory");
        for offset in [0, 4, 508, 512, 516, 2048, PAGE - 512, PAGE - 4] {
            for bytes in [unit, 2 * unit, 3 * unit, 7 * PAGE, 8 * PAGE] {
                // Pages apart, so that neighbours do not become one piece.
                let page = |index: usize| rig.host.page((index * 3) % 16);
                let words = Words::all(&list);
                (1..10).for_each(|index| words.store(index - 1, page(index), Ordering::Relaxed));
                let first = page(0) + offset as u64;
                let pages = (offset + bytes).div_ceil(PAGE);
                let second = if pages <= 2 { page(1) } else { list.iova() };
                let command = |opcode| {
                    Command::blocks(opcode, 1, 8, (bytes / unit) as u32, 0).with_data(first, second)
                };
                let gathered = |rig: &Rig| -> Vec<u8> {
                    let pages =
                        (0..pages).flat_map(|index| rig.memory(index * 3 % 16 * PAGE, PAGE));
                    pages.skip(offset).take(bytes).collect()
                };
                let words = Words::all(&rig.host.data);
                for index in 0..16 * PAGE / 8 {
                    let value = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    words.store(index, value ^ offset as u64, Ordering::Relaxed);
                }
                let (before, written) = (rig.memory(0, 16 * PAGE), gathered(&rig));
                rig.host.expect(1, command(opcode::WRITE), Status::SUCCESS);
                assert_eq!(rig.content(8 * unit as u64, bytes), written, "{bytes} at {offset}");
                rig.fill(0xee);
                rig.host.expect(1, command(opcode::READ), Status::SUCCESS);
                assert_eq!(gathered(&rig), written, "{bytes} at {offset}");
                let touched = rig.memory(0, 16 * PAGE);
                let others = before.len() - bytes;
                let same = touched.iter().filter(|&&byte| byte == 0xee).count();
                assert!(same >= others, "{bytes} at {offset}: it wrote beside them");
                assert_eq!(rig.disk(|disk| disk.bounced), 0);
            }
        }
    }
}

/// With all the memory in use that unaligned commands go through, nothing is fetched, until
/// there is some.
#[test]
fn memory_for_what_is_unaligned_is_bounded() {
    let Some(mut rig) = Rig::new("a bound of memory", LbaSize::B4096) else { return };
    rig.disk(|disk| disk.bounced = BOUNCE_BYTES - 1);
    RULE.set(held);
    HOLDS.set(u32::MAX);
    let crooked =
        Command::blocks(opcode::READ, 1, 0, 1, 0).with_data(rig.host.page(0) + 8, rig.host.page(1));
    rig.host.begin(1, crooked.with_id(1));
    rig.host.begin(1, rig.blocks(opcode::READ, 0, 1).with_id(2));
    assert_eq!(rig.busy(), 1);
    HOLDS.set(0);
    assert_eq!((rig.answer(1).0, rig.answer(1).0), (1, 2));
    assert_eq!(rig.disk(|disk| disk.bounced), BOUNCE_BYTES - 1);
}

/// What the kernel answers, what the driver is told, and whether the namespace goes on.
#[test]
fn errors_of_the_kernel_become_statuses() {
    let (read, write, flush) = (opcode::READ, opcode::WRITE, opcode::FLUSH);
    let zeroes = opcode::WRITE_ZEROES;
    let short: Rule = |_, outcome| outcome.map(|count| count / 2);
    for (opcode, rule, status, goes_on) in [
        (read, error::<{ libc::EIO }> as Rule, Status::READ_ERROR, true),
        (read, error::<{ libc::ENOMEM }>, Status::INTERNAL, true),
        (read, error::<{ libc::EFAULT }>, Status::DATA_TRANSFER, true),
        (read, short, Status::READ_ERROR, true),
        (write, error::<{ libc::EIO }>, Status::WRITE_FAULT, true),
        (write, error::<{ libc::ENOSPC }>, Status::CAPACITY_EXCEEDED, true),
        (write, error::<{ libc::EDQUOT }>, Status::CAPACITY_EXCEEDED, true),
        (write, short, Status::CAPACITY_EXCEEDED, true),
        (zeroes, error::<{ libc::ENOSPC }>, Status::CAPACITY_EXCEEDED, true),
        (zeroes, error::<{ libc::EIO }>, Status::WRITE_FAULT, false),
        // After a failed write-back the next one would succeed without it.
        (flush, error::<{ libc::EIO }>, Status::WRITE_FAULT, false),
    ] {
        let Some(mut rig) = Rig::new("errors of the kernel", LbaSize::B4096) else { return };
        let count = if opcode == zeroes { 64 } else { 2 };
        let command = rig.blocks(opcode, 0, count);
        let sound = rig.blocks(read, 4, 1);
        RULE.set(rule);
        rig.host.expect(1, command, status);
        RULE.set(|_, outcome| outcome);
        let then = if goes_on { Status::SUCCESS } else { Status::READ_ERROR };
        rig.host.expect(1, sound, then);
        assert_eq!(rig.disk(|disk| disk.free.len()), usize::from(PLACES));
    }
}

/// Someone cuts the file. A read finds less; a write would make it longer again, and what
/// was lost in between would read as zeroes.
#[test]
fn a_file_that_was_cut_is_not_made_longer() {
    for opcode in [opcode::READ, opcode::WRITE] {
        let Some(mut rig) = Rig::new("a file that is cut", LbaSize::B4096) else { return };
        rig.write(5, 1000, 2);
        let file = OpenOptions::new().write(true).open(&rig.path).expect("it is there");
        file.set_len(1 << 20).expect("cut");
        let status = if opcode == opcode::READ { Status::READ_ERROR } else { Status::WRITE_FAULT };
        rig.host.expect(1, rig.blocks(opcode, 1000, 2), status);
        assert_eq!(file.metadata().expect("it is there").size(), 1 << 20);
        rig.host.expect(1, rig.blocks(opcode::READ, 0, 1), Status::READ_ERROR);
        rig.host.expect(1, Command::flush(1), Status::WRITE_FAULT);
    }
}

/// A file system without holes, or without a way to empty space, gets zeroes; a
/// deallocation there is advice that nobody follows.
#[test]
fn without_holes_zeroes_are_written() {
    let Some(mut rig) = Rig::new("a file system without holes", LbaSize::B4096) else { return };
    RULE.set(|step, outcome| match step {
        Step::Punch(_) | Step::Empty(_) => error::<{ libc::EOPNOTSUPP }>(step, outcome),
        _ => outcome,
    });
    for start in (0..512).step_by(2) {
        rig.write(9, start, 2);
    }
    DONE.take();
    rig.host.expect(1, Command::blocks(opcode::WRITE_ZEROES, 1, 2, 500, 0), Status::SUCCESS);
    let done = DONE.take();
    assert!(matches!(done[..], [Step::Empty(_), Step::Clear(_), ..]), "{done:?}");
    assert!(done.len() > 2, "in several operations: {done:?}");
    let found = rig.content(0, 512 * PAGE);
    let expected = |block: usize| if (2..502).contains(&block) { 0 } else { 9 };
    for (block, bytes) in found.chunks_exact(PAGE).enumerate() {
        assert!(bytes.iter().all(|&byte| byte == expected(block)), "block {block}");
    }
    Words::all(&rig.host.data).store(0, 64 << 32, Ordering::Relaxed);
    Words::all(&rig.host.data).store(1, 448, Ordering::Relaxed);
    let give_back = Command::deallocate(1).with_data(rig.host.page(0), 0);
    rig.host.expect(1, give_back, Status::SUCCESS);
    assert!(DONE.take().iter().any(|step| matches!(step, Step::Punch(_))));
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

/// Files that cannot be served so are told apart, and taken as they were before: tmpfs
/// says yes to `O_DIRECT` and hands every request to a thread.
#[test]
fn what_cannot_be_direct_is_mapped_or_refused() {
    let memory = std::path::Path::new("/dev/shm");
    if !memory.is_dir() {
        println!("SKIPPED on tmpfs: there is no /dev/shm");
        return;
    }
    let folder = tempfile::tempdir_in(memory).expect("a folder");
    let options = |io| FileOptions { path: folder.path().join("disk"), create: Some(BYTES), io };
    let refused = SoftNamespace::file(&options(FileIo::Direct), LbaSize::B4096);
    let sentence = refused.expect_err("refused").to_string();
    assert!(sentence.contains("cannot be served directly: its file system"), "{sentence}");
    let mapped = SoftNamespace::file(&options(FileIo::Auto), LbaSize::B4096).expect("mapped");
    assert!(!mapped.is_direct());
    let Some(folder) = direct_folder::direct_folder("the choice of a way to a file") else {
        return;
    };
    let options = |io| FileOptions { path: folder.path().join("disk"), create: Some(BYTES), io };
    for (io, is_direct) in [(FileIo::Auto, true), (FileIo::Mapped, false), (FileIo::Direct, true)] {
        let namespace = SoftNamespace::file(&options(io), LbaSize::B512).expect("a namespace");
        assert_eq!(namespace.is_direct(), is_direct, "{io:?}");
    }
}
