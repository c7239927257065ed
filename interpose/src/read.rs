//! Reading: from the overlays, the map, the cache and the device.

use block_core::unit::{BLOCK_SIZE, MAX_REQUEST_BLOCKS};
use block_core::{BlockError, Buffer, Device, LbaRange};

use crate::catalog::head_of;
use crate::core::{Core, State, count};
use crate::layout::control::SnapshotKey;
use crate::layout::{Class, DomainId, Epoch, Kind, Pointer};
use crate::overlay::Known;
use crate::radix::{self, Tree};

/// Blocks that are looked up at a time: a request's.
pub(crate) type Pointers = [Pointer; MAX_REQUEST_BLOCKS + 1];

impl State {
    /// What the overlays know of a range of a head or a snapshot, and the map
    /// that has the rest. Bit `n` of the mask: block `n` of the range is
    /// known.
    ///
    /// What was never merged is what it began as, and so on until there is a
    /// map.
    fn look(&self, key: SnapshotKey, range: LbaRange, out: &mut [Pointer]) -> Option<(u64, Tree)> {
        let all = (1u64 << range.count.0) - 1;
        let (mut known, mut at) = (0u64, key);
        loop {
            let epoch = at.epoch.min(Epoch::MAX);
            for overlay in std::iter::once(&self.active).chain(&self.merging) {
                if overlay.is_empty() {
                    continue;
                }
                for place in 0..range.count.0 {
                    if known & 1 << place != 0 {
                        continue;
                    }
                    let lba = block_core::Lba(range.start.0 + place);
                    if let Known::Is(pointer) = overlay.find(at.line, lba, epoch) {
                        out[place as usize] = pointer;
                        known |= 1 << place;
                    }
                }
            }
            let tree = |key| self.catalog.node(key).and_then(|node| node.stored.tree);
            if let Some(tree) = tree(at).or_else(|| tree(head_of(at.line))) {
                return Some((known, tree));
            }
            if known == all {
                return Some((known, Tree::EMPTY));
            }
            at = self.catalog.origin(at.line)?;
        }
    }
}

impl<D: Device> Core<D> {
    /// The pointers of a range of a head or a snapshot. They are good as long
    /// as the caller is a reader.
    pub(crate) async fn resolve(
        &self,
        key: SnapshotKey,
        range: LbaRange,
        out: &mut [Pointer],
    ) -> Result<(), BlockError> {
        let blocks = range.count.0 as usize;
        let looked = self.state.borrow().look(key, range, out);
        let (known, tree) = looked.ok_or(BlockError::NotAttached)?;
        let mut place = 0;
        while place < blocks {
            let rest = known >> place;
            let unknown = (!rest).trailing_zeros() as usize;
            if unknown > 0 {
                place += unknown;
                continue;
            }
            let run = (rest.trailing_zeros() as usize).min(blocks - place);
            let start = range.start.0 + place as u64;
            let found = &mut out[place..place + run];
            if let Err(damage) = radix::find_run(&self.pages, Class::Map, &tree, start, found).await
            {
                count(&self.tally.damaged, 1);
                tracing::error!(pool = %self.id, %damage, lba = start, "a map is damaged");
                return Err(BlockError::Medium);
            }
            place += run;
        }
        Ok(())
    }

    /// Reads a range of a head or a snapshot into blocks `place..` of the
    /// buffer.
    pub(crate) async fn read(
        &self,
        key: SnapshotKey,
        domain: DomainId,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
    ) -> (Buffer, Result<(), BlockError>) {
        let _reading = self.readers.enter();
        let mut pointers: Pointers = [Pointer::HOLE; MAX_REQUEST_BLOCKS + 1];
        let pointers = &mut pointers[..range.count.0 as usize];
        if let Err(error) = self.resolve(key, range, pointers).await {
            return (buffer, Err(error));
        }
        let mut buffer = buffer;
        let mut at = 0;
        while at < pointers.len() {
            let into = block_at(&mut buffer, place + at);
            match pointers[at].kind {
                Kind::Data => {}
                Kind::Hole => {
                    into.fill(0);
                    at += 1;
                    continue;
                }
                Kind::Lost => {
                    count(&self.tally.damaged, 1);
                    return (buffer, Err(BlockError::Medium));
                }
                Kind::Page => return (buffer, Err(BlockError::Medium)),
            }
            count(&self.tally.read, 1);
            if self.cache.get(pointers[at].seal.key(), into) {
                count(&self.tally.cached, 1);
                at += 1;
                continue;
            }
            let run = run_from(&pointers[at..]);
            let outcome;
            let places = place + at..place + at + run;
            (buffer, outcome) = self.device.read(pointers[at].pba, buffer, places).await;
            if outcome.is_err() {
                return (buffer, outcome);
            }
            for pointer in &pointers[at..at + run] {
                let bytes = block_at(&mut buffer, place + at);
                if let Err(error) = self.open_block(domain, &pointer.seal, pointer.pba, bytes) {
                    bytes.fill(0);
                    return (buffer, Err(error));
                }
                self.cache.put(pointer.seal.key(), domain, bytes);
                at += 1;
            }
            count(&self.tally.read, run as u64 - 1);
        }
        (buffer, Ok(()))
    }
}

/// A block of a buffer.
pub(crate) fn block_at(buffer: &mut Buffer, place: usize) -> &mut [u8] {
    &mut buffer[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE]
}

/// How many of the pointers follow each other on the device.
fn run_from(pointers: &[Pointer]) -> usize {
    let first = pointers[0].pba.0;
    let next = |(at, pointer): &(usize, &Pointer)| {
        pointer.kind == Kind::Data && pointer.pba.0 == first + *at as u64
    };
    pointers.iter().enumerate().take_while(next).count()
}
