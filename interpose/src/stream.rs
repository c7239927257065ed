//! Reading a stream, wherever its bytes come from: frames are opened, and what
//! they say is checked. No I/O; the layout is in [`crate::layout::stream`].
//!
//! Whoever writes a stream seals bodies with a [`StreamKey`], one after the
//! other.

use block_core::{BLOCK_SIZE, Lba};
use thiserror::Error;

use crate::layout::stream::{Body, HEADER_BYTES, MAGIC, MAX_BODY, Manifest, TAG_BYTES};
use crate::vault::Secret;
use crate::vault::stream::{StreamKey, StreamKeyError};

/// What is wrong with a stream, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{fault} (at byte {offset} of the stream)")]
pub struct StreamError {
    /// Where what is wrong begins: everything before is sound.
    pub offset: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Fault {
    /// A part's header.
    #[error(transparent)]
    Key(#[from] StreamKeyError),
    /// A frame is not what was sealed.
    #[error("the stream is damaged: a frame is not what was sealed")]
    Damaged,
    /// A frame says what cannot be there.
    #[error("the stream says what cannot be")]
    Malformed,
    /// A part is of another snapshot.
    #[error("a part of another snapshot follows")]
    OtherSnapshot,
    /// A part begins too late.
    #[error(
        "the next part begins at block {from}, and the stream has blocks up to {position} only"
    )]
    Gap {
        /// Where it begins.
        from: u64,
        /// What is there.
        position: u64,
    },
    /// There is no end.
    #[error("the stream is cut off here")]
    CutOff,
    /// There is more than there should be.
    #[error("something follows the end of the stream")]
    Trailing,
}

/// A stream that is being read. It holds what was pushed and not taken.
#[derive(Debug)]
pub struct StreamReader {
    secret: Secret,
    /// The key of the part that is being read.
    key: Option<StreamKey>,
    /// Whether the part's manifest has come.
    is_begun: bool,
    pending: Vec<u8>,
    /// How many bytes of `pending` are done with, and where the rest begins in
    /// the stream.
    taken: usize,
    offset: u64,
    /// The end of the last frame that was good.
    sound: u64,
    /// The first part's.
    manifest: Option<Manifest>,
    /// Blocks before came in this part, or were not to come in it.
    cursor: Lba,
    position: Lba,
    ended: bool,
    failed: Option<StreamError>,
}

