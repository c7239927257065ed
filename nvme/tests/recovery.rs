//! What goes wrong, and what is left afterwards.

mod harness;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake};

use block_core::device::{Device, Durability, Ended, Failure, Tag, Transfer};
use block_core::{BlockError, Buffer, Pba};
use harness::{Drive, Rig, disorder, filled, memory, poll};
use nvme::command::io;
use nvme::completion::Status;
use nvme::soft::{Fault, Image};
use nvme::{Health, LbaSize, SoftNamespace, SoftOptions};

const BLOCK: usize = 4096;

type Write<'a> = Pin<Box<dyn Future<Output = (Buffer, Result<(), BlockError>)> + 'a>>;

/// A stuck command keeps its buffer through an abort that names another one;
/// when it is aborted itself it runs again, and the reader notices nothing.
#[test]
fn a_command_that_was_aborted_runs_again() {
    let rig = Rig::small();
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    rig.soft.inject(Fault::Stick { count: 1 });
    let mut read: Write<'_> = Box::pin(namespace.read(Pba(0), filled(&pool, 0), 0..1));
    for _ in 0..50 {
        assert!(poll(read.as_mut()).is_pending());
        rig.turn();
    }
    let id = rig.queue.any_command().expect("it is under way");
    assert!(!rig.controller.abort(&rig.queue, id ^ 1).expect("an answer"), "no such command");
    assert!(poll(read.as_mut()).is_pending());
    assert!(rig.controller.abort(&rig.queue, id).expect("an answer"));
    assert_eq!(rig.run(read.as_mut()).1, Ok(()));
    assert_eq!((rig.queue.in_flight(), pool.available()), (0, 1));
    assert_eq!(rig.queue.counters().submitted, 2);
}

#[test]
fn a_status_becomes_the_error_that_fits() {
    let rig = Rig::small();
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    for (status, error) in [
        (Status::READ_ERROR, BlockError::Medium),
        (Status::CAPACITY_EXCEEDED, BlockError::NoSpace),
        (Status::WRITE_PROTECTED, BlockError::ReadOnly),
        (Status::INVALID_OPCODE, BlockError::Unsupported),
    ] {
        rig.soft.inject(Fault::Fail { opcode: io::READ, status, count: 1 });
        let (buffer, read) = rig.run(namespace.read(Pba(0), filled(&pool, 3), 0..1));
        assert_eq!((read, buffer[0]), (Err(error), 3));
        drop(buffer);
        assert_eq!(rig.run(namespace.read(Pba(0), filled(&pool, 3), 0..1)).1, Ok(()));
    }
    assert_eq!(rig.queue.counters().failed, 4);
}

/// A write is asked for, and polled only when the controller has been reset and its queue
/// made again. Whoever asked for it does not know what the reset has cost, so the device
/// does not get it.
#[test]
fn a_write_from_before_a_reset_is_not_given_to_the_device_after_it() {
    let rig = Rig::small();
    let pool = rig.pool(2, BLOCK);
    let namespace = rig.namespace(1);
    let write = namespace.write(Pba(0), filled(&pool, 1), 0..1, Durability::Cached);
    let read = namespace.read(Pba(0), filled(&pool, 9), 0..1);
    rig.controller.reset().expect("a reset");
    rig.queue.restart().expect("queues");
    let submitted = rig.queue.counters().submitted;
    assert_eq!(rig.run(write).1, Err(BlockError::Lost));
    assert_eq!((rig.queue.counters().submitted, pool.available()), (submitted, 1));
    let (buffer, outcome) = rig.run(read);
    assert_eq!((outcome, buffer[0]), (Ok(()), 0), "a read may come late");
}

/// Dropping a future gives up the command, not the memory: the buffer is back
/// in its pool only after the controller has written to it.
#[test]
fn an_abandoned_read_keeps_its_buffer_until_it_ends() {
    let rig = Rig::small();
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    let mut read = Box::pin(namespace.read(Pba(0), filled(&pool, 7), 0..1));
    assert!(poll(read.as_mut()).is_pending());
    drop(read);
    assert_eq!((pool.available(), rig.queue.in_flight()), (0, 1));
    while rig.queue.in_flight() > 0 {
        rig.turn();
    }
    assert_eq!(pool.available(), 1);
}

