//! Memory that begins as an image, which others share: what was written since
//! lies in a layer over it. Nothing is copied for what is only read, and a
//! namespace that is thrown away soon costs little more than what it was
//! written.

use std::ops::Range;
use std::sync::Arc;

use block_core::Memory;

use crate::{PAGE, sys};

type Page = [u8; PAGE];

/// What a namespace in memory holds: pages of 4096 bytes. Copies share them.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pages: Arc<Vec<Option<Box<Page>>>>,
}

impl FromIterator<Page> for Image {
    /// All pages from the first on; zeroes take no room.
    fn from_iter<T: IntoIterator<Item = Page>>(pages: T) -> Self {
        let kept = |page: Page| (page != ZEROES).then(|| Box::new(page));
        Self { pages: Arc::new(pages.into_iter().map(kept).collect()) }
    }
}

const ZEROES: Page = [0; PAGE];

/// An image and what was written over it.
#[derive(Debug)]
pub(super) struct Layers {
    base: Image,
    /// `None`: as in the image.
    written: Vec<Option<Box<Page>>>,
}

impl Layers {
    /// Memory of `bytes`, a multiple of 4096.
    pub(super) fn over(base: Image, bytes: usize) -> Self {
        Self { base, written: (0..bytes / PAGE).map(|_| None).collect() }
    }

    fn page(&self, index: usize) -> &Page {
        let base = || self.base.pages.get(index).and_then(Option::as_deref);
        self.written[index].as_deref().or_else(base).unwrap_or(&ZEROES)
    }

    /// A page to change, and nothing that it held when `anew`.
    fn page_mut(&mut self, index: usize, anew: bool) -> &mut Page {
        if self.written[index].is_none() {
            let page = if anew { Box::new(ZEROES) } else { Box::new(*self.page(index)) };
            self.written[index] = Some(page);
        }
        self.written[index].as_mut().expect("put there above")
    }

    pub(super) fn read(&self, at: usize, to: &Memory, offset: usize, bytes: usize) {
        for (index, part, done) in parts(at..at + bytes) {
            sys::copy_in(&self.page(index)[part], to, offset + done);
        }
    }

    pub(super) fn write(&mut self, at: usize, from: &Memory, offset: usize, bytes: usize) {
        for (index, part, done) in parts(at..at + bytes) {
            let page = self.page_mut(index, part.len() == PAGE);
            sys::copy_out(from, offset + done, &mut page[part]);
        }
    }

    pub(super) fn zero(&mut self, range: Range<usize>) {
        for (index, part, _) in parts(range) {
            // A page that reads as zero already is left as it is.
            if self.page(index)[part.clone()] != ZEROES[part.clone()] {
                self.page_mut(index, part.len() == PAGE)[part].fill(0);
            }
        }
    }

    /// The bytes from `at` on, which lie in one page.
    pub(super) fn content(&self, at: usize, bytes: usize) -> &[u8] {
        &self.page(at / PAGE)[at % PAGE..][..bytes]
    }

    /// Puts another content in its place, in one page.
    pub(super) fn restore(&mut self, at: usize, content: &[u8]) {
        self.page_mut(at / PAGE, false)[at % PAGE..][..content.len()].copy_from_slice(content);
    }
}

/// The pages of a range of bytes: which, what of it, and the bytes before it.
fn parts(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, usize)> {
    let pages = range.start / PAGE..range.end.div_ceil(PAGE);
    pages.map(move |index| {
        let (from, to) = (range.start.max(index * PAGE), range.end.min((index + 1) * PAGE));
        (index, from - index * PAGE..to - index * PAGE, from - range.start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: &[u8]) -> Memory {
        let memory = Memory::anonymous(3 * PAGE).expect("memory");
        sys::copy_in(bytes, &memory, 0);
        memory
    }

    /// Two namespaces over one image; what is written to one, across the border
    /// of two pages, the other does not see.
    #[test]
    fn what_is_written_is_seen_in_one_of_two_over_the_same_image() {
        let image: Image = [[1; PAGE], ZEROES, [3; PAGE]].into_iter().collect();
        let mut one = Layers::over(image.clone(), 4 * PAGE);
        let other = Layers::over(image, 4 * PAGE);
        one.write(PAGE - 2, &memory(&[9; 10]), 0, 4);
        one.zero(2 * PAGE..2 * PAGE + 1);
        let mut expected = [vec![1; PAGE], vec![0; PAGE], vec![3; PAGE], vec![0; PAGE]].concat();
        let read = |layers: &Layers| {
            (0..4).flat_map(|page| layers.content(page * PAGE, PAGE).to_vec()).collect::<Vec<u8>>()
        };
        assert_eq!(read(&other), expected);
        expected[PAGE - 2..PAGE + 2].fill(9);
        expected[2 * PAGE] = 0;
        assert_eq!(read(&one), expected);
        let to = memory(&[]);
        one.read(PAGE - 3, &to, 5, 6);
        let mut seen = [0; 12];
        sys::copy_out(&to, 0, &mut seen);
        assert_eq!(seen, [0, 0, 0, 0, 0, 1, 9, 9, 9, 9, 0, 0]);
    }
}
