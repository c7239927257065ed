//! The measured loop: one thread that keeps all queues of the device filled.
//!
//! Nothing here allocates once the loop runs, and nothing sleeps unless asked.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::driver::{Rings, Status};
use super::ledger::Ledger;
use super::pace::{Check, Gauge, Limits, Pace, Region, Wait};
use super::pattern::{self, Expected, SECTOR};
use super::random::SplitMix;
use super::schedule::Schedule;
use super::tally::{Failure, Tally};
use super::workload::{Kind, Op, Span, Workload};

/// Where requests come from.
pub(crate) enum Source {
    Workload(Workload),
    /// Every known grain once, in order, so many grains at a time.
    ReadBack {
        from: u64,
        most: u32,
    },
    /// What a trace says, when it says it.
    Schedule(Schedule),
}

/// The loop's state between turns.
pub(crate) struct Loop<'a> {
    rings: Rings,
    free: Box<[Vec<u16>]>,
    flights: Box<[Option<Flight>]>,
    region: Region,
    ledger: Option<Ledger>,
    chance: SplitMix,
    gauge: &'a Gauge,
}

/// A request on its way.
#[derive(Clone, Copy)]
struct Flight {
    op: Op,
    begin: Instant,
    generation: u32,
}

/// A request not yet on its way.
#[derive(Clone, Copy)]
struct Draw {
    op: Op,
    /// When it was meant to start, at an offered rate.
    meant: Option<Instant>,
}

/// One run over a source, from the first request to the last answer.
struct Leg<'a> {
    source: Source,
    pace: &'a Pace,
    tally: &'a mut Tally,
    begin: Instant,
    /// Drawn and not yet submitted, because it overlaps one in flight.
    pending: Option<Draw>,
    drawn_ios: u64,
    drawn_bytes: u64,
    dry: bool,
    writes_since_flush: u64,
    next_queue: usize,
    in_flight: usize,
}

impl<'a> Loop<'a> {
    pub(crate) fn new(
        rings: Rings,
        queues: usize,
        depth: usize,
        region: Region,
        grains: u64,
        gauge: &'a Gauge,
    ) -> Self {
        let slots = queues * depth;
        let free = (0..queues)
            .map(|queue| (queue * depth..(queue + 1) * depth).rev().map(|s| s as u16).collect())
            .collect();
        let ledger = (region.check == Check::OwnWrites).then(|| Ledger::new(grains));
        let chance = SplitMix::new(region.seed);
        Self { rings, free, flights: vec![None; slots].into(), region, ledger, chance, gauge }
    }

    /// Fills all buffers with noise, for writes that nobody checks.
    pub(crate) fn fill_buffers(&mut self, len: usize) {
        for slot in 0..self.flights.len() {
            for word in self.rings.bytes_mut(slot, len).as_chunks_mut::<8>().0 {
                *word = self.chance.next().to_le_bytes();
            }
        }
    }

    /// How many grains this run knows the contents of.
    pub(crate) fn known_grains(&self) -> u64 {
        self.ledger.as_ref().map_or(0, Ledger::known)
    }

    /// Makes the source's requests until the source or a limit ends them, and
    /// waits for all answers. Fails only when the device stops answering.
    pub(crate) fn run(
        &mut self,
        source: Source,
        pace: &Pace,
        tally: &mut Tally,
    ) -> anyhow::Result<Duration> {
        let mut leg = Leg::new(source, pace, tally);
        let begin = leg.begin;
        let mut last_answer = begin;
        let mut empty_turns = 0u32;
        loop {
            let reaped = self.reap(&mut leg, &mut last_answer);
            let submitted = self.submit(&mut leg)?;
            if leg.in_flight == 0 && leg.dry {
                return Ok(last_answer.max(begin) - begin);
            }
            if reaped + submitted > 0 {
                empty_turns = 0;
                continue;
            }
            empty_turns = empty_turns.wrapping_add(1);
            self.wait(&leg)?;
            if pace.wait == Wait::Sleep || empty_turns.is_multiple_of(1 << 14) {
                self.look_for_trouble(&leg, last_answer)?;
            }
        }
    }

    /// One flush, outside of any measurement.
    pub(crate) fn flush(&mut self, pace: &Pace, tally: &mut Tally) -> anyhow::Result<()> {
        let pace = Pace { rate: None, flush_every: Some(1), ..pace.clone() };
        let nothing = Source::ReadBack { from: u64::MAX, most: 1 };
        let mut leg = Leg::new(nothing, &pace, tally);
        leg.writes_since_flush = 1;
        let mut last_answer = leg.begin;
        self.submit(&mut leg)?;
        while leg.in_flight > 0 {
            if self.reap(&mut leg, &mut last_answer) == 0 {
                self.wait(&leg)?;
                self.look_for_trouble(&leg, last_answer)?;
            }
        }
        Ok(())
    }

