//! What differs between a snapshot and a later one, or the volume as it is:
//! from their maps alone, so that it costs what was changed.

use std::rc::Rc;

use block_core::{BlockCount, BlockError, Device, Lba, LbaRange};

use super::{Pool, PoolError};
use crate::catalog::head_of;
use crate::layout::Class;
use crate::layout::control::{SnapshotKey, VolumeId};
use crate::radix::{Diff, Difference, Tree};

impl<D: Device + 'static> Pool<D> {
    /// The ranges that differ between a snapshot and another one, or the
    /// volume as the checkpoint has it that is made for this: at most `most`
    /// of them, from `start` on, and where the next part begins. Where a map
    /// is damaged it counts as different.
    ///
    /// # Errors
    /// A [`PoolError`].
    pub async fn diff(
        &self,
        volume: VolumeId,
        from: SnapshotKey,
        to: Option<SnapshotKey>,
        start: Lba,
        most: usize,
    ) -> Result<(Vec<LbaRange>, Option<Lba>), PoolError> {
        let to = match to {
            Some(to) => to,
            None => head_of(self.record(volume)?.line),
        };
        if self.core.frozen_by.get().is_none() {
            self.core.wait_for_checkpoint().await?;
        }
        let _reading = self.core.readers.enter();
        let trees = [self.map(from)?, self.map(to)?];
        let mut diff = Diff::new(Rc::clone(&self.core.pages), Class::Map, trees);
        let mut ranges = Vec::new();
        while let Some(difference) = diff.next().await {
            let indices = match difference {
                Difference::Changed(indices) | Difference::Damaged { indices, .. } => indices,
            };
            if indices.end <= start.0 {
                continue;
            }
            if ranges.len() == most {
                return Ok((ranges, Some(Lba(indices.start))));
            }
            let first = indices.start.max(start.0);
            let count = BlockCount(indices.end - first);
            ranges.push(LbaRange { start: Lba(first), count });
        }
        Ok((ranges, None))
    }

    /// The map of a head or a snapshot at the last checkpoint.
    fn map(&self, key: SnapshotKey) -> Result<Tree, PoolError> {
        let state = self.core.state.borrow();
        let node = state.catalog.node(key);
        let tree = node.and_then(|node| node.stored.tree);
        tree.ok_or(PoolError::Failed(BlockError::Medium))
    }
}
