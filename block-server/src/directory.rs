//! Which worker has which volume: the one thing that workers share. It is
//! asked at an attach and by people, never on the path of a request.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use link::VolumeName;

/// A worker of this server, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerIndex(pub usize);

/// The volumes of all workers, and where the workers listen.
#[derive(Debug, Default)]
pub struct Directory {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    volumes: BTreeMap<VolumeName, WorkerIndex>,
    ports: BTreeMap<WorkerIndex, u16>,
}

impl Directory {
    /// Tells where a worker listens for fronts.
    pub fn listens(&self, worker: WorkerIndex, port: u16) {
        self.write().ports.insert(worker, port);
    }

    /// Takes a name for a volume of `worker`; false if some volume has it.
    #[must_use]
    pub fn claim(&self, name: &VolumeName, worker: WorkerIndex) -> bool {
        let mut inner = self.write();
        if inner.volumes.contains_key(name) {
            return false;
        }
        inner.volumes.insert(name.clone(), worker);
        true
    }

    /// Gives a name back.
    pub fn release(&self, name: &VolumeName) {
        self.write().volumes.remove(name);
    }

    /// Who has the volume of that name.
    #[must_use]
    pub fn worker_of(&self, name: &VolumeName) -> Option<WorkerIndex> {
        self.read().volumes.get(name).copied()
    }

    /// The port of the worker, other than `asked`, that has the volume.
    #[must_use]
    pub fn elsewhere(&self, name: &VolumeName, asked: WorkerIndex) -> Option<u16> {
        let inner = self.read();
        let worker = inner.volumes.get(name).filter(|worker| **worker != asked)?;
        inner.ports.get(worker).copied()
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
