//! A stream: a snapshot, or what changed since another one, on its way to
//! another pool.
//!
//! A stream has parts, one after the other; a part that was cut off is
//! continued by another one, sealed under another key. A part is a header and
//! frames:
//!
//! ```text
//! 0    "vRIOstrm"
//! 8    version u32 | kind u8 (1 passphrase, 2 key file) | zero 3
//! 16   Argon2id: memory in KiB u32 | passes u32 | lanes u32; zeroes for a key
//!      file | zero 4
//! 32   the secret's salt, 32 bytes
//! 64   the part's key, wrapped: salt, 32 bytes | sealed, 32 | tag, 16
//! 144  frames
//! ```
//!
//! The first 64 bytes are the associated data of the wrap. A frame:
//!
//! ```text
//! 0    length of the body u32
//! 4    body, sealed: its nonce is the frame's number in the part, from 0, as
//!      u64 in the last 8 of 12 bytes; its associated data the length
//! ..   tag, 16 bytes
//! ```
//!
//! No length is what a header begins with: after a frame comes another one, or
//! a part that goes on. A body begins with its type. The first frame of a part
//! is 1, the last one of the last part 4; blocks rise through a part, and a
//! part begins no later than where the one before was cut off.
//!
//! ```text
//! 1    manifest: first block u64 | blocks of the volume u64 | taken u64 |
//!      source, 40 bytes | base, 40 bytes, zeroes if there is none | as is u8 |
//!      length of the volume's name u8 | the name | length of the snapshot's
//!      name u8 | the name
//! 2    blocks: first u64 | their content
//! 3    holes: first u64 | count u64
//! 4    the end: nothing
//!
//! source, base: pool id, 16 bytes | line u32 | epoch u32 | root tag, 16 bytes
//! ```
//!
//! What a stream says nothing of is what it was: zero, or as in the base.

use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, Lba};
use thiserror::Error;

use super::control::{MAX_NAME, Malformed, SnapshotKey};
use super::identity::{Epoch, LineId, PoolId};
use super::record::MAX_VOLUME_BLOCKS;

/// Begins each part.
pub const MAGIC: [u8; 8] = *b"vRIOstrm";

/// The format that this code writes and reads.
pub const VERSION: u32 = 1;

/// Bytes before the wrapped key.
pub const PLAIN_BYTES: usize = 64;

/// Bytes of a header.
pub const HEADER_BYTES: usize = PLAIN_BYTES + 80;
const _: () = assert!(HEADER_BYTES == 144);
// Where a frame could begin, a header cannot be taken for one.
const _: () =
    assert!(u32::from_le_bytes([MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3]]) as usize > MAX_BODY);

/// Blocks in a frame.
pub const FRAME_BLOCKS: usize = 32;

/// Most bytes of a body.
pub const MAX_BODY: usize = 9 + FRAME_BLOCKS * BLOCK_SIZE;

/// Bytes of a frame beside its body.
pub const FRAME_BYTES: usize = 4 + TAG_BYTES;

/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// Bytes that say where a snapshot is from.
pub const ORIGIN_BYTES: usize = 40;
const _: () = assert!(MAX_BODY > 26 + 2 * ORIGIN_BYTES + 2 * (1 + MAX_NAME));

/// A snapshot, wherever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The pool that it was exported from.
    pub pool: PoolId,
    /// Which one there.
    pub snapshot: SnapshotKey,
    /// The tag of its map's highest page; zeroes for one without a block.
    pub tag: [u8; 16],
}

/// What a stream is of: this alone decides what lies where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// The snapshot.
    pub source: Origin,
    /// What has to be there before; `None`: nothing.
    pub base: Option<Origin>,
}

/// The part of a header that is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Argon2id's memory, passes and lanes; `None`: for a key file.
    pub cost: Option<[u32; 3]>,
    /// The secret's salt.
    pub salt: [u8; 32],
}

/// What a part is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The first block that the part may speak of.
    pub from: Lba,
    /// The size of the volume.
    pub blocks: BlockCount,
    /// When the snapshot was taken; seconds since 1970.
    pub taken: u64,
    /// Whether a writer may have lost unflushed writes before it was taken.
    pub as_is: bool,
    /// The snapshot.
    pub source: Origin,
    /// What has to be there before; `None`: nothing.
    pub base: Option<Origin>,
    /// The volume's name where it comes from.
    pub volume: String,
    /// The snapshot's name.
    pub snapshot: String,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// What the part is about.
    Manifest(Manifest),
    /// Blocks from `start` on.
    Blocks {
        /// The first.
        start: Lba,
        /// Their content; whole blocks, at least one.
        content: &'a [u8],
    },
    /// Blocks that read as zero.
    Holes {
        /// The first.
        start: Lba,
        /// How many; at least one.
        count: BlockCount,
    },
    /// That was all.
    End,
}

