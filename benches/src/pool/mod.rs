//! A pool on a device that costs nothing.

pub mod device;
pub mod machine;
pub mod row;
