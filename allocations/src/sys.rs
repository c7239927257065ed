//! The unsafe part: an allocator that counts.
#![allow(unsafe_code)] // a global allocator has no other way

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static OWN: Cell<u64> = const { Cell::new(0) };
}

static ALL: AtomicU64 = AtomicU64::new(0);

/// How often this thread has asked for memory, or for more of it. Always zero in a program
/// whose allocator is not [`Counting`].
#[must_use]
pub fn of_this_thread() -> u64 {
    OWN.get()
}

/// The same of all threads together.
#[must_use]
pub fn of_all_threads() -> u64 {
    ALL.load(Ordering::Relaxed)
}

/// The system's allocator, which counts how often it is asked.
#[derive(Debug)]
pub struct Counting;

fn count() {
    OWN.set(OWN.get() + 1);
    ALL.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged, which keeps the trait's
// promises. Counting allocates nothing and does not panic: the thread's number is
// initialised at compile time and never dropped, so that it is there for as long as the
// thread runs.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on; the memory came from there.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, bytes) }
    }
}
