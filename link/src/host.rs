//! The seam between the link's server and the worker that does the work.

use block_core::{BlockError, Buffer, Request};

use crate::attach::{AttachReply, AttachRequest};
use crate::path::VolumeHandle;
use crate::security::Caller;

/// A session's place in its worker's table. Used again only when every
/// request of the session that had it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionIndex(pub u16);

/// One slot of one session: it runs at most one request at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRef {
    /// Whose slot.
    pub session: SessionIndex,
    /// Which one, below the count that [`Host::opened`] was told.
    pub slot: u16,
}

/// What a slot's task is given.
#[derive(Debug)]
pub enum Work {
    /// A request to an attached volume.
    Block {
        /// The handle that an attach on this session gave out.
        volume: VolumeHandle,
        /// The request; its buffer is large enough for the blocks it touches.
        request: Request,
    },
    /// The front wants a volume. May come again for one that it has: the
    /// answer may have been lost. Then the outcome is the same.
    Attach(AttachRequest),
    /// The front is done with a volume.
    Detach(VolumeHandle),
}

/// What a slot's task answers, once for each [`Work`].
#[derive(Debug)]
pub struct Reply {
    /// Whether it worked. For an attach: whether it could be decided.
    pub outcome: Result<(), BlockError>,
    /// The volume's order number for a change, its verifier for a flush, else
    /// zero.
    pub word: u64,
    /// The request's buffer; for a read it holds the data.
    pub buffer: Option<Buffer>,
    /// The answer to an attach, else `None`; apart, since all other answers
    /// would carry its size along.
    pub attach: Option<Box<AttachReply>>,
    /// Whether the volume is not what it was when this session attached it (it
    /// has another size): the front attaches it again to learn what it is.
    pub news: bool,
}

impl Reply {
    /// A reply without data.
    #[must_use]
    pub const fn plain(outcome: Result<(), BlockError>, word: u64) -> Self {
        Self { outcome, word, buffer: None, attach: None, news: false }
    }
}

/// The worker, as the link's server sees it.
pub trait Host {
    /// A buffer for a request that touches `bytes` (a multiple of the block
    /// size) or `None` when there is none now, or when the session, which has
    /// `held` of them, would have more than it leaves to all others; the server
    /// asks again after some reply has given one back.
    fn buffer(&mut self, bytes: usize, held: usize) -> Option<Buffer>;

    /// Whether a front may have a session. Its key has been verified; what it
    /// says of its id has not, so a host that goes by ids checks that this key
    /// has that one. A front in the clear has no key: it is asked about only
    /// where the server allows that.
    ///
    /// By default no key is known.
    fn admits(&mut self, caller: &Caller) -> bool {
        caller.key.is_none()
    }

    /// A session of a front's `incarnation`th start has begun, with `slots`
    /// slots.
    fn opened(&mut self, session: SessionIndex, caller: Caller, incarnation: u64, slots: u16);

    /// Start this; it is answered later with a [`Reply`], never from inside
    /// this call.
    fn start(&mut self, at: SlotRef, work: Work);

    /// The front has given the session up: nothing of it is to begin any more.
    /// What waits is answered without having run, so that the front's next
    /// session need not wait for it.
    fn closing(&mut self, session: SessionIndex);

    /// The session is over and the last of its requests has been answered.
    /// What the front has attached stays attached.
    fn closed(&mut self, session: SessionIndex);
}
