//! How a trace begins.

use block_core::{BlockCount, SECTOR_SIZE};

use super::reader::TraceFault;

pub(super) const HEADER_BYTES: usize = 128;

const MAGIC: &[u8; 8] = b"vRIOtrac";
const VERSION: u16 = 1;
const NAME: usize = 48;
const MAX_NAME: usize = 63;
const SUM: usize = 124;

const _: () = assert!(NAME + MAX_NAME < SUM && SUM + 4 == HEADER_BYTES);

/// Whose requests a trace has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The volume's identity.
    pub volume: [u8; 16],
    /// Its name then; what is longer than 63 bytes is cut off.
    pub name: String,
    /// Its size then.
    pub blocks: BlockCount,
    /// When the recording began, in nanoseconds since 1970.
    pub began: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let ends = (0..=MAX_NAME.min(self.name.len())).rev();
        let end = ends.into_iter().find(|&end| self.name.is_char_boundary(end)).unwrap_or(0);
        let name = &self.name[..end];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10] = name.len() as u8;
        bytes[12..16].copy_from_slice(&(SECTOR_SIZE as u32).to_le_bytes());
        bytes[16..32].copy_from_slice(&self.volume);
        bytes[32..40].copy_from_slice(&self.blocks.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.began.to_le_bytes());
        bytes[NAME..NAME + name.len()].copy_from_slice(name.as_bytes());
        let sum = block_core::crc32c(&[&bytes[..SUM]]);
        bytes[SUM..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, TraceFault> {
        if &bytes[..8] != MAGIC {
            return Err(TraceFault::NotATrace);
        }
        if array(bytes, SUM) != block_core::crc32c(&[&bytes[..SUM]]).to_le_bytes() {
            return Err(TraceFault::Damaged);
        }
        let version = u16::from_le_bytes(array(bytes, 8));
        if version > VERSION {
            return Err(TraceFault::Newer(version));
        }
        let sector = u32::from_le_bytes(array(bytes, 12));
        let name = bytes[NAME..NAME + MAX_NAME].get(..usize::from(bytes[10]));
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        let name = name.filter(|_| version == VERSION && sector as usize == SECTOR_SIZE);
        Ok(Self {
            volume: array(bytes, 16),
            name: name.ok_or(TraceFault::Damaged)?.to_owned(),
            blocks: BlockCount(u64::from_le_bytes(array(bytes, 32))),
            began: u64::from_le_bytes(array(bytes, 40)),
        })
    }
}

/// The bytes at a constant place of a header.
fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[at..at + N]);
    taken
}
