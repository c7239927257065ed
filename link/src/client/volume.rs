//! A volume as the front sees it: where it stands, what of it has no answer,
//! and what it may have to be sent again.

use std::io;

use block_core::{BlockError, Buffer, Op, SectorRange, Time};

use super::kept::{KeptSet, Mark};
use crate::attach::{Access, AttachReply, Attached, Refused, VolumeName};
use crate::path::{Part, Refusal};

/// Where a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// No answer yet, or the session was lost.
    Waiting,
    /// Served.
    Attached(Attached),
    /// The server said no.
    Refused(Refused),
    /// It is another volume than the one that was attached before the session
    /// was lost: restored, imported, detached by force, or given back by a later
    /// start of the front. Serving it would mix the guest's memory of one with
    /// the data of the other.
    Changed,
    /// A change that had been answered was lost by the server, and failed when
    /// it was sent again. The guest believes that it is there, so nothing is
    /// served any more.
    Broken(BlockError),
    /// Being given back.
    Detaching,
    /// Given back.
    Detached,
}

/// How far an attached volume is with what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recovery {
    /// Requests run.
    Done,
    /// It may have lost changes: what runs ends, then it is attached anew.
    Draining,
    /// What an earlier start of this front had answered is being flushed.
    Inheriting,
    /// The kept set is being sent again; the `next`th is the first that was
    /// not sent.
    Replaying { next: usize },
    /// Then the changes that had no answer. None overlaps another.
    Changes,
    /// Then reads and flushes that had no answer: they must find the changes.
    Rest,
}

#[derive(Debug)]
pub(super) struct Volume {
    pub(super) name: VolumeName,
    pub(super) access: Access,
    /// The session with the server that was named for it.
    pub(super) home: usize,
    /// The session that it is attached in, or shall be.
    pub(super) session: usize,
    /// Never [`VolumeState::Detaching`]: that is `leaving`.
    pub(super) state: VolumeState,
    /// It shall be given back.
    pub(super) leaving: bool,
    /// An attach was sent, so the server may have it attached.
    pub(super) asked: bool,
    /// Not before this is it asked for again.
    pub(super) retry_at: Option<Time>,
    /// The server has said that it is not what it was.
    pub(super) has_news: bool,
    /// What was attached last, to compare with after a reconnect.
    pub(super) known: Option<Attached>,
    /// Slots that it has.
    pub(super) in_use: usize,
    /// The front answers for what it had answered: see
    /// [`Client::settle`](super::Client::settle).
    pub(super) settles: bool,
    /// The verifier that the server was told is settled, in this session.
    pub(super) told: u64,
    pub(super) recovery: Recovery,
    pub(super) kept: KeptSet,
    /// The verifier under which everything that is kept was answered.
    verifier: u64,
    /// Where changes that have no answer are. No two overlap: if both ran and
    /// only the answer of the later came, sending the earlier again would
    /// bring it back over data that the guest may have read.
    changing: Vec<SectorRange>,
    /// What is kept and is being sent again. No two overlap: the wire reorders.
    pub(super) replaying: Vec<SectorRange>,
    /// Parts without an answer and without a slot, with what they write.
    pub(super) parked: Vec<(Part, Option<Buffer>)>,
    /// An earlier start of this front may have answered changes that are not
    /// durable, and that nobody keeps.
    inherits: bool,
    /// A change waits until what is kept is durable.
    flush_awaited: bool,
    /// A flush of the client's own is under way.
    pub(super) flushing: bool,
    /// Not before this is the next one sent.
    pub(super) flush_at: Option<Time>,
    /// Why the last one failed.
    pub(super) flush_error: Option<BlockError>,
}

impl Volume {
    /// A volume that is to be attached in `session`, with room for `slots`
    /// requests at a time and `kept_bytes` of changes.
    pub(super) fn new(
        session: usize,
        name: VolumeName,
        access: Access,
        slots: usize,
        kept_bytes: usize,
    ) -> io::Result<Self> {
        let kept = match access {
            Access::Read => KeptSet::none(),
            Access::Write => KeptSet::new(kept_bytes)?,
        };
        Ok(Self {
            name,
            access,
            home: session,
            session,
            state: VolumeState::Waiting,
            leaving: false,
            asked: false,
            retry_at: None,
            has_news: false,
            known: None,
            in_use: 0,
            settles: false,
            told: 0,
            recovery: Recovery::Done,
            kept,
            verifier: 0,
            changing: Vec::with_capacity(slots),
            replaying: Vec::with_capacity(slots),
            parked: Vec::with_capacity(slots),
            inherits: access == Access::Write,
            flush_awaited: false,
            flushing: false,
            flush_at: None,
            flush_error: None,
        })
    }

    /// Where it stands, for whoever asks.
    pub(super) fn state(&self) -> VolumeState {
        match self.state {
            VolumeState::Waiting | VolumeState::Attached(_) if self.leaving => {
                VolumeState::Detaching
            }
            VolumeState::Attached(_) if self.inherits => VolumeState::Waiting,
            state => state,
        }
    }

    /// Whether new requests run.
    pub(super) fn is_serving(&self) -> bool {
        matches!(self.state, VolumeState::Attached(_)) && self.recovery == Recovery::Done
    }

    /// Why it takes no new request, when it is not serving or is to leave.
    #[cold]
    pub(super) fn refusal(&self) -> Refusal {
        match self.state {
            VolumeState::Attached(_) | VolumeState::Waiting if !self.leaving => Refusal::Busy,
            _ => Refusal::Failed(BlockError::NotAttached),
        }
    }

