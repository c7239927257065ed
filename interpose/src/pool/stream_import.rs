//! A snapshot on its way into the pool: whether a volume can take it, and its
//! end. Blocks are written as a guest would write them.

use block_core::{Device, Lba};
use thiserror::Error;

use super::{Pool, PoolError};
use crate::layout::Epoch;
use crate::layout::control::{SnapshotKey, VolumeId};
use crate::layout::provenance::{Coming, Provenance};
use crate::layout::stream::{Manifest, Origin};

/// Why a stream is not imported.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ImportError {
    /// The pool.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// It is of another snapshot than what was begun.
    #[error(
        "the volume is being imported from another stream: go on with that one; or give up what \
         has come of it by restoring the volume's last snapshot, or deleting the volume if it has \
         none"
    )]
    OtherStream,
    /// The volume is not what the stream builds on.
    #[error(
        "the stream holds what changed since a snapshot that the volume was not imported up to: \
         import what comes between first, or export all of it"
    )]
    OtherBase,
    /// A stream that builds on nothing goes to a new volume.
    #[error("the stream holds a whole volume, and this one exists: import it under another name")]
    Whole,
    /// A stream that builds on something needs that.
    #[error(
        "the stream holds only what changed since an earlier snapshot: import it onto the volume \
         that has that one"
    )]
    NotWhole,
    /// Somebody wrote to the volume.
    #[error(
        "the volume was changed since its snapshot '{0}', on which the stream builds: restore that \
         first"
    )]
    Changed(String),
    /// The volume has another size.
    #[error("the volume has {here} blocks and the stream's {there}: resize the volume first")]
    Size {
        /// The volume's.
        here: u64,
        /// The stream's.
        there: u64,
    },
}

/// How a volume takes a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// What to keep with the volume before the first block is written.
    pub provenance: Provenance,
    /// Every block before is there already.
    pub position: Lba,
}

impl Begun {
    /// How a volume takes a stream that is made for it.
    ///
    /// # Errors
    /// [`ImportError::NotWhole`].
    pub fn new(manifest: &Manifest) -> Result<Self, ImportError> {
        if manifest.base.is_some() {
            return Err(ImportError::NotWhole);
        }
        Ok(Self::from_the_start(None, manifest, Epoch(0)))
    }

    fn from_the_start(
        held: Option<(Origin, SnapshotKey)>,
        manifest: &Manifest,
        since: Epoch,
    ) -> Self {
        let Manifest { source, base, .. } = *manifest;
        let coming = Some(Coming { source, base, position: Lba(0), since });
        Self { provenance: Provenance { held, coming }, position: Lba(0) }
    }
}

impl<D: Device + 'static> Pool<D> {
    /// How a volume takes a stream that is to become its snapshot `name`:
    /// going on with what has come, or from the start onto the snapshot that
    /// the stream builds on. Nobody else may change the volume from now on.
    ///
    /// # Errors
    /// An [`ImportError`]; then the volume does not.
    pub async fn begin_import(
        &self,
        volume: VolumeId,
        provenance: Provenance,
        manifest: &Manifest,
        name: &str,
    ) -> Result<Begun, ImportError> {
        let (here, there) = (self.record(volume)?.blocks.0, manifest.blocks.0);
        if here != there {
            return Err(ImportError::Size { here, there });
        }
        if let Some(coming) = provenance.coming {
            if coming.source != manifest.source || coming.base != manifest.base {
                return Err(ImportError::OtherStream);
            }
            // All may have come, and a crash kept that from being said.
            let all = self.end_of(volume, &coming, name)?.map(|_| Lba(there));
            return Ok(Begun { provenance, position: all.unwrap_or(coming.position) });
        }
        let base = manifest.base.ok_or(ImportError::Whole)?;
        let since = self.core.state.borrow().catalog.epoch();
        let coming = Coming { source: manifest.source, base: None, position: Lba(0), since };
        self.end_of(volume, &coming, name)?;
        let (key, name) = self.base_of(volume, &provenance, &base).await?;
        let (changed, _) = self.diff(volume, key, None, Lba(0), 1).await?;
        if !changed.is_empty() {
            return Err(ImportError::Changed(name));
        }
        Ok(Begun::from_the_start(Some((base, key)), manifest, since))
    }

    /// The volume's snapshot that a stream builds on: what it was imported up
    /// to, or where the stream comes from, and its name.
    async fn base_of(
        &self,
        volume: VolumeId,
        provenance: &Provenance,
        base: &Origin,
    ) -> Result<(SnapshotKey, String), ImportError> {
        let held = provenance.held.filter(|(origin, _)| origin == base).map(|(_, key)| key);
        let key = held.unwrap_or(base.snapshot);
        let snapshots = self.snapshots(volume);
        let found = snapshots.into_iter().find(|snapshot| snapshot.key == key);
        let found = found.ok_or(ImportError::OtherBase)?;
        let is_own = || async {
            let span = super::Span { snapshot: key, base: None };
            self.manifest(span, Lba(0)).await.is_ok_and(|own| own.source == *base)
        };
        if held.is_some() || is_own().await {
            Ok((key, found.name))
        } else {
            Err(ImportError::OtherBase)
        }
    }

    /// Ends an import: everything has come, and becomes a snapshot. What this
    /// returns is to be kept with the volume; until it is, the import is under
    /// way, and can be ended again.
    ///
    /// # Errors
    /// The pool's.
    pub async fn end_import(
        &self,
        volume: VolumeId,
        coming: &Coming,
        name: &str,
        as_is: bool,
    ) -> Result<Provenance, ImportError> {
        if self.end_of(volume, coming, name)?.is_none() {
            self.snapshot(&[volume], name, as_is).await?;
        }
        let key = self.find_snapshot(volume, name)?;
        Ok(Provenance { held: Some((coming.source, key)), coming: None })
    }

    /// The snapshot that an import has ended with, if it has. One of that name
    /// that was there before is in the way.
    fn end_of(
        &self,
        volume: VolumeId,
        coming: &Coming,
        name: &str,
    ) -> Result<Option<SnapshotKey>, PoolError> {
        match self.find_snapshot(volume, name) {
            Ok(key) if key.epoch >= coming.since => Ok(Some(key)),
            Ok(_) => Err(PoolError::Exists { what: "snapshot", name: name.to_owned() }),
            Err(_) => Ok(None),
        }
    }
}
