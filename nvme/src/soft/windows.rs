//! The memory that a driver has opened to the controller.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use block_core::{DmaMemory, Memory};

use crate::PAGE;
use crate::arena::Arena;
use crate::sys::{HalfWords, Words};

/// Where the first window begins: address 0 and what private buffers claim to
/// be at are no window.
const FIRST_IOVA: u64 = 1 << 32;

/// What the bus writes down: which memory is where. Memory that the driver has
/// dropped disappears. Addresses are not used twice while the engine may hold what
/// was there.
#[derive(Debug, Default)]
pub(super) struct Registry {
    windows: Mutex<Listed>,
    version: AtomicU32,
    /// Where memory comes from that other controllers reach too.
    arena: Option<Arc<Arena>>,
}

#[derive(Debug, Default)]
struct Listed {
    windows: Vec<(u64, Weak<Memory>)>,
    /// Bytes of address space handed out so far.
    used: u64,
}

impl Registry {
    pub(super) fn over(arena: Arc<Arena>) -> Self {
        Self { arena: Some(arena), ..Self::default() }
    }

    /// New memory for the driver.
    pub(super) fn allocate(&self, bytes: usize) -> io::Result<DmaMemory> {
        if let Some(arena) = &self.arena {
            let dma = arena.allocate(bytes)?;
            self.insert(dma.iova(), dma.memory());
            return Ok(dma);
        }
        let memory = Arc::new(Memory::anonymous(bytes)?);
        let mut listed = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        listed.windows.retain(|(_, memory)| memory.strong_count() > 0);
        let iova = FIRST_IOVA + listed.used;
        // A page between windows, so that no transfer runs from one into the next.
        listed.used += (memory.len() + PAGE) as u64;
        listed.windows.push((iova, Arc::downgrade(&memory)));
        self.version.fetch_add(1, Ordering::Release);
        Ok(DmaMemory::new(memory, iova))
    }
}

impl Registry {
    /// Memory that a driver brings along.
    pub(super) fn insert(&self, iova: u64, memory: &Arc<Memory>) {
        let mut listed = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        listed.windows.retain(|(_, memory)| memory.strong_count() > 0);
        listed.windows.push((iova, Arc::downgrade(memory)));
        self.version.fetch_add(1, Ordering::Release);
    }

    /// And takes away.
    pub(super) fn remove(&self, iova: u64) {
        let mut listed = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        listed.windows.retain(|(start, _)| *start != iova);
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// A piece of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    window: usize,
    pub(super) offset: usize,
}

impl Place {
    /// Whether this is where `bytes` bytes from `other` end, in the same window. Two
    /// windows of a driver's choice can have neighbouring addresses.
    pub(super) fn is_after(self, other: Self, bytes: usize) -> bool {
        self.window == other.window && self.offset == other.offset + bytes
    }
}

/// The engine's copy of the registry. It keeps the memory mapped while it may
/// be read or written.
#[derive(Debug, Default)]
pub(super) struct Windows {
    version: u32,
    list: Vec<DmaMemory>,
    last: Cell<usize>,
}

impl Windows {
    /// Takes over what changed. No [`Place`] lives across this.
    pub(super) fn refresh(&mut self, registry: &Registry) {
        let version = registry.version.load(Ordering::Acquire);
        if version == self.version {
            return;
        }
        self.list.clear();
        let listed = registry.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let living =
            listed.windows.iter().filter_map(|(iova, memory)| Some((*iova, memory.upgrade()?)));
        self.list.extend(living.map(|(iova, memory)| DmaMemory::new(memory, iova)));
        self.version = version;
        self.last.set(0);
    }

    /// Where `bytes` from `iova` are, if all of them are in one window.
    pub(super) fn find(&self, iova: u64, bytes: usize) -> Option<Place> {
        let last = self.last.get();
        if let Some(place) = self.inside(last, iova, bytes) {
            return Some(place);
        }
        let found = (0..self.list.len()).find_map(|window| self.inside(window, iova, bytes))?;
        self.last.set(found.window);
        Some(found)
    }

    fn inside(&self, window: usize, iova: u64, bytes: usize) -> Option<Place> {
        let dma = self.list.get(window)?;
        let offset = usize::try_from(iova.checked_sub(dma.iova())?).ok()?;
        let end = offset.checked_add(bytes)?;
        (end <= dma.memory().len()).then_some(Place { window, offset })
    }

    /// Where the driver said that a place is.
    #[cfg(test)]
    pub(super) fn iova(&self, place: Place) -> u64 {
        self.list[place.window].iova() + place.offset as u64
    }

    /// The memory that a place is in.
    pub(super) fn memory(&self, place: Place) -> &Memory {
        self.shared(place)
    }

    /// The same, for who uses it longer than a call.
    pub(super) fn shared(&self, place: Place) -> &Arc<Memory> {
        self.list[place.window].memory()
    }

    /// Half words that stay readable however the windows change.
    pub(super) fn half_words(&self, iova: u64, count: usize) -> Option<HalfWords> {
        let place = self.find(iova, count.checked_mul(4)?)?;
        HalfWords::new(Arc::clone(self.list[place.window].memory()), place.offset, count)
    }

    /// Words that stay readable however the windows change, for a queue.
    pub(super) fn words(&self, iova: u64, count: usize) -> Option<Words> {
        let place = self.find(iova, count.checked_mul(8)?)?;
        Words::new(Arc::clone(self.list[place.window].memory()), place.offset, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver of another process opens two files at neighbouring addresses: a
    /// transfer that runs from one into the other is two pieces of memory.
    #[test]
    fn neighbours_in_address_are_no_neighbours_in_memory() {
        let registry = Registry::default();
        let mut windows = Windows::default();
        let memory = || Arc::new(Memory::anonymous(PAGE).expect("memory"));
        let (first, second) = (memory(), memory());
        registry.insert(1 << 20, &first);
        registry.insert((1 << 20) + PAGE as u64, &second);
        windows.refresh(&registry);
        let mut pieces = Vec::new();
        let pointers = (1 << 20, (1 << 20) + PAGE as u64);
        super::super::prp::resolve(&windows, pointers, 2 * PAGE, &mut pieces).expect("mapped");
        assert_eq!(pieces.len(), 2);
        registry.remove(1 << 20);
        windows.refresh(&registry);
        assert!(windows.find(1 << 20, 1).is_none());
    }

    #[test]
    fn only_addresses_of_living_memory_are_found() {
        let registry = Registry::default();
        let mut windows = Windows::default();
        let first = registry.allocate(2 * PAGE).expect("memory");
        let second = registry.allocate(PAGE).expect("memory");
        windows.refresh(&registry);
        assert!(windows.find(first.iova(), 2 * PAGE).is_some());
        assert!(windows.find(first.iova() + 1, 2 * PAGE).is_none());
        assert!(windows.find(first.iova() - 1, 1).is_none());
        assert!(windows.find(second.iova() + PAGE as u64, 1).is_none());
        assert!(windows.find(u64::MAX, usize::MAX).is_none());
        let gone = first.iova();
        drop(first);
        let third = registry.allocate(PAGE).expect("memory");
        windows.refresh(&registry);
        assert!(windows.find(gone, 1).is_none());
        assert!(third.iova() > second.iova());
    }
}
