//! The stages of a request's way, each by itself: what it takes to set one up, and a
//! round of its work.
//!
//! Times (`cargo bench`) and instructions (`make bench`) are of the same rounds. Every
//! part is a real one; what stands at its other end is not measured.
//!
//! | stages | what is measured | what stands beside it |
//! |---|---|---|
//! | `front` | [`Front::turn`](block_front::Front::turn) with one ring: from available to a part, from a part's end to used | a driver that polls; a path that takes and ends what it is told to |
//! | `frame` | a frame in the clear, header and checksum | |
//! | `checksum`, `cipher` | the two kernels of frames: CRC32C, AES-256-GCM as a sealed frame uses it | |
//! | `client`, `server` | one end of a session: from part to frame and from frame to the part's end; from frame to request and back | the other end; a wire that copies each frame once and a host that answers at once |
//! | `executor` | a turn in which nothing, or one of 512 tasks, can go on | |
//! | `worker` | the turn of a worker with a session's wire that finds nothing; a request of a part's path through slot, volume, driver and soft controller | |
//! | `queue pair` | the driver: submit, ring, reap | the soft controller |
//! | `pool` | a block of a pool, hashed, sealed and mapped, or found and opened; flushes of 32 | a device that completes at once |
//!
//! The ring and the parser of its chains are `block-front`'s own and are met through its
//! turn: a flush has the shortest chain there is, and what a read takes more is the
//! parser's. So are the seals of frames `link`'s: what a sealed session takes more than
//! a clear one is theirs.

mod front;
mod kernel;
mod pipe;
mod pool;
mod queue_pair;
mod session;
mod turns;
mod unseen;

use anyhow::Context;

use crate::meter::Meter;
use crate::pool::row::Row;

/// Operations in a round: a burst's worth of requests, frames or turns.
pub const OPERATIONS: usize = 32;

/// Rounds before something is counted, and while.
const WARM_UP: usize = 32;
const COUNTED: usize = 128;

/// Does [`OPERATIONS`] of a stage, and measures what is its own.
pub type Round = Box<dyn FnMut(&mut Meter) -> anyhow::Result<()>>;

/// A stage of a request's way.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// Its part of the way, and what it does.
    pub name: &'static str,
    set_up: fn() -> anyhow::Result<Round>,
}

impl Stage {
    /// All of them, in the order in which a request meets them.
    pub const ALL: &[Self] = &[
        Self::new("front: an empty turn", front::empty_turn),
        Self::new("front: take a flush", || front::take(front::Kind::Flush)),
        Self::new("front: take a read", || front::take(front::Kind::Read)),
        Self::new("front: take a read, indirect", || front::take(front::Kind::IndirectRead)),
        Self::new("front: take a write", || front::take(front::Kind::Write)),
        Self::new("front: answer a read", || front::answer(front::Kind::Read)),
        Self::new("front: answer a write", || front::answer(front::Kind::Write)),
        Self::new("client: a read", || session::client(session::READ)),
        Self::new("client: a write", || session::client(session::WRITE)),
        Self::new("client: a read, sealed", || session::client(session::READ.sealed())),
        Self::new("client: a write, sealed", || session::client(session::WRITE.sealed())),
        Self::new("frame: encode a header", || kernel::encode(0)),
        Self::new("frame: encode 4 KiB", || kernel::encode(4096)),
        Self::new("frame: decode a header", || kernel::decode(0)),
        Self::new("frame: decode 4 KiB", || kernel::decode(4096)),
        Self::new("checksum: 4 KiB", kernel::checksum),
        Self::new("cipher: seal 4 KiB", kernel::seal),
        Self::new("cipher: open 4 KiB", kernel::open),
        Self::new("server: a read", || session::server(session::READ)),
        Self::new("server: a write", || session::server(session::WRITE)),
        Self::new("server: a read, sealed", || session::server(session::READ.sealed())),
        Self::new("server: a write, sealed", || session::server(session::WRITE.sealed())),
        Self::new("worker: an empty turn", turns::empty_worker),
        Self::new("worker: a read, to the device", || turns::served(block_core::Op::Read)),
        Self::new("worker: a write, to the device", || turns::served(block_core::Op::Write)),
        Self::new("executor: an empty turn", turns::empty_executor),
        Self::new("executor: a task woken", turns::woken),
        Self::new("queue pair: a read", || queue_pair::transfer(block_core::Op::Read)),
        Self::new("queue pair: a write", || queue_pair::transfer(block_core::Op::Write)),
        Self::new("queue pair: the bench's own loop", queue_pair::nothing),
        Self::new("pool: read a block", || pool::block(Row::Read)),
        Self::new("pool: write a unique block", || pool::block(Row::Unique)),
    ];

    const fn new(name: &'static str, set_up: fn() -> anyhow::Result<Round>) -> Self {
        Self { name, set_up }
    }

    /// The stage of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let found = Self::ALL.iter().find(|stage| stage.name == name);
        found.copied().with_context(|| format!("no stage is called '{name}'"))
    }

    /// Makes it ready for its rounds.
    ///
    /// # Errors
    /// What it is made of cannot be had.
    pub fn set_up(self) -> anyhow::Result<Round> {
        (self.set_up)().with_context(|| format!("'{}' cannot be set up", self.name))
    }

    /// A fixed number of rounds; allocations of one operation. Callgrind counts those
    /// rounds that come after some to warm up.
    ///
    /// # Errors
    /// What was set up fails.
    pub fn work(self) -> anyhow::Result<f64> {
        let mut round = self.set_up()?;
        let mut meter = Meter::default();
        for _ in 0..WARM_UP {
            round(&mut meter)?;
        }
        meter = Meter::begin();
        for _ in 0..COUNTED {
            round(&mut meter)?;
        }
        Ok(meter.allocations as f64 / Self::counted())
    }

    /// Operations that are counted.
    #[must_use]
    pub fn counted() -> f64 {
        (COUNTED * OPERATIONS) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_stages_have_one_name() {
        let names: std::collections::HashSet<_> = Stage::ALL.iter().map(|it| it.name).collect();
        assert_eq!(names.len(), Stage::ALL.len());
    }

    /// A stage that measures nothing would seem to cost nothing.
    #[test]
    fn every_stage_works_and_measures_something() {
        for stage in Stage::ALL {
            let mut round = stage.set_up().expect(stage.name);
            let mut meter = Meter::default();
            for _ in 0..3 {
                round(&mut meter).expect(stage.name);
            }
            assert!(!meter.time.is_zero(), "{}", stage.name);
        }
    }
}
