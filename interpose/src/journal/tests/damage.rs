//! What a broken disk leaves: told from what a crash leaves, wherever it can.

use super::*;
use crate::journal::block::seal;
use crate::layout::control::Malformed;

const START: Start = Start { position: FIRST, mark: 0 };

/// Twelve blocks, each flushed, each with the mark of the one before.
fn twelve_blocks() -> (Bench, Medium) {
    let mut bench = Bench::new(1);
    for number in 0..12 {
        bench.journal.append(&record(1, number));
        assert_eq!(bench.flush(), Ok(()));
    }
    let medium = bench.disk.cut();
    (bench, medium)
}

#[test]
fn a_whole_chain_is_replayed_in_order() {
    let (bench, medium) = twelve_blocks();
    let chain = bench.scan(&medium, START);
    assert_eq!((chain.end.next, chain.mark, chain.verdict), (13, 11, Verdict::Whole));
    let (records, position) =
        replayed(&medium, &bench.keys, &bench.ring, FIRST, 13).expect("whole");
    let expected: Vec<_> = (0..12).map(|number| (number + 1, record(1, number))).collect();
    assert_eq!(records, expected);
    assert_eq!(position, chain.end);
}

/// One block of the chain rots. A later one says that it was durable, except
/// for the last two: nothing on the disk knows that they were.
#[test]
fn a_gap_in_what_was_durable_is_damage() {
    for bad in 1..=12 {
        let (bench, mut medium) = twelve_blocks();
        medium.flip(bench.ring.place(bad), 3000);
        let chain = bench.scan(&medium, START);
        assert_eq!(chain.end.next, bad);
        let expected = if bad < 12 { Verdict::Damaged { missing: bad } } else { Verdict::Whole };
        assert_eq!(chain.verdict, expected, "block {bad}");
        assert_eq!(chain.mark, 11.min(if bad == 12 { 10 } else { 11 }));
    }
}

/// The superblock knows the mark: even the last block is missed then.
#[test]
fn the_superblocks_mark_counts() {
    let (bench, mut medium) = twelve_blocks();
    medium.flip(bench.ring.place(12), 3000);
    let chain = bench.scan(&medium, Start { mark: 12, ..START });
    assert_eq!(chain.verdict, Verdict::Damaged { missing: 12 });
}

/// The block is good and the device cannot give it: it may do so tomorrow.
#[test]
fn an_unreadable_block_is_damage_and_the_others_are_still_read() {
    let (bench, medium) = twelve_blocks();
    for bad in [1, 2, 7, 12, 13] {
        let disk = SimDisk::new(medium.clone(), Options::new(BlockCount(2048)), 1);
        disk.fail_reads(bench.ring.place(bad));
        let buffers = Pool::private(3, 5 * BLOCK_SIZE).expect("memory");
        let mut driver = Driver::new(&disk, 1);
        let chain = driver.run(scan(&disk, &bench.keys, &buffers, &bench.ring, START));
        let chain = chain.expect("nothing stops the disk");
        assert_eq!(chain.end.next, bad);
        assert_eq!(chain.verdict, Verdict::Damaged { missing: bad });
        assert_eq!(buffers.available(), 3);
    }
}

/// A write went astray: a valid block of this journal lies at another one's
/// place. It is nobody's.
#[test]
fn a_block_at_anothers_place_is_not_there() {
    let (bench, mut medium) = twelve_blocks();
    let stray = *medium.block(bench.ring.place(4));
    medium.set(bench.ring.place(6), &stray);
    let chain = bench.scan(&medium, START);
    assert_eq!(chain.verdict, Verdict::Damaged { missing: 6 });
    medium.set(bench.ring.place(50), &stray);
    assert_eq!(bench.scan(&medium, START).end.next, 6);
}

/// A crash; the recovery cuts at block 8 and a new history begins there. Its
/// blocks 8 to 9 are not durable when the next crash comes, and 8 is lost: the
/// blocks of the old history that are still there are no damage, and neither
/// are those of the new one that nothing leads to.
#[test]
fn what_a_cut_left_behind_does_no_harm() {
    let mut bench = Bench::new(2);
    for number in 0..10 {
        bench.journal.append(&record(1, number));
        if number == 2 {
            assert_eq!(bench.flush(), Ok(()));
        }
        bench.journal.freeze();
    }
    bench.driver.settle().expect("nothing stops the disk");
    let medium = bench.disk.shut_down();
    let chain = bench.scan(&medium, START);
    assert_eq!((chain.end.next, chain.mark), (11, 3));
    let (_, cut) = replayed(&medium, &bench.keys, &bench.ring, FIRST, 4).expect("whole");
    assert_eq!(cut.next, 4);

    let mut next = Bench::continuing(medium.clone(), Rc::clone(&bench.keys), START, cut, 3);
    next.journal.append(&record(2, 0));
    next.journal.freeze();
    next.journal.append(&record(2, 1));
    next.journal.freeze();
    next.driver.settle().expect("nothing stops the disk");
    let mut left = next.disk.shut_down();
    let chain = bench.scan(&left, START);
    assert_eq!((chain.end.next, chain.verdict), (6, Verdict::Whole));

    // The new block 4 was lost: the old one is there, and leads to itself only.
    left.set(bench.ring.place(4), medium.block(bench.ring.place(4)));
    let chain = bench.scan(&left, START);
    assert_eq!((chain.end.next, chain.verdict), (5, Verdict::Whole));

    // It was lost and it was durable: its successor's mark would say so.
    assert_eq!(next.flush(), Ok(()));
    next.journal.append(&record(2, 2));
    assert_eq!(next.flush(), Ok(()));
    let mut left = next.disk.shut_down();
    left.set(bench.ring.place(4), medium.block(bench.ring.place(4)));
    assert_eq!(bench.scan(&left, START).verdict, Verdict::Damaged { missing: 5 });
}

