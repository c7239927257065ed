//! The ring is never written over itself.

use std::ops::Range;
use std::time::Duration;

use block_core::device::Durability;
use block_core::{BlockError, Buffer, Device};
use tokio::sync::Notify;

use super::*;
use crate::layout::control::{Control, VolumeId};

/// A disk that keeps the first write to one block back until it is let go.
struct Slow {
    disk: SimDisk,
    held: Pba,
    holds: Cell<bool>,
    goes_on: Notify,
}

impl Device for Slow {
    fn blocks(&self) -> BlockCount {
        self.disk.blocks()
    }

    fn has_volatile_cache(&self) -> bool {
        self.disk.has_volatile_cache()
    }

    async fn read(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
    ) -> (Buffer, Result<(), BlockError>) {
        self.disk.read(at, buffer, blocks).await
    }

    async fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        if at == self.held && self.holds.replace(false) {
            self.goes_on.notified().await;
        }
        self.disk.write(at, buffer, blocks, durability).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.disk.flush().await
    }

    async fn write_zeroes(&self, extent: Extent, unmap: bool) -> Result<(), BlockError> {
        self.disk.write_zeroes(extent, unmap).await
    }

    async fn deallocate(&self, extent: Extent) -> Result<(), BlockError> {
        self.disk.deallocate(extent).await
    }
}

/// A write to the ring takes very long. Checkpoints come and go, so nobody
/// needs that block, and the journal goes once around: two writes to one
/// place, of which the disk may do the later one first.
#[test]
fn a_place_is_not_written_twice_at_a_time() {
    let disk = SimDisk::new(Medium::new(), Options::new(BlockCount(2048)), 1);
    let ring = ring(RING_BLOCKS);
    let slow = Slow {
        disk: disk.clone(),
        held: ring.place(3),
        holds: Cell::new(true),
        goes_on: Notify::new(),
    };
    let slow = Rc::new(slow);
    let buffers = Pool::private(BUFFERS, BLOCK_SIZE).expect("memory");
    let vault = keys();
    let journal = Journal::new(Rc::clone(&slow), Rc::clone(&vault), &buffers, ring, FIRST, 1, 0);
    let journal = Rc::new(journal.expect("enough buffers"));
    let mut driver = Driver::new(&disk, 1);
    for task in 0..TASKS {
        let running = Rc::clone(&journal);
        driver.spawn(async move { running.run(task).await });
    }
    for number in 1..RING_BLOCKS + 10 {
        journal.append(&record(1, number));
        let frozen = journal.freeze();
        journal.release(frozen.next);
        driver.settle().expect("nothing stops the disk");
    }
    // All but the one that is held, up to its place's next turn.
    assert_eq!(disk.counts().writes, RING_BLOCKS + 3 - 1 - 1);
    slow.goes_on.notify_waiters();
    driver.settle().expect("nothing stops the disk");
    assert_eq!(disk.counts().writes, RING_BLOCKS + 9);
    let last = disk.peek(ring.place(RING_BLOCKS + 3));
    let unproven = Unproven::parse(&ring, ring.place(3), &last).expect("a block");
    assert_eq!(unproven.claim().number, RING_BLOCKS + 3);
}

/// The ring fills and no checkpoint comes: writers wait at three quarters, a
/// control still goes, and no block that a recovery needs is written over.
#[test]
fn a_full_ring_stops_writers_and_loses_nothing() {
    let mut bench = Bench::new(8);
    let appended = Rc::new(Cell::new(0));
    let (journal, count) = (Rc::clone(&bench.journal), Rc::clone(&appended));
    bench.driver.spawn(async move {
        loop {
            let _admitted = journal.admit(1).await.expect("the disk is good");
            journal.append(&record(1, count.get()));
            count.set(count.get() + 1);
            journal.flush().await.expect("the disk is good");
        }
    });
    bench.driver.pass(Duration::from_secs(1)).expect("nothing stops the disk");
    let stopped_at = appended.get();
    let at_the_mark_too = RING_BLOCKS / 4 * 3 + 1;
    assert_eq!(bench.journal.used(), at_the_mark_too);

    let id = VolumeId([3; 16]);
    let control = Record::Control(Control::DeleteVolume { id });
    let exempt = bench.driver.run(bench.journal.admit_exempt(weight(&control)));
    let admitted = exempt.expect("nobody waits").expect("the disk is good");
    bench.journal.append(&control);
    drop(admitted);
    assert_eq!(bench.flush(), Ok(()));

    // More than may be: the blocks wait for their places.
    for number in 0..20 {
        bench.journal.append(&record(2, number));
        let journal = Rc::clone(&bench.journal);
        bench.driver.spawn(async move { assert_eq!(journal.flush().await, Ok(())) });
        bench.driver.pass(Duration::from_millis(300)).expect("nothing stops the disk");
    }
    let start = Start { position: FIRST, mark: 0 };
    let chain = bench.scan(&bench.disk.cut(), start);
    assert_eq!((chain.end.next, chain.verdict), (RING_BLOCKS + 1, Verdict::Whole));
    let used = bench.journal.used();
    assert!(used >= RING_BLOCKS, "{used}");
    // A pool that is opened like this must not wait: nobody makes room before.
    assert!(bench.journal.admit_at_once(1).is_none());

    let frozen = bench.journal.freeze();
    let mark = bench.journal.mark();
    bench.journal.release(frozen.next);
    bench.driver.pass(Duration::from_millis(300)).expect("nothing stops the disk");
    assert!(appended.get() > stopped_at, "writers go on");
    assert!(bench.journal.admit_at_once(1).is_some());
    let chain = bench.scan(&bench.disk.cut(), Start { position: frozen, mark });
    assert_eq!(chain.verdict, Verdict::Whole);
}
