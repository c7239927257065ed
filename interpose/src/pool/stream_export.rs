//! A snapshot on its way out of the pool, some blocks at a time. Nothing is
//! kept between: whoever asks says what came last.

use std::rc::Rc;

use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, BlockError, Buffer, Device, Lba, LbaRange};
use thiserror::Error;

use super::{Pool, PoolError};
use crate::hash;
use crate::layout::Class;
use crate::layout::control::SnapshotKey;
use crate::layout::stream::{Body, FRAME_BLOCKS, Manifest, Origin};
use crate::pages::Damage;
use crate::radix::{Diff, Difference, Tree};

/// Most blocks that are read for one answer; a piece of holes is told when it
/// is done with.
const MOST_BLOCKS: u64 = 8 * FRAME_BLOCKS as u64;

/// Most blocks that are found to be holes for one answer: about as many as
/// take as long.
const MOST_HOLES: u64 = 64 * MOST_BLOCKS;

/// What is exported: a snapshot, or what it has other than another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The snapshot.
    pub snapshot: SnapshotKey,
    /// Only what it has other than this one.
    pub base: Option<SnapshotKey>,
}

/// Some blocks of a stream, as they go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Blocks and what they hold; at most [`FRAME_BLOCKS`].
    Blocks {
        /// The first.
        start: Lba,
        /// Their content.
        content: Vec<u8>,
    },
    /// Blocks that read as zero.
    Holes {
        /// The first.
        start: Lba,
        /// How many.
        count: BlockCount,
    },
}

impl Piece {
    /// The first block.
    #[must_use]
    pub const fn start(&self) -> Lba {
        match self {
            Self::Blocks { start, .. } | Self::Holes { start, .. } => *start,
        }
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> BlockCount {
        match self {
            Self::Blocks { content, .. } => BlockCount((content.len() / BLOCK_SIZE) as u64),
            Self::Holes { count, .. } => *count,
        }
    }

    /// It as the body of a frame.
    #[must_use]
    pub fn body(&self) -> Body<'_> {
        match self {
            Self::Blocks { start, content } => Body::Blocks { start: *start, content },
            Self::Holes { start, count } => Body::Holes { start: *start, count: *count },
        }
    }
}

/// The next pieces, and where those after them are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// In ascending order; none when nothing more differs, or when long runs
    /// were found to be nothing.
    pub pieces: Vec<Piece>,
    /// Where to go on; `None` at the end.
    pub next: Option<Lba>,
}

/// Why a snapshot cannot be exported, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExportError {
    /// The pool, or there is no such snapshot.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// A map is damaged.
    #[error("{damage}: blocks {}..{} cannot be exported", range.start.0, range.end().0)]
    Map {
        /// What is not known.
        range: LbaRange,
        /// What is wrong.
        damage: Damage,
    },
    /// Blocks cannot be read.
    #[error("one of blocks {}..{} cannot be read: {error}", range.start.0, range.end().0)]
    Unread {
        /// Which ones.
        range: LbaRange,
        /// Why.
        error: BlockError,
    },
}

