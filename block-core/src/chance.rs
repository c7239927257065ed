//! Randomness as an argument.

use std::fmt;
use std::rc::Rc;

/// Where identities and verifiers come from. Only the binary gives the
/// system's randomness; a simulation gives its seed.
#[derive(Clone)]
pub struct Chance(Rc<dyn Fn() -> u64>);

impl Chance {
    /// Chance that draws each number from `draw`.
    #[must_use]
    pub fn new(draw: impl Fn() -> u64 + 'static) -> Self {
        Self(Rc::new(draw))
    }

    /// A number that nobody can guess.
    #[must_use]
    pub fn number(&self) -> u64 {
        (self.0)()
    }

    /// An identity: a random UUID (RFC 9562, version 4).
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.number().to_le_bytes());
        id[8..].copy_from_slice(&self.number().to_le_bytes());
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        id
    }
}

impl fmt::Debug for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chance")
    }
}
