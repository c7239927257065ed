//! The pool: every block of its volumes is deduplicated, sealed and mapped out
//! of place; snapshots, clones and restores are instant; whatever crash comes,
//! what was flushed is there.
//!
//! It knows no network and no NVMe: it is given a [`block_core::Device`].
//! The modules stand in the order in which a request meets them.
#![forbid(unsafe_code)]

pub mod hooks;

pub mod pool;
pub mod volume;

mod admission;
mod read;
mod write;

mod dedup;
pub mod hash;
pub mod index;
pub mod read_cache;

pub mod catalog;
mod core;
pub mod overlay;
pub mod readers;
pub mod settings;
mod shelf;

pub mod check;
mod checkpoint;
mod create;
mod pace;
mod recovery;
mod rotation;
mod upkeep;

pub mod journal;

pub mod pages;
pub mod radix;
pub mod space;

pub mod stream;
pub mod vault;

pub mod layout;

#[cfg(test)]
#[path = "../tests/disk/mod.rs"]
mod disk;

mod both;

pub use check::{CheckOptions, Report};
pub use create::{CreateError, CreateOptions, Probe};
pub use pool::Pool;
pub use recovery::{Means, OpenError};
pub use rotation::Rewriting;
pub use settings::{Settings, WhenFull};
pub use volume::Volume;
