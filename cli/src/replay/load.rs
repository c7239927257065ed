//! From a trace to the requests that will be made, or a sentence why not.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use block_core::Op as Recorded;
use block_core::unit::{MAX_REQUEST_BYTES, MAX_REQUEST_SECTORS, SECTOR_SIZE};
use interpose::hooks::trace::{Entry, Reader, TraceFault, TracedRequest};

use super::ReplayArgs;
use crate::bench::driver::Facts;
use crate::bench::tally::Tally;
use crate::bench::workload::{Kind, Op, Span};

/// Bytes of a sector, in which a trace counts.
pub(super) const SECTOR: u32 = SECTOR_SIZE as u32;

/// Most requests of one run: 4 GiB of memory.
const MOST_REQUESTS: usize = 100_000_000;

/// What a trace asks for.
pub(super) struct Loaded {
    /// The recorded volume's name.
    pub(super) name: String,
    /// In the order in which they ended, each with its arrival.
    pub(super) requests: Vec<(Duration, Op)>,
    /// The recorded latencies of these requests.
    pub(super) recorded: Tally,
    /// From the first arrival to the last end.
    pub(super) took: Duration,
    /// Bytes of the largest request's data, at least one sector.
    pub(super) largest: usize,
    pub(super) left_out: LeftOut,
    /// Flushes are not made, because the device has none.
    pub(super) without_flush: bool,
}

/// Requests that are not made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// They would change data.
    pub(super) changes: u64,
    /// They had failed.
    pub(super) failed: u64,
    /// The trace does not have them: its file was too slow.
    pub(super) gaps: u64,
}

/// Reads the trace.
pub(super) fn load(args: &ReplayArgs) -> anyhow::Result<Loaded> {
    let shown = args.trace.display();
    let file = File::open(&args.trace).with_context(|| format!("cannot open the trace {shown}"))?;
    let reader = Reader::open(std::io::BufReader::new(file));
    let reader = reader.with_context(|| format!("cannot use {shown}"))?;
    let loaded = take_requests(reader, args)?;
    if loaded.requests.is_empty() {
        let LeftOut { changes, failed, .. } = loaded.left_out;
        bail!(
            "{shown} has no request to make: {changes} would change data (--write-data makes \
             them), {failed} had failed"
        );
    }
    Ok(loaded)
}

fn take_requests(mut reader: Reader<impl Read>, args: &ReplayArgs) -> anyhow::Result<Loaded> {
    let shown = args.trace.display();
    let mut loaded = Loaded {
        name: reader.header().name.clone(),
        requests: Vec::new(),
        recorded: Tally::new(),
        took: Duration::ZERO,
        largest: SECTOR_SIZE,
        left_out: LeftOut::default(),
        without_flush: false,
    };
    let mut first = Duration::MAX;
    let mut seen = 0;
    while args.requests.is_none_or(|most| seen < most) {
        match reader.next() {
            None => break,
            Some(Ok(Entry::Gap(requests))) => loaded.left_out.gaps += requests,
            Some(Ok(Entry::Request(request))) => {
                seen += 1;
                if loaded.add(&request, args.write_data).is_none() {
                    bail!("{shown} has a request that no volume has served: it is damaged");
                }
                first = first.min(request.arrival);
                loaded.took = loaded.took.max(request.arrival + request.latency);
                ensure!(
                    loaded.requests.len() <= MOST_REQUESTS,
                    "{shown} has more than {MOST_REQUESTS} requests: give a number of --requests"
                );
            }
            Some(Err(error)) if args.partial && matches!(error.fault, TraceFault::CutOff) => break,
            Some(Err(error)) => {
                let way_out = match error.fault {
                    TraceFault::CutOff => "; --partial uses what comes before",
                    _ => "",
                };
                bail!("cannot use {shown}: {error}{way_out}");
            }
        }
    }
    loaded.requests.iter_mut().for_each(|(due, _)| *due = due.saturating_sub(first));
    loaded.took = loaded.took.saturating_sub(first);
    Ok(loaded)
}