/// Between the scan and the replay the disk changes its mind.
#[test]
fn a_block_that_changes_after_the_scan_is_not_replayed() {
    let (bench, mut medium) = twelve_blocks();
    medium.flip(bench.ring.place(5), 100);
    let outcome = replayed(&medium, &bench.keys, &bench.ring, FIRST, 13);
    assert_eq!(outcome, Err(ReplayError::Changed(5)));

    let disk = SimDisk::new(medium, Options::new(BlockCount(2048)), 1);
    disk.fail_reads(bench.ring.place(3));
    let buffers = Pool::private(1, BLOCK_SIZE).expect("memory");
    let mut driver = Driver::new(&disk, 1);
    let outcome = driver.run(async {
        let mut reader = Reader::new(&disk, &bench.keys, &buffers, &bench.ring, FIRST, 13);
        while reader.next(|_| Ok(())).await? {}
        Ok(())
    });
    assert_eq!(outcome, Ok(Err(ReplayError::Changed(3))));
}

/// The recovery finds that a record cannot be.
#[test]
fn a_record_that_the_caller_refuses_names_its_block() {
    let (bench, medium) = twelve_blocks();
    let disk = SimDisk::new(medium, Options::new(BlockCount(2048)), 1);
    let buffers = Pool::private(1, BLOCK_SIZE).expect("memory");
    let mut driver = Driver::new(&disk, 1);
    let outcome = driver.run(async {
        let mut reader = Reader::new(&disk, &bench.keys, &buffers, &bench.ring, FIRST, 13);
        loop {
            let number = reader.position().next;
            let sink = |_| if number == 9 { Err(Malformed) } else { Ok(()) };
            if !reader.next(sink).await? {
                return Ok(());
            }
        }
    });
    assert_eq!(outcome, Ok(Err(ReplayError::Malformed(9))));
}

/// The seal is good, and what it says cannot be.
#[test]
fn a_malformed_block_is_damage_though_its_seal_is_good() {
    let (bench, mut medium) = twelve_blocks();
    let end = bench.scan(&medium, START).end;
    let (damaged, previous) = (Verdict::Damaged { missing: 13 }, end.previous);
    for (kind, verdict) in [(3, Verdict::Whole), (77, damaged)] {
        let header = Header { count: 1, number: 13, mark: 11, previous };
        let mut block = [0; BLOCK_SIZE];
        record(1, 0).encode(&mut block[HEADER_BYTES..]);
        block[HEADER_BYTES] = kind;
        seal(&bench.keys, &bench.ring, &header, &mut block).expect("a key");
        medium.set(bench.ring.place(13), &block);
        let chain = bench.scan(&medium, START);
        assert_eq!(chain.verdict, verdict);
        assert_eq!(chain.end.next == 14, verdict == Verdict::Whole);
    }
}

/// No block knows that it is durable itself: one that says so is nobody's.
#[test]
fn a_block_that_vouches_for_itself_is_not_there() {
    let (bench, mut medium) = twelve_blocks();
    let previous = bench.scan(&medium, START).end.previous;
    let mut block = [0; BLOCK_SIZE];
    let header = Header { count: 0, number: 13, mark: 13, previous };
    seal(&bench.keys, &bench.ring, &header, &mut block).expect("a key");
    medium.set(bench.ring.place(13), &block);
    let chain = bench.scan(&medium, START);
    assert_eq!((chain.end.next, chain.mark, chain.verdict), (13, 11, Verdict::Whole));
}

/// Nothing was ever written there, or noise, or a device that reads nothing.
#[test]
fn an_empty_ring_is_an_empty_journal() {
    let keys = keys();
    let empty = scanned(&Medium::new(), &keys, &ring(64), START);
    assert_eq!(empty, Chain { end: FIRST, mark: 0, verdict: Verdict::Whole });

    let disk = SimDisk::new(Medium::new(), Options::new(BlockCount(2048)), 1);
    (0..64).for_each(|block| disk.fail_reads(ring(64).place(block)));
    let buffers = Pool::private(2, 7 * BLOCK_SIZE).expect("memory");
    let mut driver = Driver::new(&disk, 1);
    let chain = driver.run(scan(&disk, &keys, &buffers, &ring(64), START));
    let damaged = Verdict::Damaged { missing: 1 };
    assert_eq!(chain, Ok(Chain { end: FIRST, mark: 0, verdict: damaged }));
}
