//! What is asked about pools.

use block_core::Device;
use tokio::sync::oneshot;

use super::{Answer, Failed};
use crate::api::{CheckInfo, PoolInfo};
use crate::room::Room;
use crate::size::Size;
use crate::store::Store;

/// Something about pools that a worker is asked to do.
#[derive(Debug)]
pub enum PoolErrand {
    /// Say what pools there are.
    List(Answer<Vec<PoolInfo>>),
    /// Say what there is to say about a pool.
    Show {
        /// Which device.
        device: String,
        /// Where to.
        answer: Answer<PoolInfo>,
    },
    /// Make a device a pool.
    Create {
        /// Which device.
        device: String,
        /// The journal's size.
        journal: Option<Size>,
        /// Whether also where a pool is that does not open.
        overwrite: bool,
        /// Where to.
        answer: Answer<PoolInfo>,
    },
    /// Let a pool have what its device has grown by.
    Grow {
        /// Which device.
        device: String,
        /// Where to.
        answer: Answer<PoolInfo>,
    },
    /// Begin a check.
    StartCheck {
        /// Of which device.
        device: String,
        /// Most bytes that it reads in a second.
        rate: Option<Size>,
        /// Who is told when it has ended, and what came of it.
        ended: oneshot::Sender<CheckInfo>,
        /// Where to, when it has begun.
        answer: Answer<CheckInfo>,
    },
    /// Say how far the check is.
    Check {
        /// Of which device.
        device: String,
        /// Where to.
        answer: Answer<CheckInfo>,
    },
}

pub(super) async fn run<D: Device + 'static>(room: &Room<D>, errand: PoolErrand) {
    match errand {
        PoolErrand::List(answer) => {
            let pools = room.stores.iter().filter(|(_, store)| store.is_pool());
            let _ = answer.send(Ok(pools.map(|(name, store)| store.pool_info(name)).collect()));
        }
        PoolErrand::Show { device, answer } => {
            let _ = answer.send(room.show_pool(&device));
        }
        PoolErrand::Create { device, journal, overwrite, answer } => {
            let _ = answer.send(room.create_pool(&device, journal, overwrite).await);
        }
        PoolErrand::Grow { device, answer } => {
            let _ = answer.send(room.grow_pool(&device).await);
        }
        PoolErrand::StartCheck { device, rate, ended, answer } => {
            let _ = answer.send(room.start_check(&device, rate, ended));
        }
        PoolErrand::Check { device, answer } => {
            let _ = answer.send(room.check(&device));
        }
    }
}

impl<D: Device + 'static> Room<D> {
    pub(super) fn store(&self, device: &str) -> Result<&Store<D>, Failed> {
        let found = self.stores.iter().find(|(name, _)| name == device);
        found.map(|(_, store)| store).ok_or_else(|| Failed::NoDevice(device.to_owned()))
    }

    fn show_pool(&self, device: &str) -> Result<PoolInfo, Failed> {
        let store = self.store(device)?;
        store.check_pool()?;
        Ok(store.pool_info(device))
    }

    async fn create_pool(
        &self,
        device: &str,
        journal: Option<Size>,
        overwrite: bool,
    ) -> Result<PoolInfo, Failed> {
        let store = self.store(device)?;
        for life in store.create_pool(journal, overwrite).await? {
            self.begin(life);
        }
        Ok(store.pool_info(device))
    }

    async fn grow_pool(&self, device: &str) -> Result<PoolInfo, Failed> {
        let store = self.store(device)?;
        store.grow_pool().await?;
        Ok(store.pool_info(device))
    }

    fn start_check(
        &self,
        device: &str,
        rate: Option<Size>,
        ended: oneshot::Sender<CheckInfo>,
    ) -> Result<CheckInfo, Failed> {
        let store = self.store(device)?;
        self.begin(store.start_check(rate, ended)?);
        self.check(device)
    }

    fn check(&self, device: &str) -> Result<CheckInfo, Failed> {
        Ok(self.store(device)?.check()?)
    }
}
