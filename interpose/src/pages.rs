//! Pages of the pool: read, opened, kept, sealed and written.
//!
//! All memory is the buffers that the store is given: a page that is read,
//! kept, changed or on its way to the device has one of them. When none is
//! free the page that was not used for longest and that nobody holds goes;
//! when all are held, whoever needs one waits.
//!
//! *Headroom.* Nothing here waits for a buffer while it holds one, so loads
//! never block each other. A caller that holds pages while it asks for more
//! must be counted: the buffers have to be more than the sum of what all such
//! callers that run at the same time may hold ([`crate::radix::Merge`] and
//! [`crate::radix::Walk`] say how many that is).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, Device, Pba, Pool};
use foldhash::fast::FixedState;
use lru::LruCache;
use tokio::sync::Notify;

use crate::layout::{Binding, Seal};
use crate::vault::Vault;

#[cfg(test)]
pub(crate) mod disk;
mod error;
mod page;
#[cfg(test)]
mod tests;

pub use error::{Damage, PagesError, What};
pub use page::{Page, PageBuf};

use page::{Claim, Claims, Kept, Waiting};

/// One read that several wait for.
struct Flight {
    seal: Seal,
    binding: Binding,
    outcome: Cell<Option<Result<Page, Damage>>>,
    over: Cell<bool>,
    ended: Notify,
}

/// The page store of a pool.
pub struct Pages<D> {
    device: Rc<D>,
    vault: Rc<Vault>,
    buffers: Pool,
    claims: Rc<Claims>,
    kept: RefCell<LruCache<u64, Page, FixedState>>,
    flights: RefCell<HashMap<u64, Rc<Flight>>>,
}

impl<D: Device> Pages<D> {
    /// A store of as many pages as there are buffers.
    #[must_use]
    pub fn new(device: Rc<D>, vault: Rc<Vault>, buffers: Pool) -> Self {
        assert!(buffers.buffer_bytes() >= BLOCK_SIZE && buffers.count() > 0);
        Self {
            device,
            vault,
            buffers,
            claims: Rc::default(),
            kept: RefCell::new(LruCache::unbounded_with_hasher(FixedState::default())),
            flights: RefCell::default(),
        }
    }

    /// The device below.
    #[must_use]
    pub fn device(&self) -> &Rc<D> {
        &self.device
    }

    /// The page with this seal, if it is kept.
    #[must_use]
    pub fn cached(&self, seal: &Seal) -> Option<Page> {
        self.kept.borrow_mut().get(&seal.key()).filter(|page| page.0.seal == *seal).cloned()
    }

    /// What `look` sees in a page that is kept; costs no count.
    pub fn peek<T>(
        &self,
        seal: &Seal,
        binding: &Binding,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        let mut kept = self.kept.borrow_mut();
        let page = kept.get(&seal.key())?;
        (page.0.seal == *seal && page.0.binding == *binding).then(|| look(page))
    }

    /// Reads a page, or finds it, and keeps it. Two loads of one page at the
    /// same time read it once.
    ///
    /// # Errors
    /// When the page cannot be had; the next load tries again.
    pub async fn load(&self, seal: &Seal, binding: Binding) -> Result<Page, Damage> {
        let page = self.load_once(seal, binding).await?;
        self.keep(&page);
        Ok(page)
    }

