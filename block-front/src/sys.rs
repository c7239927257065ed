//! The unsafe part: looking at guest memory.
//!
//! Nothing in this process makes a reference to guest memory. It is copied, or
//! single aligned numbers in it are loaded and stored, and whatever comes out
//! is plain bytes that anybody may have changed at any time.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use block_core::Mapping;

/// A part of a mapping, kept alive by it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// Within the mapping, and so are the `len` bytes from here on.
    start: NonNull<u8>,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: a span is an address in a mapping that it shares the ownership of,
// and mappings may be used from any thread. Its methods tolerate that other
// threads, and processes, change the bytes meanwhile.
unsafe impl Send for Span {}
// SAFETY: as above; nothing in a span itself changes.
unsafe impl Sync for Span {}

impl Span {
    /// `len` bytes of a mapping from `offset` on, if it has them.
    pub(crate) fn new(mapping: Arc<Mapping>, offset: usize, len: usize) -> Option<Self> {
        let start = NonNull::new(mapping.as_ptr())?;
        if offset.checked_add(len)? > mapping.len() {
            return None;
        }
        // SAFETY: the offset is within the mapping, as was just checked.
        let start = unsafe { start.add(offset) };
        Some(Self { start, len, mapping })
    }

    /// `len` of the span's bytes from `offset` on, if it has them.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Option<Self> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: the offset is within the span, as was just checked.
        let start = unsafe { self.start.add(offset) };
        Some(Self { start, len, mapping: Arc::clone(&self.mapping) })
    }

    /// Size in bytes.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// Whether the first byte's address in this process is a multiple of
    /// `bytes`.
    pub(crate) fn is_aligned_to(&self, bytes: usize) -> bool {
        self.start.addr().get().is_multiple_of(bytes)
    }

    /// Whether the mapping was cut under us.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.mapping.has_failed()
    }

    /// The address of `len` bytes from `offset` on.
    ///
    /// # Panics
    /// If the span does not have them, or they are not aligned to `align`: the
    /// caller has checked that.
    #[inline]
    fn at(&self, offset: usize, len: usize, align: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "the caller has checked the span");
        // SAFETY: the offset is within the span, as was just checked.
        let at = unsafe { self.start.add(offset) };
        assert!(at.addr().get().is_multiple_of(align), "the caller has checked the alignment");
        at.as_ptr()
    }

    /// Copies the bytes from `offset` on into `into`.
    #[inline]
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len(), 1);
        // SAFETY: the bytes lie within the mapping, which the span keeps; when
        // its file is cut, the SIGBUS handler puts zero pages in the same
        // place. `into` is memory of this process that nobody else has. That
        // the source may change meanwhile makes a mixture of bytes, all of
        // which are valid.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    /// Copies `from` to the bytes from `offset` on.
    #[inline]
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        #[cfg(test)]
        if !life::lasts() {
            return;
        }
        let to = self.at(offset, from.len(), 1);
        // SAFETY: as in `read`; the mapping is writable, and nobody here has a
        // reference to its bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    #[inline]
    fn atomic16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: two aligned bytes within the mapping, which the span keeps.
        // Others change them with single stores as well, or are other
        // processes, from which any value may come.
        unsafe { AtomicU16::from_ptr(self.at(offset, 2, 2).cast()) }
    }

    /// The little-endian number at `offset`.
    #[inline]
    pub(crate) fn load16(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.atomic16(offset).load(order))
    }

    /// Puts a little-endian number at `offset`.
    #[inline]
    pub(crate) fn store16(&self, offset: usize, value: u16, order: Ordering) {
        #[cfg(test)]
        if !life::lasts() {
            return;
        }
        self.atomic16(offset).store(value.to_le(), order);
    }

    /// Puts two little-endian numbers, one after the other from `offset` on.
    #[inline]
    pub(crate) fn store32_pair(&self, offset: usize, values: [u32; 2]) {
        // SAFETY: as in `atomic16`, with eight bytes, which are two aligned
        // numbers.
        let pair: &[AtomicU32; 2] = unsafe { &*self.at(offset, 8, 4).cast() };
        for (number, value) in pair.iter().zip(values) {
            #[cfg(test)]
            if !life::lasts() {
                return;
            }
            number.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Two little-endian numbers, one after the other from `offset` on. Each is
    /// loaded once.
    #[inline]
    pub(crate) fn load64_pair(&self, offset: usize) -> [u64; 2] {
        // SAFETY: as in `atomic16`, with sixteen bytes, which are two aligned
        // numbers.
        let pair: &[AtomicU64; 2] = unsafe { &*self.at(offset, 16, 8).cast() };
        pair.each_ref().map(|number| u64::from_le(number.load(Ordering::Relaxed)))
    }

    #[inline]
    fn atomic64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `atomic16`, with eight bytes.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8, 8).cast()) }
    }

    /// The little-endian number at `offset`.
    #[inline]
    pub(crate) fn load64(&self, offset: usize) -> u64 {
        u64::from_le(self.atomic64(offset).load(Ordering::Relaxed))
    }

    /// Puts a little-endian number at `offset`.
    #[inline]
    pub(crate) fn store64(&self, offset: usize, value: u64, order: Ordering) {
        #[cfg(test)]
        if !life::lasts() {
            return;
        }
        self.atomic64(offset).store(value.to_le(), order);
    }

    #[inline]
    fn atomic8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as in `atomic16`, with one byte.
        unsafe { AtomicU8::from_ptr(self.at(offset, 1, 1)) }
    }

    /// The byte at `offset`.
    #[inline]
    pub(crate) fn load8(&self, offset: usize) -> u8 {
        self.atomic8(offset).load(Ordering::Relaxed)
    }

    /// Puts a byte at `offset`.
    #[inline]
    pub(crate) fn store8(&self, offset: usize, value: u8, order: Ordering) {
        #[cfg(test)]
        if !life::lasts() {
            return;
        }
        self.atomic8(offset).store(value, order);
    }
}

