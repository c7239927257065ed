//! Reads a trace, and believes nothing.

use std::io::{self, Read};

use thiserror::Error;

use super::chunk::{CHUNK_HEAD, Head};
use super::entry::{Context, Entry, Said};
use super::header::{HEADER_BYTES, Header};

/// Where a trace could not be read any further, and why.
#[derive(Debug, Error)]
#[error("{fault} (at byte {at})")]
pub struct TraceError {
    /// How many bytes of the file were good.
    pub at: u64,
    /// What comes then.
    pub fault: TraceFault,
}

/// What is wrong with a trace.
#[derive(Debug, Error)]
pub enum TraceFault {
    /// It is something else.
    #[error("this is no trace of a volume")]
    NotATrace,
    /// A later version wrote it.
    #[error("a later version of vRIO wrote this trace (format {0}); use that version")]
    Newer(u16),
    /// It has no end: whoever wrote it was stopped, or the file was cut.
    #[error("the trace is cut off here")]
    CutOff,
    /// It is not what was written.
    #[error("the trace is damaged here")]
    Damaged,
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    File(io::Error),
}

/// The entries of a trace, one after the other. After an error there is
/// nothing more. What comes before it is good.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    header: Header,
    /// Bytes before the chunk that is being read, and its next entry.
    at: u64,
    next: usize,
    entries: Vec<u8>,
    context: Context,
    chunks: u32,
    requests: u64,
    dropped: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Begins to read. `from` is read in pieces of at most 64 KiB.
    ///
    /// # Errors
    /// When it does not begin as a trace does.
    pub fn open(mut from: R) -> Result<Self, TraceError> {
        let mut bytes = [0; HEADER_BYTES];
        let got = read(&mut from, &mut bytes)
            .map_err(|error| TraceError { at: 0, fault: TraceFault::File(error) })?;
        let header = match got {
            HEADER_BYTES => Header::parse(&bytes),
            _ => Err(TraceFault::NotATrace),
        };
        Ok(Self {
            from,
            header: header.map_err(|fault| TraceError { at: 0, fault })?,
            at: HEADER_BYTES as u64,
            next: 0,
            entries: Vec::new(),
            context: Context::default(),
            chunks: 0,
            requests: 0,
            dropped: 0,
            ended: false,
        })
    }

    /// Whose requests these are.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn advance(&mut self) -> Result<Option<Entry>, TraceFault> {
        if self.next == self.entries.len() {
            self.read_chunk()?;
        }
        let mut rest = &self.entries[self.next..];
        let said = self.context.take(&mut rest).map_err(|_| TraceFault::Damaged)?;
        self.next = self.entries.len() - rest.len();
        match said {
            Said::End { requests, dropped } => {
                let as_told = requests == self.requests && dropped == self.dropped;
                let last = self.next == self.entries.len() && self.is_at_end()?;
                if as_told && last { Ok(None) } else { Err(TraceFault::Damaged) }
            }
            Said::Entry(entry) => {
                match entry {
                    Entry::Request(_) => self.requests += 1,
                    Entry::Gap(requests) => {
                        let sum = self.dropped.checked_add(requests);
                        self.dropped = sum.ok_or(TraceFault::Damaged)?;
                    }
                }
                Ok(Some(entry))
            }
        }
    }

    fn read_chunk(&mut self) -> Result<(), TraceFault> {
        if self.chunks > 0 {
            self.at += (CHUNK_HEAD + self.entries.len()) as u64;
        }
        self.entries.clear();
        self.next = 0;
        let mut bytes = [0; CHUNK_HEAD];
        if read(&mut self.from, &mut bytes).map_err(TraceFault::File)? < CHUNK_HEAD {
            return Err(TraceFault::CutOff);
        }
        let head = Head::parse(&bytes).ok_or(TraceFault::Damaged)?;
        self.entries.resize(head.entries, 0);
        if read(&mut self.from, &mut self.entries).map_err(TraceFault::File)? < head.entries {
            return Err(TraceFault::CutOff);
        }
        if !head.covers(&bytes, &self.entries) || head.number != self.chunks {
            return Err(TraceFault::Damaged);
        }
        self.chunks = self.chunks.wrapping_add(1);
        self.context = Context::default();
        Ok(())
    }

    fn is_at_end(&mut self) -> Result<bool, TraceFault> {
        Ok(read(&mut self.from, &mut [0]).map_err(TraceFault::File)? == 0)
    }

    fn place(&self) -> u64 {
        let inside = if self.next > 0 { (CHUNK_HEAD + self.next) as u64 } else { 0 };
        self.at + inside
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Entry, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        match self.advance() {
            Ok(Some(entry)) => Some(Ok(entry)),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(fault) => {
                self.ended = true;
                Some(Err(TraceError { at: self.place(), fault }))
            }
        }
    }
}

/// Fills `into` as far as there are bytes.
fn read(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match from.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}
