//! What all tasks of a worker share.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use block_core::{Device, Time};
use interpose::hooks::TurnClock;
use link::{PublicKey, Reply, SlotRef, VolumeName};

use crate::authority::{Authority, NoKeys};
use crate::directory::{Directory, WorkerIndex};
use crate::store::Store;
use crate::volume::Volume;

/// Work that nobody waits for: a task of its own, to its end.
pub type Life = Pin<Box<dyn Future<Output = ()>>>;

/// A worker's devices and what they have to say.
pub struct Room<D> {
    /// The devices with their volumes, by name.
    pub stores: Vec<(String, Store<D>)>,
    /// The volumes of all workers.
    pub directory: Arc<Directory>,
    /// Which worker this is.
    pub worker: WorkerIndex,
    authority: RefCell<Rc<dyn Authority>>,
    /// Keys whose sessions are to be ended.
    ending: RefCell<Vec<PublicKey>>,
    /// Answers that wait to be collected.
    replies: RefCell<VecDeque<(SlotRef, Reply)>>,
    lives: RefCell<VecDeque<Life>>,
    clock: TurnClock,
}

/// A volume, and where it is.
pub struct Located<'a, D> {
    /// The name of its device.
    pub device: &'a str,
    /// The device's volumes.
    pub store: &'a Store<D>,
    /// The volume.
    pub volume: Rc<Volume<D>>,
}

impl<D> Room<D> {
    /// A room with these devices.
    #[must_use]
    pub fn new(
        stores: Vec<(String, Store<D>)>,
        directory: Arc<Directory>,
        worker: WorkerIndex,
    ) -> Self {
        Self {
            stores,
            directory,
            worker,
            authority: RefCell::new(Rc::new(NoKeys)),
            ending: RefCell::default(),
            replies: RefCell::default(),
            lives: RefCell::default(),
            clock: TurnClock::default(),
        }
    }

    /// Who says what fronts may do.
    #[must_use]
    pub fn authority(&self) -> Rc<dyn Authority> {
        Rc::clone(&self.authority.borrow())
    }

    /// From now on that is somebody else.
    pub fn obey(&self, authority: Rc<dyn Authority>) {
        *self.authority.borrow_mut() = authority;
    }

    /// The sessions of a key are to be ended.
    pub fn end_sessions(&self, key: PublicKey) {
        self.ending.borrow_mut().push(key);
    }

    /// A key whose sessions are to be ended, and are not yet.
    #[must_use]
    pub fn next_ending(&self) -> Option<PublicKey> {
        self.ending.borrow_mut().pop()
    }

    /// The moment of the worker's turn.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// The time of the turn, for those that wait for a later one.
    #[must_use]
    pub fn clock(&self) -> &TurnClock {
        &self.clock
    }

    /// Begins, in the next turn, something that nobody waits for.
    pub fn begin(&self, life: Life) {
        self.lives.borrow_mut().push_back(life);
    }

    /// What is to be begun, the oldest first.
    #[must_use]
    pub fn next_life(&self) -> Option<Life> {
        self.lives.borrow_mut().pop_front()
    }

    /// Whether something is to be begun.
    #[must_use]
    pub fn has_lives(&self) -> bool {
        !self.lives.borrow().is_empty()
    }

    /// Leaves an answer to be collected.
    #[inline]
    pub fn reply(&self, at: SlotRef, reply: Reply) {
        self.replies.borrow_mut().push_back((at, reply));
    }

    /// The oldest answer that was not collected.
    #[must_use]
    pub fn next_reply(&self) -> Option<(SlotRef, Reply)> {
        self.replies.borrow_mut().pop_front()
    }

    /// Whether an answer waits.
    #[must_use]
    pub fn has_replies(&self) -> bool {
        !self.replies.borrow().is_empty()
    }

    /// Makes room, so that so many answers at a time allocate nothing.
    pub fn reserve_replies(&self, slots: usize) {
        let mut replies = self.replies.borrow_mut();
        let missing = slots.saturating_sub(replies.len());
        replies.reserve(missing);
    }
}

impl<D: Device + 'static> Room<D> {
    /// A turn begins.
    pub fn tick(&self, now: Time) {
        self.clock.tick(now);
        self.stores.iter().for_each(|(_, store)| store.tick(now));
    }

    /// When a turn is wanted although nothing has come.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let pools = self.stores.iter().filter_map(|(_, store)| store.deadline());
        pools.chain(self.clock.deadline()).min()
    }

    /// The volume of that name, if this worker has it.
    #[must_use]
    pub fn find(&self, name: &VolumeName) -> Option<Located<'_, D>> {
        self.stores.iter().find_map(|(device, store)| {
            let volume = store.volume(name).ok()?;
            Some(Located { device, store, volume })
        })
    }

    /// The device that has this volume.
    #[must_use]
    pub fn store_of(&self, volume: &Rc<Volume<D>>) -> Option<&Store<D>> {
        let mut stores = self.stores.iter().map(|(_, store)| store);
        stores.find(|store| store.has(volume))
    }
}
