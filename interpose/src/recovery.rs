//! Opening a pool: the newest superblock, what the journal says since, and a
//! new era.
//!
//! Up to the new era nothing is written but second copies of what one copy
//! lost, so that recovery can be cut off and repeated at any point.

mod replay;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::{BlockCount, BlockError, Chance, Device, Pba, Pool as Buffers};
use thiserror::Error;

use self::replay::Replay;
use crate::checkpoint::{Guard, NoSuperblock, Shelves, newest_superblock, repair_superblock};
use crate::core::{Core, ReadOnly, State, Tally};
use crate::index::Index;
use crate::journal::{self, Journal, Position, Ring, Start, Verdict};
use crate::layout::Record;
use crate::layout::control::Control;
use crate::layout::superblock::Superblock;
use crate::overlay::Overlay;
use crate::pages::{Damage, Pages};
use crate::read_cache::ReadCache;
use crate::settings::Settings;
use crate::space::Space;
use crate::space::layout::REGION_BLOCKS;
use crate::space::window::Window;
use crate::vault::{KeyError, Secret, UnlockError, Vault};

/// Pages of counts that are read at once.
const READS: usize = 32;

/// What a pool is opened with.
pub struct Means<D> {
    /// The device that it is on.
    pub device: Rc<D>,
    /// Buffers of a block that the device reaches: as many as
    /// [`Settings::page_cache`] says.
    pub buffers: Buffers,
    /// Where salts and identities come from.
    pub chance: Chance,
    /// The time of snapshots: seconds since 1970.
    pub wall: Box<dyn Fn() -> u64>,
}

/// Why a pool was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The keys.
    #[error(transparent)]
    Locked(#[from] UnlockError),
    /// No superblock can be read.
    #[error(
        "both copies of a superblock are damaged, so what was flushed last cannot be found; \
         restore the device from a copy, or make the pool anew"
    )]
    Superblocks,
    /// The device does not read.
    #[error("the superblocks cannot be read: {0}; check the device")]
    Unreadable(BlockError),
    /// The device lost its end.
    #[error(
        "the device has {there} and the pool on it has {pool}: give it the device that it was \
         made on, whole"
    )]
    Shrunk {
        /// The device.
        there: BlockCount,
        /// The pool.
        pool: BlockCount,
    },
    /// The device holds an older state than the server remembers.
    #[error(
        "the device holds checkpoint {found}, but {newest} was made: it was rolled back, or \
         this is a copy; if that is wanted, say so (`--accept-rollback`)"
    )]
    RolledBack {
        /// The device's.
        found: u64,
        /// The newest one known.
        newest: u64,
    },
    /// The catalog cannot be read.
    #[error("the catalog is damaged: {0}")]
    Catalog(String),
    /// The kernel has no memory for the dedup index.
    #[error("there is no memory for the dedup index: {0}; give it less in the configuration")]
    Index(String),
    /// A record of the journal cannot be.
    #[error("block {number} of the journal says what cannot be: {why}")]
    Journal {
        /// Which block.
        number: u64,
        /// Why.
        why: String,
    },
    /// The new salt could not be written.
    #[error("a new salt could not be written: {0}")]
    Era(#[from] KeyError),
    /// There are not enough buffers.
    #[error("a pool needs at least {least} pages of memory and has {there}; raise `page_cache`")]
    Memory {
        /// What it needs.
        least: usize,
        /// What there is.
        there: usize,
    },
    /// The device could not be written.
    #[error("a copy of the superblock could not be written anew")]
    Repair,
}

