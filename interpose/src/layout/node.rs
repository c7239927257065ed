//! What the catalog keeps of heads, snapshots and volumes.
//!
//! A page of nodes holds 16 records of 256 bytes:
//!
//! ```text
//! 0    state u8 (0 free, 1 there, 2 deleted, 3 merging, 4 walking)
//! 1    flags u8 (1 as is, 2 has a tree) | tree height u8 | name length u8
//! 4    line u32 | epoch u32 (all ones: the head)
//! 12   parent: line u32 | epoch u32 (0: none)
//! 20   domain u32
//! 24   volume id, 16 bytes
//! 40   blocks u64
//! 48   taken u64, seconds since 1970
//! 56   tree root, 32
//! 88   dead list: newest page, 32 | entries u64
//! 128  work list: newest page, 32 | entries u64
//! 168  cursor u64
//! 176  target: line u32 | epoch u32 (0: none)
//! 184  zero 8
//! 192  name, 63 bytes | zero
//! ```
//!
//! A volume has a page of its own:
//!
//! ```text
//! 0    state u8 (0 free, 1 there) | name length u8 | attributes u16
//! 4    domain u32
//! 8    volume id, 16 bytes
//! 24   blocks u64
//! 32   head line u32 | zero u32
//! 40   name, 63 bytes | zero
//! 104  attributes
//! ```

use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, Lba};

use super::control::{MAX_ATTRIBUTES, MAX_NAME, Malformed, SnapshotKey, VolumeId};
use super::identity::{DomainId, Epoch, LineId};
use super::pointer::{POINTER_BYTES, Pointer};

/// Bytes of a node's record.
pub const NODE_BYTES: usize = 256;

/// Nodes in a page.
pub const NODES: usize = BLOCK_SIZE / NODE_BYTES;

const _: () = assert!(192 + MAX_NAME < NODE_BYTES);
const _: () = assert!(104 + MAX_ATTRIBUTES <= BLOCK_SIZE);

const AS_IS: u8 = 1;
const HAS_TREE: u8 = 2;

/// A list of pointers that a node's successor does not have, as a chain of
/// pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadList {
    /// The newest page; a hole when there is none.
    pub newest: Pointer,
    /// How many pointers there are.
    pub entries: u64,
}

/// How far a deletion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Nobody deletes it.
    #[default]
    There,
    /// It is to be deleted.
    Deleted,
    /// What its one child does not have is sorted: freed, or handed on.
    Merging {
        /// The child's dead list, as far as it is not done.
        work: DeadList,
        /// Who gets what is still needed.
        target: Option<SnapshotKey>,
    },
    /// Nobody begins at it: its tree is freed.
    Walking {
        /// Everything before is done.
        cursor: Lba,
    },
}

/// What is stored about a head or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Which one.
    pub key: SnapshotKey,
    /// The snapshot that it began as.
    pub parent: Option<SnapshotKey>,
    /// Whose key.
    pub domain: DomainId,
    /// Whose history it is.
    pub volume: VolumeId,
    /// The size.
    pub blocks: BlockCount,
    /// When it was taken; seconds since 1970.
    pub taken: u64,
    /// Whether a writer may have lost unflushed writes before.
    pub as_is: bool,
    /// Its map: root and height. `None`: nothing was merged yet, it is what it
    /// began as.
    pub tree: Option<(Pointer, u8)>,
    /// What its parent has and it has not.
    pub dead: DeadList,
    /// How far a deletion is.
    pub stage: Stage,
    /// A snapshot's name.
    pub name: String,
}

/// What is stored about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Its identity.
    pub id: VolumeId,
    /// Whose key.
    pub domain: DomainId,
    /// Its size.
    pub blocks: BlockCount,
    /// The line that is written to.
    pub line: LineId,
    /// Its name.
    pub name: String,
    /// What the server keeps with it.
    pub attributes: Vec<u8>,
}

