//! A session's hold on a volume: what a handle stands for.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use block_core::BlockError;
use link::{Access, FrontId, PublicKey};
use tokio::sync::Notify;

/// Which front may do what with a volume, until it is taken away. Requests
/// that run are counted, so that whoever takes the hold away can wait for the
/// last of them.
#[derive(Debug)]
pub struct Hold {
    front: FrontId,
    access: Access,
    /// The key of the session that has it; none in the clear.
    key: Cell<Option<PublicKey>>,
    revoked: Cell<bool>,
    /// The device was reset since it was given.
    outdated: Cell<bool>,
    /// It has been taken away, or is outdated.
    over: Notify,
    running: Cell<usize>,
    waiter: RefCell<Option<Waker>>,
}

impl Hold {
    /// A hold of `front`.
    #[must_use]
    pub fn new(front: FrontId, access: Access) -> Rc<Self> {
        Rc::new(Self {
            front,
            access,
            key: Cell::new(None),
            revoked: Cell::new(false),
            outdated: Cell::new(false),
            over: Notify::new(),
            running: Cell::new(0),
            waiter: RefCell::new(None),
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn front(&self) -> FrontId {
        self.front
    }

    /// What for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// By which key its session is sealed, if it is.
    #[must_use]
    pub fn key(&self) -> Option<PublicKey> {
        self.key.get()
    }

    /// Its session is sealed by this key.
    pub fn seal_by(&self, key: Option<PublicKey>) {
        self.key.set(key);
    }

    /// Whether it was taken away.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked.get()
    }

    /// Whether no request of it runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running.get() == 0
    }

    /// Counts a request in, unless the hold is over; [`Hold::end`] counts it out.
    ///
    /// # Errors
    /// As [`Hold::check`] says.
    pub fn begin(&self) -> Result<(), BlockError> {
        self.check()?;
        self.running.set(self.running.get() + 1);
        Ok(())
    }

    /// A request that was counted in has ended.
    pub fn end(&self) {
        let running = self.running.get() - 1;
        self.running.set(running);
        if running == 0
            && let Some(waiter) = self.waiter.borrow_mut().take()
        {
            waiter.wake();
        }
    }

    /// Whether requests may still run.
    ///
    /// # Errors
    /// [`BlockError::Lost`] when the front has to attach the volume anew, else
    /// [`BlockError::NotAttached`].
    pub fn check(&self) -> Result<(), BlockError> {
        if self.outdated.get() {
            return Err(BlockError::Lost);
        }
        if self.revoked.get() { Err(BlockError::NotAttached) } else { Ok(()) }
    }

    /// The device is being reset, and may have lost what was answered: nothing
    /// is served by this hold any more.
    pub fn outdate(&self) {
        self.outdated.set(true);
        self.over.notify_waiters();
    }

    /// Whether the device was reset since the hold was given.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.outdated.get()
    }

    /// Takes the hold away: no request begins any more.
    pub fn revoke(&self) {
        self.revoked.set(true);
        self.over.notify_waiters();
    }

    /// Waits until the hold is over; why requests may not run any more.
    pub async fn over(&self) -> BlockError {
        loop {
            let over = self.over.notified();
            match self.check() {
                Ok(()) => over.await,
                Err(why) => return why,
            }
        }
    }

    /// Waits for the last request that runs. One waiter at a time: whoever
    /// changes who has the volume.
    pub async fn drained(&self) {
        poll_fn(|context| {
            if self.is_idle() {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
