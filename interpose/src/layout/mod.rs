//! What lies on a pool's device, to the byte.
//!
//! Every number is little-endian. Nothing here does I/O: bytes become values
//! that are checked, and values become bytes.

pub mod binding;
pub mod control;
pub mod dead;
pub mod fixed;
pub mod identity;
pub mod node;
pub mod pointer;
pub mod provenance;
pub mod record;
pub mod seals;
pub mod stream;
pub mod superblock;

pub use binding::{Binding, Class};
pub use identity::{DomainId, Epoch, EraId, LineId, PoolId};
pub use pointer::{Kind, Pointer, Seal};
pub use record::Record;

#[cfg(test)]
mod hostile;
