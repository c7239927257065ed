//! An input read as decisions, one after the other.

use crate::mutation::EDGES;

/// Decisions that follow from an input. When it is over, all that follow are
/// zero: a check lets zero be what means well.
#[derive(Clone, Debug)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// The decisions of an input.
    #[must_use]
    pub const fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// Whether all that follow are zero.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// Any of 256.
    pub fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((&first, rest)) => {
                self.rest = rest;
                first
            }
            None => 0,
        }
    }

    /// One of `count`, which is at least 1 and at most 65,536.
    pub fn below(&mut self, count: usize) -> usize {
        let mut number = usize::from(self.byte());
        if count > 256 {
            number |= usize::from(self.byte()) << 8;
        }
        number % count
    }

    /// A number: small, at an edge, beside one, or any.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..0x60 => small.into(),
            edge @ 0x60..0xa0 => EDGES[usize::from(edge) % EDGES.len()],
            edge @ 0xa0..0xe0 => {
                let edge = EDGES[usize::from(edge) % EDGES.len()];
                edge.wrapping_add(u64::from(self.byte())).wrapping_sub(8)
            }
            power @ 0xe0..0xf8 => 1 << (power % 24 + 8),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    /// The next `count` bytes; fewer if the input ends.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        bytes
    }
}
