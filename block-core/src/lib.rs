//! The vocabulary of the data path: what every crate below and above means by
//! a block, a request, a buffer, an error and a moment.
//!
//! Nothing here does I/O. The modules stand in the order in which a request
//! meets them.

pub mod blocks;
pub mod buffer;
pub mod chance;
mod crc;
pub mod device;
pub mod error;
pub mod mapping;
pub mod ordered;
pub mod range_lock;
pub mod request;
mod sys;
pub mod time;
pub mod unit;

pub use blocks::{Blocks, Completed};
pub use buffer::{Buffer, DmaMemory, Pool};
pub use chance::Chance;
pub use crc::crc32c;
pub use device::Device;
pub use error::BlockError;
pub use mapping::{Mapping, Memory};
pub use ordered::{Begun, Ordered, Scratch, Served};
pub use range_lock::RangeLock;
pub use request::{Op, Request};
pub use time::Time;
pub use unit::{BLOCK_SIZE, BlockCount, Extent, Lba, LbaRange, Pba, SECTOR_SIZE, SectorRange};
