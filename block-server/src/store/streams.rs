//! Snapshots that leave as streams, and streams that become snapshots.
//!
//! Whoever moves a stream asks for one bounded step after the other, and says
//! with each what it takes to be there: nothing is kept between two steps but
//! what is stored with the volume, and how far an import has come. So it does
//! not matter who goes on, or when.

use std::rc::Rc;

use block_core::{Blocks, Buffer, Device, Lba};
use interpose::layout::provenance::{Coming, Provenance};
use interpose::layout::stream::{About, Manifest};
use interpose::pool::{Begun, Exported, Piece};
use link::VolumeName;
use tokio::sync::{Mutex, MutexGuard};
use tracing::info;

use super::{DEFAULT_DOMAIN, Store, StoreError};
use crate::attributes::Attributes;
use crate::layout::VolumeRecord;
use crate::volume::Volume;

/// After so many blocks an import is made durable up to where it is: what a
/// crash takes back is 256 MiB at most.
const DURABLE_BLOCKS: u64 = 64 * 1024;

/// What blocks of streams go through, one step at a time: their users can
/// wait, guests cannot.
pub struct Transfers {
    leaving: Mutex<()>,
    arriving: Mutex<()>,
    buffers: block_core::Pool,
}

impl Transfers {
    /// Transfers through two buffers, each of which holds what a frame of a
    /// stream does.
    #[must_use]
    pub fn new(buffers: block_core::Pool) -> Self {
        Self { leaving: Mutex::default(), arriving: Mutex::default(), buffers }
    }

    async fn take<'a>(
        &self,
        turn: &'a Mutex<()>,
    ) -> Result<(MutexGuard<'a, ()>, Buffer), StoreError> {
        let turn = turn.lock().await;
        let buffer = self.buffers.take().ok_or_else(|| {
            StoreError::Pool("there is no memory to move blocks through; try again".to_owned())
        })?;
        Ok((turn, buffer))
    }
}

/// A stream that comes, as its manifest says, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeginImport {
    /// Into which volume.
    pub volume: VolumeName,
    /// What the snapshot is called here.
    pub name: VolumeName,
    /// With whose volumes a new volume shares a key and blocks.
    pub domain: Option<String>,
    /// What the stream says of itself.
    pub manifest: Manifest,
}

/// A step of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arriving {
    /// What the stream is of.
    pub about: About,
    /// Up to where whoever sends this takes the import to have come.
    pub after: Lba,
    /// Up to where it has come with this.
    pub upto: Lba,
    /// What comes; ascending.
    pub pieces: Vec<Piece>,
}

