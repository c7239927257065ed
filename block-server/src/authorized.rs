//! Which keys may have which volumes: a list that is kept in a file.
//!
//! ```text
//! vrio-key-…  read-write  vm-*
//! vrio-key-…  read-only   images
//! ```
//!
//! One right in a line, columns apart by blanks. The file is replaced as a
//! whole with each change and read at the server's start.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use link::{Access, BadKey, Caller, PublicKey, Refused, VolumeName};
use thiserror::Error;
use wildmatch::WildMatch;

use crate::authority::Authority;
use crate::whole_file;

/// Most rights of one server.
const MAX_RIGHTS: usize = 65_536;

/// Most bytes of a pattern: as many as a volume's name has.
const MAX_PATTERN_BYTES: usize = link::attach::MAX_NAME_BYTES;

const READ_WRITE: &str = "read-write";
const READ_ONLY: &str = "read-only";

/// Names of volumes, of which `*` stands for any letters and `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' names no volumes; a pattern has 1 to {MAX_PATTERN_BYTES} letters, digits, '.', '_' or \
     '-', and '*' for any of them or '?' for one"
)]
pub struct BadPattern(String);

/// What a key is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// Whose it is.
    pub key: PublicKey,
    /// To which volumes.
    pub volumes: Pattern,
    /// Reading only, or all.
    pub access: Access,
}

/// Why a list of rights cannot be used.
#[derive(Debug, Error)]
pub enum BadList {
    /// The kernel does not give it.
    #[error("{path} cannot be read: {error}; correct its mode, or move it away to begin anew")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        error: io::Error,
    },
    /// It says something that means nothing.
    #[error("{path}, line {line}: {why}; correct the line, or take it out")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: BadRight,
    },
}

/// Why a line is no right.
#[derive(Debug, Error)]
pub enum BadRight {
    /// Not three columns.
    #[error("a right is a key, read-write or read-only, and a pattern of volumes")]
    Columns,
    /// Its first column.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// Its second column.
    #[error("'{0}' is neither {READ_WRITE} nor {READ_ONLY}")]
    Access(String),
    /// Its third column.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
}

