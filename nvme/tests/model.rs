//! Random requests at random depth against a plain vector, in every order
//! that chance makes of them.

mod harness;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::Poll;

use block_core::device::{Device, Durability};
use block_core::{BlockError, Buffer, Extent, Pba};
use harness::{Drive, Rig, disorder, extent, poll};
use nvme::{LbaSize, SoftNamespace, SoftOptions};
use proptest::prelude::*;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 96;
/// Larger than a transfer of the controllers below, so that requests are cut.
const LARGEST: u64 = 12;

#[derive(Clone, Debug)]
enum Op {
    Read(Range<u64>),
    Write(Range<u64>, bool),
    Zero(Range<u64>, bool),
    Deallocate(Range<u64>),
    Flush,
    /// Starts a read and drops it.
    Abandon(Range<u64>),
    /// Waits until so many are left.
    Drain(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let range =
        (0..BLOCKS, 1..=LARGEST).prop_map(|(start, count)| start..(start + count).min(BLOCKS));
    prop_oneof![
        6 => range.clone().prop_map(Op::Read),
        6 => (range.clone(), any::<bool>()).prop_map(|(range, through)| Op::Write(range, through)),
        2 => (range.clone(), any::<bool>()).prop_map(|(range, unmap)| Op::Zero(range, unmap)),
        1 => range.clone().prop_map(Op::Deallocate),
        1 => Just(Op::Flush),
        1 => range.prop_map(Op::Abandon),
        2 => (0..20_usize).prop_map(Op::Drain),
    ]
}

type Outcome = (Option<Buffer>, Result<(), BlockError>);

struct Running<'a> {
    future: Pin<Box<dyn Future<Output = Outcome> + 'a>>,
    blocks: Range<u64>,
    changes: bool,
    /// What a read must find: the stamp of each block, taken when it began.
    expected: Option<Vec<u64>>,
}

/// Each block holds its stamp, repeated: a torn block is seen.
fn stamp(block: &mut [u8], stamp: u64) {
    block.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&stamp.to_le_bytes()));
}

fn check(running: &Running<'_>, buffer: &[u8]) {
    let Some(expected) = &running.expected else { return };
    for (block, expected) in buffer.chunks_exact(BLOCK).zip(expected) {
        let mut wanted = [0; BLOCK];
        stamp(&mut wanted, *expected);
        assert!(block == wanted, "block of {:?} is not {expected:#x}", running.blocks);
    }
}

