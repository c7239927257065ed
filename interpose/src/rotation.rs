//! After a domain's key was rotated: what its volumes hold is written anew,
//! under the new key, beside the requests and at a bounded rate.
//!
//! A pass looks at every block of every volume of the domain. A block that an
//! old key seals is read, and shared or stored as a guest's write would be, if
//! its volume still has the same pointer there in the step in which the new one
//! is settled: what a guest has written meanwhile is never replaced. Snapshots
//! keep their blocks, and these their key. When a pass has found nothing, and
//! there was nothing but volumes all the while, the old keys are destroyed.
//!
//! Nothing of this is stored: a pool that is opened begins with a pass for each
//! domain that has old keys.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockCount, BlockError, Device, Lba, LbaRange};

use crate::admission::Patience;
use crate::catalog::head_of;
use crate::core::{Core, Head};
use crate::layout::control::VolumeId;
use crate::layout::record::Hash;
use crate::layout::{Class, DomainId, Epoch, EraId, Kind, LineId, Pointer, Record};
use crate::overlay::Known;
use crate::pace::Pacer;
use crate::pages::What;
use crate::radix::{Item, Walk};
use crate::space::Purpose;

/// Blocks that are written anew in a second at most: 32 MiB, a fraction of
/// what a device does.
const BLOCKS_PER_SECOND: NonZeroU32 = NonZeroU32::new(8192).unwrap();

/// Blocks that are found, and looked at, before checkpoints may free what is
/// being looked at.
const FOUND: usize = 64;
const LOOKED_AT: usize = 1024;

/// How long a pass that failed is not tried again: there is no room.
const PATIENCE: Duration = Duration::from_secs(10);

/// How far the rewriting of a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewriting {
    /// Whose blocks.
    pub domain: DomainId,
    /// How much of the volumes has been looked at in this pass.
    pub done: BlockCount,
    /// How large they are together.
    pub total: BlockCount,
    /// Blocks that were written anew in it.
    pub rewritten: BlockCount,
}

/// What a pass depends on: while it is the same, another one finds nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Moment {
    since: EraId,
    /// Clones and restored volumes begin as snapshots.
    next_line: LineId,
    /// When there are no snapshots, nor anything that is being deleted: the
    /// epoch, which the next snapshot ends.
    alone: Option<Epoch>,
}

/// What a pass came to.
#[derive(Clone, Copy, Default)]
struct Pass {
    /// Blocks that were written anew, or changed meanwhile.
    changed: u64,
    /// Blocks that could not be, or that are not known.
    left: u64,
}

/// A block as it was found.
struct Found {
    head: Head,
    lba: Lba,
    pointer: Pointer,
    /// The checkpoint whose map said so.
    generation: u64,
}

