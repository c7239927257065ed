//! Entries travel in chunks: what the worker fills and the file gets at once.

use block_core::crc32c;

use super::entry::MAX_ENTRY;

/// Bytes of a whole chunk.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes before the entries.
pub(super) const CHUNK_HEAD: usize = 12;

/// Most bytes of entries.
pub(super) const MAX_ENTRIES: usize = CHUNK_BYTES - CHUNK_HEAD;

/// A chunk that is being filled; its head is written at the end.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
}

impl Chunk {
    /// An empty chunk with all the memory that it will need.
    pub(super) fn new() -> Self {
        let mut chunk = Self { bytes: Vec::with_capacity(CHUNK_BYTES) };
        chunk.clear();
        chunk
    }

    /// Takes all entries out.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(CHUNK_HEAD, 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == CHUNK_HEAD
    }

    /// Whether any entry, and a gap before it, still fits.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() + 2 * MAX_ENTRY <= CHUNK_BYTES
    }

    /// Where entries are appended.
    pub(super) fn entries(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The chunk as it is in the file.
    pub(super) fn seal(&mut self, number: u32) -> &[u8] {
        let entries = (self.bytes.len() - CHUNK_HEAD) as u32;
        self.bytes[4..8].copy_from_slice(&number.to_le_bytes());
        self.bytes[8..12].copy_from_slice(&entries.to_le_bytes());
        let sum = crc32c(&[&self.bytes[4..]]);
        self.bytes[..4].copy_from_slice(&sum.to_le_bytes());
        &self.bytes
    }
}

/// What the head of a chunk says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) sum: u32,
    pub(super) number: u32,
    /// Bytes of entries.
    pub(super) entries: usize,
}

impl Head {
    pub(super) fn parse(bytes: &[u8; CHUNK_HEAD]) -> Option<Self> {
        let [a, b, c] = [0, 4, 8]
            .map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        let entries = c as usize;
        let fits = (1..=MAX_ENTRIES).contains(&entries);
        fits.then_some(Self { sum: a, number: b, entries })
    }

    /// Whether these entries belong to the head.
    pub(super) fn covers(&self, bytes: &[u8; CHUNK_HEAD], entries: &[u8]) -> bool {
        crc32c(&[&bytes[4..], entries]) == self.sum
    }
}
