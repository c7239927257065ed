//! A device is reset while the server runs: its volumes are taken out of
//! service, found again as a restart would find them, or given up.
//!
//! 1. *Down.* Every request of every hold ends as lost, those that run too, and
//!    nothing is stored any more. A pool's background ends.
//! 2. When the last of what ran has ended, what was in memory is dropped, and
//!    the device is opened anew: records of raw volumes are read, a pool is
//!    recovered from what it had flushed.
//! 3. *Back.* The volumes, which are the same to everybody who knows them, serve
//!    what was found. If answered writes may be lost, they have new verifiers.
//!    Fronts attach them again and send what is missing.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use block_core::Device;
use tokio::sync::{Mutex, Notify};
use tracing::{error, info, warn};

use super::{Keeper, Means, Store, StoreError};
use crate::catalog::Formatting;
use crate::layout::{DeviceId, VolumeRecord};
use crate::pooled::{Found, Opening, Pooled};
use crate::raw::Raw;
use crate::room::Room;
use crate::volume::Volume;

/// How long what ran when a device went down may take to end: it fails at each
/// of its steps. Longer, and it never ends.
const PATIENCE: Duration = Duration::from_secs(60);

/// A device's resets.
pub(super) struct Resets<D> {
    /// How often it went down.
    downs: Cell<u64>,
    /// How often it came back.
    backs: Cell<u64>,
    /// What kept its volumes until it went down.
    before: RefCell<Option<Before<D>>>,
    /// It does not come back any more.
    failed: Cell<bool>,
    /// It came back, or does not any more.
    ended: Notify,
    /// One opening at a time.
    opening: Mutex<()>,
    /// Page buffers that are free when no pool is open.
    pages: usize,
}

/// What a device was when it went down, and what kept its volumes until that is
/// let go.
enum Before<D> {
    Raw(DeviceId, Option<Rc<Raw<D>>>),
    Pool(Option<Rc<Pooled<D>>>),
}

impl<D> Before<D> {
    /// Whether something still uses it.
    fn is_used(&self) -> bool {
        let users = match self {
            Self::Raw(_, raw) => raw.as_ref().map(Rc::strong_count),
            Self::Pool(pool) => pool.as_ref().map(Rc::strong_count),
        };
        users > Some(1)
    }

    fn let_go(&mut self) {
        match self {
            Self::Raw(_, raw) => *raw = None,
            Self::Pool(pool) => *pool = None,
        }
    }
}

/// What keeps the volumes that were found again.
enum Opened<D> {
    Raw(Rc<Raw<D>>, Vec<VolumeRecord>),
    Pool(Rc<Pooled<D>>, Vec<Found<D>>),
}

impl<D> Resets<D> {
    pub(super) fn new(means: &Means<D>) -> Self {
        Self {
            downs: Cell::default(),
            backs: Cell::default(),
            before: RefCell::default(),
            failed: Cell::default(),
            ended: Notify::default(),
            opening: Mutex::default(),
            pages: means.pages.available(),
        }
    }
}

