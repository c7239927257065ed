//! What the driver expects of any controller. Each case is given a rig; today
//! they run on the soft one, in this thread and beside it.

mod harness;

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use block_core::device::{Device, Durability};
use block_core::{BlockError, Buffer, Pba};
use harness::{Drive, Rig, disorder, extent, filled, memory, poll};
use nvme::{LbaSize, Namespace, SoftNamespace, SoftOptions};

const BLOCK: usize = 4096;

/// Runs a case on every controller there is.
fn everywhere(case: impl Fn(&Rig)) {
    let both = || {
        let odd = SoftNamespace::memory(1 << 20, LbaSize::B512).expect("memory");
        vec![memory(256), odd]
    };
    for drive in [Drive::Here, Drive::SecondThread] {
        case(&Rig::new(SoftOptions::default(), both(), drive));
        case(&Rig::new(disorder(7), both(), drive));
    }
}

#[test]
fn what_was_written_is_read_in_both_formats() {
    everywhere(|rig| {
        let pool = rig.pool(2, 3 * BLOCK);
        for id in [1, 2] {
            let namespace = rig.namespace(id);
            assert_eq!(namespace.blocks().0, 256);
            let mut buffer = filled(&pool, 0);
            for block in 0..3 {
                buffer[block * BLOCK..][..BLOCK].fill(block as u8 + 10 * id as u8);
            }
            let (buffer, written) =
                rig.run(namespace.write(Pba(253), buffer, 0..3, Durability::Cached));
            assert_eq!(written, Ok(()));
            drop(buffer);
            assert_eq!(rig.run(namespace.flush()), Ok(()));
            let (buffer, read) = rig.run(namespace.read(Pba(254), filled(&pool, 0xee), 1..2));
            assert_eq!(read, Ok(()));
            assert!(buffer[..BLOCK].iter().all(|&byte| byte == 0xee));
            assert!(buffer[BLOCK..2 * BLOCK].iter().all(|&byte| byte == 1 + 10 * id as u8));
            assert!(buffer[2 * BLOCK..].iter().all(|&byte| byte == 0xee));
        }
    });
}

#[test]
fn zeroed_and_deallocated_blocks_read_as_zero_and_their_neighbours_stay() {
    everywhere(|rig| {
        let pool = rig.pool(1, 64 * BLOCK);
        for id in [1, 2] {
            let namespace = rig.namespace(id);
            let write = namespace.write(Pba(0), filled(&pool, 9), 0..64, Durability::Through);
            assert_eq!(rig.run(write).1, Ok(()));
            assert_eq!(rig.run(namespace.write_zeroes(extent(2, 40), false)), Ok(()));
            assert_eq!(rig.run(namespace.write_zeroes(extent(50, 2), true)), Ok(()));
            assert_eq!(rig.run(namespace.deallocate(extent(60, 3))), Ok(()));
            let (buffer, read) = rig.run(namespace.read(Pba(0), filled(&pool, 1), 0..64));
            assert_eq!(read, Ok(()));
            for (number, block) in buffer.chunks_exact(BLOCK).enumerate() {
                let is_zero = matches!(number, 2..42 | 50..52 | 60..63);
                let expected = if is_zero { 0 } else { 9 };
                assert!(block.iter().all(|&byte| byte == expected), "block {number}");
            }
        }
    });
}

#[test]
fn blocks_beyond_the_end_are_refused_and_the_buffer_comes_back() {
    everywhere(|rig| {
        let pool = rig.pool(1, 2 * BLOCK);
        let namespace = rig.namespace(1);
        for at in [255, 256, u64::MAX] {
            let (buffer, read) = rig.run(namespace.read(Pba(at), filled(&pool, 0), 0..2));
            assert_eq!(read, Err(BlockError::OutOfRange));
            drop(buffer);
        }
        assert_eq!(rig.run(namespace.deallocate(extent(250, 7))), Err(BlockError::OutOfRange));
        assert_eq!(pool.available(), 1);
    });
}

/// More requests than the queue holds: the rest waits in line, and all of
/// them end, over many turns of the rings.
#[test]
fn a_full_queue_makes_requests_wait_and_wraps() {
    everywhere(|rig| {
        let depth = rig.queue.depth();
        let count = depth * 2 + 5;
        let pool = rig.pool(count, BLOCK);
        let namespace = rig.namespace(1);
        for round in 0..8 {
            let mut requests: Vec<Pin<Box<dyn Future<Output = _>>>> = (0..count)
                .map(|index| {
                    let buffer = filled(&pool, (index + round) as u8);
                    let at = Pba(index as u64);
                    Box::pin(namespace.write(at, buffer, 0..1, Durability::Cached)) as _
                })
                .collect();
            let mut most = 0;
            while !requests.is_empty() {
                requests.retain_mut(|request| match poll(request.as_mut()) {
                    Poll::Ready((_, outcome)) => {
                        assert_eq!(outcome, Ok(()));
                        false
                    }
                    Poll::Pending => true,
                });
                most = most.max(rig.queue.in_flight());
                rig.turn();
            }
            assert_eq!(most, depth, "the queue was never full");
            let last = count - 1;
            let (buffer, read) = rig.run(namespace.read(Pba(last as u64), filled(&pool, 0), 0..1));
            assert_eq!(read, Ok(()));
            assert!(buffer.iter().all(|&byte| byte == (last + round) as u8));
        }
        assert_eq!(rig.queue.counters().unexpected, 0);
    });
}

/// Each worker has its own queue pair of one controller; both drive the soft
/// one in their turns, and neither waits for the other.
#[test]
fn two_threads_share_a_controller_and_nothing_else() {
    let rig = Rig::small();
    let worker = |first: u64| {
        let (controller, soft) = (rig.controller.clone(), Arc::clone(&rig.soft));
        move || {
            let queue = controller.create_queue_pair(8).expect("a queue pair");
            let pool = controller.pool(8, BLOCK).expect("memory");
            let info = controller.namespace(1).expect("the namespace");
            let namespace = Namespace::new(Rc::clone(&queue), &info);
            let run = |mut request: Pin<&mut dyn Future<Output = (Buffer, _)>>| loop {
                if let Poll::Ready((buffer, outcome)) = poll(request.as_mut()) {
                    assert_eq!(outcome, Ok::<(), BlockError>(()));
                    return buffer;
                }
                queue.ring();
                if soft.work() + queue.reap() == 0 {
                    std::thread::yield_now();
                }
            };
            for round in 0..2000_u64 {
                let at = Pba(first + round % 100);
                let byte = (first + round) as u8;
                let buffer = filled(&pool, byte);
                drop(run(pin!(namespace.write(at, buffer, 0..1, Durability::Cached))));
                let buffer = run(pin!(namespace.read(at, filled(&pool, !byte), 0..1)));
                assert!(buffer.iter().all(|&found| found == byte), "round {round}");
            }
        }
    };
    let threads = [0, 128].map(|first| std::thread::spawn(worker(first)));
    for thread in threads {
        thread.join().expect("no panic");
    }
}