impl StreamReader {
    /// Reads a stream that this secret opens, from its first byte on.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        Self {
            secret,
            key: None,
            is_begun: false,
            pending: Vec::new(),
            taken: 0,
            offset: 0,
            sound: 0,
            manifest: None,
            cursor: Lba(0),
            position: Lba(0),
            ended: false,
            failed: None,
        }
    }

    /// More bytes of the stream. Take what they hold, with
    /// [`next_body`](Self::next_body), before there are more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.drain(..self.taken);
        self.taken = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// What comes next, or `None` until more bytes have come. Each part begins
    /// with a manifest, which says the same for all but where the part begins;
    /// a part may repeat blocks of the one before.
    ///
    /// For a passphrase a part's header takes as long as it says, within
    /// [`Cost::new`](crate::vault::Cost::new).
    ///
    /// # Errors
    /// What is wrong, from then on.
    pub fn next_body(&mut self) -> Result<Option<Body<'_>>, StreamError> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        match self.take() {
            Ok(None) => Ok(None),
            // Decoded once more: what borrows the bytes cannot leave `take`.
            Ok(Some((start, end))) => Ok(Body::decode(&self.pending[start..end]).ok()),
            Err(fault) => {
                let offset = self.offset;
                Err(*self.failed.insert(StreamError { offset, fault }))
            }
        }
    }

    /// Where the last frame ends that was good, in the stream, and the block up
    /// to which blocks have come: a part that begins there can go on. Nothing
    /// before the first manifest has come.
    #[must_use]
    pub fn sound(&self) -> Option<(u64, Lba)> {
        self.manifest.is_some().then_some((self.sound, self.position))
    }

    /// What the stream is about, once that has come.
    #[must_use]
    pub const fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Whether the stream's end has come.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// No more bytes come.
    ///
    /// # Errors
    /// When there should be more, or less.
    pub fn finish(&self) -> Result<(), StreamError> {
        match self.failed {
            Some(failed) => Err(failed),
            None if self.ended && self.taken == self.pending.len() => Ok(()),
            None => Err(StreamError { offset: self.sound, fault: Fault::CutOff }),
        }
    }

    /// Opens the next frame; where its body is in `pending`.
    fn take(&mut self) -> Result<Option<(usize, usize)>, Fault> {
        loop {
            let rest = &self.pending[self.taken..];
            if rest.is_empty() {
                return Ok(None);
            }
            if self.ended {
                return Err(Fault::Trailing);
            }
            let known = rest.len().min(MAGIC.len());
            let is_header = rest.starts_with(&MAGIC[..known]);
            let Some(key) = self.key.as_mut().filter(|_| !is_header) else {
                if self.key.is_none() && !is_header {
                    let none = crate::layout::stream::HeaderError::NoStream;
                    return Err(StreamKeyError::Header(none).into());
                }
                let Some(header) = rest.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
                self.key = Some(StreamKey::unlock(header, &self.secret)?);
                self.is_begun = false;
                self.consume(HEADER_BYTES);
                continue;
            };
            let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
            let length = u32::from_le_bytes(*length) as usize;
            if !(1..=MAX_BODY).contains(&length) {
                return Err(Fault::Damaged);
            }
            let (start, frame) = (self.taken + 4, 4 + length + TAG_BYTES);
            if rest.len() < frame {
                return Ok(None);
            }
            let sealed = &mut self.pending[start..self.taken + frame];
            key.open(sealed).ok_or(Fault::Damaged)?;
            self.accept(start, start + length)?;
            self.consume(frame);
            self.sound = self.offset;
            return Ok(Some((start, start + length)));
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.taken += bytes;
        self.offset += bytes as u64;
    }

    /// Believes an opened body, or not: blocks rise, lie in the volume, and
    /// none is left out between parts.
    fn accept(&mut self, start: usize, end: usize) -> Result<(), Fault> {
        let body = Body::decode(&self.pending[start..end]).map_err(|_| Fault::Malformed)?;
        let range = match (body, self.is_begun) {
            (Body::Manifest(manifest), false) => return self.begin(manifest),
            (Body::Blocks { start, content }, true) => (start, (content.len() / BLOCK_SIZE) as u64),
            (Body::Holes { start, count }, true) => (start, count.0),
            (Body::End, true) => {
                self.position = Lba(self.blocks());
                self.ended = true;
                return Ok(());
            }
            _ => return Err(Fault::Malformed),
        };
        let (first, count) = range;
        let end = first.0.checked_add(count).filter(|&end| end <= self.blocks());
        self.cursor = match end {
            Some(end) if first >= self.cursor => Lba(end),
            _ => return Err(Fault::Malformed),
        };
        self.position = self.position.max(self.cursor);
        Ok(())
    }

    fn begin(&mut self, manifest: Manifest) -> Result<(), Fault> {
        if let Some(first) = &self.manifest
            && (first.about(), first.blocks) != (manifest.about(), manifest.blocks)
        {
            return Err(Fault::OtherSnapshot);
        }
        let (from, position) = (manifest.from.0, self.position.0);
        if from > position {
            return Err(Fault::Gap { from, position });
        }
        self.cursor = manifest.from;
        self.is_begun = true;
        self.manifest.get_or_insert(manifest);
        Ok(())
    }

    fn blocks(&self) -> u64 {
        self.manifest.as_ref().map_or(0, |manifest| manifest.blocks.0)
    }
}
