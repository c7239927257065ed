//! What the control socket speaks about streams. Blocks travel as bytes, in
//! answers and requests of about a mebibyte: whoever reads slowly asks later,
//! so that nothing piles up in the server. Nothing is sealed here: the socket
//! is its owner's alone, and the stream's secret stays with the client.
//!
//! An answer to [`AskExport`], `application/octet-stream`:
//!
//! ```text
//! 0    the block to ask for next u64; all ones when that was all
//! 8    bodies: length u32 | a body as in a stream
//! ```
//!
//! `POST /volumes/NAME/import/blocks`, with the same kind of body, says the
//! next step of an import:
//!
//! ```text
//! 0    up to which block it has come u64 | and with this u64
//! 16   what the stream is of, 80 bytes
//! 96   bodies: length u32 | a body as in a stream; blocks and holes
//! ```

use block_core::Lba;
use interpose::layout::stream::{About, Body, MAX_BODY, Manifest};
use interpose::pool::Piece;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most bytes of a step.
pub const STEP_BYTES: usize = 2 << 20;

/// Where nothing comes any more.
const ALL: u64 = u64::MAX;

/// `POST /volumes/NAME/snapshots/SNAPSHOT/export`; the answer is
/// [`Exported`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskExport {
    /// Only what changed since this snapshot of the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// From where on; the answer holds the manifest alone if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub go_on: Option<GoOn>,
}

/// From where on a stream is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoOn {
    /// What the stream is of: an [`About`].
    pub about: Hex,
    /// The first block.
    pub block: u64,
}

/// `POST /volumes/NAME/import`; the answer is an [`ImportInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartImport {
    /// What the stream says of itself: a [`Manifest`] as a body.
    pub manifest: Hex,
    /// What the snapshot is called here.
    pub name: String,
    /// On which device a new volume is made; may be left out when there is
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// With whose volumes a new volume shares a key and blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// How far an import has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportInfo {
    /// Every block before is there.
    pub block: u64,
}

/// `POST /volumes/NAME/import/end`; the answer is a
/// [`SnapshotInfo`](super::SnapshotInfo).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndImport {
    /// What the stream is of: an [`About`].
    pub about: Hex,
    /// What the snapshot is called here.
    pub name: String,
    /// Whether a writer may have lost unflushed writes before it was taken.
    #[serde(default)]
    pub as_is: bool,
}

/// Bytes as pairs of hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hex(String);

/// Bytes that are no step, or answer, of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("these bytes are no part of a stream")]
pub struct BadStep;

impl Hex {
    /// These bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What a stream is of.
    #[must_use]
    pub fn of(about: &About) -> Self {
        Self::new(&about.encode())
    }

    /// The bytes, or `None` if these are no pairs of digits.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let (pairs, rest) = self.0.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |&[high, low]: &[u8; 2]| Some((digit(high)? << 4 | digit(low)?) as u8);
        rest.is_empty().then(|| pairs.iter().map(byte).collect()).flatten()
    }

    /// What a stream is of, if that is what it says.
    #[must_use]
    pub fn about(&self) -> Option<About> {
        About::decode(self.bytes()?.as_slice().try_into().ok()?)
    }

    /// What a stream says of itself, if that is what it says.
    #[must_use]
    pub fn manifest(&self) -> Option<Manifest> {
        match Body::decode(&self.bytes()?) {
            Ok(Body::Manifest(manifest)) => Some(manifest),
            _ => None,
        }
    }
}

/// Some of what a stream holds, as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The block to ask for next; `None` when that was all.
    pub next: Option<u64>,
    /// Bodies of frames, in order.
    pub bodies: Vec<Vec<u8>>,
}

impl Exported {
    /// It as an answer's bytes.
    #[must_use]
    pub fn encode(next: Option<Lba>, bodies: &[Body<'_>]) -> Vec<u8> {
        let mut to = next.map_or(ALL, |next| next.0).to_le_bytes().to_vec();
        bodies.iter().for_each(|body| put(&mut to, body));
        to
    }

    /// What an answer says.
    ///
    /// # Errors
    /// [`BadStep`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BadStep> {
        let (next, rest) = bytes.split_first_chunk::<8>().ok_or(BadStep)?;
        let next = u64::from_le_bytes(*next);
        let bodies = bodies(rest)?.into_iter().map(<[u8]>::to_vec).collect();
        Ok(Self { next: (next != ALL).then_some(next), bodies })
    }
}

/// A step of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the stream is of.
    pub about: About,
    /// Up to where it has come.
    pub after: u64,
    /// And with this.
    pub upto: u64,
    /// What comes.
    pub pieces: Vec<Piece>,
}

