//! What the benches have in common: the stages of a request's way, a worker and a pool
//! that they turn themselves in a time that goes by as they say, and what counts.

pub mod callgrind;
pub mod guest;
pub mod meter;
pub mod pool;
pub mod stage;
pub mod worker;
