//! Who may speak: what each end of a session says about itself, and what it
//! asks of the other one.

use std::fmt;
use std::rc::Rc;

use crate::attach::FrontId;
use crate::keys::{PublicKey, SecretKey};

/// Frames that one key seals before the next one takes its place: 2^31. The key
/// seals no frame after its 2^32nd, whatever happens.
pub const FRAMES_PER_KEY: u64 = 1 << 31;

/// How a front speaks with one server.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// Every frame can be read and made by whoever reaches the network. The
    /// server must allow it.
    #[default]
    Clear,
    /// Every frame is sealed. A session in the clear is never taken instead.
    Sealed(Sealed),
}

/// What sealed sessions take.
#[derive(Clone)]
pub struct Sealed {
    /// The front's own key.
    pub secret: Rc<SecretKey>,
    /// The server's key: nobody else is spoken to.
    pub server: PublicKey,
    /// Randomness for the keys of single sessions: as secret as they are, and
    /// new at each start of the process.
    pub entropy: [u8; 32],
    /// After so many frames of one direction the keys are changed.
    pub frames_per_key: u64,
}

/// Whom a front asks for a volume, and how it speaks with them.
#[derive(Clone, Debug)]
pub struct Contact<P> {
    /// Where the server listens.
    pub peer: P,
    /// How it is spoken with.
    pub security: Security,
}

/// What a server asks of fronts.
pub struct ServerSecurity {
    /// The server's keys. More than one while fronts still know the one before.
    pub secrets: Vec<SecretKey>,
    /// Whether fronts that ask for it may speak in the clear.
    pub clear_allowed: bool,
    /// Randomness for the keys of single sessions: as secret as they are, and
    /// new at each start of the process.
    pub entropy: [u8; 32],
}

/// The front of a session, as the handshake has shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Who it says it is.
    pub front: FrontId,
    /// Who it is; `None` in the clear, where that is nobody's word.
    pub key: Option<PublicKey>,
}

impl Sealed {
    /// Sealed sessions with the server that has this key.
    #[must_use]
    pub fn new(secret: Rc<SecretKey>, server: PublicKey, entropy: [u8; 32]) -> Self {
        Self { secret, server, entropy, frames_per_key: FRAMES_PER_KEY }
    }
}

impl<P> From<P> for Contact<P> {
    /// In the clear.
    fn from(peer: P) -> Self {
        Self { peer, security: Security::Clear }
    }
}

impl ServerSecurity {
    /// A server without keys, which speaks in the clear.
    #[must_use]
    pub const fn clear() -> Self {
        Self { secrets: Vec::new(), clear_allowed: true, entropy: [0; 32] }
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("secret", &self.secret)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSecurity")
            .field("secrets", &self.secrets)
            .field("clear_allowed", &self.clear_allowed)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key {
            Some(key) => write!(f, "{} ({key})", self.front),
            None => write!(f, "{} (in the clear)", self.front),
        }
    }
}