impl Step {
    /// It as a request's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Vec::new();
        to.extend_from_slice(&self.after.to_le_bytes());
        to.extend_from_slice(&self.upto.to_le_bytes());
        to.extend_from_slice(&self.about.encode());
        self.pieces.iter().for_each(|piece| put(&mut to, &piece.body()));
        to
    }

    /// What a request says.
    ///
    /// # Errors
    /// [`BadStep`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BadStep> {
        let (after, rest) = bytes.split_first_chunk::<8>().ok_or(BadStep)?;
        let (upto, rest) = rest.split_first_chunk::<8>().ok_or(BadStep)?;
        let (about, rest) = rest.split_first_chunk::<{ About::BYTES }>().ok_or(BadStep)?;
        let piece = |body| match Body::decode(body) {
            Ok(Body::Blocks { start, content }) => {
                Ok(Piece::Blocks { start, content: content.to_vec() })
            }
            Ok(Body::Holes { start, count }) => Ok(Piece::Holes { start, count }),
            _ => Err(BadStep),
        };
        let pieces = bodies(rest)?.into_iter().map(piece).collect::<Result<Vec<_>, _>>()?;
        let (after, upto) = (u64::from_le_bytes(*after), u64::from_le_bytes(*upto));
        let mut at = Some(after);
        for piece in &pieces {
            let start = piece.start().0;
            let rises = at.is_some_and(|at| at <= start);
            at = start.checked_add(piece.count().0).filter(|_| rises);
        }
        if at.is_none_or(|at| at > upto) {
            return Err(BadStep);
        }
        Ok(Self { about: About::decode(about).ok_or(BadStep)?, after, upto, pieces })
    }
}

fn put(to: &mut Vec<u8>, body: &Body<'_>) {
    let at = to.len();
    to.extend_from_slice(&[0; 4]);
    body.encode(to);
    let length = (to.len() - at - 4) as u32;
    to[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn bodies(mut from: &[u8]) -> Result<Vec<&[u8]>, BadStep> {
    let mut bodies = Vec::new();
    while !from.is_empty() {
        let (length, rest) = from.split_first_chunk::<4>().ok_or(BadStep)?;
        let length = u32::from_le_bytes(*length) as usize;
        if !(1..=MAX_BODY).contains(&length) {
            return Err(BadStep);
        }
        let (body, rest) = rest.split_at_checked(length).ok_or(BadStep)?;
        bodies.push(body);
        from = rest;
    }
    Ok(bodies)
}

#[cfg(test)]
mod tests {
    use block_core::{BLOCK_SIZE, BlockCount};
    use interpose::layout::control::SnapshotKey;
    use interpose::layout::stream::Origin;
    use interpose::layout::{Epoch, LineId, PoolId};

    use super::*;

    fn step() -> Step {
        let snapshot = SnapshotKey { line: LineId(1), epoch: Epoch(2) };
        let source = Origin { pool: PoolId([4; 16]), snapshot, tag: [9; 16] };
        let pieces = vec![
            Piece::Blocks { start: Lba(5), content: vec![7; 2 * BLOCK_SIZE] },
            Piece::Holes { start: Lba(9), count: BlockCount(3) },
        ];
        Step { about: About { source, base: Some(source) }, after: 5, upto: 20, pieces }
    }

    #[test]
    fn a_step_arrives_as_it_was_sent() {
        let (step, bytes) = (step(), step().encode());
        assert_eq!(Step::parse(&bytes), Ok(step.clone()));
        assert_eq!(Hex::of(&step.about).about(), Some(step.about));
        for cut in [0, 7, 95, 97, bytes.len() - 1] {
            assert_eq!(Step::parse(&bytes[..cut]), Err(BadStep), "{cut} bytes");
        }
        let bodies: Vec<Body<'_>> = step.pieces.iter().map(Piece::body).collect();
        let exported = Exported::parse(&Exported::encode(Some(Lba(8)), &bodies)).expect("sound");
        assert_eq!((exported.next, exported.bodies.len()), (Some(8), 2));
        assert_eq!(Exported::parse(&Exported::encode(None, &[])).expect("sound").next, None);
    }

    /// A client that is confused must not write where it does not say.
    #[test]
    fn pieces_lie_where_the_step_says_and_rise() {
        for (after, upto) in [(6, 20), (5, 11), (0, u64::MAX)] {
            let bad = upto < u64::MAX;
            let step = Step { after, upto, ..step() };
            assert_eq!(Step::parse(&step.encode()).is_err(), bad, "{after}..{upto}");
        }
        let mut turned = step();
        turned.pieces.reverse();
        assert_eq!(Step::parse(&turned.encode()), Err(BadStep));
        assert_eq!(Hex::new(&[1]).about(), None);
        let odd: Hex = serde_json::from_str("\"012\"").expect("a text");
        assert_eq!(odd.bytes(), None);
    }
}
