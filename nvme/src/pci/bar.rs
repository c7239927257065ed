//! BAR 0, mapped: registers and doorbells are loads and stores.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use block_core::Memory;

use super::MOST_BAR_BYTES;
use crate::PAGE;
use crate::registers::{DOORBELLS, GONE};
use crate::sys::HalfWords;

/// The registers of a device that may leave.
pub(super) struct Bar {
    words: HalfWords,
    mapped: Arc<Memory>,
    is_gone: AtomicBool,
}

impl Bar {
    /// Maps what a BAR of `size` bytes at `offset` of a file has of use.
    ///
    /// # Errors
    /// The kernel's, or [`io::ErrorKind::Unsupported`] when there are no doorbells in it.
    pub(super) fn map(file: &File, offset: u64, size: u64) -> io::Result<Self> {
        let bytes = size.min(MOST_BAR_BYTES) as usize / PAGE * PAGE;
        if bytes <= DOORBELLS as usize {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mapped = Arc::new(Memory::of_file(file, offset, bytes)?);
        let words = HalfWords::new(Arc::clone(&mapped), 0, bytes / 4);
        let words = words.expect("as many words as there are bytes for");
        Ok(Self { words, mapped, is_gone: AtomicBool::new(false) })
    }

    /// What a register says; all ones, if there is nobody to say anything.
    pub(super) fn load(&self, offset: u32) -> u32 {
        let index = offset as usize / 4;
        if index >= self.words.len() || self.is_lost() {
            return GONE;
        }
        let value = self.words.load(index, Ordering::Acquire);
        // A load from a device that has just left is a SIGBUS, and then a zero.
        if self.is_lost() { GONE } else { value }
    }

    pub(super) fn store(&self, offset: u32, value: u32) {
        let index = offset as usize / 4;
        if index < self.words.len() {
            // Release: x86 keeps a store to a device behind earlier stores to memory.
            self.words.store(index, value, Ordering::Release);
        }
    }

    /// From now on there is nobody.
    pub(super) fn give_up(&self) {
        self.is_gone.store(true, Ordering::Relaxed);
    }

    /// Puts another mapping in place of this one; see [`Memory::replace`].
    pub(super) fn replace(&self, with: Option<(&File, u64)>) -> io::Result<()> {
        self.mapped.replace(with)
    }

    fn is_lost(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed) || self.mapped.has_failed()
    }
}
