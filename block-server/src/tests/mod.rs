//! Tests of the parts together, on a simulated disk.

mod crash;
mod disk;
mod hostile;
mod made;
mod volume;
mod worker;