impl Loaded {
    /// Adds a request, unless it is one to leave out. `None` for one that
    /// cannot have worked as it says.
    fn add(&mut self, request: &TracedRequest, write_data: bool) -> Option<()> {
        let TracedRequest { op, range, arrival, latency, outcome } = *request;
        if outcome.is_err() {
            self.left_out.failed += 1;
            return Some(());
        }
        let kind = kind(op);
        let span = match range {
            None if kind == Kind::Flush => Span::NONE,
            None => return None,
            Some(range) => Span { first: range.start(), count: range.count() },
        };
        if matches!(kind, Kind::Read | Kind::Write) {
            if span.count > MAX_REQUEST_SECTORS {
                return None;
            }
            self.largest = self.largest.max(span.count as usize * SECTOR_SIZE);
        }
        if kind.changes_data() && !write_data {
            self.left_out.changes += 1;
            return Some(());
        }
        self.requests.push((arrival, Op { kind, span }));
        self.recorded.answered(kind, latency, u64::from(span.count) * u64::from(SECTOR));
        Some(())
    }

    /// Holds the requests against the device: cuts what is too long for it, and
    /// refuses what it cannot do.
    pub(super) fn fit(&mut self, args: &ReplayArgs, facts: &Facts) -> anyhow::Result<()> {
        let socket = args.socket.display();
        let kinds = |kind| self.requests.iter().any(move |(_, op)| op.kind == kind);
        let changes = self.requests.iter().any(|(_, op)| op.kind.changes_data());
        ensure!(
            !(facts.read_only && changes),
            "{socket} is read-only: leave --write-data out, or replay against another one"
        );
        for (kind, limits) in [(Kind::Discard, facts.discard), (Kind::Zero, facts.zero)] {
            let offered = limits.is_some_and(|limits| limits.most >= SECTOR.into());
            ensure!(
                offered || !kinds(kind),
                "the trace has a {} and {socket} does not offer it: replay against another device, \
                 or leave --write-data out",
                kind.name()
            );
        }
        if !facts.flush {
            self.requests.retain(|(_, op)| op.kind != Kind::Flush);
            self.without_flush = true;
        }
        let block = u64::from(facts.logical_block.max(SECTOR) / SECTOR);
        for (_, Op { span, .. }) in &self.requests {
            let end = span.grains().end;
            ensure!(
                end <= facts.capacity / u64::from(SECTOR),
                "the trace reaches sector {end} and {socket} has {}: replay it against a device \
                 at least as large as volume '{}'",
                facts.capacity / u64::from(SECTOR),
                self.name
            );
            ensure!(
                span.first.is_multiple_of(block) && u64::from(span.count).is_multiple_of(block),
                "{socket} has blocks of {} bytes, and the trace has smaller requests: replay it \
                 against a device with blocks of 512 bytes",
                facts.logical_block
            );
        }
        self.cut(facts);
        Ok(())
    }

    /// Cuts discards and zeroes that are too long for one request of the device.
    fn cut(&mut self, facts: &Facts) {
        let most = |kind| {
            let limits = match kind {
                Kind::Discard => facts.discard,
                Kind::Zero => facts.zero,
                Kind::Read | Kind::Write | Kind::Flush => None,
            };
            let sectors = limits.map_or(u64::MAX, |limits| limits.most / u64::from(SECTOR));
            u32::try_from(sectors).unwrap_or(u32::MAX).max(1)
        };
        let too_long = |op: &Op| op.span.count > most(op.kind);
        if !self.requests.iter().any(|(_, op)| too_long(op)) {
            return;
        }
        let whole = std::mem::take(&mut self.requests);
        for (due, op) in whole {
            let most = most(op.kind);
            let mut left = op.span;
            while left.count > most {
                self.requests.push((due, Op { span: Span { count: most, ..left }, ..op }));
                left = Span { first: left.first + u64::from(most), count: left.count - most };
            }
            self.requests.push((due, Op { span: left, ..op }));
        }
    }
}

fn kind(op: Recorded) -> Kind {
    match op {
        Recorded::Read => Kind::Read,
        // There is no write-through request in virtio-blk; a front makes them
        // for a guest without flush.
        Recorded::Write | Recorded::WriteThrough => Kind::Write,
        Recorded::Flush => Kind::Flush,
        Recorded::Discard => Kind::Discard,
        Recorded::WriteZeroesUnmap | Recorded::WriteZeroes | Recorded::WriteZeroesThrough => {
            Kind::Zero
        }
    }
}

const _: () = assert!(MAX_REQUEST_BYTES == MAX_REQUEST_SECTORS as usize * SECTOR_SIZE);

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
