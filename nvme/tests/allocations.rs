//! On the path a request allocates nothing: counted.

mod harness;

use std::pin::pin;
use std::task::Poll;

use allocations::{Counting, of_all_threads};
use block_core::device::{Device, Durability};
use block_core::{Pba, Pool};
use harness::{Drive, Rig, extent, memory, poll};
use nvme::soft::{FileIo, FileOptions};
use nvme::{LbaSize, Namespace, SoftNamespace, SoftOptions};

#[global_allocator]
static COUNTING: Counting = Counting;

/// One request of each kind, a few at a time, some more than the queue holds.
fn round(rig: &Rig, namespace: &Namespace, pool: &Pool) {
    let write = |at| {
        let buffer = pool.take().expect("free");
        namespace.write(Pba(at), buffer, 0..4, Durability::Cached)
    };
    let read = |at| namespace.read(Pba(at), pool.take().expect("free"), 0..1);
    let mut requests = (
        pin!(write(0)),
        pin!(write(8)),
        pin!(read(16)),
        pin!(read(17)),
        pin!(namespace.flush()),
        pin!(namespace.write_zeroes(extent(32, 3), false)),
        pin!(namespace.deallocate(extent(40, 3))),
    );
    let mut done = [false; 7];
    while done.contains(&false) {
        macro_rules! advance {
            ($index:tt, $outcome:pat) => {
                if !done[$index] {
                    match poll(requests.$index.as_mut()) {
                        Poll::Ready($outcome) => done[$index] = true,
                        Poll::Ready(_) => panic!("request {} failed", $index),
                        Poll::Pending => {}
                    }
                }
            };
        }
        advance!(0, (_, Ok(())));
        advance!(1, (_, Ok(())));
        advance!(2, (_, Ok(())));
        advance!(3, (_, Ok(())));
        advance!(4, Ok(()));
        advance!(5, Ok(()));
        advance!(6, Ok(()));
        rig.turn();
    }
}

#[test]
fn no_request_allocates_once_the_path_is_warm() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, io| {
        let options = FileOptions { path: folder.path().join(name), create: Some(1 << 20), io };
        SoftNamespace::file(&options, LbaSize::B512).expect("a namespace")
    };
    // The second is used directly where there is a file system for that.
    let disks = vec![memory(256), file("mapped", FileIo::Mapped), file("auto", FileIo::Auto)];
    let rig = Rig::with_depth(SoftOptions::default(), disks, Drive::Here, 5);
    let pool = rig.pool(4, 4 * 4096);
    for id in [1, 2, 3] {
        let namespace = rig.namespace(id);
        for _ in 0..10 {
            round(&rig, &namespace, &pool);
        }
        let (allocations, submitted) = (of_all_threads(), rig.queue.counters().submitted);
        for _ in 0..1000 {
            round(&rig, &namespace, &pool);
        }
        assert_eq!(rig.queue.counters().submitted - submitted, 7000);
        assert_eq!(of_all_threads() - allocations, 0);
    }
}