impl NodeRecord {
    /// The record as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; NODE_BYTES] {
        let mut to = [0; NODE_BYTES];
        let (state, work, cursor, target) = match self.stage {
            Stage::There => (1, DeadList::default(), Lba(0), None),
            Stage::Deleted => (2, DeadList::default(), Lba(0), None),
            Stage::Merging { work, target } => (3, work, Lba(0), target),
            Stage::Walking { cursor } => (4, DeadList::default(), cursor, None),
        };
        let (root, height) = self.tree.unwrap_or_default();
        to[0] = state;
        to[1] = if self.as_is { AS_IS } else { 0 } | if self.tree.is_some() { HAS_TREE } else { 0 };
        to[2] = height;
        to[3] = self.name.len() as u8;
        put_key(&mut to, 4, Some(self.key));
        put_key(&mut to, 12, self.parent);
        to[20..24].copy_from_slice(&self.domain.0.to_le_bytes());
        to[24..40].copy_from_slice(&self.volume.0);
        to[40..48].copy_from_slice(&self.blocks.0.to_le_bytes());
        to[48..56].copy_from_slice(&self.taken.to_le_bytes());
        to[56..88].copy_from_slice(&root.encode());
        put_list(&mut to, 88, &self.dead);
        put_list(&mut to, 128, &work);
        to[168..176].copy_from_slice(&cursor.0.to_le_bytes());
        put_key(&mut to, 176, target);
        to[192..192 + self.name.len()].copy_from_slice(self.name.as_bytes());
        to
    }

    /// The record that bytes are; `None` if the place is free.
    ///
    /// # Errors
    /// When they are neither.
    pub fn decode(from: &[u8; NODE_BYTES]) -> Result<Option<Self>, Malformed> {
        let cursor = Lba(u64_at(from, 168));
        let stage = match from[0] {
            0 => return Ok(None),
            1 => Stage::There,
            2 => Stage::Deleted,
            3 => Stage::Merging { work: list_at(from, 128)?, target: key_at(from, 176) },
            4 => Stage::Walking { cursor },
            _ => return Err(Malformed),
        };
        let tree = match from[1] & HAS_TREE {
            0 => None,
            _ => Some((pointer_at(from, 56)?, from[2])),
        };
        Ok(Some(Self {
            key: key_at(from, 4).ok_or(Malformed)?,
            parent: key_at(from, 12),
            domain: DomainId(u32_at(from, 20)),
            volume: VolumeId(array_at(from, 24)),
            blocks: BlockCount(u64_at(from, 40)),
            taken: u64_at(from, 48),
            as_is: from[1] & AS_IS != 0,
            tree,
            dead: list_at(from, 88)?,
            stage,
            name: name_at(from, 192, from[3])?,
        }))
    }
}

impl VolumeRecord {
    /// Writes the record to a page.
    pub fn encode(&self, to: &mut [u8]) {
        to.fill(0);
        to[0] = 1;
        to[1] = self.name.len() as u8;
        to[2..4].copy_from_slice(&(self.attributes.len() as u16).to_le_bytes());
        to[4..8].copy_from_slice(&self.domain.0.to_le_bytes());
        to[8..24].copy_from_slice(&self.id.0);
        to[24..32].copy_from_slice(&self.blocks.0.to_le_bytes());
        to[32..36].copy_from_slice(&self.line.0.to_le_bytes());
        to[40..40 + self.name.len()].copy_from_slice(self.name.as_bytes());
        to[104..104 + self.attributes.len()].copy_from_slice(&self.attributes);
    }

    /// The record on a page; `None` if the page is free.
    ///
    /// # Errors
    /// When it is neither.
    pub fn decode(from: &[u8]) -> Result<Option<Self>, Malformed> {
        match from[0] {
            0 => return Ok(None),
            1 => {}
            _ => return Err(Malformed),
        }
        let attributes = usize::from(u16::from_le_bytes(array_at(from, 2)));
        if attributes > MAX_ATTRIBUTES {
            return Err(Malformed);
        }
        Ok(Some(Self {
            id: VolumeId(array_at(from, 8)),
            domain: DomainId(u32_at(from, 4)),
            blocks: BlockCount(u64_at(from, 24)),
            line: LineId(u32_at(from, 32)),
            name: name_at(from, 40, from[1])?,
            attributes: from[104..104 + attributes].to_vec(),
        }))
    }
}

fn put_key(to: &mut [u8], at: usize, key: Option<SnapshotKey>) {
    let (line, epoch) = key.map_or((0, 0), |key| (key.line.0, key.epoch.0));
    to[at..at + 4].copy_from_slice(&line.to_le_bytes());
    to[at + 4..at + 8].copy_from_slice(&epoch.to_le_bytes());
}

