//! The whole system in one thread, in virtual time, from a seed.
//!
//! Production code runs here as it is: the front's end of the link, the
//! server's workers, volumes, pools, the NVMe driver and the soft controller.
//! What they take as arguments (time, chance, frames, completions) comes from
//! a seed, and so do the faults: whatever a run does wrong, the same seed does
//! again. The modules stand in the order in which a request meets them.
#![forbid(unsafe_code)]

pub mod guest;
pub mod intruder;
pub mod oracle;
pub mod trust;
pub mod vmhost;

pub mod attacker;
pub mod fabric;

pub mod drive;
pub mod iohost;

pub mod dice;
pub mod run;
pub mod scenario;
pub mod story;
pub mod world;
