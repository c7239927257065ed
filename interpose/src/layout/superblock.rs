//! A superblock: where everything else begins.
//!
//! ```text
//! 0    "vRIOpool"
//! 8    version u32 | zero u32
//! 16   pool id, 16 bytes
//! 32   generation u64
//! 40   tag, 16 bytes | seq u32 | era u32
//! 64   sealed:
//! 64   blocks of the device u64
//! 72   journal: first block u64 | blocks u64
//! 88   the journal's oldest block that is needed: number u64 | the tag of the
//!      block before it, 16 bytes
//! 112  mark u64
//! 120  epoch u32 | next line u32
//! 128  trees of 40 bytes, root 32 | height u8 | zero 7: volumes, nodes, seals
//! 248  pages of volumes u32 | pages of nodes u32
//! 256  data blocks u64 | references to them u64 | pages u64
//! 280  segments u32 | zero u32
//! 288  32 segments of 64 bytes (`space::layout`)
//! ```

use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, Extent, Pba};

use super::binding::{Binding, Class};
use super::control::Malformed;
use super::identity::{Epoch, EraId, LineId, PoolId};
use super::pointer::{MAX_BLOCKS, POINTER_BYTES, Pointer, Seal};
use crate::radix::Tree;
use crate::space::layout::{MAX_SEGMENTS, ROOT_BYTES, SegmentRoot};

/// Begins each superblock.
pub const MAGIC: [u8; 8] = *b"vRIOpool";

/// The format that this code reads and writes.
pub const VERSION: u32 = 1;

/// Bytes before the sealed part.
pub const HEAD_BYTES: usize = 64;

const SEGMENTS_AT: usize = 288;
const TREE_BYTES: usize = 40;

const _: () = assert!(SEGMENTS_AT + MAX_SEGMENTS * ROOT_BYTES <= BLOCK_SIZE);

/// What can be read without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which format.
    pub version: u32,
    /// Which pool.
    pub pool: PoolId,
    /// Which checkpoint.
    pub generation: u64,
    /// What opens the rest.
    pub seal: Seal,
}

/// What the blocks of a pool are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Guests' blocks that are stored.
    pub data: u64,
    /// Pointers to them, each where it is not inherited.
    pub references: u64,
    /// Pages of the pool in its heap.
    pub pages: u64,
}

/// A superblock's sealed part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The device's size.
    pub blocks: BlockCount,
    /// Where the journal is.
    pub journal: Extent,
    /// The oldest block of the journal that is needed.
    pub from: u64,
    /// The tag of the one before.
    pub previous: [u8; 16],
    /// The journal's blocks up to this number were durable.
    pub mark: u64,
    /// The epoch that writes belong to.
    pub epoch: Epoch,
    /// The number of the next line.
    pub next_line: LineId,
    /// The pages of volumes.
    pub volumes: Tree,
    /// The pages of nodes.
    pub nodes: Tree,
    /// The pages of seals.
    pub seals: Tree,
    /// How many pages of volumes and of nodes there are.
    pub slots: (u32, u32),
    /// What the blocks are used for.
    pub usage: Usage,
    /// Counts and their directories.
    pub segments: Vec<SegmentRoot>,
}

impl Head {
    /// What a block begins with, if it is a superblock's.
    #[must_use]
    pub fn decode(block: &[u8]) -> Option<Self> {
        if block[..8] != MAGIC {
            return None;
        }
        let mut pool = [0; 16];
        pool.copy_from_slice(&block[16..32]);
        let mut tag = [0; 16];
        tag.copy_from_slice(&block[40..56]);
        let seal = Seal { tag, seq: u32_at(block, 56), era: EraId(u32_at(block, 60)) };
        let (version, generation) = (u32_at(block, 8), u64_at(block, 32));
        Some(Self { version, pool: PoolId(pool), generation, seal })
    }

    /// Writes the part before the seal, which is bound to the sealed part.
    pub fn encode(block: &mut [u8], pool: &PoolId, generation: u64) {
        block[..HEAD_BYTES].fill(0);
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[16..32].copy_from_slice(&pool.0);
        block[32..40].copy_from_slice(&generation.to_le_bytes());
    }