impl<D: Device + 'static> Store<D> {
    /// The device is about to be reset.
    pub fn go_down(&self, why: &str) {
        let name = &self.means.name;
        error!(device = %name, "the device is reset: {why}");
        self.resets.downs.set(self.resets.downs.get() + 1);
        let down = format!("device '{name}' is being reset, because {why}; try again in a moment");
        let before = match self.keeper() {
            Keeper::Raw(raw) => Before::Raw(raw.id(), Some(raw)),
            Keeper::Pool(pool) => {
                pool.abandon();
                Before::Pool(Some(pool))
            }
            Keeper::Down(_) => {
                *self.keeper.borrow_mut() = Keeper::Down(down);
                return;
            }
            // Nothing is served from it, or what is being done to it fails.
            Keeper::Locked(_) | Keeper::Unmade(_) | Keeper::Changing => return,
        };
        *self.keeper.borrow_mut() = Keeper::Down(down);
        *self.resets.before.borrow_mut() = Some(before);
        self.volumes().iter().for_each(|volume| volume.outdate());
    }

    /// The device works again: `device` is what it is now.
    pub async fn come_back(&self, room: &Room<D>, device: Rc<D>) {
        let down = self.resets.downs.get();
        let _opening = self.resets.opening.lock().await;
        *self.means.device.borrow_mut() = device;
        if !self.is_down() {
            return;
        }
        let opened = match self.let_go(room).await {
            Ok(()) => self.open_again().await,
            Err(why) => Err(why),
        };
        if self.resets.downs.get() != down {
            // It went down again meanwhile, and will be opened then.
            return;
        }
        match opened {
            Ok(opened) => self.serve_again(room, opened),
            Err(why) => self.fail(&format!("it was reset and cannot be opened again ({why})")),
        }
    }

    /// The device does not come back. What is in memory of it is dropped when
    /// the last of what ran has ended.
    pub async fn give_up(&self, room: &Room<D>, why: &str) {
        self.fail(why);
        let _opening = self.resets.opening.lock().await;
        if self.is_down()
            && let Err(why) = self.let_go(room).await
        {
            warn!(device = %self.means.name, "its memory is not given back: {why}");
        }
    }

    fn fail(&self, why: &str) {
        let name = &self.means.name;
        error!(device = %name, "the device is given up: {why}");
        if !self.is_down() {
            return;
        }
        let sentence = format!(
            "device '{name}' is given up: {why}; mend or replace it, then restart the server"
        );
        *self.keeper.borrow_mut() = Keeper::Down(sentence);
        for volume in self.volumes() {
            // Whoever relies on what it had answered is told that it is lost.
            volume.requests.renew(self.means.chance.number());
            volume.fail();
            volume.outdate();
        }
        self.resets.failed.set(true);
        self.resets.ended.notify_waiters();
    }

    /// Whether the device is being reset or was given up.
    pub(crate) fn is_down(&self) -> bool {
        matches!(&*self.keeper.borrow(), Keeper::Down(_))
    }

    /// How often the device went down.
    pub(crate) fn downs(&self) -> u64 {
        self.resets.downs.get()
    }

    /// Waits until the device is back, or given up.
    pub(crate) async fn end_of_reset(&self) {
        loop {
            let ended = self.resets.ended.notified();
            if !self.is_down() || self.resets.failed.get() {
                return;
            }
            ended.await;
        }
    }

    /// How often the device came back from a reset.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.resets.backs.get()
    }

    /// Whether the device was a pool when it went down.
    pub(super) fn was_pool(&self) -> bool {
        matches!(&*self.resets.before.borrow(), Some(Before::Pool(..)))
    }

    /// Why something cannot be done to a volume of this device now.
    pub(super) fn not_now(&self) -> StoreError {
        match self.keeper() {
            Keeper::Down(why) => StoreError::Locked(why),
            _ => StoreError::Changing,
        }
    }

    /// Waits until nothing uses what was there before, and drops it.
    async fn let_go(&self, room: &Room<D>) -> Result<(), String> {
        let limit = room.now() + PATIENCE;
        let is_used = || {
            let before = self.resets.before.borrow();
            let busy = self.volumes().iter().any(|volume| !volume.is_idle());
            busy || before.as_ref().is_some_and(Before::is_used)
        };
        while is_used() {
            wait(room, limit).await?;
        }
        self.volumes().iter().for_each(|volume| volume.release());
        self.resets.before.borrow_mut().iter_mut().for_each(Before::let_go);
        while self.was_pool() && self.means.pages.available() < self.resets.pages {
            wait(room, limit).await?;
        }
        Ok(())
    }

    /// Opens what the device holds, as at a start of the server; nothing is
    /// formatted.
    async fn open_again(&self) -> Result<Opened<D>, String> {
        let raw_before = match &*self.resets.before.borrow() {
            Some(Before::Raw(id, _)) => Some(*id),
            Some(Before::Pool(_)) | None => None,
        };
        match (Pooled::open(&self.means).await, raw_before) {
            (Opening::Open(pool), None) => {
                let found = pool.volumes();
                Ok(Opened::Pool(Rc::new(pool), found))
            }
            (Opening::Locked(why), None) => Err(why),
            (Opening::NoPool, None) => Err("there is no pool on it any more".to_owned()),
            (Opening::NoPool, Some(before)) => {
                let desk = self.means.desks.take().ok_or("there is no memory for its catalog")?;
                let fresh = DeviceId(self.means.chance.id());
                let opened = Raw::open(self.means.device(), desk, Formatting::Never, fresh).await;
                let (raw, found) = opened.map_err(|error| error.to_string())?;
                if raw.id() != before {
                    return Err("it has been formatted anew".to_owned());
                }
                let records = found.into_iter().map(|(_, record)| record).collect();
                Ok(Opened::Raw(Rc::new(raw), records))
            }
            (Opening::Open(_) | Opening::Locked(_), Some(_)) => Err("it is a pool now".to_owned()),
        }
    }

    /// Volumes serve what was found of them.
    fn serve_again(&self, room: &Room<D>, opened: Opened<D>) {
        let device = self.means.device();
        let (keeper, loses) = match opened {
            Opened::Raw(raw, mut found) => {
                for volume in self.volumes() {
                    let id = volume.record().id;
                    match found.iter().position(|record| record.id == id) {
                        Some(at) => volume.bind_raw(&device, found.swap_remove(at)),
                        None => self.is_gone(&volume),
                    }
                }
                (Keeper::Raw(raw), device.has_volatile_cache())
            }
            Opened::Pool(pool, mut found) => {
                for volume in self.volumes() {
                    let id = volume.record().id;
                    match found.iter().position(|found| found.record.id == id) {
                        Some(at) => volume.bind_pooled(found.swap_remove(at)),
                        None => self.is_gone(&volume),
                    }
                }
                pool.lives().into_iter().for_each(|life| room.begin(life));
                // What was answered and not flushed was in its memory.
                (Keeper::Pool(pool), true)
            }
        };
        for volume in self.volumes().iter().filter(|_| loses) {
            volume.requests.renew(self.means.chance.number());
        }
        *self.keeper.borrow_mut() = keeper;
        *self.resets.before.borrow_mut() = None;
        self.resets.backs.set(self.resets.backs.get() + 1);
        self.resets.ended.notify_waiters();
        info!(device = %self.means.name, "the device is back");
    }

    /// A volume whose making or deleting was cut short by the reset.
    fn is_gone(&self, volume: &Volume<D>) {
        let (device, volume_name) = (&self.means.name, volume.record().name);
        error!(%device, name = %volume_name, "the volume is not on the device after its reset");
        volume.fail();
    }
}

/// Until the next turn.
async fn wait<D>(room: &Room<D>, limit: block_core::Time) -> Result<(), String> {
    if room.now() >= limit {
        return Err("what was under way before does not end".to_owned());
    }
    turn::yield_now().await;
    Ok(())
}
