//! What the benches have in common: a worker that they turn themselves, in a time
//! that goes by as they say.

pub mod worker;
