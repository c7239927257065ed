//! The server's side of a volume: workers, sessions, raw volumes and the
//! catalog that says where they are.
//!
//! The modules stand in the order in which a request meets them; the last ones
//! are met at start-up and by people only.
#![forbid(unsafe_code)]

pub mod hold;

pub mod volume;

pub mod range_lock;

pub mod store;

pub mod attachments;
pub mod catalog;
pub mod layout;
pub mod space;

pub mod chance;
pub mod size;

#[cfg(test)]
mod tests;
