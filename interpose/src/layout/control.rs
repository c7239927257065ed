//! Changes of what volumes and snapshots there are.
//!
//! A body is a type byte and fields one after the other, little-endian; a name
//! is a length byte and its bytes, attributes a u16 length and theirs.

use block_core::BlockCount;
use thiserror::Error;

use super::identity::{DomainId, Epoch, EraId, LineId};

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("it is malformed")]
pub struct Malformed;

/// Names a volume for ever, through restores; random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(pub [u8; 16]);

/// A snapshot: a line of history up to the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotKey {
    /// The line that it was taken of.
    pub line: LineId,
    /// The last epoch that it has.
    pub epoch: Epoch,
}

/// Most bytes of a name.
pub const MAX_NAME: usize = 63;

/// Most bytes of attributes: what the server keeps with a volume.
pub const MAX_ATTRIBUTES: usize = 3072;

/// Most volumes in a consistent group of snapshots: they are one record, which
/// is within one block of the journal.
pub const MAX_GROUP: usize = 240;

const _: () = assert!(
    16 + (1 + 4 + 8 + 1 + MAX_NAME + 1 + 2 + 16 * MAX_GROUP).next_multiple_of(16)
        <= super::record::MAX_RECORD_BYTES
);
const _: () = assert!(
    16 + (1 + 16 + 8 + 4 + 4 + 16 + 8 + 1 + MAX_NAME + 2 + MAX_ATTRIBUTES).next_multiple_of(16)
        <= super::record::MAX_RECORD_BYTES
);

/// A change of what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The pool was opened: `era`'s first record, after the journal's last one
    /// that was kept.
    Opened {
        /// The era that begins.
        era: EraId,
        /// The journal's blocks from this number on, if there were any, were
        /// not kept.
        cut: u64,
    },
    /// A volume without a block.
    Create {
        /// Its first line.
        line: LineId,
        /// Its identity.
        id: VolumeId,
        /// Whose key.
        domain: DomainId,
        /// Its size.
        blocks: BlockCount,
        /// Its name.
        name: String,
        /// What the server keeps with it.
        attributes: Vec<u8>,
    },
    /// What the server keeps with a volume.
    Attributes {
        /// Which volume.
        id: VolumeId,
        /// Instead of what was there.
        attributes: Vec<u8>,
    },
    /// A volume's size, and what the server keeps with it.
    Resize {
        /// Which volume.
        id: VolumeId,
        /// Its new size.
        blocks: BlockCount,
        /// Instead of what was there.
        attributes: Vec<u8>,
    },
    /// Snapshots of one moment. The epoch ends.
    Snapshot {
        /// The epoch that ends.
        epoch: Epoch,
        /// When, in seconds since 1970.
        taken: u64,
        /// Their name.
        name: String,
        /// Whether a writer may have had unflushed writes that were lost.
        as_is: bool,
        /// The volumes.
        volumes: Vec<VolumeId>,
    },
    /// A volume that begins as a snapshot.
    Clone {
        /// Which snapshot.
        of: SnapshotKey,
        /// The new volume's line.
        line: LineId,
        /// Its identity.
        id: VolumeId,
        /// Its name.
        name: String,
        /// What the server keeps with it.
        attributes: Vec<u8>,
    },
    /// A volume becomes what a snapshot is.
    Restore {
        /// Which volume.
        id: VolumeId,
        /// Which snapshot.
        to: SnapshotKey,
        /// Its line from now on; the old one is deleted.
        line: LineId,
        /// What the server keeps with it.
        attributes: Vec<u8>,
    },
    /// A snapshot is not wanted any more.
    DeleteSnapshot {
        /// Which one.
        snapshot: SnapshotKey,
    },
    /// A volume is not wanted any more.
    DeleteVolume {
        /// Which one.
        id: VolumeId,
    },
}

