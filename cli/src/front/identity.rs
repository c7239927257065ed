//! Who this front is: a UUID and a count of its starts, kept in its state
//! directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use link::FrontId;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

/// The file in the state directory: the UUID and the incarnation in one line.
const FILE: &str = "front";

/// A front's identity; the state directory is locked as long as it lives.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) front: FrontId,
    /// Rises each time the front starts.
    pub(crate) incarnation: u64,
    _lock: File,
}

impl Identity {
    /// Reads the identity, or makes one, and counts this start. The count is
    /// durable before it is used: a front must never fall behind itself.
    pub(crate) fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let dir = state_dir.display();
        fs::create_dir_all(state_dir)
            .with_context(|| format!("cannot make the state directory {dir}"))?;
        let path = state_dir.join(FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another vrio front runs with the state directory {dir}; give each its own");
        }
        let mut text = String::new();
        file.read_to_string(&mut text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let (front, last) = parse(&text).with_context(|| {
            format!("{} is damaged; remove it to become a new front", path.display())
        })?;
        let incarnation = last.checked_add(1).context("the front has started too often")?;
        store(&mut file, front, incarnation)
            .and_then(|()| File::open(state_dir)?.sync_all())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { front: FrontId(front.into_bytes()), incarnation, _lock: file })
    }
}

/// Bytes of the file: a UUID, a blank, twenty digits, the line's end.
const BYTES: usize = 36 + 1 + 20 + 1;

fn parse(text: &str) -> anyhow::Result<(Uuid, u64)> {
    if text.is_empty() {
        return Ok((Uuid::new_v4(), 0));
    }
    if text.len() != BYTES {
        bail!("it has {} bytes and not {BYTES}", text.len());
    }
    let (front, incarnation) = text.trim_end().split_once(' ').context("it lacks a part")?;
    Ok((front.parse()?, incarnation.parse()?))
}

/// One sector, written whole and in place: it is old or new after a crash. The
/// count has a fixed width, so nothing of an older, longer one can be left.
fn store(file: &mut File, front: Uuid, incarnation: u64) -> io::Result<()> {
    file.seek(SeekFrom::Start(0))?;
    file.write_all(format!("{front} {incarnation:020}\n").as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_stays_itself_and_counts_its_starts() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = Identity::open(dir.path()).expect("open");
        let (front, incarnation) = (first.front, first.incarnation);
        let second = Identity::open(dir.path()).expect_err("locked");
        assert!(format!("{second:#}").contains("another vrio front"));
        drop(first);
        let again = Identity::open(dir.path()).expect("open");
        assert_eq!((again.front, again.incarnation), (front, incarnation + 1));
    }

    /// A count with its end cut off would be a lower one.
    #[test]
    fn a_part_of_an_identity_is_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Identity::open(dir.path()).expect("open"));
        let whole = fs::read_to_string(dir.path().join(FILE)).expect("read");
        for end in 1..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        assert_eq!(parse(&whole).expect("whole").1, 1);
        let last = whole.replace("00000000000000000001", "18446744073709551615");
        fs::write(dir.path().join(FILE), last).expect("write");
        let error = Identity::open(dir.path()).expect_err("no number is left");
        assert!(format!("{error:#}").contains("too often"), "{error:#}");
    }

    #[test]
    fn a_damaged_identity_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join(FILE), "nonsense").expect("write");
        let error = Identity::open(dir.path()).expect_err("refused");
        assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
        assert_eq!(fs::read_to_string(dir.path().join(FILE)).expect("read"), "nonsense");
    }
}
