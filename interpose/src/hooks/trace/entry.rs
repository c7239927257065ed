//! What a trace says, entry by entry.

use std::time::Duration;

use block_core::error::outcome_code;
use block_core::{BlockError, Op, SectorRange};

use super::number::{self, BadNumber, MAX_NUMBER};

/// Most bytes of an entry: the tag and four numbers.
pub(super) const MAX_ENTRY: usize = 1 + 4 * MAX_NUMBER;

const GAP: u8 = 0x10;
const END: u8 = 0x20;

/// A request, as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedRequest {
    /// What it did.
    pub op: Op,
    /// Where; `None` for a flush, and for a request that said nothing (which
    /// failed).
    pub range: Option<SectorRange>,
    /// When it arrived, after the recording's start.
    pub arrival: Duration,
    /// How long it took.
    pub latency: Duration,
    /// Whether it worked.
    pub outcome: Result<(), BlockError>,
}

/// What a trace says next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A request ended.
    Request(TracedRequest),
    /// So many requests ended here and are not in the trace.
    Gap(u64),
}

/// An entry, or that there is no further one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Entry(Entry),
    End { requests: u64, dropped: u64 },
}

/// What an entry says only in relation to the one before, in a chunk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Context {
    arrival: u64,
    sector: u64,
}

impl Context {
    /// Appends a request.
    pub(super) fn put(&mut self, to: &mut Vec<u8>, request: &TracedRequest) {
        let TracedRequest { op, range, arrival, latency, outcome } = request;
        to.push(op.code() | outcome_code(*outcome) << 4);
        let arrival = nanos(*arrival);
        number::put_step(to, self.arrival, arrival);
        self.arrival = arrival;
        if *op != Op::Flush {
            let (start, count) = range.map_or((self.sector, 0), |at| (at.start(), at.count()));
            number::put_step(to, self.sector, start);
            number::put(to, count.into());
            self.sector = start + u64::from(count);
        }
        number::put(to, nanos(*latency));
    }

    /// Takes what is said at the front of `from`.
    pub(super) fn take(&mut self, from: &mut &[u8]) -> Result<Said, BadNumber> {
        let (&tag, rest) = from.split_first().ok_or(BadNumber)?;
        *from = rest;
        match tag {
            GAP => Ok(Said::Entry(Entry::Gap(number::take(from)?))),
            END => Ok(Said::End { requests: number::take(from)?, dropped: number::take(from)? }),
            tag => Ok(Said::Entry(Entry::Request(self.take_request(tag, from)?))),
        }
    }

    fn take_request(&mut self, tag: u8, from: &mut &[u8]) -> Result<TracedRequest, BadNumber> {
        let op = Op::from_code(tag & 0x0f).ok_or(BadNumber)?;
        let outcome = BlockError::from_code(tag >> 4);
        if outcome_code(outcome) != tag >> 4 {
            return Err(BadNumber);
        }
        self.arrival = number::take_step(from, self.arrival)?;
        let mut range = None;
        if op != Op::Flush {
            let start = number::take_step(from, self.sector)?;
            let count = u32::try_from(number::take(from)?).map_err(|_| BadNumber)?;
            range = SectorRange::new(start, count);
            let place = range.map_or(self.sector, SectorRange::start);
            if start != place || range.is_none() && count != 0 {
                return Err(BadNumber);
            }
            self.sector = start + u64::from(count);
        }
        let (arrival, latency) = (self.arrival, number::take(from)?);
        arrival.checked_add(latency).ok_or(BadNumber)?;
        let (arrival, latency) = (Duration::from_nanos(arrival), Duration::from_nanos(latency));
        Ok(TracedRequest { op, range, arrival, latency, outcome })
    }
}

/// Appends a gap.
pub(super) fn put_gap(to: &mut Vec<u8>, requests: u64) {
    to.push(GAP);
    number::put(to, requests);
}

/// Appends the end.
pub(super) fn put_end(to: &mut Vec<u8>, requests: u64, dropped: u64) {
    to.push(END);
    number::put(to, requests);
    number::put(to, dropped);
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