impl Control {
    /// How many bytes its body has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let mut count = Writer { to: None, at: 0 };
        self.write(&mut count);
        count.at
    }

    /// Writes the body to the front of `to`.
    pub fn encode(&self, to: &mut [u8]) {
        self.write(&mut Writer { to: Some(to), at: 0 });
    }

    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Self::Opened { era, cut } => {
                to.bytes(&[1]);
                to.u32(era.0);
                to.u64(*cut);
            }
            Self::Create { line, id, domain, blocks, name, attributes } => {
                to.bytes(&[2]);
                to.u32(line.0);
                to.bytes(&id.0);
                to.u32(domain.0);
                to.u64(blocks.0);
                to.name(name);
                to.attributes(attributes);
            }
            Self::Attributes { id, attributes } => {
                to.bytes(&[3]);
                to.bytes(&id.0);
                to.attributes(attributes);
            }
            Self::Resize { id, blocks, attributes } => {
                to.bytes(&[4]);
                to.bytes(&id.0);
                to.u64(blocks.0);
                to.attributes(attributes);
            }
            Self::Snapshot { epoch, taken, name, as_is, volumes } => {
                to.bytes(&[5]);
                to.u32(epoch.0);
                to.u64(*taken);
                to.name(name);
                to.bytes(&[u8::from(*as_is)]);
                to.bytes(&(volumes.len() as u16).to_le_bytes());
                volumes.iter().for_each(|id| to.bytes(&id.0));
            }
            Self::Clone { of, line, id, name, attributes } => {
                to.bytes(&[6]);
                to.snapshot(*of);
                to.u32(line.0);
                to.bytes(&id.0);
                to.name(name);
                to.attributes(attributes);
            }
            Self::Restore { id, to: snapshot, line, attributes } => {
                to.bytes(&[7]);
                to.bytes(&id.0);
                to.snapshot(*snapshot);
                to.u32(line.0);
                to.attributes(attributes);
            }
            Self::DeleteSnapshot { snapshot } => {
                to.bytes(&[8]);
                to.snapshot(*snapshot);
            }
            Self::DeleteVolume { id } => {
                to.bytes(&[9]);
                to.bytes(&id.0);
            }
        }
    }

    /// The change that a body says.
    ///
    /// # Errors
    /// When it says none.
    pub fn decode(from: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader { from };
        let control = match from.array::<1>()?[0] {
            1 => Self::Opened { era: EraId(from.u32()?), cut: from.u64()? },
            2 => Self::Create {
                line: from.line()?,
                id: VolumeId(from.array()?),
                domain: DomainId(from.u32()?),
                blocks: BlockCount(from.u64()?),
                name: from.name()?,
                attributes: from.attributes()?,
            },
            3 => Self::Attributes { id: VolumeId(from.array()?), attributes: from.attributes()? },
            4 => Self::Resize {
                id: VolumeId(from.array()?),
                blocks: BlockCount(from.u64()?),
                attributes: from.attributes()?,
            },
            5 => Self::Snapshot {
                epoch: from.epoch()?,
                taken: from.u64()?,
                name: from.name()?,
                as_is: from.array::<1>()?[0] == 1,
                volumes: from.volumes()?,
            },
            6 => Self::Clone {
                of: from.snapshot()?,
                line: from.line()?,
                id: VolumeId(from.array()?),
                name: from.name()?,
                attributes: from.attributes()?,
            },
            7 => Self::Restore {
                id: VolumeId(from.array()?),
                to: from.snapshot()?,
                line: from.line()?,
                attributes: from.attributes()?,
            },
            8 => Self::DeleteSnapshot { snapshot: from.snapshot()? },
            9 => Self::DeleteVolume { id: VolumeId(from.array()?) },
            _ => return Err(Malformed),
        };
        if from.from.is_empty() { Ok(control) } else { Err(Malformed) }
    }
}

/// Writes, or only counts.
struct Writer<'a> {
    to: Option<&'a mut [u8]>,
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        if let Some(to) = &mut self.to {
            to[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        }
        self.at += bytes.len();
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn snapshot(&mut self, key: SnapshotKey) {
        self.u32(key.line.0);
        self.u32(key.epoch.0);
    }

    fn name(&mut self, name: &str) {
        debug_assert!(name.len() <= MAX_NAME);
        self.bytes(&[name.len() as u8]);
        self.bytes(name.as_bytes());
    }

    fn attributes(&mut self, attributes: &[u8]) {
        debug_assert!(attributes.len() <= MAX_ATTRIBUTES);
        self.bytes(&(attributes.len() as u16).to_le_bytes());
        self.bytes(attributes);
    }
}

struct Reader<'a> {
    from: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.from.split_at_checked(count).ok_or(Malformed)?;
        self.from = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn line(&mut self) -> Result<LineId, Malformed> {
        Some(LineId(self.u32()?)).filter(|line| *line <= LineId::MAX).ok_or(Malformed)
    }

    fn epoch(&mut self) -> Result<Epoch, Malformed> {
        Some(Epoch(self.u32()?)).filter(|epoch| *epoch <= Epoch::MAX).ok_or(Malformed)
    }

    fn snapshot(&mut self) -> Result<SnapshotKey, Malformed> {
        Ok(SnapshotKey { line: self.line()?, epoch: self.epoch()? })
    }

    fn name(&mut self) -> Result<String, Malformed> {
        let bytes = usize::from(self.array::<1>()?[0]);
        let name = std::str::from_utf8(self.take(bytes)?).map_err(|_| Malformed)?;
        if name.len() <= MAX_NAME { Ok(name.to_owned()) } else { Err(Malformed) }
    }

    fn attributes(&mut self) -> Result<Vec<u8>, Malformed> {
        let bytes = usize::from(u16::from_le_bytes(self.array()?));
        if bytes > MAX_ATTRIBUTES { Err(Malformed) } else { Ok(self.take(bytes)?.to_vec()) }
    }

    fn volumes(&mut self) -> Result<Vec<VolumeId>, Malformed> {
        let count = usize::from(u16::from_le_bytes(self.array()?));
        (0..count).map(|_| Ok(VolumeId(self.array()?))).collect()
    }
}
