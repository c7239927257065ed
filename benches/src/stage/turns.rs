//! Turns of a worker and of its executor.

use std::task::Poll;

use anyhow::{Context, bail, ensure};
use block_core::{Op, SectorRange};
use block_server::{LocalPath, NvmeEngine, WorkerStation};
use link::wire::Wire;
use link::wire::memory::Port;
use link::{
    Access, AttachReply, AttachRequest, FrontId, Part, Path, Server, ServerSettings, Token,
};
use turn::{Executor, Station, TaskId};

use super::pipe::pair;
use super::unseen::Unseen;
use super::{OPERATIONS, Round};
use crate::meter::Meter;
use crate::worker::{self, BLOCKS, Ticks};

/// Tasks of an executor: the slots of a few sessions.
const TASKS: usize = 512;

/// Turns in which a burst must have been served.
const MOST_TURNS: usize = 100;

/// Tasks that wait for ever, and again when they are woken.
fn sleepers() -> anyhow::Result<(Executor, Vec<TaskId>)> {
    let mut executor = Executor::new(TASKS);
    let spawned = (0..TASKS).map(|_| executor.spawn(std::future::poll_fn(|_| Poll::Pending)));
    let tasks: Option<Vec<TaskId>> = spawned.collect();
    executor.run(0);
    Ok((executor, tasks.context("room for all")?))
}

/// An executor's turns in which no task can go on.
pub(super) fn empty_executor() -> anyhow::Result<Round> {
    let (mut executor, _) = sleepers()?;
    let mut turns = 0;
    Ok(Box::new(move |meter: &mut Meter| {
        let ran: usize = meter.measure(|| {
            let turn = |_| {
                turns += 1;
                executor.run(turns)
            };
            (0..OPERATIONS).map(turn).sum()
        });
        ensure!(ran == 0, "tasks ran that nobody woke");
        Ok(())
    }))
}

/// A task is woken, and an executor's turn runs it.
pub(super) fn woken() -> anyhow::Result<Round> {
    let (mut executor, tasks) = sleepers()?;
    let mut turns = 0;
    Ok(Box::new(move |meter: &mut Meter| {
        let ran: usize = meter.measure(|| {
            let turn = |_| {
                turns += 1;
                executor.wake(tasks[turns % TASKS]);
                executor.run(turns)
            };
            (0..OPERATIONS).map(turn).sum()
        });
        ensure!(ran == OPERATIONS, "{ran} tasks ran of {OPERATIONS} that were woken");
        Ok(())
    }))
}

/// Turns of a worker with a volume, a device and a wire that find nothing.
pub(super) fn empty_worker() -> anyhow::Result<Round> {
    let ticks = Ticks::default();
    let [_front, wire] = pair([Port(1), Port(2)]);
    let settings = ServerSettings { sessions: 4, slots: 128, window: wire.window(), seed: 1 };
    let mut station = WorkerStation::new(wire, Server::new(settings), worker::start(&ticks)?);
    Ok(Box::new(move |meter: &mut Meter| {
        meter.measure(|| {
            for _ in 0..OPERATIONS {
                station.turn(ticks.pass());
            }
        });
        Ok(())
    }))
}

/// Requests of 4 KiB to a raw volume, without a session: the path of `vrio local`.
pub(super) fn served(op: Op) -> anyhow::Result<Round> {
    let ticks = Ticks::default();
    let worker = worker::start(&ticks)?;
    let mut path: LocalPath<NvmeEngine> =
        LocalPath::over_nvme(worker, FrontId([7; 16]), 1, 2 * OPERATIONS as u16);
    let request = AttachRequest::new(worker::volume()?, Access::Write);
    let AttachReply::Attached(attached) = path.attach(request) else { bail!("not attached") };
    let mut guest = Unseen::default();
    let mut next = 0;
    Ok(Box::new(move |meter: &mut Meter| {
        guest.begin();
        meter.measure(|| {
            for _ in 0..OPERATIONS {
                next += 1;
                let range = SectorRange::new(next % BLOCKS * 8, 8);
                let part = Part { token: Token(next), volume: attached.handle, op, range };
                let taken = path.submit(ticks.now(), part, &mut guest);
                taken.ok().context("a part was not taken")?;
            }
            for _ in 0..MOST_TURNS {
                path.turn(ticks.pass(), &mut guest);
                if guest.is_over()? {
                    return Ok(());
                }
            }
            bail!("requests have not ended in {MOST_TURNS} turns")
        })
    }))
}
