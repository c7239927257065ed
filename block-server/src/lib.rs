//! The server's side of a volume: workers, sessions, raw volumes and the
//! catalog that says where they are.
//!
//! The modules stand in the order in which a request meets them; the last ones
//! are met at start-up and by people only.
#![forbid(unsafe_code)]

pub mod local;

pub mod station;

pub mod worker;

pub mod authority;
pub mod authorized;
pub mod room;
pub mod session;

pub mod hold;

pub mod volume;

pub mod bound;

pub mod extents;

pub mod engine;

mod attach;

pub mod attachments;
pub mod attributes;

pub mod store;
pub mod straights;

pub mod raw;

pub mod pooled;

pub mod catalog;
pub mod layout;
pub mod space;

pub mod directory;

pub mod errand;
pub mod mailbox;

pub mod hooked;

pub mod traces;

pub mod checks;

pub mod client;

pub mod api;

pub mod metrics;

pub mod control;

pub mod config;

pub mod unlock;

pub mod remembered;

pub mod whole_file;

pub mod size;

#[cfg(test)]
mod tests;

pub use authorized::Authorized;
pub use block_core::Chance;
pub use client::Client;
pub use config::ServerConfig;
pub use control::{Control, Office};
pub use directory::{Directory, WorkerIndex};
pub use engine::{Attached, Engine, NvmeEngine};
pub use errand::Errand;
pub use local::LocalPath;
pub use mailbox::Mailbox;
pub use size::Size;
pub use station::WorkerStation;
pub use traces::Traces;
pub use worker::{Limits, Owned, Place, Worker, dma_bytes};
