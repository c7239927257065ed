//! What is asked about the keys of pools.

use block_core::Device;
use interpose::vault::NewWay;

use super::{Answer, Failed};
use crate::api::KeysInfo;
use crate::room::Room;

/// Something about keys that a worker is asked to do; each is answered with
/// what the keys are then.
#[derive(Debug)]
pub enum KeyErrand {
    /// Say what there is.
    List {
        /// On which device.
        device: String,
        /// Where to.
        answer: Answer<KeysInfo>,
    },
    /// Let another secret unlock a pool.
    Add {
        /// On which device.
        device: String,
        /// The secret, and what it is called.
        way: NewWay,
        /// Where to.
        answer: Answer<KeysInfo>,
    },
    /// Let a secret unlock a pool no more.
    Remove {
        /// On which device.
        device: String,
        /// What it is called.
        name: String,
        /// Where to.
        answer: Answer<KeysInfo>,
    },
    /// Give a domain a new key.
    Rotate {
        /// On which device.
        device: String,
        /// Which domain.
        domain: String,
        /// Where to.
        answer: Answer<KeysInfo>,
    },
    /// Destroy a domain's keys.
    Erase {
        /// On which device.
        device: String,
        /// Which domain.
        domain: String,
        /// Where to.
        answer: Answer<KeysInfo>,
    },
}

pub(super) async fn run<D: Device + 'static>(room: &Room<D>, errand: KeyErrand) {
    match errand {
        KeyErrand::List { device, answer } => {
            let _ = answer.send(room.keys(&device));
        }
        KeyErrand::Add { device, way, answer } => {
            let _ = answer.send(room.add_way(&device, way).await);
        }
        KeyErrand::Remove { device, name, answer } => {
            let _ = answer.send(room.remove_way(&device, &name).await);
        }
        KeyErrand::Rotate { device, domain, answer } => {
            let _ = answer.send(room.rotate(&device, &domain).await);
        }
        KeyErrand::Erase { device, domain, answer } => {
            let _ = answer.send(room.erase(&device, &domain).await);
        }
    }
}

impl<D: Device + 'static> Room<D> {
    fn keys(&self, device: &str) -> Result<KeysInfo, Failed> {
        Ok(self.store(device)?.keys()?)
    }

    async fn add_way(&self, device: &str, way: NewWay) -> Result<KeysInfo, Failed> {
        self.store(device)?.add_way(way).await?;
        self.keys(device)
    }

    async fn remove_way(&self, device: &str, name: &str) -> Result<KeysInfo, Failed> {
        self.store(device)?.remove_way(name).await?;
        self.keys(device)
    }

    async fn rotate(&self, device: &str, domain: &str) -> Result<KeysInfo, Failed> {
        self.store(device)?.rotate(domain).await?;
        self.keys(device)
    }

    async fn erase(&self, device: &str, domain: &str) -> Result<KeysInfo, Failed> {
        self.store(device)?.erase(domain).await?;
        self.keys(device)
    }
}