impl<D: Device + 'static> Store<D> {
    /// What a stream says of itself.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn manifest(
        &self,
        volume: &Volume<D>,
        snapshot: &VolumeName,
        base: Option<&VolumeName>,
    ) -> Result<Manifest, StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let found = self.found(&pool, &blocks, volume, snapshot)?;
        let base = base.map(|base| self.found(&pool, &blocks, volume, base)).transpose()?;
        pool.manifest(&found, base.as_ref()).await
    }

    /// What a stream holds from a block on: a bounded part of it.
    ///
    /// # Errors
    /// A [`StoreError`]; when the names mean other snapshots by now, too.
    pub async fn export(
        &self,
        volume: &Volume<D>,
        snapshot: &VolumeName,
        base: Option<&VolumeName>,
        about: &About,
        from: Lba,
    ) -> Result<Exported, StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let transfers = &self.means.transfers;
        let (_turn, buffer) = transfers.take(&transfers.leaving).await?;
        let found = self.found(&pool, &blocks, volume, snapshot)?;
        let base = base.map(|base| self.found(&pool, &blocks, volume, base)).transpose()?;
        if pool.manifest(&found, base.as_ref()).await?.about() != *about {
            let (volume, name) = (volume.record().name, snapshot.clone());
            return Err(StoreError::OtherSnapshot { volume, name });
        }
        pool.export(&found, base.as_ref(), from, buffer).await
    }

    /// Makes a volume for a stream. It is nobody's until all of that has come.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is no such volume.
    pub async fn create_for_import(
        &self,
        import: &BeginImport,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        let BeginImport { volume: name, domain, manifest, .. } = import;
        let pool = self.pool()?;
        let begun = Begun::new(manifest).map_err(|error| StoreError::Pool(error.to_string()))?;
        self.reserve(name)?;
        let attributes = Attributes { provenance: begun.provenance, ..Attributes::fresh(false) };
        let domain = domain.as_deref().unwrap_or(DEFAULT_DOMAIN);
        let created = pool.create(name, manifest.blocks, domain, attributes).await;
        let verifier = self.means.chance.number();
        let made = created.map(|found| Volume::pooled(found, &self.means.scratch, verifier));
        let volume = self.add(name, made)?;
        volume.imported_to.set(Some(begun.position));
        info!(%name, "import begun");
        Ok(volume)
    }

    /// Lets a volume that is there take a stream, or go on with one. Up to
    /// which block that has come.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume does not.
    pub async fn begin_import(
        &self,
        volume: &Volume<D>,
        import: &BeginImport,
    ) -> Result<Lba, StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        volume.interrupt_import();
        let _change = volume.change.lock().await;
        let old = self.existing(volume)?;
        old.check_detached("stop that front before something is imported onto the volume")?;
        if import.domain.as_ref().is_some_and(|domain| Some(domain) != volume.domain().as_ref()) {
            let sentence = "the volume has its domain already; leave `--domain` out";
            return Err(StoreError::Pool(sentence.to_owned()));
        }
        let BeginImport { manifest, name, .. } = import;
        let begun = pool.begin_import(&blocks, old.provenance, manifest, name.as_str()).await?;
        volume.revoke(|_| true).await;
        if begun.provenance != old.provenance {
            let (provenance, generation) = (begun.provenance, old.generation + 1);
            self.commit(volume, VolumeRecord { provenance, generation, ..old }).await?;
            info!(name = %import.volume, "import begun");
        }
        let position = volume.imported_to.get().map_or(begun.position, |at| at.max(begun.position));
        volume.imported_to.set(Some(position));
        Ok(position)
    }

    /// Writes what comes next of a stream. Up to which block it has come then.
    ///
    /// # Errors
    /// A [`StoreError`]; then the import is where it was.
    pub async fn put(&self, volume: &Volume<D>, step: &Arriving) -> Result<Lba, StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let transfers = &self.means.transfers;
        let (_turn, mut buffer) = transfers.take(&transfers.arriving).await?;
        let _change = volume.change.lock().await;
        let (old, coming) = self.coming(volume, &step.about, step.after)?;
        for piece in &step.pieces {
            buffer = pool.put(&blocks, piece, buffer).await?;
        }
        if step.upto.0 >= coming.position.0 + DURABLE_BLOCKS {
            blocks.flush().await.map_err(StoreError::Device)?;
            let coming = Some(Coming { position: step.upto, ..coming });
            let provenance = Provenance { coming, ..old.provenance };
            self.commit(volume, VolumeRecord { provenance, ..old }).await?;
        }
        volume.imported_to.set(Some(step.upto));
        Ok(step.upto)
    }

    /// Ends an import of which everything has come: it becomes a snapshot, and
    /// the volume can be used.
    ///
    /// # Errors
    /// A [`StoreError`]; then the import is under way.
    pub async fn end_import(
        &self,
        volume: &Volume<D>,
        about: &About,
        name: &VolumeName,
        as_is: bool,
    ) -> Result<(), StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let _change = volume.change.lock().await;
        let end = Lba(blocks.blocks().0);
        let (old, coming) = self.coming(volume, about, end)?;
        let provenance = pool.end_import(&blocks, &coming, name.as_str(), as_is).await?;
        let volume_name = old.name.clone();
        self.commit(volume, VolumeRecord { provenance, ..old }).await?;
        volume.imported_to.set(None);
        info!(name = %volume_name, snapshot = %name, "imported");
        Ok(())
    }

    /// The import that is under way, if it is of this stream and has come up to
    /// there in this run of the server: what came before a crash may be gone.
    fn coming(
        &self,
        volume: &Volume<D>,
        about: &About,
        at: Lba,
    ) -> Result<(VolumeRecord, Coming), StoreError> {
        let record = self.existing(volume)?;
        let coming = record.provenance.coming.filter(|coming| {
            let is_same = coming.source == about.source && coming.base == about.base;
            is_same && volume.imported_to.get() == Some(at)
        });
        let lost = || StoreError::LostImport(record.name.clone());
        let coming = coming.ok_or_else(lost)?;
        Ok((record, coming))
    }
}
