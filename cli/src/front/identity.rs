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

/// The file in the state directory: the UUID, the incarnation and the UUID of
/// the machine's boot in one line.
const FILE: &str = "front";

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Starts that one boot of the machine has numbers for.
const STARTS_PER_BOOT: u64 = 1 << 20;

/// A front's identity; the state directory is locked as long as it lives.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) front: FrontId,
    /// Rises each time the front starts.
    pub(crate) incarnation: u64,
    _lock: File,
}

impl Identity {
    /// Reads the identity, or makes one, and counts this start. A front must
    /// never fall behind itself: what a process wrote outlives it, but not the
    /// machine, so each boot has numbers above those of all boots before, and
    /// its first start waits until that is durable. The others wait for no
    /// disk: a killed front is back before a busy one has answered.
    pub(crate) fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let boot = fs::read_to_string(BOOT_ID).ok().and_then(|id| id.trim().parse().ok());
        Self::open_in(state_dir, boot)
    }

    /// The same, in a boot of that id; without one each start is a boot.
    fn open_in(state_dir: &Path, boot: Option<Uuid>) -> anyhow::Result<Self> {
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
        let last = Start::parse(&text).with_context(|| {
            format!("{} is damaged; remove it to become a new front", path.display())
        })?;
        let start = last.next(boot).context("the front has started too often")?;
        let is_first = last.boot != start.boot || start.boot.is_nil();
        // The boot is named when its number is durable, not before.
        if is_first {
            let nameless = Start { boot: Uuid::nil(), ..start };
            nameless.store(&mut file).and_then(|()| sync(&file, state_dir))
        } else {
            Ok(())
        }
        .and_then(|()| start.store(&mut file))
        .with_context(|| format!("cannot write {}", path.display()))?;
        let front = FrontId(start.front.into_bytes());
        Ok(Self { front, incarnation: start.incarnation, _lock: file })
    }
}

fn sync(file: &File, state_dir: &Path) -> io::Result<()> {
    file.sync_all()?;
    File::open(state_dir)?.sync_all()
}

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Start {
    front: Uuid,
    incarnation: u64,
    /// Nil, if the machine does not tell, or its number is not durable.
    boot: Uuid,
}

impl Start {
    /// Bytes of the file: a UUID, a blank, twenty digits, a blank, a UUID, the
    /// line's end.
    const BYTES: usize = Self::OLD_BYTES + 1 + 36;

    /// The same without the boot, as fronts before this one wrote it.
    const OLD_BYTES: usize = 36 + 1 + 20 + 1;

    fn parse(text: &str) -> anyhow::Result<Self> {
        if text.is_empty() {
            return Ok(Self { front: Uuid::new_v4(), incarnation: 0, boot: Uuid::nil() });
        }
        let Some(line) = text.strip_suffix('\n') else { bail!("its end is missing") };
        let (front, incarnation, boot) = match line.split(' ').collect::<Vec<_>>()[..] {
            [front, incarnation, boot] if text.len() == Self::BYTES => (front, incarnation, boot),
            [front, incarnation] if text.len() == Self::OLD_BYTES => (front, incarnation, ""),
            _ => bail!("it is not what a front writes"),
        };
        let boot = if boot.is_empty() { Uuid::nil() } else { boot.parse()? };
        Ok(Self { front: front.parse()?, incarnation: incarnation.parse()?, boot })
    }

    /// The start after this one, if there is a number for it.
    fn next(self, boot: Option<Uuid>) -> Option<Self> {
        let boot = boot.unwrap_or_default();
        let next = self.incarnation.checked_add(1)?;
        let goes_on = self.boot == boot && !boot.is_nil() && !next.is_multiple_of(STARTS_PER_BOOT);
        let first = || (self.incarnation / STARTS_PER_BOOT + 1).checked_mul(STARTS_PER_BOOT);
        let incarnation = if goes_on { next } else { first()? };
        Some(Self { incarnation, boot, ..self })
    }

    /// One sector, written whole and in place: it is old or new after a crash.
    /// The count has a fixed width, so nothing of an older, longer one can be
    /// left.
    fn store(self, file: &mut File) -> io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(self.line().as_bytes())
    }

    fn line(self) -> String {
        let Self { front, incarnation, boot } = self;
        format!("{front} {incarnation:020} {boot}\n")
    }
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

    /// What was not made durable may be gone after a power cut, in part or
    /// altogether: the starts of the next boot are above all of it.
    #[test]
    fn a_start_in_another_boot_is_above_all_that_the_last_one_may_have_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let start = |boot: u128| {
            let identity = Identity::open_in(dir.path(), Some(Uuid::from_u128(boot)));
            identity.expect("open").incarnation
        };
        let read = || fs::read_to_string(dir.path().join(FILE)).expect("read");
        start(1);
        let mut disk = vec![read()];
        let last = (0..5).map(|_| (start(1), disk.push(read()))).last().expect("some").0;
        let known = Start::parse(&disk[0]).expect("whole");
        disk.push(Start { boot: Uuid::nil(), ..known }.line());
        for left in disk {
            fs::write(dir.path().join(FILE), left).expect("write");
            let next = start(2);
            assert!(next > last, "{next} after {last}");
            assert_eq!(start(2), next + 1);
        }
    }

    #[test]
    fn a_machine_that_does_not_name_its_boots_has_a_new_one_each_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Identity::open_in(dir.path(), None).expect("open").incarnation;
        assert_eq!([open(), open()], [STARTS_PER_BOOT, 2 * STARTS_PER_BOOT]);
    }

    /// A front that knew no boots wrote the file.
    #[test]
    fn an_identity_without_a_boot_goes_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let front = Uuid::from_u128(7);
        fs::write(dir.path().join(FILE), format!("{front} {:020}\n", 41)).expect("write");
        let identity = Identity::open(dir.path()).expect("open");
        assert_eq!((identity.front.0, identity.incarnation), (front.into_bytes(), STARTS_PER_BOOT));
    }

    /// A count with its end cut off would be a lower one.
    #[test]
    fn a_part_of_an_identity_is_damage() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Identity::open(dir.path()).expect("open"));
        let whole = fs::read_to_string(dir.path().join(FILE)).expect("read");
        for end in 1..whole.len() {
            assert!(Start::parse(&whole[..end]).is_err(), "{end}");
        }
        let first = Start::parse(&whole).expect("whole");
        assert_eq!(first.incarnation, STARTS_PER_BOOT);
        fs::write(dir.path().join(FILE), Start { incarnation: u64::MAX, ..first }.line())
            .expect("write");
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
