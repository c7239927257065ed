//! A volume of this server: what serves its requests, what is stored about
//! it, and who holds it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::device::{Durability, Tag, Transfer};
use block_core::{
    BlockCount, BlockError, Blocks, Buffer, Completed, Device, Lba, LbaRange, Ordered, Scratch,
    Time,
};
use interpose::hooks::Hooks;
use link::{FrontId, VolumeName};

use crate::bound::Bound;
use crate::extents::RawVolume;
use crate::hold::Hold;
use crate::hooked;
use crate::layout::VolumeRecord;
use crate::pooled::{Found, PoolBlocks};

/// What holds a volume's blocks: only these two serve requests.
pub enum Backing<D> {
    /// Extents of the device.
    Raw {
        /// Its place in the device's catalog.
        place: usize,
        /// The extents.
        blocks: Bound<RawVolume<D>>,
    },
    /// The pool that the device is.
    Pool(Bound<PoolBlocks<D>>),
}

/// A volume that is there.
pub struct Volume<D> {
    /// What stands around every request.
    pub hooks: Hooks,
    /// What serves its requests.
    pub requests: Ordered<Backing<D>>,
    /// In a pool: with whose volumes it shares a key and blocks.
    domain: Option<String>,
    record: RefCell<VolumeRecord>,
    /// Its device is given up: every request fails.
    failed: Cell<bool>,
    /// Held by whoever changes the record: one at a time, in order of arrival.
    pub(crate) change: tokio::sync::Mutex<()>,
    deleted: Cell<bool>,
    /// Whether this run of the server has its own order epoch.
    pub(crate) has_epoch: Cell<bool>,
    pub(crate) holds: RefCell<Vec<Rc<Hold>>>,
    /// Up to where the import that is under way has come in this run of the
    /// server; durable or not.
    pub(crate) imported_to: Cell<Option<Lba>>,
}

impl<D: Device + 'static> Volume<D> {
    /// A raw volume as its record says.
    pub(crate) fn raw(
        place: usize,
        record: VolumeRecord,
        device: &Rc<D>,
        scratch: &Rc<Scratch>,
        verifier: u64,
    ) -> Self {
        let blocks = RawVolume::new(Rc::clone(device), record.blocks, &record.extents);
        let blocks = Bound::new(Rc::new(blocks));
        Self::new(Backing::Raw { place, blocks }, None, record, scratch, verifier)
    }

    /// A volume that a pool has.
    pub(crate) fn pooled(found: Found<D>, scratch: &Rc<Scratch>, verifier: u64) -> Self {
        let Found { blocks, domain, record } = found;
        Self::new(Backing::Pool(Bound::new(blocks)), Some(domain), record, scratch, verifier)
    }

    fn new(
        backing: Backing<D>,
        domain: Option<String>,
        record: VolumeRecord,
        scratch: &Rc<Scratch>,
        verifier: u64,
    ) -> Self {
        Self {
            hooks: Hooks::new(hooked::limits(&record), Time::ZERO),
            // Zero is what says nothing on the wire.
            requests: Ordered::new(backing, Rc::clone(scratch), verifier.max(1)),
            domain,
            record: RefCell::new(record),
            change: tokio::sync::Mutex::new(()),
            deleted: Cell::new(false),
            failed: Cell::new(false),
            has_epoch: Cell::new(false),
            holds: RefCell::new(Vec::new()),
            imported_to: Cell::new(None),
        }
    }

    /// Serves as a record says that has been stored.
    pub(crate) fn follow(&self, record: VolumeRecord) {
        if let Backing::Raw { blocks, .. } = self.requests.below()
            && let Some(blocks) = blocks.get()
            && record.blocks != blocks.blocks()
        {
            blocks.remap(record.blocks, &record.extents);
        }
        *self.record.borrow_mut() = record;
    }

    /// Ends the wait of an import for room in a full pool: somebody wants to do
    /// something else with the volume, and would wait for it in turn.
    pub(crate) fn interrupt_import(&self) {
        if self.imported_to.get().is_some() {
            self.give_up_waiting();
        }
    }

    /// Takes holds away and waits for the last of their requests. The caller
    /// holds `change`.
    pub(crate) async fn revoke(&self, which: impl Fn(&Hold) -> bool) {
        let revoked: Vec<Rc<Hold>> =
            self.holds.borrow().iter().filter(|hold| which(hold)).cloned().collect();
        revoked.iter().for_each(|hold| hold.revoke());
        // What waits for room in a full pool would be waited for in turn.
        if !revoked.is_empty() {
            self.give_up_waiting();
        }
        for hold in revoked {
            hold.drained().await;
            self.holds.borrow_mut().retain(|held| !Rc::ptr_eq(held, &hold));
        }
    }

    /// Ends the wait of requests for room in a full pool.
    fn give_up_waiting(&self) {
        if let Backing::Pool(blocks) = self.requests.below()
            && let Some(blocks) = blocks.get()
        {
            blocks.give_up_waiting();
        }
    }

    /// The device is being reset. Every request, those that run too, ends as
    /// [`BlockError::Lost`]: whoever sent it attaches the volume anew and
    /// sends again what it may have lost, in its order.
    pub(crate) fn outdate(&self) {
        self.holds.borrow().iter().for_each(|hold| hold.outdate());
        self.give_up_waiting();
    }

    /// Whether no request runs, of holds that were taken away too.
    pub(crate) fn is_idle(&self) -> bool {
        self.holds.borrow().iter().all(|hold| hold.is_idle())
    }

    /// Lets go of the device that was reset.
    pub(crate) fn release(&self) {
        match self.requests.below() {
            Backing::Raw { blocks, .. } => blocks.release(),
            Backing::Pool(blocks) => blocks.release(),
        }
    }

    /// Serves, as its record says, from the device as it is after a reset.
    pub(crate) fn bind_raw(&self, device: &Rc<D>, record: VolumeRecord) {
        if let Backing::Raw { blocks, .. } = self.requests.below() {
            let extents = RawVolume::new(Rc::clone(device), record.blocks, &record.extents);
            blocks.bind(Rc::new(extents));
            *self.record.borrow_mut() = record;
        }
    }

    /// Serves from the pool as it was found after a reset.
    pub(crate) fn bind_pooled(&self, found: Found<D>) {
        if let Backing::Pool(blocks) = self.requests.below() {
            blocks.bind(found.blocks);
            *self.record.borrow_mut() = found.record;
            // What had come since it was last durable may be gone.
            self.imported_to.set(None);
        }
    }
}

