//! Domains and their keys, and what unlocks the pool.

use block_core::Device;

use super::{Pool, PoolError};
use crate::layout::DomainId;
use crate::rotation::Rewriting;
use crate::vault::{Domain, NewWay, WayInfo};

impl<D: Device + 'static> Pool<D> {
    /// What unlocks the pool.
    #[must_use]
    pub fn ways(&self) -> Vec<WayInfo> {
        self.core.vault.ways()
    }

    /// Adds a way to unlock it.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub async fn add_way(&self, way: NewWay) -> Result<(), PoolError> {
        self.check_changes()?;
        Ok(self.core.vault.add_way(way).await?)
    }

    /// Takes a way to unlock it away; never the last one.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub async fn remove_way(&self, name: &str) -> Result<(), PoolError> {
        self.check_changes()?;
        Ok(self.core.vault.remove_way(name).await?)
    }

    /// All domains.
    #[must_use]
    pub fn domains(&self) -> Vec<Domain> {
        self.core.vault.domains()
    }

    /// Gives a domain a new data key: what is written from then on is sealed
    /// with it, and in the background what its volumes hold. Snapshots keep
    /// the old key; it is destroyed when there are none.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub async fn rotate(&self, domain: &str) -> Result<(), PoolError> {
        self.check_changes()?;
        let id = self.find_domain(domain)?;
        self.core.vault.rotate(id).await?;
        // What it had is written anew from the next checkpoint on.
        self.core.checkpoints.want();
        Ok(())
    }

    /// How far the blocks are that old keys seal and that are being written
    /// anew, if any are.
    #[must_use]
    pub fn rewriting(&self) -> Option<Rewriting> {
        self.core.rewriting.get()
    }

    /// Overwrites a domain's keys: what its volumes and snapshots hold cannot
    /// be read any more, by anybody.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub async fn erase(&self, domain: &str) -> Result<(), PoolError> {
        self.check_changes()?;
        let id = self.find_domain(domain)?;
        // Recovery must not look for what it cannot open: what was written last
        // is durable first.
        self.core.flush().await?;
        self.core.vault.erase(id).await?;
        self.core.cache.purge(id);
        Ok(())
    }

    /// The domain of that name, which is made if it is not there.
    pub(super) async fn domain(&self, name: &str) -> Result<DomainId, PoolError> {
        match self.find_domain(name) {
            Ok(id) => match self.core.vault.hash_key(id) {
                Ok(_) => Ok(id),
                Err(_) => Err(PoolError::Erased(name.to_owned())),
            },
            Err(_) => {
                self.check_changes()?;
                Ok(self.core.vault.add_domain(name).await?)
            }
        }
    }

    fn find_domain(&self, name: &str) -> Result<DomainId, PoolError> {
        let domains = self.core.vault.domains();
        let found = domains.iter().find(|domain| domain.name == name);
        let unknown = || PoolError::Unknown { what: "domain", name: name.to_owned() };
        found.map(|domain| domain.id).ok_or_else(unknown)
    }

    pub(super) fn domain_name(&self, id: DomainId) -> String {
        let domains = self.core.vault.domains();
        let found = domains.into_iter().find(|domain| domain.id == id);
        found.map(|domain| domain.name).unwrap_or_default()
    }

    fn check_changes(&self) -> Result<(), PoolError> {
        match self.core.frozen_by.get() {
            Some(why) => Err(PoolError::ReadOnly(why)),
            None => Ok(()),
        }
    }
}
