//! A page in memory: shared and read, or owned and changed.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use block_core::{BLOCK_SIZE, Buffer};
use tokio::sync::Notify;

use crate::layout::{Binding, Seal};

/// An opened page, shared with the store.
#[derive(Debug)]
pub struct Page(pub(super) Rc<Kept>);

#[derive(Debug)]
pub(super) struct Kept {
    pub(super) buffer: Buffer,
    pub(super) seal: Seal,
    pub(super) binding: Binding,
    pub(super) claim: Claim,
}

impl Page {
    /// What names it.
    #[must_use]
    pub fn seal(&self) -> Seal {
        self.0.seal
    }
}

impl Clone for Page {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl Deref for Page {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.buffer[..BLOCK_SIZE]
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // The store's own may be the last one left, which can be evicted.
        self.0.claim.0.notify();
    }
}

/// A page that is being made: 4096 bytes with one owner.
#[derive(Debug)]
pub struct PageBuf {
    pub(super) buffer: Buffer,
    pub(super) claim: Claim,
}

impl Deref for PageBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..BLOCK_SIZE]
    }
}

impl DerefMut for PageBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..BLOCK_SIZE]
    }
}

/// Goes with each buffer that is in use; its end tells who waits for one.
#[derive(Debug)]
pub(super) struct Claim(Rc<Claims>);

#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) held: Cell<usize>,
    pub(super) waiting: Cell<usize>,
    pub(super) freed: Notify,
}

impl Claims {
    fn notify(&self) {
        if self.waiting.get() > 0 {
            self.freed.notify_one();
        }
    }
}

impl Claim {
    pub(super) fn new(claims: &Rc<Claims>) -> Self {
        claims.held.set(claims.held.get() + 1);
        Self(Rc::clone(claims))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.held.set(self.0.held.get() - 1);
        self.0.notify();
    }
}

/// Counts who waits for a buffer.
pub(super) struct Waiting<'a>(&'a Claims);

impl<'a> Waiting<'a> {
    pub(super) fn new(claims: &'a Claims) -> Self {
        claims.waiting.set(claims.waiting.get() + 1);
        Self(claims)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}
