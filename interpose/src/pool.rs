//! A pool: what is done to it from outside of the path of requests.

mod diff;
mod keys;
mod snapshots;
mod stream_export;
mod stream_import;
mod volumes;

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use block_core::{BlockCount, BlockError, Chance, Device, Pool as Buffers, Time};
use thiserror::Error;

pub use crate::checkpoint::Guard;
pub use crate::core::ReadOnly;
pub use crate::layout::control::{SnapshotKey, VolumeId};
pub use snapshots::{Restored, SnapshotStatus};
pub use stream_export::{ExportError, Exported, Piece, Span};
pub use stream_import::{Begun, ImportError};
pub use volumes::VolumeStatus;

use crate::core::Core;
use crate::create::{self, CreateError, CreateOptions, Probe};
use crate::layout::control::Control;
use crate::layout::superblock::Usage;
use crate::layout::{PoolId, Record};
use crate::recovery::{self, Means, OpenError};
use crate::settings::Settings;
use crate::vault::{KeyError, Secret};
use crate::volume::InUse;

/// A part of a pool's life, to be run beside the requests.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Why something could not be done to a pool.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// It takes no changes.
    #[error("the pool takes no changes: {0}")]
    ReadOnly(ReadOnly),
    /// It failed, or there is no room.
    #[error("the pool could not store the change: {0}")]
    Failed(#[from] BlockError),
    /// The name is taken.
    #[error("there is a {what} '{name}' already; choose another name or delete that one")]
    Exists {
        /// A volume or a snapshot.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is none.
    #[error("there is no {what} '{name}'")]
    Unknown {
        /// A volume, a snapshot, a domain.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// It has no such name.
    #[error("'{0}' is no name: use 1 to 63 letters, digits, '-', '_' and '.'")]
    BadName(String),
    /// It is too large or nothing.
    #[error("a volume of a pool has 4 KiB to 4 PiB; {0} is not in between")]
    BadSize(BlockCount),
    /// It has snapshots.
    #[error("volume '{name}' has {snapshots} snapshots; delete them first")]
    HasSnapshots {
        /// Which one.
        name: String,
        /// How many.
        snapshots: usize,
    },
    /// Too many at a time.
    #[error("a group has 1 to {} volumes, each once", crate::layout::control::MAX_GROUP)]
    BadGroup,
    /// There are as many as there can be.
    #[error("the pool has had as many {0} as it can have")]
    TooMany(&'static str),
    /// What the server keeps is too long.
    #[error("what is kept with a volume has at most 3072 bytes")]
    Attributes,
    /// The keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The keys of the domain are gone.
    #[error("domain '{0}' was erased")]
    Erased(String),
    /// The device has not grown.
    #[error("the device has {there} and the pool has them already; make the device larger first")]
    NotGrown {
        /// The device.
        there: BlockCount,
    },
}

/// What a pool's blocks are used for, and what that saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Which pool.
    pub id: PoolId,
    /// The newest checkpoint.
    pub generation: u64,
    /// All blocks.
    pub total: BlockCount,
    /// Those that can be written to.
    pub free: BlockCount,
    /// As of the last checkpoint.
    pub usage: Usage,
    /// Blocks of the journal, and those in use.
    pub journal: (u64, u64),
    /// Memory for changes: in use, and at most, in bytes.
    pub overlay: (usize, usize),
    /// Entries of the dedup index, and how many it can have.
    pub index: (usize, usize),
    /// Blocks in the read cache.
    pub cached: usize,
    /// Why it takes no changes, if so.
    pub read_only: Option<ReadOnly>,
    /// Whether writes wait, or fail, for want of room.
    pub full: bool,
    /// Since it was opened: blocks written that are not zero, shared, zero,
    /// read, read from the cache, found damaged; checkpoints.
    pub since: Since,
}

/// Counted since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// Blocks that guests wrote and that are not zero.
    pub written: u64,
    /// Of them: were there already.
    pub shared: u64,
    /// Blocks of zeroes that guests wrote.
    pub zeroes: u64,
    /// Blocks that guests read and that are not holes.
    pub read: u64,
    /// Of them: from the cache.
    pub cached: u64,
    /// Blocks that did not open.
    pub damaged: u64,
    /// Checkpoints.
    pub checkpoints: u64,
}

/// An open pool. One thread's.
pub struct Pool<D> {
    pub(crate) core: Rc<Core<D>>,
    in_use: RefCell<HashMap<VolumeId, InUse<D>>>,
    /// One change of what there is at a time.
    changing: tokio::sync::Mutex<()>,
}

impl<D: Device + 'static> Pool<D> {
    /// Whether a pool lies on a device.
    ///
    /// # Errors
    /// The device's.
    pub async fn probe(device: &D, buffers: &Buffers) -> Result<Probe, BlockError> {
        create::probe(device, buffers).await
    }

    /// Whether a pool can be made on a device of this size, with so many
    /// blocks of journal.
    ///
    /// # Errors
    /// A sentence about the sizes.
    pub fn check_sizes(device: BlockCount, journal: Option<BlockCount>) -> Result<(), CreateError> {
        create::check(device, journal).map(drop)
    }

    /// Makes an empty pool on a device, over whatever is there. The device's
    /// first block is written last.
    ///
    /// # Errors
    /// A sentence about what is in the way; then there is no pool.
    pub async fn create(
        device: Rc<D>,
        buffers: Buffers,
        chance: Chance,
        options: CreateOptions,
    ) -> Result<PoolId, CreateError> {
        create::create(device, buffers, chance, options).await
    }

    /// Opens a pool. `newest` is what the caller remembers of it: an older
    /// state is refused.
    ///
    /// # Errors
    /// A sentence about what is in the way; nothing is lost then.
    pub async fn open(
        means: Means<D>,
        secret: &Secret,
        settings: Settings,
        newest: Option<Guard>,
    ) -> Result<Rc<Self>, OpenError> {
        let core = recovery::open(means, secret, settings, newest).await?;
        let (in_use, changing) = (RefCell::default(), tokio::sync::Mutex::default());
        Ok(Rc::new(Self { core, in_use, changing }))
    }

    /// What goes on beside the requests: to be run until the pool is dropped.
    #[must_use]
    pub fn tasks(&self) -> Vec<Task> {
        let core = || Rc::clone(&self.core);
        let ahead = core();
        let mut tasks: Vec<Task> = vec![
            Box::pin(core().make_checkpoints()),
            Box::pin(async move { ahead.space.keep_ahead().await }),
            Box::pin(core().keep_eras()),
            Box::pin(core().fill_index()),
            Box::pin(core().rewrite_old()),
        ];
        for task in 0..crate::journal::TASKS {
            let core = core();
            tasks.push(Box::pin(async move { core.journal.run(task).await }));
        }
        tasks
    }

    /// The device may have lost what it had answered, and is not to be used any
    /// more: whatever waits ends with an error. Reads that find their block in
    /// memory still work. What was flushed is found by opening the pool again.
    pub fn abandon(&self) {
        // What it says is that the device does not answer for its writes.
        let _ = self.core.heed(Err(BlockError::Lost));
    }

    /// Tells the time; wakes what is due.
    pub fn tick(&self, now: Time) {
        self.core.journal.tick(now);
        self.core.alarms.tick(now);
    }

    /// When [`Pool::tick`] has something to wake.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let deadlines = [self.core.journal.deadline(), self.core.alarms.deadline()];
        deadlines.into_iter().flatten().min()
    }

    /// The newest checkpoint: what to remember.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.core.guard.get()
    }

    /// Which pool this is.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.core.id
    }

    /// How it is set.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.core.settings
    }

    /// Makes a checkpoint of everything that was done so far.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn checkpoint(&self) -> Result<(), PoolError> {
        Ok(self.core.wait_for_checkpoint().await?)
    }

    /// Makes what was answered durable.
    ///
    /// # Errors
    /// When that cannot be.
    pub async fn flush(&self) -> Result<(), PoolError> {
        Ok(self.core.flush().await?)
    }

    /// Takes the blocks that the device has grown by.
    ///
    /// # Errors
    /// When it has not grown, or the pool cannot.
    pub async fn grow(&self) -> Result<BlockCount, PoolError> {
        let _changing = self.changing.lock().await;
        let there = self.core.device.blocks();
        if there <= self.core.space.total() {
            return Err(PoolError::NotGrown { there });
        }
        self.core.checkpoints.grow.set(Some(there));
        self.core.wait_for_checkpoint().await?;
        match self.core.space.total() {
            total if total == there => Ok(total),
            _ => Err(PoolError::NotGrown { there }),
        }
    }

    /// What its blocks are used for.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let core = &self.core;
        let (usage, generation) = {
            let state = core.state.borrow();
            (state.usage, state.generation)
        };
        let tally = &core.tally;
        Figures {
            id: core.id,
            generation,
            total: core.space.total(),
            free: BlockCount(core.available()),
            usage,
            journal: (core.journal.ring(), core.journal.used()),
            overlay: (core.overlay_bytes(), core.settings.overlay),
            index: (core.index.len(), core.index.capacity()),
            cached: core.cache.len(),
            read_only: core.frozen_by.get(),
            full: core.is_full(),
            since: Since {
                written: tally.written.get(),
                shared: tally.shared.get(),
                zeroes: tally.zeroes.get(),
                read: tally.read.get(),
                cached: tally.cached.get(),
                damaged: tally.damaged.get(),
                checkpoints: tally.checkpoints.get(),
            },
        }
    }

    /// Stores a change of what there is; durable when this returns.
    async fn commit(&self, control: Control) -> Result<(), PoolError> {
        if let Some(why) = self.core.frozen_by.get() {
            return Err(PoolError::ReadOnly(why));
        }
        let record = Record::Control(control);
        let weight = crate::journal::weight(&record);
        // A pool to which nobody writes has its journal emptied by this alone.
        self.core.pace();
        let admitted = self.core.journal.admit_exempt(weight).await;
        let _admitted =
            admitted.map_err(|_| PoolError::ReadOnly(self.core.freeze_with_journal()))?;
        if self.core.settle(&record) {
            Ok(self.core.flush().await?)
        } else {
            Err(PoolError::Failed(BlockError::Malformed))
        }
    }
}

/// Whether this can be the name of a volume or a snapshot.
fn check_name(name: &str) -> Result<(), PoolError> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = (1..=crate::layout::control::MAX_NAME).contains(&name.len());
    if fits && name.bytes().all(is_good) {
        Ok(())
    } else {
        Err(PoolError::BadName(name.to_owned()))
    }
}