    /// Writes the seal.
    pub fn encode_seal(block: &mut [u8], seal: &Seal) {
        block[40..56].copy_from_slice(&seal.tag);
        block[56..60].copy_from_slice(&seal.seq.to_le_bytes());
        block[60..64].copy_from_slice(&seal.era.0.to_le_bytes());
    }

    /// The associated data of the seal: place, and what comes before it.
    #[must_use]
    pub fn associated_data(block: &[u8], pool: &PoolId, at: Pba) -> [u8; 72] {
        let mut data = [0; 72];
        data[..32].copy_from_slice(&Binding::page(Class::Superblock, 0, at).encode(pool));
        data[32..].copy_from_slice(&block[..40]);
        data
    }
}

impl Superblock {
    /// Writes the sealed part.
    pub fn encode(&self, to: &mut [u8]) {
        to[HEAD_BYTES..].fill(0);
        let mut put = |at: usize, bytes: &[u8]| to[at..at + bytes.len()].copy_from_slice(bytes);
        put(64, &self.blocks.0.to_le_bytes());
        put(72, &self.journal.start.0.to_le_bytes());
        put(80, &self.journal.count.0.to_le_bytes());
        put(88, &self.from.to_le_bytes());
        put(96, &self.previous);
        put(112, &self.mark.to_le_bytes());
        put(120, &self.epoch.0.to_le_bytes());
        put(124, &self.next_line.0.to_le_bytes());
        for (number, tree) in [self.volumes, self.nodes, self.seals].iter().enumerate() {
            put(128 + number * TREE_BYTES, &tree.root().encode());
            put(128 + number * TREE_BYTES + POINTER_BYTES, &[tree.height()]);
        }
        put(248, &self.slots.0.to_le_bytes());
        put(252, &self.slots.1.to_le_bytes());
        put(256, &self.usage.data.to_le_bytes());
        put(264, &self.usage.references.to_le_bytes());
        put(272, &self.usage.pages.to_le_bytes());
        put(280, &(self.segments.len() as u32).to_le_bytes());
        for (number, segment) in self.segments.iter().enumerate() {
            put(SEGMENTS_AT + number * ROOT_BYTES, &segment.encode());
        }
    }

    /// The sealed part of an opened superblock.
    ///
    /// # Errors
    /// When it says what cannot be.
    pub fn decode(from: &[u8]) -> Result<Self, Malformed> {
        let segments = u32_at(from, 280) as usize;
        if segments == 0 || segments > MAX_SEGMENTS {
            return Err(Malformed);
        }
        let mut previous = [0; 16];
        previous.copy_from_slice(&from[96..112]);
        let start = Pba(u64_at(from, 72));
        let this = Self {
            blocks: BlockCount(u64_at(from, 64)),
            journal: Extent { start, count: BlockCount(u64_at(from, 80)) },
            from: u64_at(from, 88),
            previous,
            mark: u64_at(from, 112),
            epoch: Epoch(u32_at(from, 120)),
            next_line: LineId(u32_at(from, 124)),
            volumes: tree_at(from, 128)?,
            nodes: tree_at(from, 128 + TREE_BYTES)?,
            seals: tree_at(from, 128 + 2 * TREE_BYTES)?,
            slots: (u32_at(from, 248), u32_at(from, 252)),
            usage: Usage {
                data: u64_at(from, 256),
                references: u64_at(from, 264),
                pages: u64_at(from, 272),
            },
            segments: SegmentRoot::decode_all(
                &from[SEGMENTS_AT..SEGMENTS_AT + segments * ROOT_BYTES],
            )?,
        };
        let sound = this.blocks.0 <= MAX_BLOCKS
            && this.journal.count.0 > 0
            && this.journal.end().0 <= this.blocks.0
            && this.epoch.0 > 0
            && this.epoch <= Epoch::MAX;
        if sound { Ok(this) } else { Err(Malformed) }
    }
}

fn tree_at(from: &[u8], at: usize) -> Result<Tree, Malformed> {
    let root = Pointer::in_page(&from[at..at + POINTER_BYTES], 0).ok_or(Malformed)?;
    Tree::new(root, from[at + POINTER_BYTES]).ok_or(Malformed)
}

fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]])
}

fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from(u32_at(from, at)) | u64::from(u32_at(from, at + 4)) << 32
}
