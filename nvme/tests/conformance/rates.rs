//! How fast each is here: figures for the reader, which decide nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use block_core::device::Device;
use block_core::{BlockError, Buffer, Pba};

use crate::subject::{Rig, Subject, filled, poll};

const BLOCK: usize = 4096;
const DEPTH: u64 = 32;
const SPAN: Duration = Duration::from_millis(250);

type Read<'a> = Pin<Box<dyn Future<Output = (Buffer, Result<(), BlockError>)> + 'a>>;

/// 4 KiB reads at depth 32: how many in a second, and doorbells for each.
/// It cannot be fewer than one in a turn that submits, in which as many reads begin as the
/// controller has completed.
pub(crate) fn line(subject: &Subject) -> String {
    let rig = Rig::new(subject);
    let pool = rig.pool(DEPTH as usize, BLOCK);
    let namespace = rig.namespace(1);
    let mut next = 0;
    let mut start = || -> Read<'_> {
        next = (next + 7) % 256;
        Box::pin(namespace.read(Pba(next), filled(&pool, 0), 0..1))
    };
    let mut reads: Vec<Read<'_>> = (0..DEPTH).map(|_| start()).collect();
    let (began, mut count) = (Instant::now(), 0_u32);
    let before = rig.queue.counters();
    let mut turns = 0_u32;
    while began.elapsed() < SPAN {
        let submitted = rig.queue.counters().submitted;
        for read in &mut reads {
            if let Poll::Ready((buffer, outcome)) = poll(read.as_mut()) {
                assert_eq!(outcome, Ok(()));
                drop(buffer);
                *read = start();
                count += 1;
                assert!(poll(read.as_mut()).is_pending());
            }
        }
        turns += u32::from(rig.queue.counters().submitted > submitted);
        rig.turn();
    }
    let rate = f64::from(count) / began.elapsed().as_secs_f64() / 1000.0;
    let doorbells = (rig.queue.counters().doorbells - before.doorbells) as f64;
    let each = doorbells / f64::from(count.max(1));
    let a_turn = doorbells / f64::from(turns.max(1));
    for read in reads {
        assert_eq!(rig.run(read).1, Ok(()));
    }
    format!(
        "{}: {rate:.0} k reads/s of 4 KiB at depth {DEPTH}, {each:.2} doorbells each, {a_turn:.2} \
         in a turn that submits",
        subject.name
    )
}
