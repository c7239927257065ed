//! The ring between client and front: a file that both map.
//!
//! ```text
//!      0    64            4096           8192            12288 + 4096 n
//!   | head | tail | .. | submissions | completions | data of slot n |
//! ```
//!
//! Head and tail count requests and never wrap to a place: the place is the count
//! modulo [`ENTRIES`]. A submission is two words, the slot (its top bit: a write) and
//! the block; a completion is a slot. A slot's data is the client's until the head
//! says that it was submitted, and the front's until the tail says that it is complete.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use anyhow::Context;
use block_core::Memory;

use crate::message::BLOCK;
use crate::sys::Shared;

/// Requests under way at most.
pub(crate) const ENTRIES: u32 = 256;

const HEAD: usize = 0;
const TAIL: usize = 64;
const SUBMISSIONS: usize = 4096;
const COMPLETIONS: usize = 8192;
const DATA: usize = 12288;
const BYTES: usize = DATA + ENTRIES as usize * BLOCK;

/// The bit of a write in a submission's slot.
const WRITE: u32 = 1 << 31;

const _: () = assert!(SUBMISSIONS + 8 * ENTRIES as usize <= COMPLETIONS);
const _: () = assert!(COMPLETIONS + 4 * ENTRIES as usize <= DATA);

/// A request for one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) slot: u32,
    pub(crate) block: u32,
    pub(crate) write: bool,
}

/// The ring, as either side sees it.
#[derive(Debug)]
pub(crate) struct Ring {
    shared: Shared,
}

impl Ring {
    /// Makes the file, complete from the moment it has its name.
    pub(crate) fn make(path: &Path) -> anyhow::Result<Self> {
        let beginning = path.with_extension("new");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        let made = options.open(&beginning).and_then(|file| {
            file.set_len(BYTES as u64)?;
            Memory::of_file(&file, 0, BYTES)
        });
        let memory = made.with_context(|| format!("cannot make {}", beginning.display()))?;
        let ring = Self { shared: Shared::new(memory) };
        (0..ENTRIES).for_each(|slot| ring.shared.fill(data_at(slot), BLOCK, 1));
        std::fs::rename(&beginning, path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(ring)
    }

    /// Opens one that the front has made.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let opened = File::options().read(true).write(true).open(path);
        let memory = opened.and_then(|file| Memory::of_file(&file, 0, BYTES));
        let memory = memory.with_context(|| format!("cannot open the ring {}", path.display()))?;
        Ok(Self { shared: Shared::new(memory) })
    }

    /// Requests ever submitted.
    pub(crate) fn head(&self) -> u32 {
        self.shared.word(HEAD).load(Acquire)
    }

    /// Requests ever completed.
    pub(crate) fn tail(&self) -> u32 {
        self.shared.word(TAIL).load(Acquire)
    }

    /// The client's: puts a request where the head will point.
    pub(crate) fn put(&self, place: u32, request: Request) {
        let at = SUBMISSIONS + 8 * (place % ENTRIES) as usize;
        let slot = request.slot | if request.write { WRITE } else { 0 };
        self.shared.word(at).store(slot, Relaxed);
        self.shared.word(at + 4).store(request.block, Relaxed);
    }

    /// The client's: all before `head` is submitted.
    pub(crate) fn submit(&self, head: u32) {
        self.shared.word(HEAD).store(head, Release);
    }

    /// The front's: the request at a place before the head.
    pub(crate) fn request(&self, place: u32) -> Request {
        let at = SUBMISSIONS + 8 * (place % ENTRIES) as usize;
        let slot = self.shared.word(at).load(Relaxed);
        let block = self.shared.word(at + 4).load(Relaxed);
        Request { slot: slot & !WRITE, block, write: slot & WRITE != 0 }
    }

    /// The front's: a request is complete when the tail is told.
    pub(crate) fn complete(&self, place: u32, slot: u32) {
        let at = COMPLETIONS + 4 * (place % ENTRIES) as usize;
        self.shared.word(at).store(slot, Relaxed);
    }

    /// The front's: all before `tail` is complete.
    pub(crate) fn tell(&self, tail: u32) {
        self.shared.word(TAIL).store(tail, Release);
    }

    /// The client's: the slot that is complete at a place before the tail.
    pub(crate) fn completed(&self, place: u32) -> u32 {
        self.shared.word(COMPLETIONS + 4 * (place % ENTRIES) as usize).load(Relaxed)
    }

    /// The front's: what a read has brought.
    pub(crate) fn fill_slot(&self, slot: u32, block: &[u8]) {
        self.shared.copy_in(data_at(slot), &block[..BLOCK]);
    }

    /// The front's: what a write brings.
    pub(crate) fn slot(&self, slot: u32) -> &[u8] {
        self.shared.bytes(data_at(slot), BLOCK)
    }
}

fn data_at(slot: u32) -> usize {
    DATA + (slot % ENTRIES) as usize * BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two mappings of one file: what the client submits the front finds, and the
    /// other way round, also where the counts have passed the ring's end.
    #[test]
    fn requests_and_answers_cross_the_ring_beyond_its_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ring");
        let front = Ring::make(&path).expect("a ring");
        let client = Ring::open(&path).expect("the same");
        for place in 0..3 * ENTRIES {
            let request = Request { slot: place % 7, block: place, write: place % 2 == 1 };
            client.put(place, request);
            client.submit(place + 1);
            assert_eq!((front.head(), front.request(place)), (place + 1, request));
            front.fill_slot(request.slot, &[place as u8; BLOCK]);
            front.complete(place, request.slot);
            front.tell(place + 1);
            assert_eq!((client.tail(), client.completed(place)), (place + 1, request.slot));
            assert_eq!(client.slot(request.slot), [place as u8; BLOCK]);
        }
    }
}