/// A process that dies between two stores: what it would have stored after
/// its last one never reaches the memory that others see.
#[cfg(test)]
pub(crate) mod life {
    use std::cell::Cell;

    thread_local! {
        static STORES_LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
    }

    /// This thread's stores end after so many.
    pub(crate) fn end_after(stores: u64) {
        STORES_LEFT.set(stores);
    }

    /// How many stores there are yet.
    pub(crate) fn left() -> u64 {
        STORES_LEFT.get()
    }

    pub(super) fn lasts() -> bool {
        let left = STORES_LEFT.get();
        STORES_LEFT.set(left.saturating_sub(1));
        left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span() -> Span {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(8192).expect("grow");
        let mapping = Arc::new(Mapping::of_file(&file, 0, 8192, true).expect("map"));
        assert!(Span::new(Arc::clone(&mapping), 8000, 193).is_none());
        assert!(Span::new(Arc::clone(&mapping), usize::MAX, 2).is_none());
        Span::new(mapping, 96, 4000).expect("inside")
    }

    #[test]
    fn a_part_stays_within_its_span() {
        let span = span();
        assert!(span.part(3990, 11).is_none());
        assert!(span.part(usize::MAX, 2).is_none());
        let part = span.part(3990, 10).expect("inside");
        part.write(0, &[1; 10]);
        let mut read = [0; 12];
        span.read(3988, &mut read);
        assert_eq!(read, [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    #[should_panic(expected = "the caller has checked the span")]
    fn a_read_past_the_end_is_caught() {
        span().read(3990, &mut [0; 11]);
    }

    #[test]
    #[should_panic(expected = "the caller has checked the alignment")]
    fn a_number_that_is_not_aligned_is_caught() {
        span().load16(1, Ordering::Relaxed);
    }
}
