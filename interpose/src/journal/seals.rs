//! What the journal asks of the keys.

use crate::layout::Seal;

/// Seals and opens under the pool's metadata key.
pub trait Seals {
    /// Seals in place, or `None` when there is no key to seal with.
    fn seal(&self, aad: &[u8], bytes: &mut [u8]) -> Option<Seal>;

    /// Opens in place, or `None` when the bytes are not what was sealed.
    fn open(&self, seal: &Seal, aad: &[u8], bytes: &mut [u8]) -> Option<()>;
}