    fn reap(&mut self, leg: &mut Leg<'_>, last_answer: &mut Instant) -> usize {
        let (mut reaped, mut bytes) = (0, 0);
        for queue in 0..self.free.len() {
            while let Some((slot, status)) = self.rings.next_answer(queue) {
                let now = Instant::now();
                let Some(flight) = self.flights[slot].take() else { continue };
                let silent_since = flight.begin.max(*last_answer);
                leg.tally.waited(now.saturating_duration_since(silent_since));
                *last_answer = now;
                self.settle(leg, slot, flight, status, now);
                self.free[queue].push(slot as u16);
                leg.in_flight -= 1;
                reaped += 1;
                bytes += u64::from(flight.op.span.count) * u64::from(self.region.grain);
            }
        }
        if reaped > 0 {
            self.gauge.ios.fetch_add(reaped as u64, Relaxed);
            self.gauge.bytes.fetch_add(bytes, Relaxed);
        }
        reaped
    }

    fn settle(
        &mut self,
        leg: &mut Leg<'_>,
        slot: usize,
        flight: Flight,
        status: Status,
        now: Instant,
    ) {
        let Flight { op, begin, generation } = flight;
        if status != Status::Ok {
            let (offset, len) = self.place(op.span);
            leg.tally.fail(Failure { kind: op.kind, offset, len, status });
            return;
        }
        let len = self.place(op.span).1;
        leg.tally.answered(op.kind, now.saturating_duration_since(begin), len);
        match op.kind {
            Kind::Read => self.check(leg, slot, op.span),
            Kind::Write => {
                leg.writes_since_flush += 1;
                if let Some(ledger) = &mut self.ledger {
                    ledger.written(op.span, generation);
                }
            }
            Kind::Zero => {
                leg.writes_since_flush += 1;
                if let Some(ledger) = &mut self.ledger {
                    ledger.zeroed(op.span);
                }
            }
            Kind::Discard | Kind::Flush => {}
        }
    }

    fn check(&self, leg: &mut Leg<'_>, slot: usize, span: Span) {
        if self.region.check == Check::Off {
            return;
        }
        let (offset, len) = self.place(span);
        let grain = self.region.grain as usize;
        let bytes = self.rings.bytes(slot, len as usize);
        let sectors = (grain / SECTOR) as u64;
        let first_sector = offset / SECTOR as u64;
        for (i, bytes) in bytes.chunks_exact(grain).enumerate() {
            let expected = match &self.ledger {
                None => Some(Expected::AnyGeneration),
                Some(ledger) => ledger.expected(span.first + i as u64),
            };
            let Some(expected) = expected else {
                leg.tally.unchecked_grains += 1;
                continue;
            };
            let sector = first_sector + i as u64 * sectors;
            leg.tally.checked_grains += 1;
            pattern::check(bytes, sector, expected, self.region.seed, |mismatch| {
                leg.tally.mismatch(mismatch);
            });
        }
    }

    fn submit(&mut self, leg: &mut Leg<'_>) -> anyhow::Result<usize> {
        let mut submitted = 0;
        let mut now = None;
        let mut kicks = 0u64;
        while let Some(queue) = self.queue_with_room(leg.next_queue) {
            let now = *now.get_or_insert_with(Instant::now);
            let Some(draw) = leg.next(now, self) else { break };
            self.launch(queue, draw)
                .with_context(|| format!("cannot queue a {}", draw.op.kind.name()))?;
            leg.next_queue = (queue + 1) % self.free.len();
            leg.in_flight += 1;
            submitted += 1;
            kicks |= 1 << queue;
            // A pattern takes long to make, so no request waits for another's.
            if self.ledger.is_some() {
                self.kick(std::mem::take(&mut kicks))?;
            }
        }
        self.kick(kicks)?;
        Ok(submitted)
    }

    /// Notifies the queues whose bits are set.
    fn kick(&mut self, queues: u64) -> anyhow::Result<()> {
        for queue in (0..self.free.len()).filter(|queue| queues & (1 << queue) != 0) {
            self.rings.notify(queue).context("cannot notify the device")?;
        }
        Ok(())
    }

    fn queue_with_room(&self, from: usize) -> Option<usize> {
        let queues = self.free.len();
        (0..queues).map(|i| (from + i) % queues).find(|&queue| !self.free[queue].is_empty())
    }

    fn launch(&mut self, queue: usize, draw: Draw) -> std::io::Result<()> {
        let Draw { op, meant } = draw;
        let Some(slot) = self.free[queue].pop() else { return Ok(()) };
        let slot = usize::from(slot);
        let (offset, len) = self.place(op.span);
        let generation = match &mut self.ledger {
            Some(ledger) if op.kind.changes_data() => {
                ledger.forget(op.span);
                ledger.next_generation()
            }
            _ => 0,
        };
        if op.kind == Kind::Write {
            self.compose(slot, offset, len as usize, generation);
        }
        let begin = meant.unwrap_or_else(Instant::now);
        self.flights[slot] = Some(Flight { op, begin, generation });
        self.rings.submit(queue, slot, op.kind, offset, len as usize)
    }

