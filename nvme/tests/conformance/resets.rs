//! Stopping and starting, with work under way.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use block_core::device::{Device, Durability};
use block_core::{BlockError, Buffer, Pba};
use nvme::Health;

use crate::subject::{Rig, filled, poll};
use crate::{Case, Verdict};

const BLOCK: usize = 4096;

/// Resets of each controller, unless VRIO_RESETS says how many.
const ROUNDS: usize = 1000;

pub(crate) const BY_BUS: &str = "brought back by its bus";

pub(crate) const CASES: &[Case] = &[
    ("resets under load", resets_under_load),
    ("shutdown and start", shutdown_and_start),
    (BY_BUS, by_bus),
];

type Write<'a> = Pin<Box<dyn Future<Output = (Buffer, Result<(), BlockError>)> + 'a>>;

/// A reset comes at any moment. Every command ends once; a block whose write was
/// under way holds what it held or what was being written, never a third thing.
fn resets_under_load(rig: &Rig<'_>) -> Verdict {
    const BLOCKS: usize = 24;
    let pool = rig.pool(BLOCKS + 1, BLOCK);
    let mut held = [0_u8; BLOCKS];
    let write = |at: usize, byte| -> Write<'_> {
        let namespace = rig.namespace(1);
        let buffer = filled(&pool, byte);
        Box::pin(
            async move { namespace.write(Pba(at as u64), buffer, 0..1, Durability::Cached).await },
        )
    };
    for (at, byte) in held.iter_mut().enumerate() {
        *byte = at as u8;
        assert_eq!(rig.run(write(at, *byte)).1, Ok(()));
    }
    let (mut lost, mut answered) = (0, 0);
    let rounds = std::env::var("VRIO_RESETS").map_or(Ok(ROUNDS), |text| text.parse());
    for round in 0..rounds.expect("VRIO_RESETS is a number") {
        let byte = |at: usize| (round * 31 + at * 7) as u8;
        let mut writes: Vec<(usize, Write<'_>)> =
            (0..BLOCKS).map(|at| (at, write(at, byte(at)))).collect();
        let (turns, before) = (round % 7, answered);
        // However slow the controller is, some rounds get an answer.
        for turn in 0.. {
            if turn >= turns && (turns < 6 || answered > before) {
                break;
            }
            writes.retain_mut(|(at, request)| match poll(request.as_mut()) {
                Poll::Ready((_, outcome)) => {
                    assert_eq!(outcome, Ok(()));
                    held[*at] = byte(*at);
                    answered += 1;
                    false
                }
                Poll::Pending => true,
            });
            rig.turn();
        }
        rig.controller.reset().expect("a reset");
        for (_, mut request) in writes.drain(..) {
            // Nobody is told that a write succeeded whose cache may be gone.
            let outcome = rig.run(request.as_mut()).1;
            assert_eq!(outcome, Err(BlockError::Lost));
            lost += 1;
        }
        rig.queue.restart().expect("the queues again");
        for (at, held) in held.iter_mut().enumerate() {
            let namespace = rig.namespace(1);
            let (buffer, read) = rig.run(namespace.read(Pba(at as u64), filled(&pool, 0xee), 0..1));
            assert_eq!(read, Ok(()));
            let found = buffer[0];
            assert!(buffer.iter().all(|&byte| byte == found), "a torn block");
            assert!([*held, byte(at)].contains(&found), "round {round}, block {at}: {found}");
            *held = found;
        }
    }
    assert!(lost > 0 && answered > 0, "{lost} lost, {answered} answered: one side only");
    let counters = rig.queue.counters();
    assert_eq!((counters.unexpected, counters.submitted), (0, counters.ended));
    assert_eq!(pool.available(), BLOCKS + 1, "a buffer is missing");
    Verdict::Passed
}

/// A controller that neither stops nor answers is reset by its bus, with commands under
/// way: they end, once, and it works again.
fn by_bus(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(2, BLOCK);
    for _ in 0..20 {
        let old = rig.namespace(1);
        let mut read: Write<'_> = Box::pin(old.read(Pba(1), filled(&pool, 0), 0..1));
        assert!(poll(read.as_mut()).is_pending());
        rig.queue.ring();
        if !rig.subject.bus.revive().expect("the bus does it") {
            return Verdict::Skipped("its bus has no means of its own");
        }
        assert_ne!(rig.controller.health(), Health::Ready);
        rig.controller.reset().expect("a reset");
        rig.queue.restart().expect("the queues again");
        assert_eq!(rig.run(read.as_mut()).1, Err(BlockError::Lost));
        let new = rig.namespace(1);
        assert_eq!(rig.run(new.read(Pba(1), filled(&pool, 0), 0..1)).1, Ok(()));
    }
    assert_eq!(rig.queue.counters().unexpected, 0);
    Verdict::Passed
}

/// What was flushed is there after an orderly end and a new start.
fn shutdown_and_start(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(1, BLOCK);
    let write = |byte| {
        let namespace = rig.namespace(2);
        let buffer = filled(&pool, byte);
        let outcome = rig.run(namespace.write(Pba(9), buffer, 0..1, Durability::Cached)).1;
        assert_eq!(outcome, Ok(()));
        assert_eq!(rig.run(namespace.flush()), Ok(()));
    };
    write(0x42);
    rig.controller.shut_down().expect("a shutdown");
    assert_eq!(rig.controller.health(), Health::NotReady);
    rig.controller.reset().expect("a start");
    rig.queue.restart().expect("the queues again");
    assert_eq!(rig.controller.health(), Health::Ready);
    let (buffer, read) = rig.run(rig.namespace(2).read(Pba(9), filled(&pool, 0), 0..1));
    assert_eq!((read, buffer[77]), (Ok(()), 0x42));
    drop(buffer);
    write(0x43);
    Verdict::Passed
}
