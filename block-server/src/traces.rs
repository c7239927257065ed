//! The files that recordings go to, each written by a thread of its own:
//! workers wait for no file.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use interpose::hooks::trace::{Sink, Writer, pipe};
use link::VolumeName;
use thiserror::Error;
use tracing::{error, info};

/// Why there is no file for a recording.
#[derive(Debug, Error)]
pub enum TraceFileError {
    /// Nothing that is there is written over.
    #[error("{0} exists already; choose another file for the recording, or remove that one")]
    Exists(PathBuf),
    /// The server has a working directory that nobody thinks of.
    #[error("'{0}' does not begin at the root; name the file of the recording by its whole path")]
    Relative(PathBuf),
    /// It cannot be made.
    #[error("{path} cannot be made for the recording: {error}; choose another place")]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Recordings that are being written.
#[derive(Debug, Default)]
pub struct Traces {
    writing: Mutex<Vec<(VolumeName, JoinHandle<()>)>>,
    changing: tokio::sync::Mutex<()>,
}

impl Traces {
    /// Makes a file, and returns where to record to.
    ///
    /// # Errors
    /// A sentence about the file.
    pub fn begin(&self, volume: &VolumeName, path: &Path) -> Result<Sink, TraceFileError> {
        if !path.is_absolute() {
            return Err(TraceFileError::Relative(path.to_owned()));
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => TraceFileError::Exists(path.to_owned()),
            _ => TraceFileError::File { path: path.to_owned(), error },
        };
        let file = File::create_new(path).map_err(failed)?;
        let (sink, writer) = pipe();
        let (volume, path) = (volume.clone(), path.to_owned());
        let key = volume.clone();
        let thread = std::thread::Builder::new().name("vrio-trace".to_owned());
        let life = move || write(writer, file, &volume, &path);
        let thread = thread.spawn(life).map_err(|error| TraceFileError::File {
            path: PathBuf::from("the thread that writes"),
            error,
        })?;
        self.lock().push((key, thread));
        Ok(sink)
    }

    /// Held by whoever begins or ends a recording.
    pub(crate) async fn changing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Takes the threads that write a volume's recordings, all but the last
    /// ones: each has ended with its recording, or does so soon.
    #[must_use]
    pub fn take(&self, volume: &VolumeName, but: usize) -> Vec<JoinHandle<()>> {
        let mut writing = self.lock();
        let (mut of_it, mut left): (Vec<_>, Vec<_>) =
            writing.drain(..).partition(|(name, _)| name == volume);
        left.extend(of_it.split_off(of_it.len().saturating_sub(but)));
        *writing = left;
        of_it.into_iter().map(|(_, thread)| thread).collect()
    }

    /// Waits until all files are whole. The workers have ended.
    pub fn finish(&self) {
        let writing = std::mem::take(&mut *self.lock());
        wait_for(writing.into_iter().map(|(_, thread)| thread));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(VolumeName, JoinHandle<()>)>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for threads whose recordings have ended.
pub fn wait_for(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            error!("a thread that wrote a recording has panicked");
        }
    }
}

fn write(writer: Writer, mut file: File, volume: &VolumeName, path: &Path) {
    match writer.run(&mut file) {
        Ok(written) if written.bytes == 0 => {
            // It never began. A file of no bytes is of no use to anybody.
            let _ = std::fs::remove_file(path);
        }
        Ok(written) => info!(
            %volume, file = %path.display(), requests = written.requests,
            dropped = written.dropped, "recording ended"
        ),
        Err(error) => {
            error!(%volume, file = %path.display(), "the recording ended, its file fails: {error}");
        }
    }
}
