//! Whether a block is there already.
//!
//! The index is advice: a candidate counts only if the tree of seals says that
//! it has the same 128 bits, and its count that somebody refers to it. The new
//! reference is added in the same step in which that was seen.

use std::cell::Cell;

use block_core::{Device, Lba, Pba};

use crate::core::{Core, Head, count};
use crate::index::Candidates;
use crate::layout::record::Hash;
use crate::layout::{Binding, Class, Kind, Pointer, Record, Seal, seals};
use crate::radix;

/// Most candidates whose pages are being read: more would queue, and a block
/// that is stored twice costs less than a guest that waits.
const READS: usize = 64;

/// What is known of a candidate.
enum Verdict {
    /// It is the same block.
    Same(Seal),
    /// It is another one, or nobody's.
    Other,
    /// A page has to be read to know.
    Unread,
}

/// A candidate's pages are being read.
struct Turn<'a>(&'a Cell<usize>);

impl<'a> Turn<'a> {
    fn take(reading: &'a Cell<usize>) -> Option<Self> {
        if reading.get() >= READS {
            return None;
        }
        reading.set(reading.get() + 1);
        Some(Self(reading))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<D: Device> Core<D> {
    /// Refers to one of the candidates for a hash, if one is that block and if
    /// `may` says so in the same step: then the change is done. The caller was
    /// admitted to the journal.
    pub(crate) async fn share(
        &self,
        head: &Head,
        lba: Lba,
        hash: &Hash,
        candidates: Candidates,
        may: impl Fn() -> bool,
    ) -> bool {
        for pba in candidates {
            let mut verdict = self.judge(pba, hash);
            if matches!(verdict, Verdict::Unread) {
                let Some(_turn) = Turn::take(&self.tally.judging) else { continue };
                self.fetch(pba).await;
                verdict = self.judge(pba, hash);
            }
            match verdict {
                // A hash may be from before the rotation of a key.
                Verdict::Same(seal) if self.vault.is_old(head.domain, seal.era) => {}
                Verdict::Same(_) if !may() => return false,
                Verdict::Same(seal) => {
                    let line = head.line;
                    let birth = self.state.borrow().catalog.epoch();
                    let pointer = Pointer { seal, pba, birth, kind: Kind::Data };
                    self.settle(&Record::Share { line, lba, pointer });
                    count(&self.tally.shared, 1);
                    return true;
                }
                Verdict::Other => self.index.remove(hash, pba),
                Verdict::Unread => {}
            }
        }
        false
    }

    /// What memory says of a candidate.
    fn judge(&self, pba: Pba, hash: &Hash) -> Verdict {
        let Some(durable) = self.space.durable_count(pba) else { return Verdict::Unread };
        let state = self.state.borrow();
        let (count, kept) = state.count(pba, durable);
        // 65,535 is the count of a page, and 65,534 the last of a block. What
        // the checkpoint being made frees is gone, even if somebody of the next
        // period refers to it.
        if !(1..i64::from(u16::MAX) - 1).contains(&count) || !kept {
            return Verdict::Other;
        }
        let born = |overlay: &crate::overlay::Overlay| overlay.block(pba)?.born;
        if let Some(born) = born(&state.active).or_else(|| state.merging.as_ref().and_then(born)) {
            return if born.hash == *hash { Verdict::Same(born.seal) } else { Verdict::Other };
        }
        let (page, place) = seals::place_of(pba);
        let found = radix::find_cached(&self.pages, Class::Seals, &state.seals, page);
        let Some(Ok(pointer)) = found else {
            return if found.is_none() { Verdict::Unread } else { Verdict::Other };
        };
        if pointer.is_hole() {
            return Verdict::Other;
        }
        let binding = Binding::page(Class::Seals, 0, pointer.pba);
        match self.pages.peek(&pointer.seal, &binding, |page| seals::entry(page, place)) {
            None => Verdict::Unread,
            Some(Some((there, seal))) if there == *hash => Verdict::Same(seal),
            Some(_) => Verdict::Other,
        }
    }

    /// Reads what [`Core::judge`] looks at. What cannot be read is not there.
    async fn fetch(&self, pba: Pba) {
        let _reading = self.readers.enter();
        let counts = self.space.load_count(pba);
        let seals = async {
            let tree = self.state.borrow().seals;
            let (page, _) = seals::place_of(pba);
            let pointer = radix::find(&self.pages, Class::Seals, &tree, page).await.ok()?;
            let binding = Binding::page(Class::Seals, 0, pointer.pba);
            if pointer.is_hole() {
                return None;
            }
            self.pages.load(&pointer.seal, binding).await.ok()
        };
        let _ = crate::both::both(counts, seals).await;
    }
}
