//! What lies at an index.
//!
//! Each function is there twice: the `_cached` one answers at once, or not at
//! all when a page has to be read.

use block_core::Device;

use super::{Rules, Tree, slot};
use crate::layout::pointer::POINTERS;
use crate::layout::{Class, Pointer};
use crate::pages::{Damage, Pages};

/// What lies at an index; a hole behind the tree's last one.
///
/// # Errors
/// When a page on the way cannot be had.
pub async fn find<D: Device>(
    pages: &Pages<D>,
    class: Class,
    tree: &Tree,
    index: u64,
) -> Result<Pointer, Damage> {
    if let Some(found) = find_cached(pages, class, tree, index) {
        return found;
    }
    let pointer = descend(pages, class, tree, index, 1).await?;
    if pointer.is_an_end() {
        return Ok(pointer);
    }
    let rules = Rules::new(pages, class);
    let page = pages.load(&pointer.seal, rules.binding(1, pointer.pba)).await?;
    rules.entry(&page, pointer.pba, 1, slot(index, 1))
}

/// The same if all pages on the way are kept.
#[must_use]
pub fn find_cached<D: Device>(
    pages: &Pages<D>,
    class: Class,
    tree: &Tree,
    index: u64,
) -> Option<Result<Pointer, Damage>> {
    descend_cached(pages, Rules::new(pages, class), tree, index, 0)
}

/// What lies at the indices from `start` on, as many as there is room for;
/// touches each page once.
///
/// # Errors
/// When a page on the way cannot be had; what is in `out` then is not known.
pub async fn find_run<D: Device>(
    pages: &Pages<D>,
    class: Class,
    tree: &Tree,
    start: u64,
    out: &mut [Pointer],
) -> Result<(), Damage> {
    if let Some(found) = find_run_cached(pages, class, tree, start, out) {
        return found;
    }
    let rules = Rules::new(pages, class);
    for (index, out) in by_leaf(start, out) {
        let pointer = descend(pages, class, tree, index, 1).await?;
        if pointer.is_an_end() {
            out.fill(pointer);
            continue;
        }
        let page = pages.load(&pointer.seal, rules.binding(1, pointer.pba)).await?;
        fill(rules, &page, &pointer, index, out)?;
    }
    Ok(())
}

/// The same if all pages on the way are kept.
#[must_use]
pub fn find_run_cached<D: Device>(
    pages: &Pages<D>,
    class: Class,
    tree: &Tree,
    start: u64,
    out: &mut [Pointer],
) -> Option<Result<(), Damage>> {
    let rules = Rules::new(pages, class);
    for (index, out) in by_leaf(start, out) {
        let filled = match descend_cached(pages, rules, tree, index, 1)? {
            Ok(pointer) if pointer.is_an_end() => {
                out.fill(pointer);
                continue;
            }
            Ok(pointer) => {
                let binding = rules.binding(1, pointer.pba);
                pages
                    .peek(&pointer.seal, &binding, |page| fill(rules, page, &pointer, index, out))?
            }
            Err(damage) => Err(damage),
        };
        if filled.is_err() {
            return Some(filled);
        }
    }
    Some(Ok(()))
}

/// Cuts a run where one page of level 1 ends and the next begins.
fn by_leaf(start: u64, out: &mut [Pointer]) -> impl Iterator<Item = (u64, &mut [Pointer])> {
    let head = (POINTERS - slot(start, 1)).min(out.len());
    let (head, rest) = out.split_at_mut(head);
    let after = start + head.len() as u64;
    let rest = rest.chunks_mut(POINTERS).enumerate();
    let rest = rest.map(move |(at, chunk)| (after + (at * POINTERS) as u64, chunk));
    std::iter::once((start, head)).chain(rest)
}

fn fill(
    rules: Rules,
    page: &[u8],
    pointer: &Pointer,
    index: u64,
    out: &mut [Pointer],
) -> Result<(), Damage> {
    for (slot, out) in (slot(index, 1)..).zip(out) {
        *out = rules.entry(page, pointer.pba, 1, slot)?;
    }
    Ok(())
}

/// The pointer at what has level `to` and this index, or one above it that is
/// an end.
async fn descend<D: Device>(
    pages: &Pages<D>,
    class: Class,
    tree: &Tree,
    index: u64,
    to: u8,
) -> Result<Pointer, Damage> {
    let rules = Rules::new(pages, class);
    let mut pointer = rules.root(tree)?;
    if index >= tree.capacity() {
        return Ok(Pointer::HOLE);
    }
    for level in (to + 1..=tree.height).rev() {
        if pointer.is_an_end() {
            break;
        }
        let page = pages.load(&pointer.seal, rules.binding(level, pointer.pba)).await?;
        pointer = rules.entry(&page, pointer.pba, level, slot(index, level))?;
    }
    Ok(pointer)
}

fn descend_cached<D: Device>(
    pages: &Pages<D>,
    rules: Rules,
    tree: &Tree,
    index: u64,
    to: u8,
) -> Option<Result<Pointer, Damage>> {
    if index >= tree.capacity() {
        return Some(Ok(Pointer::HOLE));
    }
    let mut pointer = match rules.root(tree) {
        Ok(pointer) => pointer,
        damage => return Some(damage),
    };
    for level in (to + 1..=tree.height).rev() {
        if pointer.is_an_end() {
            break;
        }
        let binding = rules.binding(level, pointer.pba);
        let entry = pages.peek(&pointer.seal, &binding, |page| {
            rules.entry(page, pointer.pba, level, slot(index, level))
        })?;
        pointer = match entry {
            Ok(pointer) => pointer,
            damage => return Some(damage),
        };
    }
    Some(Ok(pointer))
}