/// Opens a pool. `newest` is what the caller remembers of it.
pub(crate) async fn open<D: Device + 'static>(
    means: Means<D>,
    secret: &Secret,
    settings: Settings,
    newest: Option<Guard>,
) -> Result<Rc<Core<D>>, OpenError> {
    let Means { device, buffers, chance, wall } = means;
    if buffers.count() < Settings::LEAST_PAGES {
        let (least, there) = (Settings::LEAST_PAGES, buffers.count());
        return Err(OpenError::Memory { least, there });
    }
    let vault = Vault::unlock(Rc::clone(&device), buffers.clone(), secret, chance.clone()).await?;
    let vault = Rc::new(vault);
    let found = newest_superblock(&*device, &vault, &buffers).await;
    let (superblock, guard, missing) = found.map_err(|why| match why {
        NoSuperblock::BothBad => OpenError::Superblocks,
        NoSuperblock::Unreadable(error) => OpenError::Unreadable(error),
    })?;
    check(&superblock, &guard, device.blocks(), newest)?;
    let pool = vault.pool_id();
    let ring = Ring::new(0, superblock.journal).ok_or(OpenError::Superblocks)?;
    // The journal is read through buffers that nothing else needs yet.
    let start = Start {
        position: Position { next: superblock.from, previous: superblock.previous },
        mark: superblock.mark,
    };
    let chain = journal::scan(&*device, &vault, &buffers, &ring, start).await;
    let pages = Rc::new(Pages::new(Rc::clone(&device), Rc::clone(&vault), buffers.clone()));
    let (shelves, catalog) = Shelves::read(&pages, &superblock)
        .await
        .map_err(|why| OpenError::Catalog(why.to_string()))?;
    let (space, damage) = Space::open(Rc::clone(&pages), superblock.segments.clone()).await;
    damage.iter().for_each(|damage: &Damage| tracing::error!(%pool, %damage, "counts are lost"));
    let state = State {
        catalog,
        active: Overlay::default(),
        merging: None,
        seals: superblock.seals,
        usage: superblock.usage,
        generation: guard.generation,
    };
    let index = Index::new(settings.index).map_err(|why| OpenError::Index(why.to_string()))?;
    let state = RefCell::new(state);
    let replay = Replay {
        pages: &pages,
        vault: &vault,
        buffers: &buffers,
        ring: &ring,
        state: &state,
        space: &space,
        index: &index,
    };
    let at = replay.run(start, chain).await?;
    claim_shared(&state, &space).await;
    let read_only = match chain.verdict {
        _ if settings.read_only => Some(ReadOnly::Asked),
        Verdict::Whole => None,
        Verdict::Damaged { .. } => Some(ReadOnly::Damaged),
    };
    if read_only.is_none() {
        vault.begin_era().await?;
    }
    let (oldest, mark) = (superblock.from, chain.mark.min(at.next.saturating_sub(1)));
    let journal =
        Journal::new(Rc::clone(&device), Rc::clone(&vault), &buffers, ring, at, oldest, mark)
            .map_err(|journal::NoBuffers(there)| OpenError::Memory {
                least: Settings::LEAST_PAGES,
                there,
            })?;
    let core = Rc::new(Core {
        id: pool,
        device,
        vault,
        pages,
        space: Rc::new(space),
        journal,
        journal_extent: superblock.journal,
        index,
        cache: ReadCache::new(settings.read_cache),
        settings,
        chance,
        wall,
        state,
        readers: Rc::default(),
        writers: Rc::default(),
        rewriting: Cell::default(),
        room: Default::default(),
        checkpoints: Default::default(),
        guard: Cell::new(guard),
        frozen_by: Cell::new(read_only),
        tally: Tally::default(),
        work: Default::default(),
        alarms: Default::default(),
    });
    core.checkpoints.shelves.replace(shelves);
    if read_only.is_some() {
        return Ok(core);
    }
    let repaired = repair_superblock(&core, &guard, &superblock, &missing).await;
    repaired.map_err(|_| OpenError::Repair)?;
    core.begin_journal(at.next);
    Ok(core)
}

fn check(
    superblock: &Superblock,
    guard: &Guard,
    there: BlockCount,
    newest: Option<Guard>,
) -> Result<(), OpenError> {
    if superblock.blocks > there {
        return Err(OpenError::Shrunk { there, pool: superblock.blocks });
    }
    match newest.filter(|newest| newest.pool == guard.pool) {
        Some(newest)
            if newest.generation > guard.generation
                || newest.generation == guard.generation && newest.tag != guard.tag =>
        {
            Err(OpenError::RolledBack { found: guard.generation, newest: newest.generation })
        }
        _ => Ok(()),
    }
}

impl<D: Device> Core<D> {
    /// Says in the journal that the pool was opened, and asks for a checkpoint
    /// if the journal is long. One that is full is not told: nobody makes room
    /// before the pool is open, and what it would be told is for people.
    fn begin_journal(&self, cut: u64) {
        let Some(era) = self.vault.era() else { return };
        if self.journal.admit_at_once(1).is_some() {
            self.journal.append(&Record::Control(Control::Opened { era, cut }));
        }
        self.pace();
    }
}

/// A block that the checkpoint has given up may have been shared while that was
/// made: its durable count is 0, and it must not be handed out.
async fn claim_shared<D: Device>(state: &RefCell<State>, space: &Space<D>) {
    let mut window = Window::new(READS);
    let mut from = Some(Pba(0));
    loop {
        while window.has_room()
            && let Some(start) = from
        {
            let (shared, next) = shared_from(&state.borrow().active, start);
            from = next;
            window.push(claim_all(space, shared));
        }
        if window.next().await.is_none() {
            return;
        }
        turn::yield_now().await;
    }
}

/// Blocks that were shared and not stored since the checkpoint, as many as
/// have their counts on one page or two, and where the next ones are.
fn shared_from(active: &Overlay, from: Pba) -> (Vec<Pba>, Option<Pba>) {
    let mut shared = Vec::new();
    let next =
        active.look_at_blocks(from..Pba(from.0 + REGION_BLOCKS), usize::MAX, |pba, change| {
            if change.born.is_none() && change.delta > 0 {
                shared.push(pba);
            }
        });
    (shared, next)
}

async fn claim_all<D: Device>(space: &Space<D>, blocks: Vec<Pba>) {
    for pba in blocks {
        // Where counts are damaged nothing is handed out.
        if space.load_count(pba).await == Ok(0) {
            let _ = space.claim(pba);
        }
    }
}
