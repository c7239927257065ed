//! Flushes, timers, admission, failure: what costs what, and who waits.

use std::cell::RefCell;
use std::task::Poll;
use std::time::Duration;

use block_core::BlockError;

use super::*;
use crate::disk::FailureRates;
use crate::journal::admission::{MOST_EXEMPT, MOST_PAST_MARK};
use crate::layout::control::{Control, VolumeId};

/// Thirty-two guests write and flush at the same time: the device is flushed
/// once for all, and one block says what they wrote.
#[test]
fn thirty_two_flushes_share_one() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed);
        let answered = Rc::new(Cell::new(0));
        // All are in the same moment, whatever order the driver has.
        for number in 0..32 {
            bench.journal.append(&record(1, number));
        }
        for _ in 0..32 {
            let (journal, answered) = (Rc::clone(&bench.journal), Rc::clone(&answered));
            bench.driver.spawn(async move {
                journal.flush().await.expect("the disk is good");
                answered.set(answered.get() + 1);
            });
        }
        bench.driver.settle().expect("nothing stops the disk");
        assert_eq!(answered.get(), 32);
        let counts = bench.disk.counts();
        assert_eq!((counts.flushes, counts.writes), (1, 1), "seed {seed}");
    }
}

/// A journal whose first record's flush is with the device: of the first seed
/// by which the device does not end it before that is seen.
fn flushing() -> Bench {
    let begun = |seed| {
        let mut bench = Bench::new(seed);
        begin_flush(&mut bench).then_some(bench)
    };
    (3..100).find_map(begun).expect("one seed in two")
}

/// Appends a record, and runs until its flush is with the device, or has ended.
fn begin_flush(bench: &mut Bench) -> bool {
    bench.journal.append(&record(1, 0));
    let journal = Rc::clone(&bench.journal);
    bench.driver.spawn(async move { journal.flush().await.expect("the disk is good") });
    let (disk, journal) = (bench.disk.clone(), Rc::clone(&bench.journal));
    let sent = std::future::poll_fn(move |context| {
        context.waker().wake_by_ref();
        let is_flushing = disk.counts().writes == 1 && disk.waiting() == 1;
        let has_ended = journal.past_mark() == 0;
        if is_flushing || has_ended { Poll::Ready(is_flushing) } else { Poll::Pending }
    });
    bench.driver.run(sent).expect("a flush is sent")
}

/// Flushes come while the device is flushed: what they ask for may have come
/// too late for that one, and the next one is enough for all of them.
#[test]
fn flushes_that_come_meanwhile_share_the_next() {
    let mut bench = flushing();
    let answered = Rc::new(Cell::new(0));
    for number in 1..32 {
        bench.journal.append(&record(1, number));
        let (journal, answered) = (Rc::clone(&bench.journal), Rc::clone(&answered));
        bench.driver.spawn(async move {
            journal.flush().await.expect("the disk is good");
            answered.set(answered.get() + 1);
        });
    }
    bench.driver.settle().expect("nothing stops the disk");
    assert_eq!(answered.get(), 31);
    assert!(bench.disk.counts().flushes <= 3);
}

#[test]
fn a_flush_of_nothing_costs_nothing() {
    let mut bench = Bench::new(4);
    assert_eq!(bench.flush(), Ok(()));
    assert_eq!(bench.disk.operations(), 0);
    bench.journal.append(&record(1, 0));
    assert_eq!(bench.flush(), Ok(()));
    let counts = bench.disk.counts();
    assert_eq!(bench.flush(), Ok(()));
    assert_eq!(bench.disk.counts(), counts);
}

/// What a recovery found may lie in the device's cache only, if the process
/// died and the device did not: the first flush is for that too.
#[test]
fn what_a_recovery_found_is_flushed_once() {
    let mut first = Bench::new(5);
    (0..1000).for_each(|number| first.journal.append(&record(1, number)));
    first.driver.settle().expect("nothing stops the disk");
    let left = first.disk.shut_down();
    let start = Start { position: FIRST, mark: 0 };
    let chain = first.scan(&left, start);
    assert!(chain.end.next > 1 && chain.mark == 0);
    let mut again = Bench::continuing(left, first.keys, start, chain.end, 6);
    assert_eq!(again.flush(), Ok(()));
    let counts = again.disk.counts();
    assert_eq!((counts.flushes, counts.writes), (1, 0));
    assert_eq!(again.journal.mark(), chain.end.next - 1);
    assert_eq!(again.flush(), Ok(()));
    assert_eq!(again.disk.counts(), counts);
}

