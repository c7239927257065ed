//! An open pool: what all of its parts share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::{BlockCount, BlockError, Chance, Device, Pba};
use tokio::sync::Notify;

use crate::catalog::Catalog;
use crate::checkpoint::Guard;
use crate::hash;
use crate::index::Index;
use crate::journal::{Journal, JournalError};
use crate::layout::control::VolumeId;
use crate::layout::record::Hash;
use crate::layout::superblock::Usage;
use crate::layout::{Binding, DomainId, PoolId, Record, Seal};
use crate::overlay::{BlockChange, Overlay};
use crate::pages::Pages;
use crate::radix::Tree;
use crate::read_cache::ReadCache;
use crate::readers::Readers;
use crate::rotation::Rewriting;
use crate::settings::Settings;
use crate::space::Space;
use crate::vault::Vault;

/// An open pool.
pub(crate) struct Core<D> {
    pub(crate) id: PoolId,
    pub(crate) device: Rc<D>,
    pub(crate) vault: Rc<Vault>,
    pub(crate) pages: Rc<Pages<D>>,
    pub(crate) space: Rc<Space<D>>,
    pub(crate) journal: Journal<D>,
    pub(crate) journal_extent: block_core::Extent,
    /// The newest checkpoint.
    pub(crate) guard: Cell<Guard>,
    pub(crate) index: Index,
    pub(crate) cache: ReadCache,
    pub(crate) settings: Settings,
    pub(crate) chance: Chance,
    /// Seconds since 1970.
    pub(crate) wall: Box<dyn Fn() -> u64>,
    pub(crate) state: RefCell<State>,
    pub(crate) readers: Rc<Readers>,
    /// Writes under way, which may have been sealed a while ago.
    pub(crate) writers: Rc<Readers>,
    /// How far the rewriting after a key's rotation is.
    pub(crate) rewriting: Cell<Option<Rewriting>>,
    pub(crate) room: crate::admission::Room,
    pub(crate) checkpoints: crate::checkpoint::Desk,
    /// Why nothing can be changed any more, if so.
    pub(crate) frozen_by: Cell<Option<ReadOnly>>,
    pub(crate) tally: Tally,
    /// A background task looks for work.
    pub(crate) work: Notify,
    /// What waits for a moment.
    pub(crate) alarms: crate::pace::Alarms,
}

/// What changes with every request.
pub(crate) struct State {
    pub(crate) catalog: Catalog,
    /// Changes since the last checkpoint began.
    pub(crate) active: Overlay,
    /// Changes that a checkpoint is merging.
    pub(crate) merging: Option<Overlay>,
    /// The tree of seals that the last checkpoint made.
    pub(crate) seals: Tree,
    pub(crate) usage: Usage,
    pub(crate) generation: u64,
}

/// Why a pool takes no changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadOnly {
    /// It was asked for.
    #[error("it was opened to read")]
    Asked,
    /// Recovery found that flushed records are lost.
    #[error("a part of its journal that was flushed is damaged")]
    Damaged,
    /// The journal could not be written.
    #[error("its journal could not be written")]
    Journal,
    /// A checkpoint could not be made.
    #[error("a checkpoint could not be made")]
    Checkpoint,
    /// The device lost its cache while the pool was open.
    #[error(
        "its device was reset and may have lost what was written last and not flushed; the server \
         opens it anew, as after a power cut"
    )]
    Lost,
}

/// What happened since the pool was opened.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Blocks that guests wrote and that are not zero.
    pub(crate) written: Cell<u64>,
    /// Of them: were there already.
    pub(crate) shared: Cell<u64>,
    /// Blocks of zeroes that guests wrote.
    pub(crate) zeroes: Cell<u64>,
    /// Blocks that guests read and that are not holes.
    pub(crate) read: Cell<u64>,
    /// Of them: from the cache.
    pub(crate) cached: Cell<u64>,
    /// Blocks that did not open.
    pub(crate) damaged: Cell<u64>,
    /// Checkpoints made.
    pub(crate) checkpoints: Cell<u64>,
    /// Candidates of the dedup index whose pages are being read.
    pub(crate) judging: Cell<usize>,
}

