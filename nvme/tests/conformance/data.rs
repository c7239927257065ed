//! What was written is read, whatever its size, place and alignment.

use block_core::device::{Device, Durability};
use block_core::{BlockCount, BlockError, Extent, Pba};
use nvme::completion::Status;
use nvme::pass::Direction;

use crate::subject::{MAX_TRANSFER, NAMESPACE_BYTES, Rig, filled};
use crate::{Case, Verdict};

const BLOCK: usize = 4096;
const BLOCKS: u64 = NAMESPACE_BYTES / BLOCK as u64;

pub(crate) const CASES: &[Case] = &[
    ("both formats", both_formats),
    ("namespaces apart", namespaces_apart),
    ("data at any alignment", any_alignment),
    ("transfers cut at MDTS", transfers_cut),
    ("beyond the end", beyond_the_end),
    ("write zeroes", write_zeroes),
    ("deallocate", deallocate),
    ("many ranges", many_ranges),
    ("write through and flush", write_through),
];

fn extent(start: u64, count: u64) -> Extent {
    Extent { start: Pba(start), count: BlockCount(count) }
}

fn both_formats(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(2, 3 * BLOCK);
    for id in [1, 2] {
        let namespace = rig.namespace(id);
        assert_eq!(namespace.blocks().0, BLOCKS);
        let mut buffer = filled(&pool, 0);
        for block in 0..3 {
            buffer[block * BLOCK..][..BLOCK].fill(block as u8 + 10 * id as u8);
        }
        let at = Pba(BLOCKS - 3);
        let (buffer, written) = rig.run(namespace.write(at, buffer, 0..3, Durability::Cached));
        assert_eq!(written, Ok(()));
        drop(buffer);
        assert_eq!(rig.run(namespace.flush()), Ok(()));
        let at = Pba(BLOCKS - 2);
        let (buffer, read) = rig.run(namespace.read(at, filled(&pool, 0xee), 1..2));
        assert_eq!(read, Ok(()));
        let is = |block: usize, byte| buffer[block * BLOCK..][..BLOCK].iter().all(|&b| b == byte);
        assert!(is(0, 0xee) && is(1, 1 + 10 * id as u8) && is(2, 0xee));
    }
    Verdict::Passed
}

/// The same block of two namespaces is two blocks.
fn namespaces_apart(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(1, BLOCK);
    for id in [1, 2] {
        let namespace = rig.namespace(id);
        let write = namespace.write(Pba(5), filled(&pool, id as u8), 0..1, Durability::Cached);
        assert_eq!(rig.run(write).1, Ok(()));
    }
    for id in [1, 2] {
        let (buffer, read) = rig.run(rig.namespace(id).read(Pba(5), filled(&pool, 9), 0..1));
        assert_eq!(read, Ok(()));
        assert!(buffer.iter().all(|&byte| byte == id as u8));
    }
    Verdict::Passed
}

/// Only the first pointer may begin inside a page, at a multiple of 4 bytes (Base
/// 2.0, section 4.1.1): one page, two, and lists, begun at its start, its middle and
/// its end. The bytes around stay as they are.
fn any_alignment(rig: &Rig<'_>) -> Verdict {
    const BUFFER: usize = 20 * BLOCK;
    let pool = rig.pool(2, BUFFER);
    for (id, lba) in [(1, 4096), (2, 512)] {
        let namespace = rig.namespace(id);
        for at in [0, 4, 508, 512, 2048, 4092, 4096 + 8] {
            for bytes in [512, 4096, 4608, 8192, 12_288, 65_536] {
                if bytes % lba != 0 {
                    continue;
                }
                let count = (bytes / lba) as u32;
                let mut buffer = filled(&pool, 0xaa);
                for (index, byte) in buffer[at..at + bytes].iter_mut().enumerate() {
                    *byte = (index / 8 + at + bytes / 512) as u8;
                }
                let expected = buffer[at..at + bytes].to_vec();
                let write = namespace.transfer_blocks(Direction::Write, 64, count, buffer, at);
                let (buffer, status) = rig.run(write);
                assert_eq!(status, Ok(Status::SUCCESS), "{bytes} bytes from {at}");
                drop(buffer);
                let to = (at + 1020) % 4096;
                let read =
                    namespace.transfer_blocks(Direction::Read, 64, count, filled(&pool, 0x55), to);
                let (buffer, status) = rig.run(read);
                assert_eq!(status, Ok(Status::SUCCESS), "{bytes} bytes to {to}");
                assert!(buffer[to..to + bytes] == expected, "{bytes} bytes from {at} to {to}");
                let outside = buffer[..to].iter().chain(&buffer[to + bytes..]);
                assert!(outside.copied().all(|byte| byte == 0x55), "{bytes} bytes to {to}");
            }
        }
    }
    Verdict::Passed
}

