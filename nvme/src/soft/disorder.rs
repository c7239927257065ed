//! Chance, from a seed: the order and delay of completions.

/// How a controller is out of order. NVMe promises no order between commands
/// (Base 2.0, section 3.4.1), and a driver must live with every one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disorder {
    /// Every choice follows from it.
    pub seed: u64,
    /// Most I/O commands that are held back at a time, at least 1.
    pub held: usize,
    /// The larger, the longer: at each look about one held command in
    /// `1 + delay` is executed.
    pub delay: u32,
}

/// Numbers from a seed (SplitMix64; Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