/// Why a header is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Something else.
    #[error("this is no stream of vRIO")]
    NoStream,
    /// From a later version.
    #[error(
        "this stream was made by a newer version of vRIO (format {0}; this one reads {VERSION})"
    )]
    Newer(u32),
    /// It says what cannot be.
    #[error("the header of this stream is damaged")]
    Damaged,
}

impl Plain {
    /// The bytes of the header before the wrapped key.
    #[must_use]
    pub fn encode(&self) -> [u8; PLAIN_BYTES] {
        let mut to = [0; PLAIN_BYTES];
        to[..8].copy_from_slice(&MAGIC);
        to[8..12].copy_from_slice(&VERSION.to_le_bytes());
        to[12] = if self.cost.is_some() { 1 } else { 2 };
        let cost = self.cost.unwrap_or_default();
        for (part, to) in cost.iter().zip(to[16..28].as_chunks_mut::<4>().0) {
            *to = part.to_le_bytes();
        }
        to[32..].copy_from_slice(&self.salt);
        to
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// When they are no header that this code reads.
    pub fn decode(from: &[u8; PLAIN_BYTES]) -> Result<Self, HeaderError> {
        if from[..8] != MAGIC {
            return Err(HeaderError::NoStream);
        }
        let version = u32_at(from, 8);
        if version != VERSION {
            return Err(HeaderError::Newer(version));
        }
        let cost = [u32_at(from, 16), u32_at(from, 20), u32_at(from, 24)];
        let cost = match from[12] {
            1 => Some(cost),
            2 if cost == [0; 3] => None,
            _ => return Err(HeaderError::Damaged),
        };
        Ok(Self { cost, salt: array_at(from, 32) })
    }
}

impl Manifest {
    /// What the stream is of.
    #[must_use]
    pub const fn about(&self) -> About {
        About { source: self.source, base: self.base }
    }

    fn encode(&self, to: &mut Vec<u8>) {
        to.push(1);
        for word in [self.from.0, self.blocks.0, self.taken] {
            to.extend_from_slice(&word.to_le_bytes());
        }
        to.extend_from_slice(&Origin::encode(Some(&self.source)));
        to.extend_from_slice(&Origin::encode(self.base.as_ref()));
        to.push(self.as_is.into());
        for name in [&self.volume, &self.snapshot] {
            to.push(name.len() as u8);
            to.extend_from_slice(name.as_bytes());
        }
    }

    fn decode(from: &[u8]) -> Result<Self, Malformed> {
        const NAMES_AT: usize = 24 + 2 * ORIGIN_BYTES + 1;
        if from.len() < NAMES_AT {
            return Err(Malformed);
        }
        let blocks = BlockCount(u64_at(from, 8));
        let start = Lba(u64_at(from, 0));
        let as_is = match from[NAMES_AT - 1] {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        let (volume, rest) = take_name(&from[NAMES_AT..])?;
        let (snapshot, rest) = take_name(rest)?;
        let sound = (1..=MAX_VOLUME_BLOCKS).contains(&blocks.0) && start.0 <= blocks.0;
        if !sound || !rest.is_empty() {
            return Err(Malformed);
        }
        Ok(Self {
            from: start,
            blocks,
            taken: u64_at(from, 16),
            as_is,
            source: Origin::decode(&array_at(from, 24)).ok_or(Malformed)?,
            base: Origin::decode(&array_at(from, 24 + ORIGIN_BYTES)),
            volume,
            snapshot,
        })
    }
}

impl<'a> Body<'a> {
    /// Appends the body.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            Self::Manifest(manifest) => manifest.encode(to),
            Self::Blocks { start, content } => {
                to.push(2);
                to.extend_from_slice(&start.0.to_le_bytes());
                to.extend_from_slice(content);
            }
            Self::Holes { start, count } => {
                to.push(3);
                to.extend_from_slice(&start.0.to_le_bytes());
                to.extend_from_slice(&count.0.to_le_bytes());
            }
            Self::End => to.push(4),
        }
    }

    /// What an opened body says.
    ///
    /// # Errors
    /// When it says what cannot be.
    pub fn decode(from: &'a [u8]) -> Result<Self, Malformed> {
        let (&kind, rest) = from.split_first().ok_or(Malformed)?;
        match kind {
            1 => Ok(Self::Manifest(Manifest::decode(rest)?)),
            2 => {
                let (start, content) = rest.split_first_chunk::<8>().ok_or(Malformed)?;
                let start = Lba(u64::from_le_bytes(*start));
                let whole = !content.is_empty() && content.len().is_multiple_of(BLOCK_SIZE);
                if whole { Ok(Self::Blocks { start, content }) } else { Err(Malformed) }
            }
            3 if rest.len() == 16 && u64_at(rest, 8) > 0 => {
                let (start, count) = (Lba(u64_at(rest, 0)), BlockCount(u64_at(rest, 8)));
                Ok(Self::Holes { start, count })
            }
            4 if rest.is_empty() => Ok(Self::End),
            _ => Err(Malformed),
        }
    }
}

