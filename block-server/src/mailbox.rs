//! Where other threads leave errands for a worker, which takes them between
//! turns.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::errand::Errand;

/// A worker's mailbox. Anybody may put something in; the worker alone takes
/// it out.
#[derive(Debug)]
pub struct Mailbox {
    errands: Mutex<VecDeque<Errand>>,
    /// Whether there may be something, so that a turn without mail takes no
    /// lock.
    news: AtomicBool,
    bell: OwnedFd,
}

impl Mailbox {
    /// An empty mailbox.
    ///
    /// # Errors
    /// The kernel's, when the process has no descriptor left.
    pub fn new() -> io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (errands, news) = (Mutex::default(), AtomicBool::new(false));
        Ok(Arc::new(Self { errands, news, bell }))
    }

    /// Leaves an errand, and wakes the worker if it sleeps on the bell.
    pub fn send(&self, errand: Errand) {
        let mut errands = self.lock();
        errands.push_back(errand);
        self.news.store(true, Ordering::Release);
        drop(errands);
        // Rare enough to ring always. The counter cannot be full: nobody
        // sends 2^64 errands.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// What was left first.
    #[must_use]
    pub fn take(&self) -> Option<Errand> {
        if !self.has_news() {
            return None;
        }
        let mut errands = self.lock();
        let errand = errands.pop_front();
        self.news.store(!errands.is_empty(), Ordering::Release);
        errand
    }

    /// Whether there may be something in it.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    /// A descriptor that becomes readable with each errand. It is not read, so
    /// it must be waited for edge-triggered.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Errand>> {
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