pub(crate) fn count(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

impl<D: Device> Core<D> {
    /// Whether the pool takes changes.
    pub(crate) fn check_writable(&self) -> Result<(), BlockError> {
        if self.frozen_by.get().is_some() { Err(BlockError::ReadOnly) } else { Ok(()) }
    }

    /// No more changes, and everybody who waits to make one is told.
    pub(crate) fn freeze(&self, why: ReadOnly) {
        if self.frozen_by.get().is_none() {
            tracing::error!(pool = %self.id, "the pool takes no changes any more: {why}");
            self.frozen_by.set(Some(why));
        }
        self.room.changed.notify_waiters();
        // No checkpoint will be made that somebody may wait for.
        self.checkpoints.done.notify_waiters();
    }

    /// The journal takes nothing any more, so neither does the pool. Says why.
    pub(crate) fn freeze_with_journal(&self) -> ReadOnly {
        self.freeze(match self.journal.failed() {
            Some(JournalError::Lost) => ReadOnly::Lost,
            _ => ReadOnly::Journal,
        });
        self.frozen_by.get().unwrap_or(ReadOnly::Journal)
    }

    /// What the device says of a write. Once it may have lost what it had
    /// answered, nothing that refers to that may be made durable.
    pub(crate) fn heed(&self, outcome: Result<(), BlockError>) -> Result<(), BlockError> {
        if outcome == Err(BlockError::Lost) {
            self.journal.fail(JournalError::Lost);
            self.freeze(ReadOnly::Lost);
        }
        outcome
    }

    /// The head that a request of a volume goes to.
    pub(crate) fn head(&self, id: VolumeId) -> Option<Head> {
        let state = self.state.borrow();
        let volume = state.catalog.volume(id)?;
        let since = state.catalog.since(volume.line);
        let (line, domain, blocks) = (volume.line, volume.domain, volume.blocks);
        Some(Head { line, since, domain, blocks, epoch: state.catalog.epoch() })
    }

    /// Makes a change: in memory, and in the journal, in one step; says
    /// whether it could be made.
    ///
    /// The caller was admitted to the journal.
    pub(crate) fn settle(&self, record: &Record) -> bool {
        let applied = self.state.borrow_mut().apply(record);
        if let Err(why) = applied {
            // What recovery would refuse must not be written.
            tracing::error!(pool = %self.id, "a change that cannot be: {why}");
            return false;
        }
        self.journal.append(record);
        if let Record::New { pointer, hash, .. } = record {
            self.index.insert(hash, pointer.pba);
        }
        true
    }

    /// Opens a guest's block where it lies.
    pub(crate) fn open_block(
        &self,
        domain: DomainId,
        seal: &Seal,
        pba: Pba,
        bytes: &mut [u8],
    ) -> Result<(), BlockError> {
        let binding = Binding::data(domain, pba).encode(&self.id);
        self.vault.open(domain, seal, &binding, bytes).map_err(|why| {
            count(&self.tally.damaged, 1);
            tracing::error!(pool = %self.id, pba = pba.0, ?why, "a block does not open");
            BlockError::Medium
        })
    }

    /// Seals a guest's block where it lies.
    pub(crate) fn seal_block(
        &self,
        domain: DomainId,
        pba: Pba,
        bytes: &mut [u8],
    ) -> Result<Seal, BlockError> {
        let binding = Binding::data(domain, pba).encode(&self.id);
        let sealed = self.vault.seal(domain, &binding, bytes);
        if self.vault.needs_era() {
            self.work.notify_one();
        }
        sealed.map_err(|why| {
            tracing::error!(pool = %self.id, ?why, "a block cannot be sealed");
            BlockError::Medium
        })
    }

    /// The hashes of blocks, with the domain's current key.
    pub(crate) fn hashes(
        &self,
        domain: DomainId,
        blocks: &[&[u8]],
        out: &mut [Hash],
    ) -> Result<(), BlockError> {
        let key = self.vault.hash_key(domain).map_err(|_| BlockError::Medium)?;
        hash::hash_many(&key, blocks, out);
        Ok(())
    }
}

/// Where a volume's changes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) line: crate::layout::LineId,
    /// The last epoch that a snapshot has.
    pub(crate) since: crate::layout::Epoch,
    pub(crate) domain: DomainId,
    /// The volume's size.
    pub(crate) blocks: BlockCount,
    /// The epoch that changes belong to.
    pub(crate) epoch: crate::layout::Epoch,
}

impl State {
    /// What a record says, done in memory: the same live and at recovery.
    pub(crate) fn apply(&mut self, record: &Record) -> Result<(), crate::catalog::Contradiction> {
        match *record {
            Record::New { line, lba, pointer, hash } => {
                let since = self.catalog.since(line);
                self.active.store((line, since), lba, pointer, hash);
            }
            Record::Share { line, lba, pointer } => {
                let since = self.catalog.since(line);
                self.active.share((line, since), lba, pointer);
            }
            Record::Hole { line, range } => {
                let (since, epoch) = (self.catalog.since(line), self.catalog.epoch());
                self.active.clear((line, since), range, epoch);
            }
            Record::Control(ref control) => self.catalog.apply(control)?,
        }
        Ok(())
    }

    /// How many pointers name a block, given its durable count, and whether
    /// it was stored since the checkpoint being made or stays stored in it.
    pub(crate) fn count(&self, pba: Pba, durable: u16) -> (i64, bool) {
        let active = self.active.block(pba);
        let merging = self.merging.as_ref().and_then(|merging| merging.block(pba));
        let delta = |change: Option<&BlockChange>| change.map_or(0, |change| change.delta);
        let merged = i64::from(durable) + i64::from(delta(merging));
        let born = active.is_some_and(|change| change.born.is_some());
        (merged + i64::from(delta(active)), born || merged > 0)
    }
}
