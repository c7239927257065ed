//! The file's side of a recording, for a thread that may wait for the disk.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::chunk::Chunk;
use super::entry;
use super::header::Header;

/// Chunks of one recording (1 MiB): a second of a hundred thousand requests a
/// second, while the disk thinks.
const CHUNKS: usize = 16;

/// What goes from the worker to the writer.
#[derive(Debug)]
pub(super) enum Filled {
    Begin(Header),
    Chunk(Chunk),
    End { requests: u64, dropped: u64, gap: u64 },
}

/// The worker's end of a recording: chunks to fill, and where they go.
#[derive(Debug)]
pub struct Sink {
    pub(super) filled: SyncSender<Filled>,
    pub(super) spare: Receiver<Chunk>,
}

/// The file's end of a recording.
#[derive(Debug)]
pub struct Writer {
    filled: Receiver<Filled>,
    spare: SyncSender<Chunk>,
}

/// What came into a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether the recording was ended; else the worker was.
    pub ended: bool,
    /// Requests in the file; known at the end.
    pub requests: u64,
    /// Requests that are missing because the file was too slow.
    pub dropped: u64,
}

/// Both ends of a recording, with all the memory that it needs.
#[must_use]
pub fn pipe() -> (Sink, Writer) {
    // A message for each chunk, one that begins and one that ends: no message
    // ever waits for room.
    let (filled, emptied) = (sync_channel(CHUNKS + 2), sync_channel(CHUNKS));
    for _ in 0..CHUNKS {
        emptied.0.try_send(Chunk::new()).expect("there is room for each chunk");
    }
    let sink = Sink { filled: filled.0, spare: emptied.1 };
    (sink, Writer { filled: filled.1, spare: emptied.0 })
}

impl Writer {
    /// Writes what the worker records until the recording ends.
    ///
    /// # Errors
    /// The file's; then the recording ends, too.
    pub fn run(self, to: &mut impl Write) -> io::Result<Written> {
        let mut written = Written::default();
        let mut chunks = 0;
        let mut put = |bytes: &[u8]| {
            to.write_all(bytes)?;
            written.bytes += bytes.len() as u64;
            io::Result::Ok(())
        };
        while let Ok(filled) = self.filled.recv() {
            match filled {
                Filled::Begin(header) => put(&header.encode())?,
                Filled::Chunk(mut chunk) => {
                    put(chunk.seal(chunks))?;
                    chunks += 1;
                    chunk.clear();
                    // The recorder may be gone.
                    let _ = self.spare.try_send(chunk);
                }
                Filled::End { requests, dropped, gap } => {
                    let mut last = Chunk::new();
                    if gap > 0 {
                        entry::put_gap(last.entries(), gap);
                    }
                    entry::put_end(last.entries(), requests, dropped);
                    put(last.seal(chunks))?;
                    written = Written { ended: true, requests, dropped, ..written };
                    break;
                }
            }
        }
        to.flush()?;
        Ok(written)
    }
}
