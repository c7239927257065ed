//! Where the secret of a pool is, and how it is read: a file that nobody but
//! its owner may read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use interpose::vault::{MIN_KEY_FILE_BYTES, Secret};
use thiserror::Error;
use zeroize::Zeroizing;

/// Most bytes of a secret: a key file has 32, a passphrase a sentence.
pub const MAX_SECRET_BYTES: usize = 4096;

/// Mode bits that let others than the owner near a file.
const OTHERS: u32 = 0o077;

/// What unlocks a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlock {
    /// The first line of a file.
    PassphraseFile(PathBuf),
    /// All of a file.
    KeyFile(PathBuf),
}

/// Why a text names no secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`unlock = \"{0}\"` names no secret; write \"key-file:PATH\" or \"passphrase-file:PATH\"")]
pub struct BadUnlock(String);

/// Why a secret cannot be read.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {error}; correct the path or its mode")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        error: io::Error,
    },
    /// Others can read it.
    #[error(
        "{path} may be used by others than its owner (mode {mode:o}); run `chmod 600` on it, and \
         change the secret if somebody may have read it"
    )]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// There is nothing in it.
    #[error("{0} has no passphrase; write one in its first line")]
    Empty(PathBuf),
    /// The key could be guessed.
    #[error(
        "{path} has {bytes} bytes, and a key file has at least {MIN_KEY_FILE_BYTES}; make one with \
         `head -c 32 /dev/urandom`"
    )]
    Short {
        /// Which file.
        path: PathBuf,
        /// How many bytes.
        bytes: usize,
    },
    /// It is something else.
    #[error("{0} has more than {MAX_SECRET_BYTES} bytes, so it is no secret; correct the path")]
    Long(PathBuf),
}

impl FromStr for Unlock {
    type Err = BadUnlock;

    fn from_str(text: &str) -> Result<Self, BadUnlock> {
        match text.split_once(':') {
            Some(("passphrase-file", path)) if !path.is_empty() => {
                Ok(Self::PassphraseFile(path.into()))
            }
            Some(("key-file", path)) if !path.is_empty() => Ok(Self::KeyFile(path.into())),
            _ => Err(BadUnlock(text.escape_debug().to_string())),
        }
    }
}

impl Unlock {
    /// Reads the secret.
    ///
    /// # Errors
    /// A sentence about the file.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let bytes = self.bytes()?;
        Ok(match self {
            Self::KeyFile(_) => Secret::key_file(bytes),
            Self::PassphraseFile(_) => Secret::passphrase(bytes),
        })
    }

    /// Reads the secret, to be sent to a server.
    ///
    /// # Errors
    /// A sentence about the file.
    pub fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        match self {
            Self::KeyFile(path) => {
                let bytes = read_private(path)?;
                if bytes.len() < MIN_KEY_FILE_BYTES {
                    return Err(SecretError::Short { path: path.clone(), bytes: bytes.len() });
                }
                Ok(bytes)
            }
            Self::PassphraseFile(path) => {
                let mut bytes = read_private(path)?;
                let line = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
                let end = if bytes[..line].ends_with(b"\r") { line - 1 } else { line };
                bytes.truncate(end);
                if bytes.is_empty() {
                    return Err(SecretError::Empty(path.clone()));
                }
                Ok(bytes)
            }
        }
    }
}

/// What a file says that only its owner may read.
///
/// # Errors
/// A sentence about the file.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let unreadable = |error| SecretError::Unreadable { path: path.to_owned(), error };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(SecretError::Open { path: path.to_owned(), mode });
    }
    // All room at once: bytes that grow leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
    file.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(SecretError::Long(path.to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("secret");
        std::fs::write(&path, content).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        (folder, path)
    }

    #[test]
    fn a_secret_that_others_can_read_or_guess_is_refused_with_a_sentence() {
        let says = |unlock: &Unlock, words: &str| {
            let error = unlock.read().expect_err("refused").to_string();
            assert!(error.contains(words), "{error:?} should say {words:?}");
        };
        let (_folder, path) = file(b"open sesame\n", 0o640);
        says(&Unlock::PassphraseFile(path), "chmod 600");
        let (_folder, path) = file(b"\nthe second line does not count", 0o600);
        says(&Unlock::PassphraseFile(path), "no passphrase");
        let (_folder, path) = file(&[7; 31], 0o400);
        says(&Unlock::KeyFile(path), "at least 32");
        let (_folder, path) = file(&[7; MAX_SECRET_BYTES + 1], 0o600);
        says(&Unlock::KeyFile(path.clone()), "no secret");
        says(&Unlock::KeyFile("/nowhere/key".into()), "/nowhere/key");
        let (_folder, path) = file(&[7; 32], 0o600);
        Unlock::KeyFile(path).read().expect("a key");
    }

    #[test]
    fn what_unlocks_a_pool_is_written_with_its_kind() {
        assert_eq!("key-file:/a:b".parse(), Ok(Unlock::KeyFile("/a:b".into())));
        assert_eq!("passphrase-file:p".parse(), Ok(Unlock::PassphraseFile("p".into())));
        for bad in ["", "/etc/key", "key-file:", "passphrase:secret"] {
            assert!(bad.parse::<Unlock>().is_err(), "{bad:?}");
        }
    }
}
