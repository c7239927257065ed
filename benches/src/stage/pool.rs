//! Blocks of a pool. `pool instructions` tells whose its instructions are, and counts
//! whole checkpoints too.

use super::{OPERATIONS, Round};
use crate::meter::Meter;
use crate::pool::row::{Row, Subject};

/// Blocks that are there before.
const PREPARED: u64 = 1024;

/// Requests of a block each.
pub(super) fn block(row: Row) -> anyhow::Result<Round> {
    let mut subject = Subject::new(row, PREPARED)?;
    Ok(Box::new(move |meter: &mut Meter| meter.measure(|| subject.measure(OPERATIONS as u64))))
}
