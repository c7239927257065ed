//! Who unlocks the pool.

use super::Vault;
use super::area::{self, HEADER, Way};
use super::error::KeyError;
use super::key::{Key, Purpose};
use super::secret::{NewWay, WayKind};
use crate::layout::PoolId;

/// A way to unlock the pool, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayInfo {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub kind: WayKind,
}

impl Vault {
    /// The ways to unlock the pool.
    #[must_use]
    pub fn ways(&self) -> Vec<WayInfo> {
        let ways = self.ways.borrow();
        ways.iter()
            .flatten()
            .map(|way| WayInfo { name: way.name.clone(), kind: way.kind })
            .collect()
    }

    /// Lets another secret unlock the pool.
    ///
    /// # Errors
    /// A name that is taken, no room, or the device's.
    pub async fn add_way(&self, way: NewWay) -> Result<(), KeyError> {
        let _changing = self.changing.lock().await;
        let mut ways = self.ways.borrow().clone();
        if ways.iter().flatten().any(|other| other.name == way.name) {
            return Err(KeyError::NameTaken);
        }
        let free = ways.iter_mut().find(|place| place.is_none()).ok_or(KeyError::NoRoomForWays)?;
        *free = Some(wrap(way, &self.pool_id(), &self.pool_key));
        self.replace_ways(ways).await
    }

    /// Takes a way away. Whoever unlocked the pool with it before may have
    /// kept the pool key: what is secret from them from now on needs a pool
    /// of its own.
    ///
    /// # Errors
    /// No such way, the last one, or the device's.
    pub async fn remove_way(&self, name: &str) -> Result<(), KeyError> {
        let _changing = self.changing.lock().await;
        let mut ways = self.ways.borrow().clone();
        let is_last = ways.iter().flatten().count() == 1;
        let place = ways
            .iter_mut()
            .find(|place| place.as_ref().is_some_and(|way| way.name == name))
            .ok_or(KeyError::NotThere)?;
        if is_last {
            return Err(KeyError::LastWay);
        }
        *place = None;
        self.replace_ways(ways).await
    }

    async fn replace_ways(&self, ways: Vec<Option<Way>>) -> Result<(), KeyError> {
        let block = area::encode(ways.iter().map(Option::as_ref));
        self.area.update(HEADER, block).await?;
        *self.ways.borrow_mut() = ways;
        Ok(())
    }
}

/// The pool key wrapped for a way.
pub(super) fn wrap(new: NewWay, pool: &PoolId, pool_key: &Key) -> Way {
    let NewWay { name, kind, cost, salt, key } = new;
    let mut way = Way { name, kind, cost, wrapped: super::key::Wrapped::NOTHING };
    way.wrapped = key.wrap(Purpose::WrapPool, salt, &way.binding(pool), pool_key);
    way
}
