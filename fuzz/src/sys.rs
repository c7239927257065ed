//! The unsafe part: an allocator that counts.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has taken and not given back, and the most since
    /// the meter was started. Others may give back what it took: both are only
    /// compared with each other.
    static TAKEN: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread takes from it.
#[derive(Debug)]
pub struct Metered;

fn took(bytes: usize) {
    // A thread that ends allocates without being counted.
    let _ = TAKEN.try_with(|taken| {
        taken.set(taken.get() + bytes as i64);
        MOST.try_with(|most| most.set(most.get().max(taken.get())))
    });
}

fn gave(bytes: usize) {
    let _ = TAKEN.try_with(|taken| taken.set(taken.get() - bytes as i64));
}

// SAFETY: every call is handed to the system's allocator unchanged; counting
// allocates nothing and does not panic.
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        took(size);
        gave(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// What this thread takes from the heap from now on.
#[derive(Debug)]
pub(crate) struct Meter {
    before: i64,
}

impl Meter {
    pub(crate) fn start() -> Self {
        let before = TAKEN.get();
        MOST.set(before);
        Self { before }
    }

    /// The most bytes at a time, above what there were.
    pub(crate) fn most(&self) -> usize {
        usize::try_from(MOST.get() - self.before).unwrap_or(0)
    }
}
