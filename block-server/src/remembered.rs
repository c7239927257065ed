//! What the server remembers of a pool beside its device, so that it notices
//! when the device is set back to an earlier state.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use interpose::pool::Guard;
use tracing::warn;

/// What is done about a pool that is older than the server remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rollback {
    /// Nobody remembers.
    #[default]
    Unnoticed,
    /// It is not opened. The newest checkpoint is kept in this file.
    Refused(PathBuf),
    /// It is opened, and what it is counts from now on.
    Accepted(PathBuf),
}

impl Rollback {
    /// What must not be newer than the pool.
    #[must_use]
    pub fn newest(&self) -> Option<Guard> {
        let Self::Refused(path) = self else { return None };
        match std::fs::read_to_string(path) {
            Ok(text) => {
                let known = parse(&text);
                if known.is_none() {
                    warn!(path = %path.display(), "the file says nothing about a pool; it is written anew");
                }
                known
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(path = %path.display(), "what is known of a pool cannot be read: {error}");
                None
            }
        }
    }

    /// Remembers a checkpoint. It replaces what was remembered as a whole; it
    /// is not made durable, because an older one only notices less.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remember(&self, guard: &Guard) -> io::Result<()> {
        match self {
            Self::Unnoticed => Ok(()),
            Self::Refused(path) | Self::Accepted(path) => replace(path, &print(guard)),
        }
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

fn print(guard: &Guard) -> String {
    let Guard { pool, generation, tag } = guard;
    format!("pool {}\ngeneration {generation}\ntag {}\n", hexadecimal(&pool.0), hexadecimal(tag))
}

fn hexadecimal(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(32);
    for byte in bytes {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn parse(text: &str) -> Option<Guard> {
    let mut lines = text.lines();
    let mut word = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
    let pool = interpose::layout::PoolId(bytes(word("pool")?)?);
    let generation = word("generation")?.parse().ok()?;
    Some(Guard { pool, generation, tag: bytes(word("tag")?)? })
}

fn bytes(digits: &str) -> Option<[u8; 16]> {
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_remembered_and_what_is_half_written_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pools/disk");
        let pool = interpose::layout::PoolId([0xab; 16]);
        let guard = Guard { pool, generation: 77, tag: [3; 16] };
        let refused = Rollback::Refused(path.clone());
        assert_eq!(refused.newest(), None);
        refused.remember(&guard).expect("written");
        assert_eq!(refused.newest(), Some(guard));
        assert_eq!(Rollback::Accepted(path.clone()).newest(), None);
        let text = print(&guard);
        for cut in 0..text.len() - 1 {
            std::fs::write(&path, &text[..cut]).expect("written");
            assert_eq!(refused.newest(), None, "{cut} bytes");
        }
    }
}
