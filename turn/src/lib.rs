//! The turn: how one thread serves everything it owns.
//!
//! [`Executor`] runs one task per slot; [`Loop`] turns a [`Station`] (a
//! worker, a front, or both fused) and has the one place where it waits.
#![forbid(unsafe_code)]

mod atomic;
mod executor;
mod gaps;
mod idle;
mod poller;
mod ready;
mod wait;

pub use executor::{Executor, TaskId, yield_now};
pub use idle::{Idle, Loop, Station};
pub use poller::{Poller, Registrar};
