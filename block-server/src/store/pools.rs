//! The device as a pool: made, looked at, checked, unlocked.

use std::rc::Rc;

use block_core::device::Durability;
use block_core::unit::{BlockCount, Extent, Pba};
use block_core::{BlockError, Device};
use interpose::Pool;
use interpose::vault::NewWay;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::{Keeper, Store, StoreError};
use crate::api::{CheckInfo, ChecksInfo, KeysInfo, PoolInfo, PoolState};
use crate::extents::zero_extent;
use crate::layout::{Copy, DATA_START, DeviceId, Superblock};
use crate::pooled::Pooled;
use crate::room::Life;
use crate::size::Size;

impl<D: Device + 'static> Store<D> {
    /// Whether the device is a pool, open or not.
    #[must_use]
    pub fn is_pool(&self) -> bool {
        match self.keeper() {
            Keeper::Pool(_) | Keeper::Locked(_) | Keeper::Unmade(_) => true,
            Keeper::Down(_) => self.was_pool(),
            Keeper::Raw(_) | Keeper::Changing => false,
        }
    }

    /// Why the device's volumes are not served, if so.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self.keeper() {
            Keeper::Locked(why) | Keeper::Unmade(why) | Keeper::Down(why) => Some(why),
            Keeper::Pool(pool) => pool.problem(),
            Keeper::Raw(_) | Keeper::Changing => None,
        }
    }

    /// Whether the device is a pool, open or not.
    ///
    /// # Errors
    /// [`StoreError::NotAPool`].
    pub fn check_pool(&self) -> Result<(), StoreError> {
        if self.is_pool() { Ok(()) } else { Err(StoreError::NotAPool(self.means.name.clone())) }
    }

    /// What there is to say about the pool, under this name.
    #[must_use]
    pub fn pool_info(&self, device: &str) -> PoolInfo {
        let (state, content) = match self.keeper() {
            Keeper::Pool(pool) if pool.problem().is_some() => {
                (PoolState::ReadOnly, Some(pool.content()))
            }
            Keeper::Pool(pool) => (PoolState::Open, Some(pool.content())),
            Keeper::Raw(_)
            | Keeper::Locked(_)
            | Keeper::Unmade(_)
            | Keeper::Changing
            | Keeper::Down(_) => (PoolState::Locked, None),
        };
        let size = Size(self.blocks().bytes());
        let (device, problem) = (device.to_owned(), self.problem());
        // The control socket keeps them; it adds what there is to say.
        let checks = ChecksInfo::default();
        PoolInfo { device, state, problem, size, content, checks }
    }

    /// Makes the device a pool as a whole. Only a device without volumes
    /// becomes one, or one with a pool that does not open and is to be lost.
    /// The lives are to be begun.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn create_pool(
        &self,
        journal: Option<Size>,
        overwrite: bool,
    ) -> Result<Vec<Life>, StoreError> {
        let name = || self.means.name.clone();
        let before = self.keeper();
        match &before {
            Keeper::Raw(_) => self.check_no_volumes()?,
            Keeper::Pool(_) => return Err(StoreError::IsAPool(name())),
            Keeper::Locked(_) if overwrite => {}
            // What was there is gone already.
            Keeper::Unmade(_) => {}
            Keeper::Locked(why) => {
                return Err(StoreError::Occupied { device: name(), why: why.clone() });
            }
            Keeper::Changing => return Err(StoreError::Changing),
            Keeper::Down(why) => return Err(StoreError::Locked(why.clone())),
        }
        let unlock = self.means.unlock.as_ref().ok_or_else(|| StoreError::NoSecret(name()))?;
        let secret = unlock.read().map_err(|error| StoreError::Pool(error.to_string()))?;
        let journal = journal.map(|size| BlockCount::in_bytes(size.bytes()));
        // What cannot be is said before anything is lost.
        Pool::<D>::check_sizes(self.blocks(), journal)
            .map_err(|error| StoreError::Pool(error.to_string()))?;
        *self.keeper.borrow_mut() = Keeper::Changing;
        let made = match self.wipe().await {
            Ok(()) => Pooled::make(&self.means, journal, &secret).await,
            Err(error) => Err(error.to_string()),
        };
        match made {
            Ok(pool) => {
                info!(device = %self.means.name, "pool made");
                let lives = pool.lives();
                *self.keeper.borrow_mut() = Keeper::Pool(Rc::new(pool));
                Ok(lives)
            }
            Err(why) => {
                let name = &self.means.name;
                error!(device = %name, "no pool could be made: {why}");
                let unmade = format!(
                    "device '{name}' holds nothing of use: no pool could be made on it ({why}); \
                     `vrio pool create {name}` tries again"
                );
                *self.keeper.borrow_mut() = Keeper::Unmade(unmade.clone());
                Err(StoreError::Pool(unmade))
            }
        }
    }

    fn check_no_volumes(&self) -> Result<(), StoreError> {
        let mut names: Vec<String> =
            self.volumes().iter().map(|volume| volume.record().name.to_string()).collect();
        names.extend(self.reserved.borrow().iter().map(ToString::to_string));
        if names.is_empty() {
            return Ok(());
        }
        let volumes = match &names[..] {
            [a, b, c, _, ..] => format!("{a}, {b}, {c} and {} more", names.len() - 3),
            few => few.join(", "),
        };
        Err(StoreError::HasVolumes { device: self.means.name.clone(), volumes })
    }

    /// Takes away what says that there are raw volumes. Until the pool's first
    /// superblock, which is written last, takes its place, the first block says
    /// that the device is being formatted: a server that starts in between
    /// formats it for raw volumes. Each step is durable before the next one.
    async fn wipe(&self) -> Result<(), BlockError> {
        let (device, blocks) = (&*self.means.device(), self.blocks());
        let zero = async |start: Pba, end: Pba| {
            let count = BlockCount(end.0.min(blocks.0) - start.0);
            zero_extent(device, Extent { start, count }, false).await?;
            device.flush().await
        };
        // Beside a first block that is not ready it would be damage.
        let second = Copy::B.superblock();
        zero(second, Pba(second.0 + 1)).await?;
        let mut buffer = self.means.pages.take().ok_or(BlockError::Medium)?;
        let block = buffer.first_chunk_mut().expect("a buffer has a block");
        Superblock::begin(DeviceId(self.means.chance.id()), blocks).encode(block);
        device.write(Pba(0), buffer, 0..1, Durability::Cached).await.1?;
        device.flush().await?;
        // Nothing must be found later that was a record.
        zero(Pba(1), DATA_START).await
    }

    /// Lets the pool have what the device has grown by.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn grow_pool(&self) -> Result<(), StoreError> {
        self.pool()?.grow().await
    }

    /// Begins a check of everything, at so many bytes in a second at most;
    /// `ended` is told what came of it. The life is to be begun.
    ///
    /// # Errors
    /// When the device is no open pool, or a check runs.
    pub fn start_check(
        &self,
        rate: Option<Size>,
        ended: oneshot::Sender<CheckInfo>,
    ) -> Result<Life, StoreError> {
        let check = self.pool()?.start_check(rate, ended);
        check.ok_or_else(|| StoreError::Checking(self.means.name.clone()))
    }

    /// How far the check is, or what the last one found.
    ///
    /// # Errors
    /// When the device is no open pool, or there was none.
    pub fn check(&self) -> Result<CheckInfo, StoreError> {
        let check = self.pool()?.check();
        check.ok_or_else(|| StoreError::NoCheck(self.means.name.clone()))
    }

    /// What unlocks the pool, and its domains.
    ///
    /// # Errors
    /// When the device is no open pool.
    pub fn keys(&self) -> Result<KeysInfo, StoreError> {
        let pool = self.pool()?;
        let mut keys = pool.keys();
        for domain in &mut keys.domains {
            let volumes = self.volumes.borrow();
            let named =
                volumes.iter().filter(|volume| volume.domain().as_ref() == Some(&domain.name));
            domain.volumes = named.map(|volume| volume.record().name.to_string()).collect();
            domain.volumes.sort();
        }
        Ok(keys)
    }

    /// Lets another secret unlock the pool.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn add_way(&self, way: NewWay) -> Result<(), StoreError> {
        self.pool()?.add_way(way).await
    }

    /// Lets a secret unlock the pool no more.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn remove_way(&self, name: &str) -> Result<(), StoreError> {
        self.pool()?.remove_way(name).await
    }

    /// Gives a domain a new key.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn rotate(&self, domain: &str) -> Result<(), StoreError> {
        self.pool()?.rotate(domain).await
    }

    /// Destroys a domain's keys. Nobody may have its volumes.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn erase(&self, domain: &str) -> Result<(), StoreError> {
        let pool = self.pool()?;
        for volume in self.volumes() {
            if volume.domain().as_deref() == Some(domain) {
                let remedy = "detach it before its domain is erased";
                volume.record().check_detached(remedy)?;
                volume.revoke(|_| true).await;
            }
        }
        pool.erase(domain).await?;
        info!(device = %self.means.name, %domain, "domain erased");
        Ok(())
    }

    /// Ends the pool's life, so that it opens faster.
    pub async fn close(&self) {
        if let Keeper::Pool(pool) = self.keeper() {
            pool.close().await;
        }
    }

    /// The pool, if it is open.
    pub(super) fn pool(&self) -> Result<Rc<Pooled<D>>, StoreError> {
        match self.keeper() {
            Keeper::Pool(pool) => Ok(pool),
            Keeper::Raw(_) => Err(StoreError::NotAPool(self.means.name.clone())),
            Keeper::Locked(why) | Keeper::Unmade(why) | Keeper::Down(why) => {
                Err(StoreError::Locked(why))
            }
            Keeper::Changing => Err(StoreError::Changing),
        }
    }
}
