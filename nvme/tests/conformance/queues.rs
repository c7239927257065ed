//! Queues: short ones, full ones, as many as there are.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use block_core::Pba;
use block_core::device::{Device, Durability};
use nvme::StartError;
use nvme::command::{Command, admin};
use nvme::completion::Status;
use turn::Poller;

use crate::subject::{QUEUES, Rig, filled, poll};
use crate::{Case, Verdict};

const BLOCK: usize = 4096;

pub(crate) const CASES: &[Case] = &[
    ("short queues wrap", short_queues),
    ("a full queue", full_queue),
    ("fewer queues than asked", fewer_queues),
    ("queues in the wrong order", wrong_order),
    ("doorbells once a turn", doorbells),
    ("shadow doorbells", shadow_doorbells),
    (INTERRUPTS, interrupts),
];

pub(crate) const INTERRUPTS: &str = "completions that interrupt";

/// The shortest queue holds one command; rings turn over many times.
fn short_queues(rig: &Rig<'_>) -> Verdict {
    for depth in [1, 2, 5] {
        let queue = rig.controller.create_queue_pair(depth).expect("a queue pair");
        assert_eq!(queue.depth(), usize::from(depth));
        let pool = rig.pool(2, BLOCK);
        let namespace = rig.namespace_on(&queue, 1);
        for round in 0..40 {
            let write = namespace.write(Pba(1), filled(&pool, round), 0..1, Durability::Cached);
            assert_eq!(rig.run_on(&queue, write).1, Ok(()));
            let read = namespace.read(Pba(1), filled(&pool, !round), 0..1);
            let (buffer, read) = rig.run_on(&queue, read);
            assert_eq!((read, buffer[BLOCK - 1]), (Ok(()), round));
        }
        assert_eq!(queue.counters().unexpected, 0);
    }
    Verdict::Passed
}