fn put_list(to: &mut [u8], at: usize, list: &DeadList) {
    to[at..at + POINTER_BYTES].copy_from_slice(&list.newest.encode());
    to[at + POINTER_BYTES..at + POINTER_BYTES + 8].copy_from_slice(&list.entries.to_le_bytes());
}

fn array_at<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&from[at..at + N]);
    array
}

fn u32_at(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(from, at))
}

fn u64_at(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(from, at))
}

fn key_at(from: &[u8], at: usize) -> Option<SnapshotKey> {
    let (line, epoch) = (LineId(u32_at(from, at)), Epoch(u32_at(from, at + 4)));
    (epoch.0 != 0).then_some(SnapshotKey { line, epoch })
}

fn pointer_at(from: &[u8], at: usize) -> Result<Pointer, Malformed> {
    Pointer::decode(&array_at(from, at)).ok_or(Malformed)
}

fn list_at(from: &[u8], at: usize) -> Result<DeadList, Malformed> {
    Ok(DeadList { newest: pointer_at(from, at)?, entries: u64_at(from, at + POINTER_BYTES) })
}

fn name_at(from: &[u8], at: usize, bytes: u8) -> Result<String, Malformed> {
    let bytes = usize::from(bytes);
    if bytes > MAX_NAME {
        return Err(Malformed);
    }
    let name = std::str::from_utf8(&from[at..at + bytes]).map_err(|_| Malformed)?;
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::{EraId, Kind, Seal};
    use block_core::Pba;

    fn pointer(number: u8) -> Pointer {
        let seal = Seal { tag: [number; 16], seq: 9, era: EraId(2) };
        Pointer { seal, pba: Pba(u64::from(number)), birth: Epoch(4), kind: Kind::Page }
    }

    fn node() -> NodeRecord {
        NodeRecord {
            key: SnapshotKey { line: LineId(0x0a), epoch: Epoch(0x0b) },
            parent: Some(SnapshotKey { line: LineId(0x0c), epoch: Epoch(0x0d) }),
            domain: DomainId(0x0e),
            volume: VolumeId([0x0f; 16]),
            blocks: BlockCount(0x10),
            taken: 0x11,
            as_is: true,
            tree: Some((pointer(0x12), 3)),
            dead: DeadList { newest: pointer(0x13), entries: 0x14 },
            stage: Stage::Merging {
                work: DeadList { newest: pointer(0x15), entries: 0x16 },
                target: Some(SnapshotKey { line: LineId(0x17), epoch: Epoch(0x18) }),
            },
            name: "nightly".to_owned(),
        }
    }

    #[test]
    fn a_node_has_these_bytes() {
        let bytes = node().encode();
        assert_eq!(
            bytes[..24],
            [3, 3, 3, 7, 10, 0, 0, 0, 11, 0, 0, 0, 12, 0, 0, 0, 13, 0, 0, 0, 14, 0, 0, 0]
        );
        assert_eq!(
            bytes[24..56],
            [[15; 16], [16, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]].concat()
        );
        assert_eq!(bytes[56..88], pointer(0x12).encode());
        assert_eq!(
            bytes[88..128],
            [&pointer(0x13).encode()[..], &[0x14, 0, 0, 0, 0, 0, 0, 0]].concat()
        );
        assert_eq!(bytes[176..184], [0x17, 0, 0, 0, 0x18, 0, 0, 0]);
        assert_eq!(&bytes[192..200], b"nightly\0");
        assert_eq!(NodeRecord::decode(&bytes), Ok(Some(node())));
    }

    #[test]
    fn a_volume_has_these_bytes() {
        let volume = VolumeRecord {
            id: VolumeId([1; 16]),
            domain: DomainId(2),
            blocks: BlockCount(3),
            line: LineId(4),
            name: "root".to_owned(),
            attributes: vec![5, 6],
        };
        let mut page = vec![0xff; BLOCK_SIZE];
        volume.encode(&mut page);
        assert_eq!(page[..8], [1, 4, 2, 0, 2, 0, 0, 0]);
        assert_eq!(page[24..40], [3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&page[40..45], b"root\0");
        assert_eq!(page[104..107], [5, 6, 0]);
        assert_eq!(VolumeRecord::decode(&page), Ok(Some(volume)));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), BLOCK_SIZE)) {
            let _ = VolumeRecord::decode(&bytes);
            let node: [u8; NODE_BYTES] = array_at(&bytes, 0);
            let _ = NodeRecord::decode(&node);
        }
    }
}