    /// Makes the data of a write: the pattern, or noise in which no two
    /// blocks are equal, so that deduplication finds nothing.
    fn compose(&mut self, slot: usize, offset: u64, len: usize, generation: u32) {
        let bytes = self.rings.bytes_mut(slot, len);
        if self.ledger.is_some() {
            pattern::stamp(bytes, offset / SECTOR as u64, generation, self.region.seed);
            return;
        }
        for block in bytes.chunks_mut(4096) {
            block[..8].copy_from_slice(&self.chance.next().to_le_bytes());
        }
    }

    fn overlaps_flight(&self, op: Op) -> bool {
        self.flights.iter().flatten().any(|flight| {
            (op.kind.changes_data() || flight.op.kind.changes_data())
                && flight.op.span.overlaps(op.span)
        })
    }

    /// Offset on the device and length, in bytes.
    fn place(&self, span: Span) -> (u64, u64) {
        let grain = u64::from(self.region.grain);
        (self.region.offset + span.first * grain, u64::from(span.count) * grain)
    }

    fn wait(&mut self, leg: &Leg<'_>) -> anyhow::Result<()> {
        match leg.pace.wait {
            Wait::Poll => std::hint::spin_loop(),
            Wait::Yield => std::thread::yield_now(),
            Wait::Sleep => {
                let due = leg.next_due().filter(|_| leg.in_flight < self.flights.len());
                let until_due = due.map(|due| due.saturating_duration_since(Instant::now()));
                let patience = until_due.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP);
                self.rings.sleep(patience).context("cannot wait for the device")?;
            }
        }
        Ok(())
    }

    fn look_for_trouble(&self, leg: &Leg<'_>, last_answer: Instant) -> anyhow::Result<()> {
        if self.gauge.device_is_gone.load(Relaxed) {
            bail!("the device closed the connection with {} requests unanswered", leg.in_flight);
        }
        let Some(patience) = leg.pace.patience else { return Ok(()) };
        let oldest = self.flights.iter().flatten().min_by_key(|flight| flight.begin);
        let Some(oldest) = oldest else { return Ok(()) };
        let silent_since = last_answer.max(oldest.begin);
        if silent_since.elapsed() < patience {
            return Ok(());
        }
        let (offset, len) = self.place(oldest.op.span);
        bail!(
            "the device answered nothing for {} s; the oldest of {} requests is a {} of {len} \
             bytes at {offset}: look at the device, or give a longer --timeout",
            patience.as_secs(),
            leg.in_flight,
            oldest.op.kind.name(),
        );
    }
}

/// A sleeping loop still looks this often whether the device is gone.
const LONGEST_SLEEP: Duration = Duration::from_millis(250);

impl<'a> Leg<'a> {
    fn new(source: Source, pace: &'a Pace, tally: &'a mut Tally) -> Self {
        Self {
            source,
            pace,
            tally,
            begin: Instant::now(),
            pending: None,
            drawn_ios: 0,
            drawn_bytes: 0,
            dry: false,
            writes_since_flush: 0,
            next_queue: 0,
            in_flight: 0,
        }
    }

    /// The request to submit now.
    fn next(&mut self, now: Instant, state: &Loop<'_>) -> Option<Draw> {
        if let Some(every) = self.pace.flush_every
            && self.writes_since_flush >= every
        {
            self.writes_since_flush -= every;
            return Some(Draw { op: Op { kind: Kind::Flush, span: Span::NONE }, meant: None });
        }
        let draw = match self.pending.take() {
            Some(pending) => pending,
            None => self.draw(now, state)?,
        };
        if state.ledger.is_some() && state.overlaps_flight(draw.op) {
            self.pending = Some(draw);
            return None;
        }
        Some(draw)
    }

    fn draw(&mut self, now: Instant, state: &Loop<'_>) -> Option<Draw> {
        if self.dry || self.limit_reached(now) {
            self.dry = true;
            return None;
        }
        let meant = self.next_due();
        if meant.is_some_and(|meant| meant > now) {
            return None;
        }
        let drawn = match &mut self.source {
            Source::Workload(workload) => Some(workload.next()),
            Source::Schedule(schedule) => schedule.next(),
            Source::ReadBack { from, most } => {
                let span = state.ledger.as_ref().and_then(|l| l.next_known(*from, *most));
                span.map(|span| {
                    *from = span.grains().end;
                    Op { kind: Kind::Read, span }
                })
            }
        };
        let Some(op) = drawn else {
            self.dry = true;
            return None;
        };
        self.drawn_ios += 1;
        self.drawn_bytes += state.place(op.span).1;
        Some(Draw { op, meant })
    }

    fn limit_reached(&self, now: Instant) -> bool {
        let Limits { time, ios, bytes } = self.pace.limits;
        time.is_some_and(|time| now - self.begin >= time)
            || ios.is_some_and(|ios| self.drawn_ios >= ios)
            || bytes.is_some_and(|bytes| self.drawn_bytes >= bytes)
    }

    /// When the next request is meant to start; `None` means at once.
    fn next_due(&self) -> Option<Instant> {
        if let Source::Schedule(schedule) = &self.source {
            return schedule.next_due().map(|due| self.begin + due);
        }
        let rate = self.pace.rate?;
        Some(self.begin + Duration::from_secs_f64(self.drawn_ios as f64 / rate))
    }
}
