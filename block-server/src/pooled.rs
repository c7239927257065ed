//! A device that is a pool: what the server asks of it, in the server's words.

mod checking;
mod opening;
mod streams;

use std::cell::Cell;
use std::rc::Rc;

use block_core::unit::BlockCount;
use block_core::{BlockError, Device, Lba, LbaRange, Time};
use interpose::Pool;
use interpose::pool::{PoolError, SnapshotKey};
use interpose::vault::{Domain, NewWay, WayKind};
use link::VolumeName;
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::api::{DomainInfo, FigureInfo, KeysInfo, PoolContent, SecretKind, WayInfo};
use crate::attributes::Attributes;
use crate::catalog::CommitError;
use crate::layout::{VolumeId, VolumeRecord};
use crate::remembered::Rollback;
use crate::room::Life;
use crate::size::Size;
use crate::store::StoreError;
pub use opening::{Opening, page_buffers};

/// The blocks of a pool's volume.
pub type PoolBlocks<D> = interpose::Volume<D>;

/// A volume that a pool has.
pub struct Found<D> {
    /// Its blocks.
    pub blocks: Rc<PoolBlocks<D>>,
    /// With whose volumes it shares a key and blocks.
    pub domain: String,
    /// What is stored about it.
    pub record: VolumeRecord,
}

/// A snapshot that a pool has.
pub struct SnapshotFound {
    key: SnapshotKey,
    /// What it is called.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
    /// Whether its writer may have lost writes.
    pub as_is: bool,
    /// The volume's size then.
    pub blocks: BlockCount,
    /// How many volumes and snapshots go on from it.
    pub branches: usize,
}

/// An open pool.
pub struct Pooled<D> {
    pool: Rc<Pool<D>>,
    check: checking::LastCheck,
    rollback: Rollback,
    /// The newest checkpoint that was remembered.
    remembered: Cell<u64>,
    abandoned: Rc<Abandoned>,
}

/// Tells a pool's background that there is no device for it any more.
#[derive(Default)]
struct Abandoned {
    yes: Cell<bool>,
    told: Notify,
}