/// A guest writes a little, without a flush, and falls silent. The timer makes
/// it durable, one more block says so within 100 ms, and then nothing moves.
#[test]
fn idle_records_are_flushed_their_mark_is_written_and_then_nothing_ticks() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed);
        bench.journal.append(&record(1, 0));
        bench.driver.settle().expect("nothing stops the disk");
        assert_eq!(bench.disk.operations(), 0);
        bench.driver.pass(Duration::from_millis(110)).expect("nothing stops the disk");
        let counts = bench.disk.counts();
        assert_eq!((counts.flushes, counts.blocks_written), (1, 1));
        assert_eq!(bench.journal.mark(), 1);

        let left = bench.disk.cut();
        assert_eq!(bench.scan(&left, Start { position: FIRST, mark: 0 }).mark, 0);
        bench.driver.pass(Duration::from_millis(100)).expect("nothing stops the disk");
        let counts = bench.disk.counts();
        assert_eq!((counts.flushes, counts.blocks_written), (1, 2));
        let chain = bench.scan(&bench.disk.cut(), Start { position: FIRST, mark: 0 });
        assert_eq!((chain.mark, chain.end.next, chain.verdict), (1, 3, Verdict::Whole));

        assert_eq!(bench.journal.deadline(), None);
        bench.driver.pass(Duration::from_secs(60)).expect("nothing stops the disk");
        assert_eq!(bench.disk.counts(), counts);
    }
}

/// A record comes while the device is flushed, and nothing after it: that
/// flush was not for it, and the timer is.
#[test]
fn a_record_that_comes_during_a_flush_is_not_forgotten() {
    let mut bench = flushing();
    bench.journal.append(&record(1, 1));
    bench.driver.pass(Duration::from_millis(250)).expect("nothing stops the disk");
    assert_eq!(bench.journal.past_mark(), 0);
}

/// A guest that writes and never flushes: the journal does it every so many
/// records, so that a crash undoes no more than 4096.
#[test]
fn no_more_than_the_limit_is_ever_past_the_mark() {
    let mut bench = Bench::new(7);
    let most = Rc::new(Cell::new(0));
    let limit = MOST_PAST_MARK.min(RING_BLOCKS / 8 * 63);
    for task in 0..40 {
        let (journal, most) = (Rc::clone(&bench.journal), Rc::clone(&most));
        bench.driver.spawn(async move {
            for number in 0..400 {
                let admitted = journal.admit(3).await.expect("the disk is good");
                turn::yield_now().await;
                (0..3).for_each(|_| journal.append(&record(task, number)));
                drop(admitted);
                most.set(journal.past_mark().max(most.get()));
            }
        });
    }
    let journal = Rc::clone(&bench.journal);
    let appended = async move {
        while journal.position().next < 160 {
            if journal.used() >= RING_BLOCKS / 2 {
                let frozen = journal.freeze().next;
                journal.release(frozen);
            }
            turn::yield_now().await;
        }
    };
    bench.driver.run(appended).expect("nobody waits for ever");
    assert!(most.get() <= limit, "{} past the mark", most.get());
    assert!(most.get() > limit / 2);
    assert!(bench.disk.counts().flushes > 10);
}

/// Two wait for room, the first one for much of it: the second one, for whom
/// there would be room, does not pass.
#[test]
fn who_waits_is_served_in_order() {
    let mut bench = Bench::new(9);
    let limit = (RING_BLOCKS / 8 * 63) as usize;
    let journal = Rc::clone(&bench.journal);
    let order = Rc::new(RefCell::new(Vec::new()));
    let held = bench.driver.run(bench.journal.admit(limit - 10)).expect("room").expect("good");
    for records in [100, 5, 1] {
        let (journal, order) = (Rc::clone(&journal), Rc::clone(&order));
        bench.driver.spawn(async move {
            let admitted = journal.admit(records).await;
            order.borrow_mut().push(records);
            drop(admitted);
        });
        bench.driver.settle().expect("nothing stops the disk");
    }
    assert!(order.borrow().is_empty());
    drop(held);
    bench.driver.settle().expect("nothing stops the disk");
    assert_eq!(*order.borrow(), [100, 5, 1]);
}

