//! A worker on a wire: frames in, the worker's turn, frames out.

use block_core::Time;
use link::Server;
use link::wire::Wire;
use turn::Station;

use crate::engine::Engine;
use crate::worker::Worker;

/// Most replies that one turn hands to the link.
const REPLY_BURST: usize = 1024;

/// Everything that a worker's thread turns.
pub struct WorkerStation<E: Engine, W: Wire> {
    wire: W,
    server: Server<W::Peer>,
    worker: Worker<E>,
    /// The wire has failed for good: there is nothing left to turn for.
    broken: bool,
}

impl<E: Engine, W: Wire> WorkerStation<E, W> {
    /// Joins the three.
    #[must_use]
    pub fn new(wire: W, server: Server<W::Peer>, worker: Worker<E>) -> Self {
        Self { wire, server, worker, broken: false }
    }

    /// Takes a bounded burst of frames.
    fn receive(&mut self, now: Time) -> usize {
        let Self { wire, server, worker, broken } = self;
        let received =
            wire.receive(&mut |from, bytes| server.handle_frame(now, from, bytes, worker));
        received.unwrap_or_else(|error| {
            tracing::error!(%error, "the link's wire is broken, so this worker stops");
            *broken = true;
            0
        })
    }

    /// Hands what the slots have answered to the link.
    fn collect_replies(&mut self, now: Time) -> bool {
        let mut moved = false;
        for _ in 0..REPLY_BURST {
            let Some((at, reply)) = self.worker.next_reply() else { break };
            self.server.handle_reply(now, at, reply, &mut self.worker);
            moved = true;
        }
        moved
    }
}

impl<E: Engine, W: Wire> Station for WorkerStation<E, W> {
    fn turn(&mut self, now: Time) -> bool {
        self.worker.tick(now);
        let mut moved = self.receive(now) > 0;
        moved |= self.worker.run(now);
        while let Some(key) = self.worker.next_ending() {
            self.server.end_sessions(|caller| caller.key == Some(key), &mut self.worker);
        }
        moved |= self.collect_replies(now);
        self.server.serve_waiting(now, &mut self.worker);
        moved |= self.server.transmit(&mut self.wire);
        moved
    }

    /// The mailbox rings unasked.
    fn announce_sleep(&mut self) {
        self.wire.announce_sleep();
    }

    fn has_work(&mut self) -> bool {
        self.worker.has_work() || self.server.has_frames() || self.wire.has_frames()
    }

    fn retract_sleep(&mut self) {
        self.wire.retract_sleep();
    }

    /// The server's side of the link has no timers: fronts ask.
    fn deadline(&self) -> Option<Time> {
        self.worker.deadline()
    }

    fn is_stopped(&self) -> bool {
        self.broken || self.worker.is_stopped()
    }
}