/// The driver cuts what is larger than MDTS; what is cut by nobody is refused
/// (Base 2.0, figure 275, MDTS).
fn transfers_cut(rig: &Rig<'_>) -> Verdict {
    const BLOCKS: usize = 100;
    assert_eq!(rig.controller.info().max_transfer, Some(MAX_TRANSFER as u64));
    let pool = rig.pool(1, BLOCKS * BLOCK);
    for id in [1, 2] {
        let namespace = rig.namespace(id);
        let mut buffer = filled(&pool, 0);
        for (number, block) in buffer.chunks_exact_mut(BLOCK).enumerate() {
            block.fill(number as u8 ^ id as u8);
        }
        let write = namespace.write(Pba(7), buffer, 0..BLOCKS, Durability::Cached);
        let (mut buffer, written) = rig.run(write);
        assert_eq!(written, Ok(()));
        buffer.fill(0xff);
        let (buffer, read) = rig.run(namespace.read(Pba(7), buffer, 0..BLOCKS));
        assert_eq!(read, Ok(()));
        for (number, block) in buffer.chunks_exact(BLOCK).enumerate() {
            assert!(block.iter().all(|&byte| byte == number as u8 ^ id as u8), "block {number}");
        }
        let lba = if id == 1 { 4096 } else { 512 };
        let count = (MAX_TRANSFER / lba) as u32 + 1;
        let read = namespace.transfer_blocks(Direction::Read, 0, count, buffer, 0);
        let (_, status) = rig.run(read);
        assert_eq!(status.map(Status::kind), Ok(Status::INVALID_FIELD));
    }
    Verdict::Passed
}

fn beyond_the_end(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(1, 2 * BLOCK);
    for (id, lbas) in [(1, BLOCKS), (2, 8 * BLOCKS)] {
        let namespace = rig.namespace(id);
        // The driver sees it.
        for at in [BLOCKS - 1, BLOCKS, u64::MAX] {
            let (buffer, read) = rig.run(namespace.read(Pba(at), filled(&pool, 0), 0..2));
            assert_eq!(read, Err(BlockError::OutOfRange));
            drop(buffer);
        }
        let beyond = extent(BLOCKS - 6, 7);
        assert_eq!(rig.run(namespace.deallocate(beyond)), Err(BlockError::OutOfRange));
        // The controller does too (NVM Command Set 1.0, section 3.2.4).
        for direction in [Direction::Read, Direction::Write] {
            for start in [lbas - 1, lbas, u64::MAX - 1, u64::MAX] {
                let buffer = filled(&pool, 7);
                let (buffer, status) =
                    rig.run(namespace.transfer_blocks(direction, start, 2, buffer, 0));
                assert_eq!(status.map(Status::kind), Ok(Status::OUT_OF_RANGE), "from {start}");
                assert!(buffer.iter().all(|&byte| byte == 7), "no byte moved");
            }
        }
    }
    Verdict::Passed
}