/// The largest controls, as many as are ever admitted at once, while the disk
/// does nothing: each leaves the rest of a block empty, and still there is
/// memory for all.
#[test]
fn the_buffers_suffice_for_all_that_is_admitted() {
    let bench = Bench::new(10);
    let largest =
        Record::Control(Control::Attributes { id: VolumeId([1; 16]), attributes: vec![0; 2100] });
    let mut admitted = 0;
    while admitted + weight(&largest) <= MOST_EXEMPT as usize {
        bench.journal.append(&largest);
        admitted += weight(&largest);
    }
    let pointer = crate::layout::Pointer::HOLE;
    for number in 0..MOST_PAST_MARK {
        bench.journal.append(&Record::Share { line: LineId(1), lba: Lba(number), pointer });
    }
    assert_eq!(bench.journal.failed(), None);
}

/// A block cannot be written: whoever waits hears of it, and whoever comes
/// later too. Nothing is written after the gap.
#[test]
fn a_block_that_cannot_be_written_ends_the_journal() {
    let mut bench = Bench::new(11);
    bench.journal.append(&record(1, 0));
    assert_eq!(bench.flush(), Ok(()));
    bench.disk.fail_writes(bench.ring.place(2));
    bench.journal.append(&record(1, 1));
    let failure = JournalError::Write(BlockError::Medium);
    assert_eq!(bench.flush(), Err(failure));
    assert_eq!(bench.journal.failed(), Some(failure));
    bench.disk.heal();
    bench.journal.append(&record(1, 2));
    assert_eq!(bench.flush(), Err(failure));
    assert!(matches!(bench.driver.run(bench.journal.admit(1)), Ok(Err(_))));
    assert_eq!(bench.journal.deadline(), None);
    assert_eq!(bench.journal.mark(), 1);
    let operations = bench.disk.operations();
    bench.driver.pass(Duration::from_secs(1)).expect("nothing stops the disk");
    assert_eq!(bench.disk.operations(), operations);
}

#[test]
fn a_flush_that_fails_ends_the_journal() {
    let mut bench = Bench::new(12);
    bench.disk.fail_some(FailureRates { flushes: 1_000_000, ..FailureRates::default() });
    bench.journal.append(&record(1, 0));
    assert_eq!(bench.flush(), Err(JournalError::Flush(BlockError::Medium)));
    bench.disk.heal();
    bench.journal.append(&record(1, 1));
    assert_eq!(bench.flush(), Err(JournalError::Flush(BlockError::Medium)));
    assert_eq!(bench.journal.mark(), 0);
}

/// Tasks wait for room when the device dies: they are not left waiting.
#[test]
fn a_failure_ends_every_wait() {
    let mut bench = Bench::new(13);
    let journal = Rc::clone(&bench.journal);
    let held = bench.driver.run(journal.admit(10_000)).expect("alone").expect("good");
    let ended = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let (journal, ended) = (Rc::clone(&bench.journal), Rc::clone(&ended));
        bench.driver.spawn(async move {
            assert!(journal.admit(1).await.is_err());
            ended.set(ended.get() + 1);
        });
    }
    bench.driver.settle().expect("nothing stops the disk");
    assert_eq!(ended.get(), 0);
    bench.journal.fail(JournalError::Lost);
    bench.driver.settle().expect("nothing stops the disk");
    assert_eq!(ended.get(), 3);
    drop(held);
}

#[test]
fn a_journal_asks_for_its_memory_at_the_start() {
    let disk = Rc::new(SimDisk::new(Medium::new(), Options::new(BlockCount(2048)), 1));
    let buffers = Pool::private(7, BLOCK_SIZE).expect("memory");
    let journal = Journal::new(disk, keys(), &buffers, ring(64), FIRST, 1, 0);
    let error = journal.err().expect("too few");
    assert_eq!(error.to_string(), "the journal needs 128 buffers of 4096 bytes, and 7 are free");
    assert_eq!(buffers.available(), 7);
}
