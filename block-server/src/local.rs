//! Front and worker fused: parts of a guest's requests go to the worker's
//! slots by value. No frame, no copy that is kept.

use block_core::{BlockError, Op, Request, Time};
use link::{
    AttachReply, AttachRequest, Caller, FrontId, Guest, Host, Part, Path, Refusal, Reply,
    SessionIndex, SlotRef, Source, Token, VolumeHandle, Work,
};

use crate::engine::{Engine, NvmeEngine};
use crate::worker::Worker;

/// The one session of a fused worker.
const SESSION: SessionIndex = SessionIndex(0);

/// The slot that attaches and detaches; parts use the others.
const ATTACHING: u16 = 0;

/// Most replies that one turn hands to the guest.
const REPLY_BURST: usize = 256;

/// A path that ends in this thread.
pub struct LocalPath<E: Engine> {
    worker: Worker<E>,
    /// By slot number: what runs there.
    parts: Vec<Option<Running>>,
    free: Vec<u16>,
    /// Parts that were answered while an attach was waited for.
    early: Vec<(SlotRef, Reply)>,
    has_news: bool,
    /// The moment of the last turn.
    now: Time,
}

/// A part that the worker has.
#[derive(Clone, Copy, Debug)]
struct Running {
    part: Part,
    /// The guest has been told that it failed.
    abandoned: bool,
}

impl<E: Engine> LocalPath<E> {
    /// The path of a front's `incarnation`th start into a worker, with room
    /// for so many parts at a time.
    #[must_use]
    pub fn new(mut worker: Worker<E>, front: FrontId, incarnation: u64, parts: u16) -> Self {
        let slots = parts.saturating_add(1);
        worker.opened(SESSION, Caller { front, key: None }, incarnation, slots);
        Self {
            worker,
            parts: vec![None; usize::from(slots)],
            free: (1..slots).rev().collect(),
            early: Vec::new(),
            has_news: false,
            now: Time::ZERO,
        }
    }

    /// Gets a volume, and turns the worker until the answer is there.
    pub fn attach(&mut self, request: AttachRequest) -> AttachReply {
        let reply = self.ask(Work::Attach(request));
        *reply.attach.expect("an attach is answered with an attach answer")
    }

    /// Gets a volume whatever may be missing of what this front had answered
    /// before its start.
    pub fn settle(&mut self, mut request: AttachRequest) -> AttachReply {
        let reply = self.attach(request.clone());
        match reply {
            AttachReply::Attached(now) if now.stored_verifier != now.verifier => {
                request.settled = now.verifier;
                self.attach(request)
            }
            _ => reply,
        }
    }

    /// Gives a volume back, and turns the worker until that is stored.
    ///
    /// # Errors
    /// When it could not be stored, or the volume is not attached.
    pub fn detach(&mut self, volume: VolumeHandle) -> Result<(), BlockError> {
        self.ask(Work::Detach(volume)).outcome
    }

    /// Whether a volume is not what it was when it was attached: attaching it
    /// again tells what it is now. Said once.
    #[must_use]
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    /// The worker behind it.
    #[must_use]
    pub fn worker(&self) -> &Worker<E> {
        &self.worker
    }

    /// Whether a turn would move something, so that the thread must not sleep.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.worker.has_work() || !self.early.is_empty()
    }

    fn ask(&mut self, work: Work) -> Reply {
        let at = SlotRef { session: SESSION, slot: ATTACHING };
        self.worker.start(at, work);
        loop {
            self.worker.run(self.now);
            while let Some((from, reply)) = self.worker.next_reply() {
                if from == at {
                    return reply;
                }
                self.early.push((from, reply));
            }
        }
    }

    fn finish(&mut self, at: SlotRef, reply: Reply, guest: &mut impl Guest) {
        let Some(running) = self.parts.get_mut(usize::from(at.slot)).and_then(Option::take) else {
            return;
        };
        self.free.push(at.slot);
        self.has_news |= reply.news;
        if running.abandoned {
            return;
        }
        let Part { token, op, range, .. } = running.part;
        if let (Ok(()), Op::Read, Some(range), Some(buffer)) =
            (reply.outcome, op, range, &reply.buffer)
        {
            let from = range.offset_in_block();
            guest.place(token, 0, &buffer[from..from + range.bytes() as usize]);
        }
        guest.complete(token, reply.outcome);
    }
}

impl LocalPath<NvmeEngine> {
    /// [`LocalPath::new`], compiled here and not again in each program.
    #[must_use]
    pub fn over_nvme(
        worker: Worker<NvmeEngine>,
        front: FrontId,
        incarnation: u64,
        parts: u16,
    ) -> Self {
        Self::new(worker, front, incarnation, parts)
    }
}

impl<E: Engine> Path for LocalPath<E> {
    fn submit(&mut self, now: Time, part: Part, source: &mut impl Source) -> Result<(), Refusal> {
        if self.now != now {
            self.now = now;
            self.worker.tick(now);
        }
        let Some(&slot) = self.free.last() else { return Err(Refusal::Busy) };
        let mut buffer = None;
        if let Some(range) = part.range.filter(|_| part.op == Op::Read || part.op.carries_data()) {
            if range.count() > block_core::unit::MAX_REQUEST_SECTORS {
                return Err(Refusal::Failed(BlockError::Malformed));
            }
            let bytes = range.blocks_touched().count.bytes() as usize;
            let mut data = self.worker.buffer(bytes, 0).ok_or(Refusal::Busy)?;
            if part.op.carries_data() {
                let from = range.offset_in_block();
                let into = &mut data[from..from + range.bytes() as usize];
                source.fetch(part.token, into).map_err(Refusal::Failed)?;
            }
            buffer = Some(data);
        }
        self.free.pop();
        self.parts[usize::from(slot)] = Some(Running { part, abandoned: false });
        let request = Request { op: part.op, range: part.range, buffer };
        let work = Work::Block { volume: part.volume, request };
        self.worker.start(SlotRef { session: SESSION, slot }, work);
        Ok(())
    }

    fn turn(&mut self, now: Time, guest: &mut impl Guest) -> bool {
        self.now = now;
        let mut moved = self.worker.run(now);
        while let Some((at, reply)) = self.early.pop() {
            self.finish(at, reply, guest);
            moved = true;
        }
        for _ in 0..REPLY_BURST {
            let Some((at, reply)) = self.worker.next_reply() else { break };
            self.finish(at, reply, guest);
            moved = true;
        }
        moved
    }

    fn deadline(&self) -> Option<Time> {
        self.worker.deadline()
    }

    fn abandon(&mut self, volume: VolumeHandle, guest: &mut impl Guest) {
        let waiting = self.parts.iter_mut().flatten();
        for running in waiting.filter(|running| running.part.volume == volume) {
            if !std::mem::replace(&mut running.abandoned, true) {
                let token: Token = running.part.token;
                guest.complete(token, Err(BlockError::Unreachable));
            }
        }
    }
}