impl Origin {
    /// It as bytes; zeroes for none.
    #[must_use]
    pub fn encode(origin: Option<&Self>) -> [u8; ORIGIN_BYTES] {
        let mut to = [0; ORIGIN_BYTES];
        if let Some(Self { pool, snapshot, tag }) = origin {
            to[..16].copy_from_slice(&pool.0);
            to[16..20].copy_from_slice(&snapshot.line.0.to_le_bytes());
            to[20..24].copy_from_slice(&snapshot.epoch.0.to_le_bytes());
            to[24..].copy_from_slice(tag);
        }
        to
    }

    /// What bytes say: none, if their epoch is zero, which no snapshot has.
    #[must_use]
    pub fn decode(from: &[u8; ORIGIN_BYTES]) -> Option<Self> {
        let (line, epoch) = (LineId(u32_at(from, 16)), Epoch(u32_at(from, 20)));
        let snapshot = SnapshotKey { line, epoch };
        let (pool, tag) = (PoolId(array_at(from, 0)), array_at(from, 24));
        (epoch.0 > 0).then_some(Self { pool, snapshot, tag })
    }
}

impl About {
    /// Bytes of it.
    pub const BYTES: usize = 2 * ORIGIN_BYTES;

    /// It as bytes: the source, and the base or zeroes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut to = [0; Self::BYTES];
        to[..ORIGIN_BYTES].copy_from_slice(&Origin::encode(Some(&self.source)));
        to[ORIGIN_BYTES..].copy_from_slice(&Origin::encode(self.base.as_ref()));
        to
    }

    /// What bytes say, if they name a snapshot.
    #[must_use]
    pub fn decode(from: &[u8; Self::BYTES]) -> Option<Self> {
        let source = Origin::decode(&array_at(from, 0))?;
        Some(Self { source, base: Origin::decode(&array_at(from, ORIGIN_BYTES)) })
    }
}

/// A name at the front, which can be one of a volume or a snapshot.
fn take_name(from: &[u8]) -> Result<(String, &[u8]), Malformed> {
    let (&bytes, rest) = from.split_first().ok_or(Malformed)?;
    let (name, rest) = rest.split_at_checked(bytes.into()).ok_or(Malformed)?;
    let fits = (1..=MAX_NAME).contains(&name.len());
    let is_good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    if !fits || !name.iter().all(is_good) {
        return Err(Malformed);
    }
    let name = std::str::from_utf8(name).map_err(|_| Malformed)?;
    Ok((name.to_owned(), rest))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin(number: u8) -> Origin {
        let snapshot = SnapshotKey { line: LineId(number.into()), epoch: Epoch(9) };
        Origin { pool: PoolId([number; 16]), snapshot, tag: [number; 16] }
    }

    /// A header written by hand: streams outlive versions.
    #[test]
    fn a_header_has_these_bytes() {
        let plain = Plain { cost: Some([65_536, 3, 1]), salt: [7; 32] };
        let mut expected = [7; PLAIN_BYTES];
        expected[..32].copy_from_slice(
            b"vRIOstrm\x01\0\0\0\x01\0\0\0\x00\x00\x01\0\x03\0\0\0\x01\0\0\0\0\0\0\0",
        );
        assert_eq!(plain.encode(), expected);
        assert_eq!(Plain::decode(&expected), Ok(plain));
        expected[8] = 2;
        assert_eq!(Plain::decode(&expected), Err(HeaderError::Newer(2)));
        expected[0] = 0;
        assert_eq!(Plain::decode(&expected), Err(HeaderError::NoStream));
    }

    #[test]
    fn what_is_encoded_decodes() {
        for base in [None, Some(origin(3))] {
            let manifest = Manifest {
                from: Lba(5),
                blocks: BlockCount(100),
                taken: 77,
                as_is: true,
                source: origin(1),
                base,
                volume: "disk".to_owned(),
                snapshot: "a.b-c_1".to_owned(),
            };
            let mut body = Vec::new();
            manifest.encode(&mut body);
            assert_eq!(Body::decode(&body), Ok(Body::Manifest(manifest)));
            for cut in 0..body.len() {
                assert_eq!(Body::decode(&body[..cut]), Err(Malformed), "{cut} bytes");
            }
        }
    }

    proptest! {
        /// Whoever writes a stream knows its key, and may be anybody.
        #[test]
        fn no_body_is_too_strange(kind in 0u8..6, mut body: Vec<u8>) {
            body.insert(0, kind);
            let _ = Body::decode(&body);
        }
    }
}