/// More requests than the queue holds: the rest waits in line, and all of them end.
fn full_queue(rig: &Rig<'_>) -> Verdict {
    let depth = rig.queue.depth();
    let count = depth * 2 + 5;
    let pool = rig.pool(count, BLOCK);
    let namespace = rig.namespace(1);
    for round in 0..4 {
        let mut requests: Vec<Pin<Box<dyn Future<Output = _>>>> = (0..count)
            .map(|index| {
                let buffer = filled(&pool, (index + round) as u8);
                Box::pin(namespace.write(Pba(index as u64), buffer, 0..1, Durability::Cached)) as _
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
    Verdict::Passed
}

/// The driver asks for more than there are, and lives with what it is given; all of
/// them work side by side, and a number that is given back can be had again.
fn fewer_queues(rig: &Rig<'_>) -> Verdict {
    assert_eq!(rig.controller.queues_granted(), usize::from(QUEUES));
    for _ in 0..3 {
        let more: Vec<_> = (1..QUEUES)
            .map(|_| rig.controller.create_queue_pair(4).expect("a queue pair"))
            .collect();
        let none = rig.controller.create_queue_pair(4);
        assert!(matches!(none, Err(StartError::NoQueue { granted: 3 })));
        let pool = rig.pool(1, BLOCK);
        for (number, queue) in more.iter().enumerate() {
            let namespace = rig.namespace_on(queue, 2);
            let at = Pba(number as u64);
            let write = namespace.write(at, filled(&pool, 3), 0..1, Durability::Cached);
            assert_eq!(rig.run_on(queue, write).1, Ok(()));
        }
    }
    Verdict::Passed
}

/// Sections 5.4 to 5.7 of Base 2.0: numbers and sizes that cannot be, and a
/// completion queue that is still needed.
fn wrong_order(rig: &Rig<'_>) -> Verdict {
    let refused = |command, status| rig.refused(command, &[status]);
    let delete = |opcode, queue| Command::delete_queue(opcode, queue);
    let used = rig.queue.id();
    for queue in [0, QUEUES + 1, u16::MAX] {
        refused(Command::create_completion_queue(queue, 8, 0), Status::INVALID_QUEUE_ID);
        // To a completion queue that is there: which of two faults is named is
        // nobody's promise.
        let submission = Command::create_submission_queue(queue, 8, 0);
        let submission = submission.with_dword(11, 1 | u32::from(used) << 16);
        refused(submission, Status::INVALID_QUEUE_ID);
    }
    // Size 0 means one entry.
    refused(Command::create_completion_queue(2, 1, 0), Status::INVALID_QUEUE_SIZE);
    refused(delete(admin::DELETE_SUBMISSION_QUEUE, 0), Status::INVALID_QUEUE_ID);
    refused(delete(admin::DELETE_SUBMISSION_QUEUE, 2), Status::INVALID_QUEUE_ID);
    // Section 5.6 knows no other status for it; QEMU 7.2 has one.
    let either = [Status::INVALID_QUEUE_ID, Status::INVALID_COMPLETION_QUEUE];
    rig.refused(delete(admin::DELETE_COMPLETION_QUEUE, 2), &either);
    refused(delete(admin::DELETE_COMPLETION_QUEUE, used), Status::INVALID_QUEUE_DELETION);
    // Its completion queue is missing.
    refused(Command::create_submission_queue(3, 8, 0), Status::INVALID_COMPLETION_QUEUE);
    Verdict::Passed
}

/// A thread sleeps until a completion rings: each of them does, also after a reset, and
/// one that came before the thread slept has rung already.
fn interrupts(rig: &Rig<'_>) -> Verdict {
    let bells = rig.controller.bells();
    let queue = rig.controller.create_ringing_queue_pair(8).expect("a queue pair");
    if !queue.rings_bells() {
        return Verdict::Skipped("it has no interrupts");
    }
    rig.controller.coalesce_interrupts().expect("it answers");
    let poller = Poller::new().expect("an epoll");
    for bell in &bells {
        poller.registrar().add(bell).expect("it can be waited for");
    }
    let pool = rig.pool(1, BLOCK);
    for round in 0..60 {
        if round == 40 {
            rig.controller.reset().expect("a reset");
            rig.queue.restart().expect("the queue again");
            queue.restart().expect("the queue again");
        }
        let namespace = rig.namespace_on(&queue, 1);
        let mut read = Box::pin(namespace.read(Pba(round % 64), filled(&pool, 0), 0..1));
        assert!(poll(read.as_mut()).is_pending());
        queue.ring();
        let end = Instant::now() + Duration::from_secs(20);
        let outcome = loop {
            assert!(Instant::now() < end, "round {round}: no completion has rung");
            // As a thread that drives its controller does: its part, one more look, and sleep.
            rig.turn_on(&queue);
            if rig.has_soft_work() {
                continue;
            }
            // An interrupt of another queue or of an earlier round may come, too.
            if !queue.has_news() {
                poller.sleep(Some(Duration::from_secs(20))).expect("it waits");
            }
            rig.turn_on(&queue);
            if let Poll::Ready((_, outcome)) = poll(read.as_mut()) {
                break outcome;
            }
        };
        assert_eq!(outcome, Ok(()), "round {round}");
    }
    Verdict::Passed
}

/// A doorbell is a store to a device, which is dear. A turn in which something is submitted
/// rings once; where there is room in the ring of completions, a polled controller learns
/// only when that gets scarce: here, of 63 places, once in 31 completions.
fn doorbells(rig: &Rig<'_>) -> Verdict {
    if rig.queue.rings_bells() {
        return Verdict::Skipped("its queues interrupt, for which they need the head each time");
    }
    const DEPTH: usize = 32;
    let pool = rig.pool(DEPTH, BLOCK);
    let namespace = rig.namespace(1);
    let before = rig.queue.counters();
    let mut requests: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
    let (mut begun, mut turns) = (0, 0);
    while begun < 3200 || !requests.is_empty() {
        requests.retain_mut(|request| poll(request.as_mut()).is_pending());
        let submitted = rig.queue.counters().submitted;
        while begun < 3200 && requests.len() < DEPTH {
            requests.push(Box::pin(namespace.read(Pba(begun % 256), filled(&pool, 0), 0..1)));
            assert!(poll(requests.last_mut().expect("one").as_mut()).is_pending());
            begun += 1;
        }
        turns += u64::from(rig.queue.counters().submitted > submitted);
        rig.turn();
    }
    let rung = rig.queue.counters().doorbells - before.doorbells;
    assert!(rung <= turns + 3200 / 31, "{rung} doorbells in {turns} turns that submit");
    Verdict::Passed
}

/// One command at a time, so that the controller falls asleep after each and must be
/// woken for the next. Then many at a time, which take fewer
/// doorbells than commands.
fn shadow_doorbells(rig: &Rig<'_>) -> Verdict {
    if !rig.controller.info().has_shadow_doorbells {
        return Verdict::Skipped("it offers none");
    }
    let pool = rig.pool(32, BLOCK);
    let namespace = rig.namespace(1);
    let before = rig.queue.counters();
    for round in 0..4000_u64 {
        let at = Pba(round % 64);
        let read = rig.run(namespace.read(at, filled(&pool, 0), 0..1)).1;
        assert_eq!(read, Ok(()), "round {round}");
    }
    let alone = rig.queue.counters().doorbells - before.doorbells;
    assert!(alone <= 4000 + 4000, "{alone} doorbells, heads and tails");
    let mut requests: Vec<Pin<Box<dyn Future<Output = _>>>> = Vec::new();
    let before = rig.queue.counters();
    for round in 0..200 {
        for index in 0..32 {
            let buffer = filled(&pool, (index + round) as u8);
            let write = namespace.write(Pba(index), buffer, 0..1, Durability::Cached);
            requests.push(Box::pin(write));
        }
        while !requests.is_empty() {
            requests.retain_mut(|request| poll(request.as_mut()).is_pending());
            rig.turn();
        }
    }
    let after = rig.queue.counters();
    let (ended, rung) = (after.ended - before.ended, after.doorbells - before.doorbells);
    assert!(ended == 6400 && rung < ended, "{rung} doorbells for {ended} commands");
    assert_eq!(after.unexpected, 0);
    Verdict::Passed
}