/// Why a right was not given or taken.
#[derive(Debug, Error)]
pub enum ChangeError {
    /// There is no place for another one.
    #[error("the server has {MAX_RIGHTS} rights, which is all it can have; revoke some")]
    Full,
    /// The file was not written; nothing has changed.
    #[error("{path} cannot be written: {error}; nothing was changed")]
    Unwritten {
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// The rights of all keys. The control socket's thread changes them; workers
/// ask at the beginning of sessions and at attaches.
#[derive(Debug)]
pub struct Authorized {
    file: PathBuf,
    rights: Mutex<Vec<Right>>,
}

impl FromStr for Pattern {
    type Err = BadPattern;

    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-*?".contains(&byte);
        if text.is_empty() || text.len() > MAX_PATTERN_BYTES || !text.bytes().all(fits) {
            return Err(BadPattern(text.escape_debug().to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pattern {
    fn matches(&self, volume: &VolumeName) -> bool {
        WildMatch::new(&self.0).matches(volume.as_str())
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.access {
            Access::Read => READ_ONLY,
            Access::Write => READ_WRITE,
        };
        write!(f, "{} {access} {}", self.key, self.volumes)
    }
}

impl FromStr for Right {
    type Err = BadRight;

    fn from_str(line: &str) -> Result<Self, BadRight> {
        let mut columns = line.split_whitespace();
        let mut next = || columns.next().ok_or(BadRight::Columns);
        let (key, access, volumes) = (next()?, next()?, next()?);
        if next().is_ok() {
            return Err(BadRight::Columns);
        }
        let access = match access {
            READ_ONLY => Access::Read,
            READ_WRITE => Access::Write,
            other => return Err(BadRight::Access(other.escape_debug().to_string())),
        };
        Ok(Self { key: key.parse()?, volumes: volumes.parse()?, access })
    }
}

impl Authorized {
    /// The rights in a file; none, if it is not there.
    ///
    /// # Errors
    /// A sentence about the file, or its first wrong line.
    pub fn open(file: &Path) -> Result<Self, BadList> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(BadList::Unreadable { path: file.to_owned(), error }),
        };
        let lines = text.lines().enumerate();
        let said = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let rights = said.map(|(number, line)| {
            let wrong = |why| BadList::Line { path: file.to_owned(), line: number + 1, why };
            line.parse().map_err(wrong)
        });
        Ok(Self { file: file.to_owned(), rights: Mutex::new(rights.collect::<Result<_, _>>()?) })
    }

    /// All rights, as they were given.
    #[must_use]
    pub fn list(&self) -> Vec<Right> {
        self.lock().clone()
    }

    /// Gives a right. One of the same key to the same pattern is replaced;
    /// whether that took something away.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed.
    pub fn give(&self, right: Right) -> Result<bool, ChangeError> {
        let mut rights = self.lock();
        let mut wanted = rights.clone();
        let same = |old: &Right| old.key == right.key && old.volumes == right.volumes;
        let narrower = match wanted.iter().position(same) {
            Some(place) => {
                std::mem::replace(&mut wanted[place], right.clone()).access > right.access
            }
            None if wanted.len() == MAX_RIGHTS => return Err(ChangeError::Full),
            None => {
                wanted.push(right);
                false
            }
        };
        self.keep(&mut rights, wanted)?;
        Ok(narrower)
    }

    /// Takes all rights of a key; whether it had any.
    ///
    /// # Errors
    /// [`ChangeError`]; then nothing has changed.
    pub fn revoke(&self, key: &PublicKey) -> Result<bool, ChangeError> {
        let mut rights = self.lock();
        let wanted: Vec<Right> = rights.iter().filter(|right| right.key != *key).cloned().collect();
        let had = wanted.len() < rights.len();
        if had {
            self.keep(&mut rights, wanted)?;
        }
        Ok(had)
    }

    fn keep(&self, rights: &mut Vec<Right>, wanted: Vec<Right>) -> Result<(), ChangeError> {
        let text: String = wanted.iter().map(|right| format!("{right}\n")).collect();
        whole_file::replace(&self.file, text.as_bytes())
            .map_err(|error| ChangeError::Unwritten { path: self.file.clone(), error })?;
        *rights = wanted;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Right>> {
        self.rights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fronts in the clear, which come only where the server allows them, cannot be
/// told apart: they may have every volume.
impl Authority for Arc<Authorized> {
    fn admits(&self, caller: &Caller) -> bool {
        let Some(key) = caller.key else { return true };
        // What a front has attached is stored under its id.
        caller.front == key.front() && self.lock().iter().any(|right| right.key == key)
    }

    fn may_attach(
        &self,
        caller: &Caller,
        volume: &VolumeName,
        access: Access,
    ) -> Result<(), Refused> {
        let Some(key) = caller.key else { return Ok(()) };
        let rights = self.lock();
        let mine = rights.iter().filter(|right| right.key == key && right.volumes.matches(volume));
        match mine.map(|right| right.access).max() {
            None => Err(Refused::NotAuthorized),
            Some(most) if most < access => Err(Refused::OnlyToRead),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use link::FrontId;

    use super::*;

    const KEYS: [PublicKey; 2] = [PublicKey([1; 32]), PublicKey([2; 32])];

    fn right(key: usize, volumes: &str, access: Access) -> Right {
        Right { key: KEYS[key], volumes: volumes.parse().expect("a pattern"), access }
    }

    fn asks(key: Option<PublicKey>) -> Caller {
        Caller { front: key.map_or(FrontId([9; 16]), |key| key.front()), key }
    }

    #[test]
    fn a_key_has_what_it_was_given_until_that_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state/authorized");
        let list = Arc::new(Authorized::open(&file).expect("none yet"));
        let may = |key: usize, volume: &str, access| {
            let volume = VolumeName::new(volume).expect("a name");
            list.may_attach(&asks(Some(KEYS[key])), &volume, access)
        };
        assert!(!list.admits(&asks(Some(KEYS[0]))));
        assert!(!list.give(right(0, "vm-*", Access::Write)).expect("kept"));
        assert!(!list.give(right(0, "image?", Access::Read)).expect("kept"));
        assert!(list.admits(&asks(Some(KEYS[0]))) && !list.admits(&asks(Some(KEYS[1]))));
        let other = Caller { front: KEYS[1].front(), key: Some(KEYS[0]) };
        assert!(!list.admits(&other), "it says that it is another front");
        assert_eq!(may(0, "vm-1", Access::Write), Ok(()));
        assert_eq!(may(0, "image1", Access::Read), Ok(()));
        assert_eq!(may(0, "image1", Access::Write), Err(Refused::OnlyToRead));
        assert_eq!(may(0, "image10", Access::Read), Err(Refused::NotAuthorized));
        assert_eq!(may(1, "vm-1", Access::Read), Err(Refused::NotAuthorized));

        assert!(list.give(right(0, "vm-*", Access::Read)).expect("kept"), "that is less");
        assert_eq!(may(0, "vm-1", Access::Write), Err(Refused::OnlyToRead));
        let again = Authorized::open(&file).expect("what was kept");
        assert_eq!(again.list(), list.list());
        assert!(list.revoke(&KEYS[0]).expect("kept"));
        assert!(!list.revoke(&KEYS[0]).expect("kept"));
        assert_eq!(may(0, "vm-1", Access::Read), Err(Refused::NotAuthorized));
        assert_eq!(Authorized::open(&file).expect("empty").list(), []);
    }

    /// What cannot be kept must not hold until the next start only.
    #[test]
    fn a_right_that_is_not_kept_is_not_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state");
        let list = Arc::new(Authorized::open(&file.join("authorized")).expect("none yet"));
        fs::write(&file, "not a folder").expect("written");
        assert!(list.give(right(0, "*", Access::Write)).is_err());
        assert!(!list.admits(&asks(Some(KEYS[0]))));
    }

    #[test]
    fn a_wrong_line_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("authorized");
        let key = KEYS[0];
        for (line, named) in [
            (format!("{key} read-write"), "a right is"),
            (format!("{key} read-write a b"), "a right is"),
            (format!("{key} write a"), "'write'"),
            (format!("{key} read-only a/b"), "'a/b'"),
            ("vrio-key-short read-only a".to_owned(), "56 letters"),
        ] {
            fs::write(&file, format!("# mine\n\n{line}\n")).expect("written");
            let error = Authorized::open(&file).expect_err(&line).to_string();
            assert!(error.contains("line 3") && error.contains(named), "{error}");
        }
    }
}