/// Fills blocks 0 to 63 with nines.
fn nines(rig: &Rig<'_>, id: u32) {
    let pool = rig.pool(1, 64 * BLOCK);
    let namespace = rig.namespace(id);
    let write = namespace.write(Pba(0), filled(&pool, 9), 0..64, Durability::Through);
    assert_eq!(rig.run(write).1, Ok(()));
}

/// Of blocks 0 to 63 those are zero, and the others nines.
#[track_caller]
fn expect_zero(rig: &Rig<'_>, id: u32, is_zero: impl Fn(usize) -> bool) {
    let pool = rig.pool(1, 64 * BLOCK);
    let (buffer, read) = rig.run(rig.namespace(id).read(Pba(0), filled(&pool, 1), 0..64));
    assert_eq!(read, Ok(()));
    for (number, block) in buffer.chunks_exact(BLOCK).enumerate() {
        let expected = if is_zero(number) { 0 } else { 9 };
        assert!(block.iter().all(|&byte| byte == expected), "block {number}");
    }
}

fn write_zeroes(rig: &Rig<'_>) -> Verdict {
    for id in [1, 2] {
        let namespace = rig.namespace(id);
        nines(rig, id);
        assert_eq!(rig.run(namespace.write_zeroes(extent(2, 40), false)), Ok(()));
        assert_eq!(rig.run(namespace.write_zeroes(extent(50, 2), true)), Ok(()));
        expect_zero(rig, id, |number| matches!(number, 2..42 | 50..52));
        // More than one command may cover.
        let all = extent(0, BLOCKS);
        assert_eq!(rig.run(namespace.write_zeroes(all, false)), Ok(()));
        expect_zero(rig, id, |_| true);
    }
    Verdict::Passed
}

/// All of them say that deallocated blocks read as zero (DLFEAT).
fn deallocate(rig: &Rig<'_>) -> Verdict {
    for id in [1, 2] {
        nines(rig, id);
        assert_eq!(rig.run(rig.namespace(id).deallocate(extent(60, 3))), Ok(()));
        expect_zero(rig, id, |number| matches!(number, 60..63));
    }
    Verdict::Passed
}

/// Several ranges in one command, not in order. One that is beyond the end is an
/// error or is passed over: the command is advice, and success promises nothing (NVM
/// Command Set 1.0, section 3.2.3). Ours says it, QEMU's does not.
fn many_ranges(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(1, BLOCK);
    for (id, lbas) in [(1, 1), (2, 8)] {
        let namespace = rig.namespace(id);
        nines(rig, id);
        let ranges = [40..44, 3..4, 10..11, 20..30].map(|r| r.start * lbas..r.end * lbas);
        let (buffer, status) = rig.run(namespace.deallocate_ranges(&ranges, filled(&pool, 0)));
        assert_eq!(status, Ok(Status::SUCCESS));
        expect_zero(rig, id, |number| matches!(number, 40..44 | 3 | 10 | 20..30));
        let beyond = BLOCKS * lbas - 1..BLOCKS * lbas + 1;
        let command = namespace.deallocate_ranges(std::slice::from_ref(&beyond), buffer);
        let (_, status) = rig.run(command);
        let status = status.expect("an answer").kind();
        assert!([Status::OUT_OF_RANGE, Status::SUCCESS].contains(&status), "{status}");
    }
    Verdict::Passed
}

fn write_through(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(1, BLOCK);
    for id in [1, 2] {
        let namespace = rig.namespace(id);
        assert!(namespace.has_volatile_cache());
        for (byte, durability) in [(1, Durability::Through), (2, Durability::Cached)] {
            let write = namespace.write(Pba(8), filled(&pool, byte), 0..1, durability);
            assert_eq!(rig.run(write).1, Ok(()));
            assert_eq!(rig.run(namespace.flush()), Ok(()));
            let (buffer, read) = rig.run(namespace.read(Pba(8), filled(&pool, 0), 0..1));
            assert_eq!((read, buffer[100]), (Ok(()), byte));
        }
    }
    Verdict::Passed
}