impl<D: Device + 'static> Pool<D> {
    /// What a stream says of itself that begins, or goes on, at `from`.
    ///
    /// # Errors
    /// No such snapshot, or the pool cannot store what is in memory.
    pub async fn manifest(&self, span: Span, from: Lba) -> Result<Manifest, ExportError> {
        let Span { snapshot, base } = span;
        let (trees, blocks) = self.maps(span).await?;
        let origin = |snapshot, tree: &Tree| Origin {
            pool: self.core.id,
            snapshot,
            tag: tree.root().seal.tag,
        };
        let state = self.core.state.borrow();
        let unknown = || PoolError::Unknown { what: "snapshot", name: format!("{snapshot:?}") };
        let facts = &state.catalog.node(snapshot).ok_or_else(unknown)?.facts;
        let volume = state.catalog.volume(facts.volume);
        Ok(Manifest {
            from: from.min(Lba(blocks.0)),
            blocks,
            taken: facts.taken,
            as_is: facts.as_is,
            source: origin(snapshot, &trees[1]),
            base: base.map(|base| origin(base, &trees[0])),
            volume: volume.map_or_else(|| "deleted".to_owned(), |volume| volume.name.clone()),
            snapshot: facts.name.clone(),
        })
    }

    /// What there is from block `from` on: at most about a mebibyte. The
    /// buffer has room for [`FRAME_BLOCKS`].
    ///
    /// # Errors
    /// An [`ExportError`].
    pub async fn export(
        &self,
        span: Span,
        from: Lba,
        buffer: Buffer,
    ) -> Result<Exported, ExportError> {
        let exported = self.pieces(span, from, buffer).await;
        if exported.is_err() {
            // What was deleted meanwhile reads as if it were damaged.
            self.check_snapshot(span.snapshot)?;
            span.base.map_or(Ok(BlockCount(0)), |base| self.check_snapshot(base))?;
        }
        exported
    }

    async fn pieces(
        &self,
        span: Span,
        from: Lba,
        mut buffer: Buffer,
    ) -> Result<Exported, ExportError> {
        let (trees, blocks) = self.maps(span).await?;
        let mut diff = Diff::new(Rc::clone(&self.core.pages), Class::Map, trees)
            .within(from.0, FRAME_BLOCKS as u64);
        let mut found = Found::default();
        while let Some(difference) = diff.next().await {
            let range = match difference {
                Difference::Changed(indices) => cut(from, indices.start..indices.end, blocks),
                Difference::Damaged { indices, damage } => {
                    match cut(from, indices.start..indices.end, blocks) {
                        Some(range) => return Err(ExportError::Map { range, damage }),
                        None => None,
                    }
                }
            };
            let Some(range) = range else { continue };
            if found.is_enough() {
                return Ok(Exported { next: Some(range.start), pieces: found.pieces });
            }
            let outcome;
            (buffer, outcome) = self.read_snapshot(span.snapshot, range, buffer, 0).await;
            outcome.map_err(|error| ExportError::Unread { range, error })?;
            found.take(range.start, &buffer[..range.count.0 as usize * BLOCK_SIZE]);
            turn::yield_now().await;
        }
        Ok(Exported { next: None, pieces: found.pieces })
    }

    /// The maps of the base and the snapshot, and its size; a checkpoint makes
    /// them if none has. A snapshot's map stays as long as the snapshot does.
    async fn maps(&self, span: Span) -> Result<([Tree; 2], BlockCount), PoolError> {
        let base = match span.base {
            Some(base) => self.map_of_snapshot(base).await?.0,
            None => Tree::EMPTY,
        };
        let (tree, blocks) = self.map_of_snapshot(span.snapshot).await?;
        Ok(([base, tree], blocks))
    }

    async fn map_of_snapshot(&self, key: SnapshotKey) -> Result<(Tree, BlockCount), PoolError> {
        let stored = || self.core.state.borrow().catalog.node(key)?.stored.tree;
        let blocks = self.check_snapshot(key)?;
        if stored().is_none() {
            self.checkpoint().await?;
        }
        self.check_snapshot(key)?;
        Ok((stored().unwrap_or_default(), blocks))
    }
}

/// The part of what differs that lies behind `from` and in the volume.
fn cut(from: Lba, indices: std::ops::Range<u64>, blocks: BlockCount) -> Option<LbaRange> {
    let start = indices.start.max(from.0);
    let count = indices.end.min(blocks.0).checked_sub(start)?;
    (count > 0).then_some(LbaRange { start: Lba(start), count: BlockCount(count) })
}

/// What was found, runs of holes as one.
#[derive(Default)]
struct Found {
    pieces: Vec<Piece>,
    blocks: u64,
    holes: u64,
}

impl Found {
    const fn is_enough(&self) -> bool {
        self.blocks >= MOST_BLOCKS || self.holes >= MOST_HOLES
    }

    fn take(&mut self, start: Lba, content: &[u8]) {
        let mut at = start;
        for run in content
            .as_chunks::<BLOCK_SIZE>()
            .0
            .chunk_by(|one, other| hash::is_zero(one) == hash::is_zero(other))
        {
            let count = run.len() as u64;
            if hash::is_zero(&run[0]) {
                self.holes += count;
                self.take_holes(at, count);
            } else {
                self.blocks += count;
                let content = run.as_flattened().to_vec();
                self.pieces.push(Piece::Blocks { start: at, content });
            }
            at.0 += count;
        }
    }

    fn take_holes(&mut self, at: Lba, more: u64) {
        match self.pieces.last_mut() {
            Some(Piece::Holes { start, count }) if start.0 + count.0 == at.0 => count.0 += more,
            _ => self.pieces.push(Piece::Holes { start: at, count: BlockCount(more) }),
        }
    }
}
