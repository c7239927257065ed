//! Traces: every request of a volume in a file, to be looked at or run again.
//!
//! ```text
//! file       header | chunk ... | chunk with the end
//!
//! header     0    "vRIOtrac"
//! (128       8    version u16 | name length u8 | zero u8
//!  bytes)    12   bytes of a sector, u32 (512)
//!            16   volume id, 16 bytes
//!            32   blocks of the volume when the recording began, u64
//!            40   when it began, nanoseconds since 1970, u64
//!            48   name, 63 bytes | zero, 13 bytes
//!            124  crc32c of bytes 0..124, u32
//!
//! chunk      0    crc32c of bytes 4.. of the chunk, u32
//!            4    number, u32: 0, 1, 2, ...
//!            8    bytes of entries that follow, u32, 1 to 65,524
//!            12   entries
//!
//! entry      tag u8, low half:
//!  1..=8     a request of that operation (its code on the wire); the tag's
//!            high half is the outcome (0 or the error's code on the wire)
//!              arrival, signed: nanoseconds after the arrival before
//!              unless it is a flush:
//!                first sector, signed: from the sector after the last range
//!                sectors; 0, and the step 0, when the request said no range
//!              latency in nanoseconds
//!  0, high 1 a gap: so many requests were not recorded
//!  0, high 2 the end: requests recorded | requests not recorded
//! ```
//!
//! All numbers are little-endian. Those of entries have seven bits a byte, the
//! lowest first, the eighth bit says that more follow; signed ones are folded
//! (0, -1, 1, -2, ...). Times count from the start of the recording. Requests
//! stand in the order in which they ended, so arrivals may go back. What a
//! number is relative to begins at zero in each chunk.
//!
//! Nothing is dropped in silence: when the file is slower than the volume, a
//! gap says how much is missing. A trace without its end was cut off.

mod chunk;
mod entry;
mod header;
mod number;
mod reader;
mod recorder;
mod writer;

pub use entry::{Entry, TracedRequest};
pub use header::Header;
pub use reader::{Reader, TraceError, TraceFault};
pub use recorder::{Recorded, Recorder};
pub use writer::{Sink, Writer, Written, pipe};

#[cfg(test)]
mod tests;
