//! The pool's keys, as its pages see them.

use std::rc::Rc;

use crate::layout::{Binding, PoolId, Seal};
use crate::pages::{Sealer, Unopened, Unsealed};
use crate::vault::Vault;

/// Seals pages.
pub(crate) struct Sealing {
    vault: Rc<Vault>,
    pool: PoolId,
}

impl Sealing {
    pub(crate) fn new(vault: &Rc<Vault>) -> Self {
        Self { vault: Rc::clone(vault), pool: vault.pool_id() }
    }
}

impl Sealer for Sealing {
    fn seal(&self, binding: &Binding, page: &mut [u8]) -> Result<Seal, Unsealed> {
        self.vault.seal(binding.domain, &binding.encode(&self.pool), page).map_err(|_| Unsealed)
    }

    fn open(&self, seal: &Seal, binding: &Binding, page: &mut [u8]) -> Result<(), Unopened> {
        let aad = binding.encode(&self.pool);
        self.vault.open(binding.domain, seal, &aad, page).map_err(|_| Unopened)
    }
}
