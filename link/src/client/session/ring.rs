//! A queue of bounded length: what it is full of is known when it is made.

/// At most `N` entries, first in, first out. `N` is a power of two, so that a place
/// is a mask away and never out of bounds.
#[derive(Debug)]
pub(in crate::client) struct Ring<T, const N: usize> {
    places: Box<[T; N]>,
    /// How many have been taken out and put in; both wrap.
    taken: u32,
    put: u32,
}

impl<T: Copy + Default, const N: usize> Ring<T, N> {
    const MASK: usize = {
        assert!(N.is_power_of_two() && N <= 1 << 16);
        N - 1
    };

    pub(in crate::client) fn new() -> Self {
        Self { places: Box::new([T::default(); N]), taken: 0, put: 0 }
    }

    pub(in crate::client) const fn len(&self) -> usize {
        self.put.wrapping_sub(self.taken) as usize
    }

    pub(in crate::client) const fn is_empty(&self) -> bool {
        self.put == self.taken
    }

    pub(in crate::client) const fn is_full(&self) -> bool {
        self.len() == N
    }

    /// Puts one at the end. A full ring is the caller's mistake: its first entry is
    /// lost.
    #[inline]
    pub(in crate::client) fn push(&mut self, entry: T) {
        debug_assert!(!self.is_full());
        self.places[self.put as usize & Self::MASK] = entry;
        self.put = self.put.wrapping_add(1);
    }

    #[inline]
    pub(in crate::client) fn first(&self) -> Option<T> {
        (!self.is_empty()).then(|| self.places[self.taken as usize & Self::MASK])
    }

    #[inline]
    pub(in crate::client) fn pop(&mut self) -> Option<T> {
        let first = self.first()?;
        self.taken = self.taken.wrapping_add(1);
        Some(first)
    }

    pub(in crate::client) const fn clear(&mut self) {
        self.taken = self.put;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_leave_in_their_order_also_where_the_counts_wrap() {
        let mut ring = Ring::<u16, 4>::new();
        (ring.taken, ring.put) = (u32::MAX - 1, u32::MAX - 1);
        for round in 0..5 {
            assert!(ring.is_empty() && ring.first().is_none() && ring.pop().is_none());
            for entry in 0..4 {
                ring.push(round * 4 + entry);
            }
            assert!(ring.is_full() && ring.len() == 4);
            assert_eq!(ring.first(), Some(round * 4));
            for entry in 0..4 {
                assert_eq!(ring.pop(), Some(round * 4 + entry));
            }
        }
        ring.push(1);
        ring.clear();
        assert_eq!(ring.pop(), None);
    }
}