    /// The same for one that is not needed again soon: a page that was read
    /// for this is not kept.
    ///
    /// # Errors
    /// As those of [`Pages::load`].
    pub async fn load_once(&self, seal: &Seal, binding: Binding) -> Result<Page, Damage> {
        loop {
            if let Some(page) = self.cached(seal) {
                return check_binding(page, &binding);
            }
            let flight = self.flights.borrow().get(&seal.key()).cloned();
            let Some(flight) = flight else {
                return self.lead(seal, binding).await;
            };
            while !flight.over.get() {
                flight.ended.notified().await;
            }
            if flight.seal != *seal || flight.binding != binding {
                continue;
            }
            // Nothing when whoever read it was dropped: then it is our turn.
            let outcome = flight.outcome.take();
            flight.outcome.set(outcome.clone());
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// Reads the page for everybody who asks for it meanwhile.
    async fn lead(&self, seal: &Seal, binding: Binding) -> Result<Page, Damage> {
        let flight = Rc::new(Flight {
            seal: *seal,
            binding,
            outcome: Cell::new(None),
            over: Cell::new(false),
            ended: Notify::new(),
        });
        self.flights.borrow_mut().insert(seal.key(), Rc::clone(&flight));
        let landing = Landing { flight, flights: &self.flights };
        let buffer = self.buffer().await;
        let outcome = self.read(buffer, seal, binding).await;
        landing.flight.outcome.set(Some(outcome.clone()));
        outcome
    }

    /// The same for one who reads ahead and may not be polled for a while:
    /// nobody waits for this read, and it does not wait for a buffer but gives
    /// up: `None`.
    ///
    /// # Errors
    /// As those of [`Pages::load`].
    pub async fn load_ahead(&self, seal: &Seal, binding: Binding) -> Result<Option<Page>, Damage> {
        if let Some(page) = self.cached(seal) {
            return check_binding(page, &binding).map(Some);
        }
        let Some(buffer) = self.buffer_at_hand() else { return Ok(None) };
        self.read(buffer, seal, binding).await.map(Some)
    }

    async fn read(&self, into: PageBuf, seal: &Seal, binding: Binding) -> Result<Page, Damage> {
        let damage = |what| Damage { pba: binding.pba, class: binding.class, what };
        if binding.pba.0 >= self.device.blocks().0 {
            return Err(damage(What::Malformed));
        }
        let PageBuf { buffer, claim } = into;
        let (mut buffer, outcome) = self.device.read(binding.pba, buffer, 0..1).await;
        outcome.map_err(|error| damage(What::Unreadable(error)))?;
        let bound = binding.encode(&self.vault.pool_id());
        self.vault
            .open(binding.domain, seal, &bound, &mut buffer[..BLOCK_SIZE])
            .map_err(|_| damage(What::Unopened))?;
        Ok(Page(Rc::new(Kept { buffer, seal: *seal, binding, claim })))
    }

    /// Whether the page with this seal is kept; asking is not using.
    #[must_use]
    pub fn keeps(&self, seal: &Seal) -> bool {
        self.kept.borrow().contains(&seal.key())
    }

    /// Keeps a page that was loaded once.
    pub fn keep(&self, page: &Page) {
        let key = page.0.seal.key();
        let mut kept = self.kept.borrow_mut();
        if kept.get(&key).is_none() {
            kept.put(key, page.clone());
        }
    }

    /// A page of zeroes to fill. Waits for a free buffer.
    pub async fn blank(&self) -> PageBuf {
        let mut page = self.buffer().await;
        page.fill(0);
        page
    }

    /// A buffer for a block that is not a page; not counted among those that
    /// are held, so for a moment only.
    pub(crate) async fn lend(&self) -> block_core::Buffer {
        self.buffer().await.buffer
    }

    /// A page to change that begins as `page`. Waits for a free buffer.
    pub async fn copy_of(&self, page: &Page) -> PageBuf {
        let mut copy = self.buffer().await;
        copy.copy_from_slice(page);
        copy
    }

    /// The same for a caller that gives the page up: copies only what is
    /// shared.
    pub async fn own(&self, page: Page) -> PageBuf {
        let shared = Rc::clone(&page.0);
        drop(page);
        match Rc::try_unwrap(shared) {
            Ok(Kept { buffer, claim, .. }) => PageBuf { buffer, claim },
            Err(shared) => self.copy_of(&Page(shared)).await,
        }
    }

    /// Seals the page and writes it. With `keep`, a copy is kept if there is
    /// room for one: this never waits for a buffer.
    ///
    /// # Errors
    /// When it cannot be sealed or written. What is at its place then is not
    /// known.
    pub async fn write(
        &self,
        binding: Binding,
        page: PageBuf,
        keep: bool,
    ) -> Result<Seal, PagesError> {
        let sealed = self.seal(binding, page, keep)?;
        let seal = sealed.seal;
        self.put(sealed).await?;
        Ok(seal)
    }

    /// The same in two steps, for writers that go on with the seal while the
    /// device writes: the page is there when the future has ended well. It
    /// begins to write when it is first polled.
    ///
    /// # Errors
    /// When it cannot be sealed.
    pub fn begin_write(
        self: &Rc<Self>,
        binding: Binding,
        page: PageBuf,
        keep: bool,
    ) -> Result<(Seal, impl Future<Output = Result<(), PagesError>> + use<D>), PagesError> {
        let sealed = self.seal(binding, page, keep)?;
        let pages = Rc::clone(self);
        Ok((sealed.seal, async move { pages.put(sealed).await }))
    }

    fn seal(&self, binding: Binding, page: PageBuf, keep: bool) -> Result<Sealed, PagesError> {
        let copy = if keep { self.buffer_at_hand() } else { None };
        let (mut page, plain) = match copy {
            Some(mut copy) => {
                copy.copy_from_slice(&page);
                (copy, Some(page))
            }
            None => (page, None),
        };
        let bound = binding.encode(&self.vault.pool_id());
        let sealed = self.vault.seal(binding.domain, &bound, &mut page);
        let seal = sealed.map_err(PagesError::Unsealed)?;
        let kept = plain.map(|PageBuf { buffer, claim }| {
            let plain = Page(Rc::new(Kept { buffer, seal, binding, claim }));
            self.keep(&plain);
            plain
        });
        Ok(Sealed { pba: binding.pba, seal, page, kept })
    }

    /// `sealed.kept` lives until the device has the page, so that nobody reads
    /// it from there before.
    async fn put(&self, sealed: Sealed) -> Result<(), PagesError> {
        let Sealed { pba, seal, page: PageBuf { buffer, claim }, kept } = sealed;
        let writing = self.device.write(pba, buffer, 0..1, Durability::Cached);
        let (buffer, outcome) = writing.await;
        drop(PageBuf { buffer, claim });
        outcome.map_err(|error| {
            self.forget(&seal);
            PagesError::Unwritten { pba, error }
        })?;
        drop(kept);
        Ok(())
    }

    /// Drops a page that nobody needs any more.
    pub fn forget(&self, seal: &Seal) {
        let page = self.kept.borrow_mut().pop(&seal.key());
        drop(page);
    }

    /// How many pages are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.borrow().len()
    }

    /// Drops up to so many pages that were not used for longest and that
    /// nobody holds.
    pub fn shrink(&self, pages: usize) {
        (0..pages).for_each(|_| self.evict());
    }

    /// Drops everything that is kept.
    pub fn purge(&self) {
        let kept = std::mem::replace(
            &mut *self.kept.borrow_mut(),
            LruCache::unbounded_with_hasher(FixedState::default()),
        );
        drop(kept);
    }

    async fn buffer(&self) -> PageBuf {
        loop {
            if let Some(page) = self.buffer_at_hand() {
                return page;
            }
            let _waiting = Waiting::new(&self.claims);
            // A buffer whose read was given up comes back from the device
            // without a word.
            let used = self.buffers.count() - self.buffers.available();
            if used > self.claims.held.get() {
                turn::yield_now().await;
            } else {
                self.claims.freed.notified().await;
            }
        }
    }

    fn buffer_at_hand(&self) -> Option<PageBuf> {
        let buffer = self.buffers.take().or_else(|| {
            self.evict();
            self.buffers.take()
        })?;
        Some(PageBuf { buffer, claim: Claim::new(&self.claims) })
    }

    fn evict(&self) {
        let mut kept = self.kept.borrow_mut();
        let unused = kept.iter().rev().find(|(_, page)| Rc::strong_count(&page.0) == 1);
        if let Some(key) = unused.map(|(key, _)| *key) {
            kept.pop(&key);
        }
    }
}

/// The tree says where each page lies and what it is; a page that was opened
/// as something else does not open as this.
fn check_binding(page: Page, binding: &Binding) -> Result<Page, Damage> {
    if page.0.binding == *binding {
        return Ok(page);
    }
    Err(Damage { pba: binding.pba, class: binding.class, what: What::Unopened })
}

struct Sealed {
    pba: Pba,
    seal: Seal,
    page: PageBuf,
    kept: Option<Page>,
}

/// Ends a flight, also when its leader is dropped.
struct Landing<'a> {
    flight: Rc<Flight>,
    flights: &'a RefCell<HashMap<u64, Rc<Flight>>>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.flights.borrow_mut().remove(&self.flight.seal.key());
        self.flight.over.set(true);
        self.flight.ended.notify_waiters();
    }
}