    /// Nothing that was sent is answered any more: it is attached anew. Its
    /// slots have been taken from it.
    pub(super) fn lose_session(&mut self) {
        self.told = 0;
        self.flushing = false;
        self.replaying.clear();
        if matches!(self.state, VolumeState::Attached(_)) {
            self.state = VolumeState::Waiting;
        }
    }

    /// An attach was answered, and nothing that was sent before runs any more.
    pub(super) fn begin_recovery(&mut self, attached: &Attached) {
        if self.kept.is_empty() {
            self.verifier = attached.verifier;
        }
        self.recovery = if self.inherits {
            Recovery::Inheriting
        } else if self.verifier == attached.verifier {
            Recovery::Changes
        } else {
            tracing::warn!(
                volume = %self.name,
                changes = self.kept.len(),
                "the server may have lost what it had not flushed: sending it again"
            );
            Recovery::Replaying { next: 0 }
        };
    }

    /// Nothing of an earlier start is in a cache that a server could lose.
    pub(super) fn inherited(&mut self) {
        self.inherits = false;
        if self.recovery == Recovery::Inheriting {
            self.recovery = Recovery::Changes;
        }
    }

    /// What an earlier start had answered cannot be made durable: it is as if
    /// it had been lost already.
    pub(super) fn disinherit(&mut self) {
        if let VolumeState::Attached(attached) = &mut self.state
            && self.inherits
        {
            attached.stored_verifier = 0;
        }
        self.inherited();
    }

    /// All that is kept has been answered by this server.
    pub(super) fn replayed(&mut self) {
        self.verifier = self.known.map_or(0, |known| known.verifier);
        self.recovery = Recovery::Changes;
    }

    /// Whether a flush answer speaks of the cache that holds what is kept.
    pub(super) fn believes(&self, verifier: u64) -> bool {
        self.access == Access::Read || self.verifier == verifier
    }

    /// The verifier to tell the server, under which all that was answered is
    /// there, if it does not know.
    pub(super) fn unsaid(&self) -> Option<u64> {
        let VolumeState::Attached(now) = self.state else { return None };
        let due = self.settles
            && self.access == Access::Write
            && self.verifier == now.verifier
            && now.stored_verifier != now.verifier
            && self.told != now.verifier;
        due.then_some(now.verifier)
    }

    /// Room for a change, and the buffer for the `bytes` that it carries.
    ///
    /// One that is written through waits until what is kept of its range is
    /// durable: sent again, that would come back over it.
    pub(super) fn begin_change(
        &mut self,
        op: Op,
        range: SectorRange,
        bytes: usize,
    ) -> Result<Option<Buffer>, Refusal> {
        if self.access == Access::Read {
            return Err(Refusal::Failed(BlockError::ReadOnly));
        }
        if self.changing.iter().any(|other| overlap(*other, range)) {
            return Err(Refusal::Busy);
        }
        if op.writes_through() && self.kept.has_some_of(range) {
            self.flush_awaited = true;
            return Err(self.flush_error.map_or(Refusal::Busy, Refusal::Failed));
        }
        let Some(copy) = self.kept.admit(bytes) else {
            // Nothing can be made durable any more, so nothing more is taken.
            let failed = self.flush_error.filter(|_| self.kept.is_half_full());
            return Err(failed.map_or(Refusal::Busy, Refusal::Failed));
        };
        self.changing.push(range);
        Ok(copy)
    }

    /// A change was answered, or given up.
    pub(super) fn end_change(
        &mut self,
        op: Op,
        range: SectorRange,
        data: Option<Buffer>,
        outcome: Result<(), BlockError>,
    ) {
        if let Some(place) = self.changing.iter().position(|other| *other == range) {
            self.changing.swap_remove(place);
        }
        match outcome {
            Ok(()) => self.kept.answered(op, range, data),
            Err(_) => self.kept.release(data),
        }
    }

    /// Whether some change has no answer.
    pub(super) fn is_changing(&self) -> bool {
        !self.changing.is_empty()
    }

    /// A flush was answered by the server that has what is kept.
    pub(super) fn flushed(&mut self, mark: Mark) {
        self.kept.flushed(mark);
        self.flush_awaited = false;
        self.flush_error = None;
    }

    /// Whether the client should flush by itself.
    pub(super) fn wants_flush(&self, now: Time) -> bool {
        let wanted = self.kept.is_half_full()
            || (self.leaving || self.flush_awaited) && !self.kept.is_empty();
        let due = self.recovery == Recovery::Inheriting || self.is_serving() && wanted;
        let attached = matches!(self.state, VolumeState::Attached(_));
        attached && due && !self.flushing && self.flush_at.is_none_or(|at| now >= at)
    }

    /// Whether it can be given back: what was answered is durable, or cannot
    /// be made so.
    pub(super) fn may_leave(&self) -> bool {
        self.leaving
            && self.is_serving()
            && !self.flushing
            && (self.kept.is_empty() || self.flush_error.is_some())
    }
}

/// Whether two runs of sectors share one.
pub(super) const fn overlap(one: SectorRange, other: SectorRange) -> bool {
    one.start() < other.end() && other.start() < one.end()
}

/// What an attach answer means for a volume that may have been attached
/// before.
pub(super) fn judge(known: Option<Attached>, reply: &AttachReply) -> VolumeState {
    match *reply {
        AttachReply::Attached(now) => match known {
            Some(then) if then.volume_id != now.volume_id || then.generation != now.generation => {
                VolumeState::Changed
            }
            _ => VolumeState::Attached(now),
        },
        AttachReply::Refused(Refused::NotYours) => VolumeState::Changed,
        AttachReply::Refused(refused) => VolumeState::Refused(refused),
        AttachReply::Elsewhere { .. } => VolumeState::Waiting,
    }
}
