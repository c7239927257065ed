//! How the front speaks with its servers: by its key, behind seals, or in the
//! clear.

use std::rc::Rc;

use anyhow::Context;
use link::{FrontId, PublicKey, Sealed, SecretKey, Security};

use super::config::FrontConfig;
use crate::link_key;

/// The front's key, in its state directory.
const KEY: &str = "key";

/// What sealed sessions take of the front.
pub(super) struct Voice {
    secret: Option<Rc<SecretKey>>,
    entropy: [u8; 32],
}

impl Voice {
    /// The front's key, which is made if there is none. Where all is in the
    /// clear, none is needed.
    pub(super) fn find(config: &FrontConfig) -> anyhow::Result<Self> {
        let entropy = rand::random();
        if config.disks.iter().all(|disk| disk.server_key.is_none()) {
            tracing::warn!(
                "the link is in the clear: whoever is on the network can read and write"
            );
            return Ok(Self { secret: None, entropy });
        }
        let file = config.key.clone().unwrap_or_else(|| config.state.join(KEY));
        let secret = link_key::read_or_make(&file).context("this front has no key")?;
        tracing::info!(key = %secret.public(), "servers know this front by its key");
        Ok(Self { secret: Some(Rc::new(secret)), entropy })
    }

    /// Which front this is, if its key says it.
    pub(super) fn front(&self) -> Option<FrontId> {
        self.secret.as_ref().map(|secret| secret.public().front())
    }

    /// How a server with that key is spoken with.
    pub(super) fn security(&self, server: Option<PublicKey>) -> Security {
        match (&self.secret, server) {
            (Some(secret), Some(server)) => {
                Security::Sealed(Sealed::new(Rc::clone(secret), server, self.entropy))
            }
            _ => Security::Clear,
        }
    }

    /// What whoever is refused for want of rights has to say to the server's
    /// keeper.
    pub(super) fn remedy(&self) -> String {
        match &self.secret {
            Some(secret) => format!(": `vrio server authorize {} --volumes ...`", secret.public()),
            None => String::new(),
        }
    }
}
