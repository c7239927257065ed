//! The unsafe part: what the C library says of its heap.
#![allow(unsafe_code)]

/// Bytes that were taken from the heap and not given back.
pub(crate) fn heap_in_use() -> usize {
    // SAFETY: it takes nothing, returns plain numbers, and glibc locks what it
    // looks at.
    let heap = unsafe { libc::mallinfo2() };
    heap.uordblks + heap.hblkhd
}
