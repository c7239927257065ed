//! Messages to the worker: finished changes of a disk's state, which it takes
//! between turns.
//!
//! Everything slow (mapping memory, opening, closing) has been done by the
//! thread that sends, or is left to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::guest_memory::GuestMemory;
use crate::queue::Queue;
use crate::ring::RingMemory;

/// A finished change.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A front-end has connected; its socket, to cut it off if it lies.
    Open { disk: usize, socket: UnixStream },
    /// The front-end has gone; none of the disk's rings runs any more.
    Close { disk: usize },
    /// A ring runs.
    Start { queue: usize, running: Box<Queue> },
    /// A ring has another kick descriptor: kicks of the old one may have gone unheard.
    Kick,
    /// A ring is to stop. The answer is its queue, after its last request has
    /// ended; closing and freeing is left to the receiver.
    Stop { queue: usize, answer: SyncSender<Option<Box<Queue>>> },
    /// A ring is to be looked at, or not.
    Enable { queue: usize, on: bool },
    /// Where a ring's calls go.
    Call { queue: usize, call: Option<OwnedFd> },
    /// A disk has another memory table, in which its running rings are here; a
    /// ring that is not in it stays where it was. The answer comes when
    /// requests are begun in it.
    Memory {
        disk: usize,
        memory: Arc<GuestMemory>,
        rings: Vec<(usize, Option<RingMemory>)>,
        taken: SyncSender<()>,
    },
    /// Whether a disk's writes are durable when answered.
    WriteThrough { disk: usize, on: bool },
}

/// The worker has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed;

/// Where mail waits for the worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// `None` when the worker has gone.
    waiting: Mutex<Option<Vec<Mail>>>,
    filled: AtomicBool,
    wake: OwnedFd,
}

impl Mailbox {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self {
            waiting: Mutex::new(Some(Vec::new())),
            filled: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Leaves mail and wakes the worker.
    pub(crate) fn post(&self, mail: Mail) -> Result<(), Closed> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut().ok_or(Closed)?.push(mail);
        self.filled.store(true, Ordering::Release);
        drop(waiting);
        // A full counter wakes as well as a risen one.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(())
    }

    /// Whether mail waits. Costs one load.
    pub(crate) fn is_filled(&self) -> bool {
        self.filled.load(Ordering::Acquire)
    }

    /// Takes all mail, oldest first.
    pub(crate) fn take(&self) -> Vec<Mail> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.filled.store(false, Ordering::Release);
        waiting.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Drops what waits and takes no more: those who wait for an answer learn
    /// that none comes.
    pub(crate) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl AsFd for Mailbox {
    /// Becomes readable when mail is left.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