impl<D: Device + 'static> Core<D> {
    /// Writes what old keys seal anew, for ever.
    pub(crate) async fn rewrite_old(self: Rc<Self>) {
        let mut known: BTreeMap<DomainId, Moment> = BTreeMap::new();
        loop {
            let changed = self.checkpoints.done.notified();
            for (domain, since) in self.vault.rotated() {
                self.rewrite_domain(domain, since, &mut known).await;
            }
            self.rewriting.set(None);
            if self.frozen_by.get().is_some() {
                return;
            }
            changed.await;
        }
    }

    async fn rewrite_domain(
        &self,
        domain: DomainId,
        since: EraId,
        known: &mut BTreeMap<DomainId, Moment>,
    ) {
        loop {
            let before = self.moment(domain, since);
            if self.frozen_by.get().is_some() || known.get(&domain) == Some(&before) {
                return;
            }
            match self.pass(domain, since).await {
                Err(_) => self.alarms.pause(PATIENCE).await,
                // Another one says whether that was all.
                Ok(Pass { changed: 1.., .. }) => {}
                Ok(Pass { left, .. }) => {
                    known.insert(domain, before);
                    let alone = before.alone.is_some() && before == self.moment(domain, since);
                    if left == 0 && alone {
                        self.forget_keys(domain, since).await;
                    }
                }
            }
        }
    }

    fn moment(&self, domain: DomainId, since: EraId) -> Moment {
        let state = self.state.borrow();
        let catalog = &state.catalog;
        let mut nodes = catalog.nodes().filter(|(_, node)| node.facts.domain == domain);
        let alone = nodes.all(|(key, node)| key.epoch == Epoch::HEAD && !node.facts.deleted);
        let alone = alone.then(|| catalog.epoch());
        Moment { since, next_line: catalog.next_line(), alone }
    }

    /// Destroys the keys of a domain that seal nothing any more.
    async fn forget_keys(&self, domain: DomainId, since: EraId) {
        let domains = self.vault.domains();
        let Some(found) = domains.iter().find(|found| found.id == domain) else { return };
        for &from in found.keys.iter().filter(|from| **from < since) {
            if let Err(why) = self.vault.forget_key(domain, from).await {
                tracing::error!(pool = %self.id, "an old key cannot be destroyed: {why}");
                return;
            }
        }
        tracing::info!(pool = %self.id, domain = %found.name, "its old keys are destroyed");
    }

    async fn pass(&self, domain: DomainId, since: EraId) -> Result<Pass, BlockError> {
        let volumes: Vec<(VolumeId, u64)> = {
            let state = self.state.borrow();
            let volumes = state.catalog.volumes().filter(|volume| volume.domain == domain);
            volumes.map(|volume| (volume.id, volume.blocks.0)).collect()
        };
        let total = BlockCount(volumes.iter().map(|(_, blocks)| blocks).sum());
        let (done, rewritten) = (BlockCount(0), BlockCount(0));
        self.rewriting.set(Some(Rewriting { domain, done, total, rewritten }));
        // What was sealed before the rotation is in the maps, and no recovery
        // needs a journal that names such a block.
        self.writers.drain().await;
        self.wait_for_checkpoint().await?;
        let mut pacer = Pacer::new(&self.alarms, Some(BLOCKS_PER_SECOND));
        let (mut pass, mut before) = (Pass::default(), 0);
        for (volume, blocks) in volumes {
            let mut from = Some(0);
            while let Some(start) = from {
                self.check_writable()?;
                let found;
                (found, from) = self.old_blocks(volume, since, start, &mut pass).await;
                for lba in found {
                    match self.rewrite(volume, lba, since).await {
                        Ok(true) => pass.changed += 1,
                        Ok(false) => {}
                        Err(error @ (BlockError::NoSpace | BlockError::ReadOnly)) => {
                            return Err(error);
                        }
                        Err(_) => pass.left += 1,
                    }
                    pacer.spend(1).await;
                }
                let done = BlockCount(before + from.unwrap_or(blocks).min(blocks));
                let rewritten = BlockCount(pass.changed);
                self.rewriting.set(Some(Rewriting { domain, done, total, rewritten }));
                turn::yield_now().await;
            }
            before += blocks;
        }
        Ok(pass)
    }

    /// Blocks of a volume's map that an old key seals, from an index on, and
    /// where to go on.
    async fn old_blocks(
        &self,
        id: VolumeId,
        since: EraId,
        from: u64,
        pass: &mut Pass,
    ) -> (Vec<Lba>, Option<u64>) {
        let _reading = self.readers.enter();
        let tree = {
            let state = self.state.borrow();
            let line = state.catalog.volume(id).map(|volume| volume.line);
            line.and_then(|line| state.catalog.node(head_of(line))?.stored.tree)
        };
        let (mut old, mut looked_at) = (Vec::new(), 0);
        let Some(tree) = tree else { return (old, None) };
        let mut walk = Walk::new(Rc::clone(&self.pages), Class::Map, tree, from, None);
        while let Some(item) = walk.next().await {
            let index = match item {
                Item::Value { index, pointer } => {
                    if is_old(&pointer, since) {
                        old.push(Lba(index));
                    }
                    index
                }
                Item::Damaged { damage, .. } => {
                    pass.left += u64::from(damage.what != What::GivenUp);
                    continue;
                }
                Item::Page { .. } => continue,
            };
            looked_at += 1;
            if old.len() == FOUND || looked_at == LOOKED_AT {
                return (old, Some(index + 1));
            }
        }
        (old, None)
    }

    /// Writes a block of a volume anew if an old key seals it. False: there is
    /// nothing to do.
    async fn rewrite(&self, id: VolumeId, lba: Lba, since: EraId) -> Result<bool, BlockError> {
        let patience = Patience::default();
        let _room = self.admit(1, &patience).await?;
        let _reading = self.readers.enter();
        let Some(head) = self.head(id) else { return Ok(true) };
        let generation = self.state.borrow().generation;
        let mut pointers = [Pointer::HOLE];
        let range = LbaRange { start: lba, count: BlockCount(1) };
        self.resolve(head_of(head.line), range, &mut pointers).await?;
        let [pointer] = pointers;
        if !is_old(&pointer, since) {
            return Ok(false);
        }
        let found = Found { head, lba, pointer, generation };
        self.store_anew(id, &found).await?;
        Ok(true)
    }

    async fn store_anew(&self, id: VolumeId, found: &Found) -> Result<(), BlockError> {
        let Found { head, lba, pointer, .. } = found;
        let buffer = self.pages.lend().await;
        let (mut buffer, read) = self.device.read(pointer.pba, buffer, 0..1).await;
        read?;
        let block = &mut buffer[..BLOCK_SIZE];
        self.open_block(head.domain, &pointer.seal, pointer.pba, block)?;
        let mut hash = [Hash::default()];
        self.hashes(head.domain, &[block], &mut hash)?;
        let [hash] = hash;
        let is_still = || self.is_still(id, found);
        let candidates = self.index.candidates(&hash);
        if self.share(head, *lba, &hash, candidates, is_still).await || !is_still() {
            return Ok(());
        }
        let extent = self.space.take(Purpose::Data, 1).await.map_err(|_| BlockError::NoSpace)?;
        let pba = extent.start;
        let seal = match self.seal_block(head.domain, pba, block) {
            Ok(seal) => seal,
            Err(error) => {
                self.space.give_back(extent);
                return Err(error);
            }
        };
        let (_, written) = self.device.write(pba, buffer, 0..1, Durability::Cached).await;
        if let Err(error) = self.heed(written) {
            self.space.set_aside(extent);
            return Err(error);
        }
        // From here to the end nothing waits.
        if !is_still() {
            self.space.give_back(extent);
            return Ok(());
        }
        let birth = self.state.borrow().catalog.epoch();
        let pointer = Pointer { seal, pba, birth, kind: Kind::Data };
        self.settle(&Record::New { line: head.line, lba: *lba, pointer, hash });
        self.pace();
        Ok(())
    }

    /// Whether a volume still has what was found. The map of a checkpoint does
    /// not change, and everything since is in the overlays.
    fn is_still(&self, id: VolumeId, found: &Found) -> bool {
        let state = self.state.borrow();
        let Some(volume) = state.catalog.volume(id) else { return false };
        let (line, lba) = (found.head.line, found.lba);
        let known = std::iter::once(&state.active)
            .chain(&state.merging)
            .map(|overlay| overlay.find(line, lba, Epoch::MAX))
            .find(|known| *known != Known::Nothing);
        let same = known.is_none_or(|known| match known {
            Known::Is(now) => (now.seal, now.pba) == (found.pointer.seal, found.pointer.pba),
            Known::Nothing => true,
        });
        same && volume.line == line
            && lba.0 < volume.blocks.0
            && state.generation == found.generation
    }
}

fn is_old(pointer: &Pointer, since: EraId) -> bool {
    pointer.kind == Kind::Data && pointer.seal.era < since
}
