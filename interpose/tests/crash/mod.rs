//! The crash simulation: random work on a pool, cut off everywhere.
//!
//! - [`machine`] runs a pool on a simulated disk.
//! - [`world`] and [`control`] are guests and an operator at work.
//! - [`model`] is the oracle, made of [`block`]s' histories: what may be read.
//! - [`observe`] reads everything and asks the oracle.
//! - [`crashes`] cuts the power at each operation of the disk, opens what is
//!   left on another machine, and asks.
//! - [`faults`] are devices that lie and fail.

// One crate, whose parts see each other.
#![allow(unreachable_pub)]

pub mod block;
pub mod content;
pub mod control;
pub mod crashes;
mod faults;
pub mod machine;
pub mod model;
pub mod observe;
pub mod world;

use super::disk;
