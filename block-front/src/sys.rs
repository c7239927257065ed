//! The unsafe part: looking at guest memory.
#![allow(unsafe_code)]

use block_core::Mapping;
use vm_memory::VolatileSlice;

/// `len` bytes of a mapping, from `skip` on, as memory that anybody may change
/// at any time.
pub(crate) fn slice(mapping: &Mapping, skip: usize, len: usize) -> VolatileSlice<'_> {
    assert!(skip.checked_add(len).is_some_and(|end| end <= mapping.len()));
    // SAFETY: the bytes lie within the mapping, which is readable and writable
    // and outlives the slice by its borrow; when its file is cut, the SIGBUS
    // handler puts zero pages in the same place. Nobody in this process makes
    // a reference to these bytes: all access is through volatile slices, which
    // copy plain bytes and tolerate other writers.
    unsafe { VolatileSlice::new(mapping.as_ptr().add(skip), len) }
}