impl<D: Device + 'static> Pooled<D> {
    /// What goes on in the pool's background.
    #[must_use]
    pub fn lives(&self) -> Vec<Life> {
        self.pool.tasks().into_iter().map(|life| self.until_abandoned(life)).collect()
    }

    fn until_abandoned(&self, life: Life) -> Life {
        let abandoned = Rc::clone(&self.abandoned);
        Box::pin(async move {
            let told = abandoned.told.notified();
            if !abandoned.yes.get() {
                tokio::select! { biased; () = told => {} () = life => {} }
            }
        })
    }

    /// The device is being reset: everything that is under way ends with an
    /// error, and the background ends. What is in memory is given up.
    pub fn abandon(&self) {
        self.pool.abandon();
        self.abandoned.yes.set(true);
        self.abandoned.told.notify_waiters();
    }

    /// A turn begins.
    pub fn tick(&self, now: Time) {
        self.pool.tick(now);
        self.remember();
    }

    /// Keeps what the device must not be older than from now on.
    fn remember(&self) {
        let newest = self.pool.guard();
        if self.remembered.replace(newest.generation) != newest.generation
            && let Err(error) = self.rollback.remember(&newest)
        {
            warn!("the pool's newest checkpoint could not be remembered: {error}");
        }
    }

    /// When a turn is wanted although nothing has come.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.pool.deadline()
    }

    /// Why nothing can be changed, if so.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.pool.figures().read_only.map(|why| format!("it takes no changes: {why}"))
    }

    /// What nobody uses.
    #[must_use]
    pub fn free(&self) -> BlockCount {
        self.pool.figures().free
    }

    /// Leaves nothing for the next opening to do.
    pub async fn close(&self) {
        // What is not in a checkpoint is in the journal: nothing is lost.
        if let Err(error) = self.pool.checkpoint().await {
            warn!("the pool was not left as a checkpoint: {error}");
        }
        self.remember();
    }

    /// All volumes; one whose name or record is none of ours is left out, and
    /// said.
    #[must_use]
    pub fn volumes(&self) -> Vec<Found<D>> {
        let names: Vec<String> =
            self.pool.volumes().into_iter().map(|volume| volume.name).collect();
        let found = names.iter().filter_map(|name| {
            let found = self.found(name);
            if found.is_none() {
                error!(%name, "a volume's record makes no sense, so it is not served");
            }
            found
        });
        found.collect()
    }

    fn found(&self, name: &str) -> Option<Found<D>> {
        let status = self.pool.volumes().into_iter().find(|volume| volume.name == name)?;
        let attributes = Attributes::parse(&status.attributes)?;
        let record = VolumeRecord {
            id: VolumeId(status.id.0),
            name: VolumeName::new(name).ok()?,
            blocks: status.blocks,
            read_only: attributes.read_only,
            generation: attributes.generation,
            order_epoch: attributes.order_epoch,
            extents: Vec::new(),
            attachments: attributes.attachments,
            settings: attributes.settings,
            provenance: attributes.provenance,
        };
        Some(Found { blocks: self.pool.volume(name)?, domain: status.domain_name, record })
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is none.
    pub async fn create(
        &self,
        name: &VolumeName,
        blocks: BlockCount,
        domain: &str,
        attributes: Attributes,
    ) -> Result<Found<D>, StoreError> {
        let made = self.pool.create_volume(name.as_str(), blocks, domain, attributes.encode());
        made.await.map_err(refused)?;
        self.just_made(name)
    }

    fn just_made(&self, name: &VolumeName) -> Result<Found<D>, StoreError> {
        self.found(name.as_str()).ok_or_else(|| StoreError::Unknown(name.clone()))
    }

    /// Gives a volume another size. Nobody writes to what it loses.
    ///
    /// # Errors
    /// A [`StoreError`]; then it is as it was.
    pub async fn resize(
        &self,
        volume: &PoolBlocks<D>,
        to: BlockCount,
        attributes: &Attributes,
    ) -> Result<(), StoreError> {
        self.pool.resize_volume(volume.id(), to, attributes.encode()).await.map_err(refused)
    }

    /// Deletes a volume and its snapshots.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume is still there.
    pub async fn delete(&self, volume: &PoolBlocks<D>) -> Result<(), StoreError> {
        for snapshot in self.snapshots(volume) {
            self.delete_snapshot(&snapshot).await?;
        }
        self.pool.delete_volume(volume.id()).await.map_err(refused)
    }

    /// Stores what the server keeps with a volume.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn commit(
        &self,
        volume: &PoolBlocks<D>,
        attributes: &Attributes,
    ) -> Result<(), CommitError> {
        let stored = self.pool.set_attributes(volume.id(), attributes.encode()).await;
        stored.map_err(|error| match error {
            PoolError::Failed(error) => CommitError::Unknown(error),
            _ => CommitError::Unchanged(BlockError::ReadOnly),
        })
    }

    /// Takes snapshots at one moment.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is none.
    pub async fn take_snapshots(
        &self,
        volumes: &[Rc<PoolBlocks<D>>],
        name: &VolumeName,
        as_is: bool,
    ) -> Result<(), StoreError> {
        let ids: Vec<_> = volumes.iter().map(|volume| volume.id()).collect();
        self.pool.snapshot(&ids, name.as_str(), as_is).await.map_err(refused)?;
        Ok(())
    }

    /// A volume's snapshots, the oldest first.
    #[must_use]
    pub fn snapshots(&self, volume: &PoolBlocks<D>) -> Vec<SnapshotFound> {
        let found = self.pool.snapshots(volume.id()).into_iter().map(|status| SnapshotFound {
            key: status.key,
            name: status.name,
            taken: status.taken,
            as_is: status.as_is,
            blocks: status.blocks,
            branches: status.children,
        });
        found.collect()
    }

    /// The snapshot of that name.
    #[must_use]
    pub fn snapshot(&self, volume: &PoolBlocks<D>, name: &VolumeName) -> Option<SnapshotFound> {
        self.snapshots(volume).into_iter().find(|snapshot| snapshot.name == name.as_str())
    }

    /// Makes a volume that begins as a snapshot.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is none.
    pub async fn clone_snapshot(
        &self,
        of: &SnapshotFound,
        name: &VolumeName,
        attributes: Attributes,
    ) -> Result<Found<D>, StoreError> {
        let made = self.pool.clone_snapshot(of.key, name.as_str(), attributes.encode());
        made.await.map_err(refused)?;
        self.just_made(name)
    }

    /// Makes a volume what a snapshot is.
    ///
    /// # Errors
    /// A [`StoreError`]; then it is as it was.
    pub async fn restore(
        &self,
        volume: &PoolBlocks<D>,
        to: &SnapshotFound,
        attributes: &Attributes,
    ) -> Result<(), StoreError> {
        self.pool.restore(volume.id(), to.key, attributes.encode()).await.map_err(refused)?;
        Ok(())
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// A [`StoreError`]; then it is still there.
    pub async fn delete_snapshot(&self, snapshot: &SnapshotFound) -> Result<(), StoreError> {
        self.pool.delete_snapshot(snapshot.key).await.map_err(refused)
    }

    /// What differs between a snapshot and a later one, or the volume: at
    /// most so many ranges from `start` on, and where to go on.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn diff(
        &self,
        volume: &PoolBlocks<D>,
        from: &SnapshotFound,
        to: Option<&SnapshotFound>,
        start: Lba,
        most: usize,
    ) -> Result<(Vec<LbaRange>, Option<Lba>), StoreError> {
        let to = to.map(|to| to.key);
        self.pool.diff(volume.id(), from.key, to, start, most).await.map_err(refused)
    }

    /// Lets the pool have what its device has grown by.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn grow(&self) -> Result<(), StoreError> {
        self.pool.grow().await.map_err(refused)?;
        Ok(())
    }

    /// What unlocks the pool, and its domains, without their volumes.
    #[must_use]
    pub fn keys(&self) -> KeysInfo {
        let way = |way: interpose::vault::WayInfo| WayInfo {
            name: way.name,
            kind: match way.kind {
                WayKind::Passphrase => SecretKind::Passphrase,
                WayKind::KeyFile => SecretKind::KeyFile,
            },
        };
        let rewriting = self.pool.rewriting();
        let domain = |domain: Domain| DomainInfo {
            keys: domain.keys.len(),
            rewriting: rewriting
                .filter(|rewriting| rewriting.domain == domain.id)
                .map(|it| [it.done, it.total].map(|blocks| Size(blocks.bytes()))),
            erased: domain.is_erased(),
            name: domain.name,
            volumes: Vec::new(),
        };
        KeysInfo {
            ways: self.pool.ways().into_iter().map(way).collect(),
            domains: self.pool.domains().into_iter().map(domain).collect(),
        }
    }

    /// Lets another secret unlock the pool.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn add_way(&self, way: NewWay) -> Result<(), StoreError> {
        self.pool.add_way(way).await.map_err(refused)
    }

    /// Lets a secret unlock the pool no more.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn remove_way(&self, name: &str) -> Result<(), StoreError> {
        if !self.pool.ways().iter().any(|way| way.name == name) {
            return Err(StoreError::NoWay(name.to_owned()));
        }
        self.pool.remove_way(name).await.map_err(refused)
    }

    /// Gives a domain a new key.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn rotate(&self, domain: &str) -> Result<(), StoreError> {
        self.check_domain(domain)?;
        self.pool.rotate(domain).await.map_err(refused)
    }

    /// Destroys a domain's keys.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn erase(&self, domain: &str) -> Result<(), StoreError> {
        self.check_domain(domain)?;
        self.pool.erase(domain).await.map_err(refused)
    }

    fn check_domain(&self, domain: &str) -> Result<(), StoreError> {
        if self.pool.domains().iter().any(|one| one.name == domain) {
            return Ok(());
        }
        Err(StoreError::NoDomainNamed(domain.to_owned()))
    }

    /// What there is in the pool.
    #[must_use]
    pub fn content(&self) -> PoolContent {
        let figures = self.pool.figures();
        let size = |blocks: u64| Size(BlockCount(blocks).bytes());
        let volumes = self.pool.volumes();
        let (deleting, left) = self.pool.deletions();
        let since = &figures.since;
        let counted = [
            ("checkpoints", since.checkpoints),
            ("written", since.written),
            ("of them shared", since.shared),
            ("zeroes", since.zeroes),
            ("read", since.read),
            ("of them cached", since.cached),
            ("damaged", since.damaged),
        ];
        let figure = |(name, blocks): (&str, u64)| FigureInfo { name: name.to_owned(), blocks };
        PoolContent {
            id: figures.id.to_string(),
            volumes: volumes.len(),
            snapshots: volumes.iter().map(|volume| volume.snapshots).sum(),
            free: Size(figures.free.bytes()),
            full: figures.full,
            data: size(figures.usage.data),
            metadata: size(figures.usage.pages),
            journal: size(figures.journal.0),
            referenced: size(figures.usage.references),
            provisioned: Size(volumes.iter().map(|volume| volume.blocks.bytes()).sum()),
            deleting,
            deleting_left: left,
            index: [figures.index.0, figures.index.1],
            since: counted.map(figure).to_vec(),
        }
    }
}

/// Why the pool did not do it, for people.
fn refused(error: PoolError) -> StoreError {
    StoreError::Pool(error.to_string())
}
