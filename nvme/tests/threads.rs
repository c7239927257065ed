//! Several workers on one controller.

mod harness;

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use block_core::device::{Device, Durability};
use block_core::{BlockError, Buffer, Pba};
use harness::{Rig, filled, poll};
use nvme::Namespace;

const BLOCK: usize = 4096;

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
