//! The vRIO link: requests become frames, frames become requests.
//!
//! Sans-I/O: the client and the server are state machines that are handed
//! frames and the time and that hand out frames. Only a [`wire`] touches a
//! socket, and what is unsafe about that stands in `wire/sys`. The modules stand in
//! the order in which a request meets them.

mod atomic;
pub mod keys;

pub mod path;
pub mod security;

pub mod client;
mod code;
pub mod frame;
pub mod hello;
mod introduction;
mod noise;
mod rtt;
mod seal;
pub mod segment;
pub mod wire;

pub mod attach;
pub mod host;
pub mod server;

#[cfg(test)]
mod hostile;

pub use attach::{Access, AttachReply, AttachRequest, Attached, FrontId, Refused, VolumeName};
pub use client::{Client, ClientSettings, VolumeState};
pub use host::{Host, Reply, SessionIndex, SlotRef, Work};
pub use keys::{BadKey, PublicKey, SecretKey};
pub use path::{Guest, Part, Path, Refusal, Source, Token, VolumeHandle};
pub use security::{Caller, Contact, Sealed, Security, ServerSecurity};
pub use server::{Server, ServerSettings};
