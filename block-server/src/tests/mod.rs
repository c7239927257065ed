//! Tests of the parts together, on a simulated disk.

mod crash;
mod disk;
mod volume;
mod worker;
