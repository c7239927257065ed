//! A file that shall be a namespace: found or made, locked, measured, and served mapped
//! or [direct].
//!
//! [direct]: super::direct

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::direct::NotDirect;
use crate::PAGE;

/// Which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Where it is.
    pub path: PathBuf,
    /// Make it with this many bytes, a multiple of 4096, if it is not there.
    pub create: Option<u64>,
    /// How its bytes get to a driver's memory.
    pub io: FileIo,
}

/// How the bytes of a file get to a driver's memory and back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileIo {
    /// Directly where the file system does that without threads of the kernel (ext4, XFS),
    /// else mapped (tmpfs).
    #[default]
    Auto,
    /// Through the page cache: copied to and from a mapping of the file, command by command.
    Mapped,
    /// Straight between storage and driver, many commands at a time: `O_DIRECT`, io_uring.
    Direct,
}

/// Words that say no [`FileIo`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no way to a file; write \"auto\", \"mapped\" or \"direct\"")]
pub struct BadFileIo(String);

impl FromStr for FileIo {
    type Err = BadFileIo;

    fn from_str(text: &str) -> Result<Self, BadFileIo> {
        match text {
            "auto" => Ok(Self::Auto),
            "mapped" => Ok(Self::Mapped),
            "direct" => Ok(Self::Direct),
            _ => Err(BadFileIo(text.to_owned())),
        }
    }
}

/// Why a file cannot be a namespace.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it, the fields are their words.
pub enum OpenError {
    #[error("there is no file {path}; give a size to create it, or correct the path")]
    Missing { path: PathBuf },
    #[error("{path} is not a regular file; a soft NVMe device needs one")]
    NotAFile { path: PathBuf },
    #[error("{path} has {bytes} bytes; a device needs at least 4096")]
    TooSmall { path: PathBuf, bytes: u64 },
    #[error(
        "a device of {bytes} bytes cannot be made at {path}: the size must be a positive multiple of 4096"
    )]
    BadSize { path: PathBuf, bytes: u64 },
    #[error(
        "{path} is in use by another process (it holds the file's lock); stop that one or use another file"
    )]
    InUse { path: PathBuf },
    #[error(
        "{path} cannot be opened to read and write: {error}; check owner and mode of the file and its folder"
    )]
    Open { path: PathBuf, error: io::Error },
    #[error(
        "{path} cannot be given {bytes} bytes: {error}; use a smaller size or another file system"
    )]
    Grow { path: PathBuf, bytes: u64, error: io::Error },
    #[error("{path} cannot be mapped: {error}; use another file system")]
    Map { path: PathBuf, error: io::Error },
    #[error("{path} cannot be served directly: {why}; take \"auto\" or another file system")]
    Direct { path: PathBuf, why: NotDirect },
}

/// How long whoever has the file is waited for. When a process is killed whose commands
/// the kernel has, the file is still written to, and stays locked, until they have ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// A file that is there, large enough, and locked against other processes.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    /// Locked as long as it is open.
    pub(super) file: File,
    /// Whole pages.
    pub(super) bytes: u64,
}

impl OpenFile {
    pub(super) fn open(options: &FileOptions) -> Result<Self, OpenError> {
        let path = options.path.clone();
        let file = open_or_create(&path, options.create)?;
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path }),
            Err(TryLockError::Error(error)) => return Err(OpenError::Open { path, error }),
        }
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(error) => return Err(OpenError::Open { path, error }),
        };
        if !metadata.is_file() {
            return Err(OpenError::NotAFile { path });
        }
        let mut size = metadata.len();
        if let (0, Some(bytes)) = (size, options.create) {
            // Made just now, or by a start that was killed between two steps.
            if let Err(error) = grow(&file, &path, bytes) {
                return Err(OpenError::Grow { path, bytes, error });
            }
            size = bytes;
        }
        if options.create.is_some_and(|wanted| wanted != size) {
            tracing::warn!(path = %path.display(), size, "the file was there before and keeps its size");
        }
        let bytes = size / PAGE as u64 * PAGE as u64;
        if bytes == 0 {
            return Err(OpenError::TooSmall { path, bytes: size });
        }
        Ok(Self { path, file, bytes })
    }
}

fn lock(file: &File) -> Result<(), TryLockError> {
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(LOCK_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn open_or_create(path: &Path, create: Option<u64>) -> Result<File, OpenError> {
    if let Some(bytes) = create
        && (bytes == 0 || !bytes.is_multiple_of(PAGE as u64))
    {
        return Err(OpenError::BadSize { path: path.to_owned(), bytes });
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create.is_some())
        .truncate(false)
        .open(path);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if create.is_none() => OpenError::Missing { path: path.to_owned() },
        io::ErrorKind::IsADirectory => OpenError::NotAFile { path: path.to_owned() },
        _ => OpenError::Open { path: path.to_owned(), error },
    })
}

/// Gives an empty file its size, so that it is still there after a power cut.
fn grow(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    file.sync_all()?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
