//! The worker's side of a recording: no file, no waiting, no allocation.

use std::cell::RefCell;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use block_core::{BlockError, Time};

use super::chunk::Chunk;
use super::entry::{self, Context, TracedRequest};
use super::header::Header;
use super::writer::{Filled, Sink};
use crate::hooks::RequestFacts;

/// A chunk of a volume with little to do is handed over after so long, when
/// its next request ends.
const CHUNK_AGE: Duration = Duration::from_secs(1);

/// What a recording has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Requests in the trace.
    pub requests: u64,
    /// Requests that are missing because the file was too slow.
    pub dropped: u64,
    /// Whether it goes on: nobody has ended it, and its file takes what comes.
    pub open: bool,
}

/// Records the requests of a volume.
#[derive(Debug)]
pub struct Recorder {
    began: Time,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    sink: Sink,
    filling: Option<Filling>,
    recorded: Recorded,
    /// Dropped since the last gap that the trace tells of.
    gap: u64,
}

#[derive(Debug)]
struct Filling {
    chunk: Chunk,
    context: Context,
    since: Time,
}

impl Recorder {
    /// A recording that begins `now`. All chunks of the sink are empty.
    #[must_use]
    pub fn new(header: Header, sink: Sink, now: Time) -> Self {
        let open = sink.filled.try_send(Filled::Begin(header)).is_ok();
        let (filling, recorded) = (None, Recorded { open, ..Recorded::default() });
        Self { began: now, state: RefCell::new(State { sink, filling, recorded, gap: 0 }) }
    }

    /// What it has until now.
    #[must_use]
    pub fn recorded(&self) -> Recorded {
        self.state.borrow().recorded
    }

    /// Records a request that has ended. One that was there before the
    /// recording is not a part of it.
    pub fn done(
        &self,
        facts: RequestFacts,
        arrived: Time,
        now: Time,
        outcome: Result<(), BlockError>,
    ) {
        if arrived < self.began {
            return;
        }
        let RequestFacts { op, range } = facts;
        let (arrival, latency) = (arrived - self.began, now - arrived);
        let request = TracedRequest { op, range, arrival, latency, outcome };
        self.state.borrow_mut().put(&request, now);
    }

    /// Ends the recording.
    pub fn finish(&self) {
        self.state.borrow_mut().finish();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.finish();
    }
}

impl State {
    fn put(&mut self, request: &TracedRequest, now: Time) {
        if !self.recorded.open {
            return;
        }
        let Some(filling) = self.filling(now) else {
            self.recorded.dropped += 1;
            self.gap += 1;
            return;
        };
        filling.context.put(filling.chunk.entries(), request);
        let full = !filling.chunk.has_room() || now - filling.since >= CHUNK_AGE;
        self.recorded.requests += 1;
        if full {
            self.hand_over();
        }
    }

    /// A chunk with room, if the writer has given one back.
    fn filling(&mut self, now: Time) -> Option<&mut Filling> {
        if self.filling.is_none() {
            let mut chunk = match self.sink.spare.try_recv() {
                Ok(chunk) => chunk,
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => {
                    self.recorded.open = false;
                    return None;
                }
            };
            let gap = std::mem::take(&mut self.gap);
            if gap > 0 {
                entry::put_gap(chunk.entries(), gap);
            }
            self.filling = Some(Filling { chunk, context: Context::default(), since: now });
        }
        self.filling.as_mut()
    }

    fn hand_over(&mut self) {
        if let Some(Filling { chunk, .. }) = self.filling.take()
            && !chunk.is_empty()
            && self.sink.filled.try_send(Filled::Chunk(chunk)).is_err()
        {
            self.recorded.open = false;
        }
    }

    fn finish(&mut self) {
        self.hand_over();
        if std::mem::replace(&mut self.recorded.open, false) {
            let Recorded { requests, dropped, .. } = self.recorded;
            // A writer that has failed needs no end.
            let _ = self.sink.filled.try_send(Filled::End { requests, dropped, gap: self.gap });
        }
    }
}
