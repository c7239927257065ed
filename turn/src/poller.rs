//! The one epoll that a thread sleeps in.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

/// Sleeps until a registered descriptor has news.
///
/// Registration is edge-triggered: an eventfd need not be drained and a socket
/// that still holds frames does not end the next sleep. In return every source
/// must be looked at after it was announced and before the sleep.
#[derive(Debug)]
pub struct Poller {
    epoll: Rc<OwnedFd>,
}

/// Adds descriptors to a [`Poller`] and takes them out again.
#[derive(Clone, Debug)]
pub struct Registrar {
    epoll: Rc<OwnedFd>,
}

impl Poller {
    /// A poller without descriptors.
    ///
    /// # Errors
    /// The kernel's, when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Rc::new(epoll::create(CreateFlags::CLOEXEC)?) })
    }

    /// A handle to add and remove descriptors with.
    #[must_use]
    pub fn registrar(&self) -> Registrar {
        Registrar { epoll: Rc::clone(&self.epoll) }
    }

    /// Sleeps until a descriptor has news, at most for `timeout`; what news it
    /// is, the sources find out by looking.
    ///
    /// # Errors
    /// The kernel's; a signal is not one, it ends the sleep.
    pub fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [none; 64];
        match epoll::wait(&*self.epoll, &mut events[..], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Registrar {
    /// Lets news of `fd` (readable, or hung up) end the sleep.
    ///
    /// # Errors
    /// The kernel's: the descriptor is registered already or cannot be waited
    /// for.
    pub fn add(&self, fd: impl AsFd) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&*self.epoll, fd.as_fd(), EventData::new_u64(0), flags)?;
        Ok(())
    }

    /// Forgets `fd`. Must be called before it is closed when it was shared
    /// with another process, which would keep it registered.
    pub fn remove(&self, fd: BorrowedFd<'_>) {
        // It may never have been added; then there is nothing to forget.
        let _ = epoll::delete(&*self.epoll, fd);
    }
}
