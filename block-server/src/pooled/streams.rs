//! Snapshots on their way out of the pool and into it.

use block_core::device::Durability;
use block_core::{Blocks, Buffer, Device, Lba, LbaRange};
use interpose::layout::provenance::{Coming, Provenance};
use interpose::layout::stream::Manifest;
use interpose::pool::{Begun, Exported, Piece, Span};

use super::{PoolBlocks, Pooled, SnapshotFound};
use crate::store::StoreError;

impl<D: Device + 'static> Pooled<D> {
    /// What a stream says of itself.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn manifest(
        &self,
        snapshot: &SnapshotFound,
        base: Option<&SnapshotFound>,
    ) -> Result<Manifest, StoreError> {
        let span = Span { snapshot: snapshot.key, base: base.map(|base| base.key) };
        self.pool.manifest(span, Lba(0)).await.map_err(sentence)
    }

    /// What a stream holds from a block on: a bounded part of it.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn export(
        &self,
        snapshot: &SnapshotFound,
        base: Option<&SnapshotFound>,
        from: Lba,
        buffer: Buffer,
    ) -> Result<Exported, StoreError> {
        let span = Span { snapshot: snapshot.key, base: base.map(|base| base.key) };
        self.pool.export(span, from, buffer).await.map_err(sentence)
    }

    /// How a volume that is there takes a stream, which becomes the snapshot
    /// `name`.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn begin_import(
        &self,
        volume: &PoolBlocks<D>,
        provenance: Provenance,
        manifest: &Manifest,
        name: &str,
    ) -> Result<Begun, StoreError> {
        let begun = self.pool.begin_import(volume.id(), provenance, manifest, name).await;
        begun.map_err(sentence)
    }

    /// Writes what has come, which is no more than the buffer has room for.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn put(
        &self,
        volume: &PoolBlocks<D>,
        piece: &Piece,
        mut buffer: Buffer,
    ) -> Result<Buffer, StoreError> {
        let range = LbaRange { start: piece.start(), count: piece.count() };
        let outcome;
        match piece {
            Piece::Blocks { content, .. } => {
                buffer[..content.len()].copy_from_slice(content);
                (buffer, outcome) = volume.write(range, buffer, 0, Durability::Cached).await;
            }
            Piece::Holes { .. } => outcome = volume.zero(range, true).await,
        }
        outcome.map_err(|error| {
            let at = range.start.0;
            StoreError::Pool(format!("what has come could not be written at block {at}: {error}"))
        })?;
        Ok(buffer)
    }

    /// Ends an import with a snapshot.
    ///
    /// # Errors
    /// A [`StoreError`]; then it is under way.
    pub async fn end_import(
        &self,
        volume: &PoolBlocks<D>,
        coming: &Coming,
        name: &str,
        as_is: bool,
    ) -> Result<Provenance, StoreError> {
        let ended = self.pool.end_import(volume.id(), coming, name, as_is).await;
        ended.map_err(sentence)
    }
}

fn sentence(error: impl ToString) -> StoreError {
    StoreError::Pool(error.to_string())
}
