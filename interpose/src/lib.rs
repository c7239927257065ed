//! The pool: every block of its volumes is deduplicated, sealed and mapped out
//! of place; snapshots, clones and restores are instant; whatever crash comes,
//! what was flushed is there.
//!
//! It knows no network and no NVMe: it is given a [`block_core::Device`].
//! The modules stand in the order in which a request meets them.
#![forbid(unsafe_code)]

pub mod hooks;

pub mod hash;
pub mod index;
pub mod read_cache;

pub mod catalog;
pub mod overlay;
pub mod readers;

pub mod journal;

pub mod pages;
pub mod radix;
pub mod space;

pub mod vault;

pub mod layout;

#[cfg(test)]
#[path = "../tests/disk/mod.rs"]
mod disk;
