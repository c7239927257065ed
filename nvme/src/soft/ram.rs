//! Memory behind a namespace: sparse, because the kernel supplies a page when
//! it is first touched.

use std::io;
use std::ops::Range;

use block_core::Memory;

use super::namespace::whole_pages;
use crate::completion::Status;
use crate::sys;

/// From this size giving pages back is cheaper than setting them to zero.
const GIVE_BACK_BYTES: u64 = 64 * 1024;

#[derive(Debug)]
pub(super) struct Ram {
    memory: Memory,
}

impl Ram {
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        Ok(Self { memory: Memory::anonymous(bytes)? })
    }

    #[inline]
    pub(super) fn read(&self, at: usize, to: &Memory, offset: usize, bytes: usize) {
        sys::copy(&self.memory, at, to, offset, bytes);
    }

    #[inline]
    pub(super) fn write(&mut self, at: usize, from: &Memory, offset: usize, bytes: usize) {
        sys::copy(from, offset, &self.memory, at, bytes);
    }

    pub(super) fn zero(&mut self, range: Range<usize>) -> Result<(), Status> {
        let inner = whole_pages(&(range.start as u64..range.end as u64));
        if inner.end - inner.start < GIVE_BACK_BYTES {
            sys::clear(&self.memory, range.start, range.len());
            return Ok(());
        }
        let inner = inner.start as usize..inner.end as usize;
        sys::clear(&self.memory, range.start, inner.start - range.start);
        sys::clear(&self.memory, inner.end, range.end - inner.end);
        self.give_back(inner)
    }

    /// Whole pages.
    pub(super) fn give_back(&mut self, range: Range<usize>) -> Result<(), Status> {
        sys::give_back(&self.memory, range.start, range.len()).map_err(|_| Status::INTERNAL)
    }
}