fn run(rig: &Rig, ops: &[Op]) {
    let namespace = rig.namespace(1);
    assert_eq!(namespace.blocks().0, BLOCKS);
    let pool = rig.pool(40, LARGEST as usize * BLOCK);
    let mut model = vec![0_u64; BLOCKS as usize];
    let mut running: Vec<Running<'_>> = Vec::new();
    let advance = |running: &mut Vec<Running<'_>>| {
        running.retain_mut(|request| {
            let Poll::Ready((buffer, outcome)) = poll(request.future.as_mut()) else { return true };
            assert_eq!(outcome, Ok(()), "{:?}", request.blocks);
            if let Some(buffer) = buffer {
                check(request, &buffer);
            }
            false
        });
        rig.turn();
    };
    for (number, op) in ops.iter().enumerate() {
        let (blocks, changes) = match op {
            Op::Read(blocks) | Op::Abandon(blocks) => (blocks.clone(), false),
            Op::Write(blocks, _) | Op::Zero(blocks, _) | Op::Deallocate(blocks) => {
                (blocks.clone(), true)
            }
            Op::Flush | Op::Drain(_) => (0..0, false),
        };
        let collides = |other: &Running<'_>| {
            (changes || other.changes)
                && blocks.start < other.blocks.end
                && other.blocks.start < blocks.end
        };
        // Commands that overlap have no order: whoever cares keeps them apart.
        while running.iter().any(collides) || pool.available() == 0 {
            advance(&mut running);
        }
        let count = (blocks.end - blocks.start) as usize;
        let at = Pba(blocks.start);
        let named = extent(blocks.start, count as u64);
        let places = blocks.start as usize..blocks.end as usize;
        let mut expected = None;
        let future: Pin<Box<dyn Future<Output = Outcome>>> = match op {
            Op::Read(_) | Op::Abandon(_) => {
                expected = Some(model[places].to_vec());
                let buffer = pool.take().expect("free");
                let read = namespace.read(at, buffer, 0..count);
                Box::pin(async { wrap(read.await) })
            }
            Op::Write(_, through) => {
                let mut buffer = pool.take().expect("free");
                for (block, place) in buffer.chunks_exact_mut(BLOCK).zip(places) {
                    model[place] = (number as u64 + 1) << 16 | place as u64;
                    stamp(block, model[place]);
                }
                let durability = if *through { Durability::Through } else { Durability::Cached };
                let write = namespace.write(at, buffer, 0..count, durability);
                Box::pin(async { wrap(write.await) })
            }
            Op::Zero(_, unmap) => {
                model[places].fill(0);
                let zero = namespace.write_zeroes(named, *unmap);
                Box::pin(async { (None, zero.await) })
            }
            Op::Deallocate(_) => {
                model[places].fill(0);
                let deallocate = namespace.deallocate(named);
                Box::pin(async { (None, deallocate.await) })
            }
            Op::Flush => {
                let flush = namespace.flush();
                Box::pin(async { (None, flush.await) })
            }
            Op::Drain(left) => {
                while running.len() > *left {
                    advance(&mut running);
                }
                continue;
            }
        };
        let mut request = Running { future, blocks, changes, expected };
        let first = poll(request.future.as_mut());
        assert!(first.is_pending());
        if !matches!(op, Op::Abandon(_)) {
            running.push(request);
        }
    }
    while !running.is_empty() {
        advance(&mut running);
    }
    while rig.queue.in_flight() > 0 {
        rig.turn();
    }
    assert_eq!(pool.available(), pool.count(), "a buffer was lost");
    assert_eq!(rig.queue.counters().unexpected, 0);
}

fn wrap((buffer, outcome): (Buffer, Result<(), BlockError>)) -> Outcome {
    (Some(buffer), outcome)
}

fn rig(options: SoftOptions, lba_size: LbaSize, drive: Drive, depth: u16) -> Rig {
    let namespace = SoftNamespace::memory(BLOCKS << 12, lba_size).expect("memory");
    let options = SoftOptions { max_transfer: 4 * BLOCK, ..options };
    Rig::with_depth(options, vec![namespace], drive, depth)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn in_disorder_every_block_is_what_the_model_says(
        ops in prop::collection::vec(op(), 1..150),
        seed in any::<u64>(),
        depth in 1..40_u16,
        small in any::<bool>(),
    ) {
        let lba_size = if small { LbaSize::B512 } else { LbaSize::B4096 };
        run(&rig(disorder(seed), lba_size, Drive::Here, depth), &ops);
    }

    #[test]
    fn without_the_optional_commands_too(
        ops in prop::collection::vec(op().prop_filter("undefined", |op| !matches!(op, Op::Deallocate(_))), 1..80),
        seed in any::<u64>(),
    ) {
        let options = SoftOptions { write_zeroes: false, deallocate: false, ..disorder(seed) };
        run(&rig(options, LbaSize::B4096, Drive::Here, 8), &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// On one thread a missing fence is invisible.
    #[test]
    fn beside_a_second_thread_every_block_is_what_the_model_says(
        ops in prop::collection::vec(op(), 1..150),
        seed in any::<u64>(),
        ordered in any::<bool>(),
    ) {
        let options = if ordered { SoftOptions::default() } else { disorder(seed) };
        run(&rig(options, LbaSize::B4096, Drive::SecondThread, 16), &ops);
    }
}

/// A namespace without blocks in its last, incomplete one: nothing above sees it.
#[test]
fn an_extent_of_nothing_is_no_request() {
    let rig = rig(SoftOptions::default(), LbaSize::B512, Drive::Here, 4);
    let namespace = rig.namespace(1);
    let nothing = Extent { start: Pba(5), count: block_core::BlockCount(0) };
    assert_eq!(rig.run(namespace.write_zeroes(nothing, true)), Ok(()));
    assert_eq!(rig.run(namespace.deallocate(nothing)), Ok(()));
    assert_eq!(rig.queue.counters().submitted, 0);
}
