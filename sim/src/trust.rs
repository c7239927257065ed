//! How fronts and workers of a world know each other.

use std::rc::Rc;

use block_server::authority::Authority;
use link::wire::memory::Port;
use link::{
    Access, Caller, Contact, FrontId, Refused, Sealed, SecretKey, Security, Server, ServerSecurity,
    ServerSettings, VolumeName,
};

use crate::dice::Dice;

/// Whether sessions are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Whoever reaches the network is believed.
    Clear,
    /// Keys are known, and change after so many frames.
    Sealed(u64),
}

/// The server's key.
const SERVER: [u8; 32] = [0xaa; 32];

/// Each front has a key of its own.
fn key_of(front: FrontId) -> SecretKey {
    let mut bytes = [0x55; 32];
    bytes[..16].copy_from_slice(&front.0);
    SecretKey::from_bytes(&bytes)
}

fn entropy(dice: &mut Dice) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.chunks_mut(8).for_each(|part| part.copy_from_slice(&dice.number().to_le_bytes()));
    bytes
}

impl Trust {
    /// What a start of a front knows of the server; then where its workers are.
    #[must_use]
    pub fn security(self, front: FrontId, dice: &mut Dice) -> Security {
        match self {
            Self::Clear => Security::Clear,
            Self::Sealed(frames_per_key) => {
                let server = SecretKey::from_bytes(&SERVER).public();
                let sealed = Sealed::new(Rc::new(key_of(front)), server, entropy(dice));
                Security::Sealed(Sealed { frames_per_key, ..sealed })
            }
        }
    }

    /// How a front asks one worker.
    #[must_use]
    pub fn contact(security: &Security, peer: Port) -> Contact<Port> {
        Contact { peer, security: security.clone() }
    }

    /// A worker's end of the link.
    #[must_use]
    pub fn server(self, settings: ServerSettings, dice: &mut Dice) -> Server<Port> {
        match self {
            Self::Clear => Server::new(settings),
            Self::Sealed(_) => {
                let secrets = vec![SecretKey::from_bytes(&SERVER)];
                let entropy = entropy(dice);
                let security = ServerSecurity { secrets, clear_allowed: false, entropy };
                Server::secured(settings, security)
            }
        }
    }
}

/// Every front may have every volume, but only by its own key.
#[derive(Clone, Copy, Debug)]
pub struct OwnKeys(pub Trust);

impl Authority for OwnKeys {
    fn admits(&self, caller: &Caller) -> bool {
        match self.0 {
            Trust::Clear => caller.key.is_none(),
            Trust::Sealed(_) => caller.key == Some(key_of(caller.front).public()),
        }
    }

    fn may_attach(&self, _: &Caller, _: &VolumeName, _: Access) -> Result<(), Refused> {
        Ok(())
    }
}