impl<D> Volume<D> {
    /// What is stored about it.
    #[must_use]
    pub fn record(&self) -> VolumeRecord {
        self.record.borrow().clone()
    }

    /// In a pool: with whose volumes it shares a key and blocks.
    #[must_use]
    pub fn domain(&self) -> Option<String> {
        self.domain.clone()
    }

    /// Whether that is its name.
    pub(crate) fn is_called(&self, name: &VolumeName) -> bool {
        self.record.borrow().name == *name
    }

    /// Whether it is not there any more.
    pub(crate) fn is_deleted(&self) -> bool {
        self.deleted.get()
    }

    /// Its device does not come back: requests fail from now on.
    pub(crate) fn fail(&self) {
        self.failed.set(true);
    }

    /// Whether every request fails.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// It is not there any more.
    pub(crate) fn mark_deleted(&self) {
        self.deleted.set(true);
    }

    /// Whether a session of `front` holds it now.
    #[must_use]
    pub fn is_held_by(&self, front: FrontId) -> bool {
        self.hold_of(front).is_some()
    }

    /// What a session of `front` has of it now.
    #[must_use]
    pub fn hold_of(&self, front: FrontId) -> Option<Rc<Hold>> {
        let holds = self.holds.borrow();
        holds.iter().find(|hold| hold.front() == front && !hold.is_revoked()).cloned()
    }

    /// Ends a session's hold without asking the front: the session is over.
    /// What is stored stays. While its requests run, whoever changes who has
    /// the volume finds it, to wait for them.
    pub fn forget(&self, hold: &Rc<Hold>) {
        hold.revoke();
        self.holds.borrow_mut().retain(|held| !(held.is_revoked() && held.is_idle()));
    }
}

/// Does something with the blocks that a backing has, or that which is done
/// while their device is reset.
macro_rules! with_blocks {
    ($backing:expr, |$blocks:ident| $there:expr, $gone:expr) => {
        match $backing {
            Backing::Raw { blocks, .. } => match blocks.get() {
                Some($blocks) => $there,
                None => $gone,
            },
            Backing::Pool(blocks) => match blocks.get() {
                Some($blocks) => $there,
                None => $gone,
            },
        }
    };
}

impl<D: Device + 'static> Blocks for Backing<D> {
    #[inline]
    fn blocks(&self) -> BlockCount {
        match self {
            Self::Raw { blocks, .. } => blocks.size(),
            Self::Pool(blocks) => blocks.size(),
        }
    }

    async fn read(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
    ) -> (Buffer, Result<(), BlockError>) {
        let lost = Err(BlockError::Lost);
        with_blocks!(self, |blocks| blocks.read(range, buffer, place).await, (buffer, lost))
    }

    async fn write(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        let lost = Err(BlockError::Lost);
        with_blocks!(
            self,
            |blocks| blocks.write(range, buffer, place, durability).await,
            (buffer, lost)
        )
    }

    #[inline]
    fn begin(
        &self,
        transfer: Transfer,
        range: LbaRange,
        buffer: Buffer,
        tag: Tag,
    ) -> Result<(), Buffer> {
        match self {
            Self::Raw { blocks, .. } => blocks.begin(transfer, range, buffer, tag),
            // They are sealed, and looked up.
            Self::Pool(_) => Err(buffer),
        }
    }

    fn version(&self) -> u64 {
        match self {
            Self::Raw { blocks, .. } => blocks.version(),
            Self::Pool(blocks) => blocks.version(),
        }
    }

    async fn write_completed(
        &self,
        version: u64,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<Completed, BlockError>) {
        let lost = Err(BlockError::Lost);
        with_blocks!(
            self,
            |blocks| blocks.write_completed(version, range, buffer, place, durability).await,
            (buffer, lost)
        )
    }

    async fn zero(&self, range: LbaRange, unmap: bool) -> Result<(), BlockError> {
        with_blocks!(self, |blocks| blocks.zero(range, unmap).await, Err(BlockError::Lost))
    }

    async fn discard(&self, range: LbaRange) -> Result<(), BlockError> {
        with_blocks!(self, |blocks| blocks.discard(range).await, Err(BlockError::Lost))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        with_blocks!(self, |blocks| blocks.flush().await, Err(BlockError::Lost))
    }
}
