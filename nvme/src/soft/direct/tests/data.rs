//! What is in the file and in the driver's memory afterwards, and what errors do.

use super::*;

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