/// With a full queue of stuck commands one waits in line; giving up one of
/// them, or the waiting one itself, wakes nobody for nothing and loses nobody.
#[test]
fn who_waits_in_line_gets_a_place_when_an_abandoned_command_ends() {
    let rig = Rig::with_depth(SoftOptions::default(), vec![memory(16)], Drive::Here, 2);
    let pool = rig.pool(5, BLOCK);
    let namespace = rig.namespace(1);
    let start = || -> Write<'_> {
        let mut read: Write<'_> = Box::pin(namespace.read(Pba(0), filled(&pool, 0), 0..1));
        assert!(poll(read.as_mut()).is_pending());
        read
    };
    let (first, second, third, mut fourth) = (start(), start(), start(), start());
    drop(first);
    drop(third);
    drop(second);
    assert_eq!(rig.run(fourth.as_mut()).1, Ok(()));
    drop(fourth);
    while rig.queue.in_flight() > 0 {
        rig.turn();
    }
    assert_eq!(pool.available(), 5);
}

/// Remembers that it was woken.
#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tasks that sleep: whoever waits is woken for the completion, for the place
/// in line, and when the controller was reset, and not before.
#[test]
fn a_sleeping_task_is_woken_when_its_turn_comes() {
    let rig = Rig::with_depth(SoftOptions::default(), vec![memory(16)], Drive::Here, 1);
    let pool = rig.pool(3, BLOCK);
    let namespace = rig.namespace(1);
    let start = || -> (Write<'_>, Arc<Flag>) {
        let mut read: Write<'_> = Box::pin(namespace.read(Pba(0), filled(&pool, 0), 0..1));
        let flag = Arc::new(Flag::default());
        let waker = Arc::clone(&flag).into();
        assert!(read.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        (read, flag)
    };
    let woken = |flag: &Flag| flag.0.swap(false, Ordering::Relaxed);
    let finish = || while rig.turn() > 0 {};

    let ((mut first, of_first), (second, of_second)) = (start(), start());
    finish();
    assert!(woken(&of_first) && !woken(&of_second), "the first has not fetched its outcome");
    assert!(poll(first.as_mut()).is_ready());
    assert!(woken(&of_second), "the place is free");
    // It does not take the place: the next in line does.
    let (third, of_third) = start();
    drop(second);
    assert!(woken(&of_third));
    drop((first, third));

    let ((first, _), (second, of_second)) = (start(), start());
    drop(first);
    assert!(!woken(&of_second), "the controller still has the first");
    finish();
    assert!(woken(&of_second), "the abandoned one has ended");
    drop(second);

    rig.soft.inject(Fault::Stick { count: 1 });
    let ((_first, of_first), (_second, of_second)) = (start(), start());
    finish();
    rig.controller.reset().expect("a reset");
    rig.queue.reap();
    assert!(woken(&of_first) && woken(&of_second));
}

/// A thousand resets under load. Every request ends exactly once, and each
/// block is what it was or what was being written.
#[test]
fn resets_under_load_lose_and_double_nothing() {
    for drive in [Drive::Here, Drive::SecondThread] {
        let rig = Rig::with_depth(disorder(3), vec![memory(64)], drive, 16);
        let pool = rig.pool(25, BLOCK);
        // What each block may hold: its content, and what failed to be written since.
        let mut content = vec![vec![0_u8]; 24];
        let resets: u16 = if drive == Drive::Here { 700 } else { 300 };
        for round in 0..resets {
            let namespace = rig.namespace(1);
            let stamp = (round % 250) as u8 + 1;
            let mut writes: Vec<(usize, Write<'_>)> = (0..24)
                .map(|block| {
                    let buffer = filled(&pool, stamp);
                    let at = Pba(block as u64);
                    (block, Box::pin(namespace.write(at, buffer, 0..1, Durability::Cached)) as _)
                })
                .collect();
            let mut ended = 0;
            let mut advance = |writes: &mut Vec<(usize, Write<'_>)>| {
                writes.retain_mut(|(block, write)| {
                    let Poll::Ready((_, outcome)) = poll(write.as_mut()) else { return true };
                    match outcome {
                        Ok(()) => content[*block] = vec![stamp],
                        Err(_) => content[*block].push(stamp),
                    }
                    ended += 1;
                    false
                });
            };
            for _ in 0..round % 7 {
                advance(&mut writes);
                rig.turn();
            }
            rig.controller.reset().expect("a reset");
            assert!(rig.queue.is_stale());
            rig.queue.reap();
            advance(&mut writes);
            assert!(writes.is_empty(), "a request survived the reset");
            assert_eq!((ended, pool.available()), (24, 25));
            rig.queue.restart().expect("the queues again");
            let some = usize::from(round % 8) * 3;
            for (block, allowed) in content.iter_mut().enumerate().skip(some).take(3) {
                let (buffer, read) =
                    rig.run(namespace.read(Pba(block as u64), filled(&pool, 0), 0..1));
                assert_eq!(read, Ok(()));
                let found = buffer[0];
                assert!(buffer.iter().all(|&byte| byte == found), "a torn block");
                assert!(allowed.contains(&found), "{found}, not one of {allowed:?}");
                *allowed = vec![found];
            }
        }
        assert_eq!(rig.controller.epoch(), u32::from(resets));
        assert_eq!(rig.queue.counters().unexpected, 0);
    }
}

#[test]
fn after_a_fatal_status_only_a_reset_helps() {
    let rig = Rig::small();
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    rig.soft.inject(Fault::Fatal);
    let mut read = Box::pin(namespace.read(Pba(0), filled(&pool, 0), 0..1));
    for _ in 0..20 {
        assert!(poll(read.as_mut()).is_pending());
        rig.turn();
    }
    assert_eq!(rig.controller.health(), Health::Fatal);
    rig.controller.reset().expect("a reset");
    assert_eq!(rig.run(read.as_mut()).1, Err(BlockError::Lost));
    drop(read);
    // Before the queues are there again, requests fail at once.
    assert_eq!(rig.run(namespace.read(Pba(0), filled(&pool, 0), 0..1)).1, Err(BlockError::Lost));
    rig.queue.restart().expect("the queues again");
    assert_eq!(rig.run(namespace.read(Pba(0), filled(&pool, 0), 0..1)).1, Ok(()));
    assert_eq!(rig.controller.health(), Health::Ready);
}

/// The device is pulled out: nothing proves that it has let go, so its
/// buffers stay out of the pool for good, and dropping everything is no crash.
#[test]
fn a_removed_controller_keeps_its_buffers_and_nothing_crashes() {
    let rig = Rig::small();
    let pool = rig.pool(2, BLOCK);
    let namespace = rig.namespace(1);
    rig.soft.inject(Fault::Removal);
    let mut read = Box::pin(namespace.read(Pba(0), filled(&pool, 0), 0..1));
    assert!(poll(read.as_mut()).is_pending());
    rig.turn();
    assert_eq!(rig.controller.health(), Health::Gone);
    assert!(rig.controller.reset().is_err());
    drop(read);
    assert_eq!(rig.queue.in_flight(), 1);
    drop(namespace);
    drop(rig);
    assert_eq!(pool.available(), 1);
}

/// A queue pair that is dropped stops the controller's queue first; then its
/// buffers are free, and another can take its number.
#[test]
fn dropped_queue_pairs_give_back_buffers_and_numbers() {
    for drive in [Drive::Here, Drive::SecondThread] {
        let options = SoftOptions { queues: 3, ..disorder(11) };
        let rig = Rig::new(options, vec![memory(64)], drive);
        assert_eq!(rig.controller.queues_granted(), 3);
        let pool = rig.pool(8, BLOCK);
        for round in 0..50 {
            let queue = rig.controller.create_queue_pair(8).expect("a free number");
            let info = rig.controller.namespace(1).expect("the namespace");
            let namespace = nvme::Namespace::new(Rc::clone(&queue), &info);
            if round % 3 == 0 {
                rig.soft.inject(Fault::Stick { count: 4 });
            }
            for block in 0..8 {
                let read = namespace.read(Pba(block), filled(&pool, 0), 0..1);
                assert!(poll(Box::pin(read).as_mut()).is_pending());
            }
            queue.ring();
            rig.soft.work();
            drop((namespace, queue));
            assert_eq!(pool.available(), 8);
            rig.soft.inject(Fault::Stick { count: 0 });
        }
        let more: Vec<_> =
            std::iter::from_fn(|| rig.controller.create_queue_pair(2).ok()).collect();
        assert_eq!(more.len(), 2, "numbers were lost");
    }
}

/// What a power cut may take, over many seeds: never what was flushed or
/// written through, never a mixture inside a logical block, and sometimes what
/// was not flushed.
#[test]
fn a_power_cut_takes_only_what_was_not_flushed() {
    let (mut lost, mut kept, mut torn) = (0, 0, 0);
    for seed in 0..60 {
        let namespace = SoftNamespace::losing_memory(64 << 12, LbaSize::B512, Image::default());
        let rig = Rig::new(SoftOptions::default(), vec![namespace], Drive::Here);
        let pool = rig.pool(1, BLOCK);
        let namespace = rig.namespace(1);
        let write = |at, byte, durability| {
            let (_, outcome) =
                rig.run(namespace.write(Pba(at), filled(&pool, byte), 0..1, durability));
            assert_eq!(outcome, Ok(()));
        };
        write(0, 1, Durability::Cached);
        rig.run(namespace.flush()).expect("a flush");
        write(0, 2, Durability::Cached);
        write(1, 3, Durability::Through);
        write(2, 4, Durability::Cached);
        write(2, 5, Durability::Cached);
        rig.soft.power_cut(seed);
        rig.controller.reset().expect("it starts again");
        rig.queue.restart().expect("the queues again");
        // No flush says of what was lost that it is durable.
        assert_eq!(rig.run(namespace.flush()), Err(BlockError::Lost));
        let late = namespace.write(Pba(3), filled(&pool, 6), 0..1, Durability::Through);
        assert_eq!(rig.run(late).1, Err(BlockError::Lost));
        assert_eq!(rig.run(rig.namespace(1).flush()), Ok(()));
        let read = |at| {
            let (buffer, outcome) = rig.run(namespace.read(Pba(at), filled(&pool, 9), 0..1));
            assert_eq!(outcome, Ok(()));
            let sectors: Vec<u8> = buffer
                .chunks_exact(512)
                .map(|sector| {
                    assert!(sector.iter().all(|&byte| byte == sector[0]), "a torn sector");
                    sector[0]
                })
                .collect();
            sectors
        };
        let flushed = read(0);
        assert!(flushed.iter().all(|byte| [1, 2].contains(byte)), "{flushed:?}");
        assert_eq!(read(1), [3; 8], "written through");
        let unflushed = read(2);
        assert!(unflushed.iter().all(|byte| [0, 4, 5].contains(byte)), "{unflushed:?}");
        lost += flushed.iter().filter(|&&byte| byte == 1).count();
        kept += flushed.iter().filter(|&&byte| byte == 2).count();
        torn += usize::from(unflushed.iter().any(|&byte| byte != unflushed[0]));
    }
    assert!(lost > 0 && kept > 0 && torn > 0, "the dice have one side");
}

#[test]
fn without_a_volatile_cache_a_power_cut_takes_nothing() {
    let namespace = SoftNamespace::losing_memory(64 << 12, LbaSize::B4096, Image::default());
    let options = SoftOptions { write_cache: false, ..SoftOptions::default() };
    let rig = Rig::new(options, vec![namespace], Drive::Here);
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    assert!(!namespace.has_volatile_cache());
    for at in 0..64 {
        let write = namespace.write(Pba(at), filled(&pool, 1), 0..1, Durability::Cached);
        assert_eq!(rig.run(write).1, Ok(()));
    }
    rig.soft.power_cut(5);
    rig.controller.reset().expect("it starts again");
    rig.queue.restart().expect("the queues again");
    assert_eq!(rig.run(namespace.flush()), Ok(()), "nothing was lost");
    for at in 0..64 {
        let (buffer, _) = rig.run(namespace.read(Pba(at), filled(&pool, 0), 0..1));
        assert!(buffer.iter().all(|&byte| byte == 1), "block {at}");
    }
}

/// A command that nobody waits for ends once, with its buffer, however it ends: a device
/// that lost one would keep a front waiting for ever.
#[test]
fn what_nobody_waits_for_is_told_with_its_buffer() {
    const DEPTH: usize = 4;
    let rig = Rig::with_depth(SoftOptions::default(), vec![memory(64)], Drive::Here, DEPTH as u16);
    let pool = rig.pool(DEPTH + 2, BLOCK);
    let namespace = rig.namespace(1);
    let begin = |transfer, byte, tag| {
        let buffer = filled(&pool, byte);
        namespace.begin(transfer, Pba(u64::from(byte)), buffer, 0..1, Tag(tag)).is_ok()
    };
    let turn = || {
        rig.queue.ring();
        rig.soft.work();
        let mut ended = Vec::new();
        rig.queue.reap_into(&mut ended);
        ended
    };
    let write = Transfer::Write(Durability::Cached);
    for tag in 0..DEPTH as u32 {
        assert!(begin(write, tag as u8 + 1, tag), "there is a place for each");
    }
    assert!(!begin(write, 9, 9), "no place, so the buffer comes back");
    assert_eq!(pool.available(), 2, "the others have theirs with the controller");
    let ended = turn();
    let tags: Vec<u32> = ended.iter().map(|ended| ended.tag.0).collect();
    assert_eq!(tags, [0, 1, 2, 3]);
    assert!(ended.iter().all(|ended| ended.outcome == Ok(())));
    assert!(ended.iter().zip(1..).all(|(ended, byte)| ended.buffer[0] == byte));
    drop(ended);

    let only = |ended: Vec<Ended>| {
        assert_eq!(ended.len(), 1, "one has ended");
        (ended[0].tag, ended[0].outcome)
    };

    // What is there is what was written, and beside the device is no way at all.
    let (buffer, read) = rig.run(namespace.read(Pba(3), filled(&pool, 0), 0..1));
    assert_eq!((read, buffer[0]), (Ok(()), 3));
    let beside = namespace.begin(Transfer::Read, Pba(64), buffer, 0..1, Tag(0));
    assert!(beside.is_err());
    drop(beside);

    let fail = Fault::Fail { opcode: io::READ, status: Status::READ_ERROR, count: 1 };
    rig.soft.inject(fail);
    assert!(begin(Transfer::Read, 1, 7));
    assert_eq!(only(turn()), (Tag(7), Err(Failure::Error(BlockError::Medium))));

    rig.soft.inject(Fault::Stick { count: 1 });
    assert!(begin(Transfer::Read, 1, 8));
    assert!(turn().is_empty(), "it is stuck");
    let id = rig.queue.any_command().expect("it is under way");
    assert!(rig.controller.abort(&rig.queue, id).expect("an answer"));
    assert_eq!(only(turn()), (Tag(8), Err(Failure::GivenUp)));

    // Whether or not somebody reaps between a reset and the new queues.
    for reaps_between in [true, false] {
        rig.soft.inject(Fault::Stick { count: 1 });
        assert!(begin(Transfer::Read, 1, 10));
        turn();
        rig.controller.reset().expect("a reset");
        assert!(!begin(Transfer::Read, 1, 11), "there is no queue");
        let mut ended = Vec::new();
        if reaps_between {
            rig.queue.reap_into(&mut ended);
        }
        rig.queue.restart().expect("the queues again");
        rig.queue.reap_into(&mut ended);
        assert_eq!(only(ended), (Tag(10), Err(Failure::Error(BlockError::Lost))));
    }
    assert_eq!((rig.queue.in_flight(), pool.available()), (0, DEPTH + 2));
}

/// A command that waits in line for a place must get the one that a command frees for
/// which nobody waits.
#[test]
fn who_waits_in_line_gets_the_place_of_what_nobody_waits_for() {
    let rig = Rig::with_depth(SoftOptions::default(), vec![memory(64)], Drive::Here, 1);
    let pool = rig.pool(2, BLOCK);
    let namespace = rig.namespace(1);
    let begun = namespace.begin(Transfer::Read, Pba(0), filled(&pool, 1), 0..1, Tag(0));
    assert!(begun.is_ok());
    let woken = Arc::new(Flag::default());
    let waker = Arc::clone(&woken).into();
    let mut context = Context::from_waker(&waker);
    let mut read: Write<'_> = Box::pin(namespace.read(Pba(0), filled(&pool, 1), 0..1));
    assert!(read.as_mut().poll(&mut context).is_pending(), "it stands in line");
    rig.queue.ring();
    rig.soft.work();
    assert_eq!(rig.queue.reap_into(&mut Vec::new()), 1);
    assert!(woken.0.load(Ordering::Relaxed), "its turn has come");
    assert_eq!(rig.run(read.as_mut()).1, Ok(()));
}
