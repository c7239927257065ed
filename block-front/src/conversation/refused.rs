//! Why a message was not done.

use std::io;

use thiserror::Error;

use crate::guest_memory::RegionError;
use crate::in_flight::AreaError;
use crate::mail::Closed;
use crate::message::MessageError;
use crate::ring::RingError;

use super::memory::MAX_RETIRED;

/// Why a message was not done. The sentence continues "the front-end ...".
#[derive(Debug, Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error(transparent)]
    Area(#[from] AreaError),
    #[error(
        "the guest runs on, and the server has lost writes that an earlier start of this front had \
         answered and the guest had not flushed: reset the guest, or start `vrio front` with \
         --accept-loss {0} if it can live without them"
    )]
    LostWrites(String),
    #[error(
        "the guest runs on, and the volume is not the one that it knows: it was restored, made \
         anew or detached by force meanwhile; reset the guest, or start `vrio front` with \
         --accept-loss {0} if it can live with that"
    )]
    OtherVolume(String),
    #[error("queue {queue}: {why}")]
    Ring { queue: usize, why: RingError },
    #[error("queue {0} does not exist; give the device at most {1} queues (num-queues=)")]
    NoQueue(u32, u16),
    #[error("queue {0} was started before its size, its addresses or the memory was set")]
    NotReady(usize),
    #[error("queue {0} runs and cannot be changed")]
    Running(usize),
    #[error("queue {0} has no kick descriptor: polling without one is not supported")]
    NoKick(usize),
    #[error("queue {0}: the descriptor is no eventfd")]
    NoEventfd(usize),
    #[error("features {0:#x} were not offered")]
    Features(u64),
    #[error("only the write cache setting can be changed, to 0 or 1")]
    Config,
    #[error(
        "the guest's memory is private to QEMU; give its memory backend share=on \
         (-object memory-backend-memfd,id=mem,size=...,share=on -machine memory-backend=mem)"
    )]
    Private,
    #[error(
        "the guest's memory changed {MAX_RETIRED} times while requests were under way; change it \
         when the server has answered them"
    )]
    TooManyTables,
    #[error("the descriptor cannot be used: {0}")]
    Descriptor(#[source] io::Error),
    #[error("the worker has gone")]
    Closed,
}

impl From<Closed> for Refused {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}
