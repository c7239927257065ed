//! A device becomes a pool, and its volumes are served, snapshotted, restored
//! and unlocked again after a restart.

mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_core::{BlockError, Lba, Op, Time};
use block_server::api::{PoolState, VolumeInfo};
use block_server::catalog::Formatting;
use block_server::errand::{Failed, KeyErrand, PoolErrand, SnapshotErrand};
use block_server::unlock::Unlock;
use block_server::{Errand, LocalPath, Mailbox, Owned, Size};
use link::{Access, AttachReply, AttachRequest, Refused, VolumeHandle};
use support::{SoftPath, VecGuest, attach, errand, file_worker_of, front, io, name};

struct Rig {
    path: SoftPath,
    mailbox: Arc<Mailbox>,
}

/// A folder with a key and, later, a device.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write_key(&folder.path().join("key"), 7);
        Self { folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self, key: Option<&str>) -> Rig {
        let unlock = key.map(|key| Unlock::KeyFile(self.file(key)));
        let owned = |device| Owned { unlock, ..Owned::raw("disk", device, Formatting::IfBlank) };
        let (worker, mailbox) = file_worker_of(&self.file("disk"), owned);
        Rig { path: LocalPath::over_nvme(worker, front(1), 1, 8), mailbox }
    }
}

fn write_key(path: &Path, byte: u8) {
    std::fs::write(path, [byte; 32]).expect("written");
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).expect("a mode");
}

impl Rig {
    fn ask<T>(
        &mut self,
        make: impl FnOnce(tokio::sync::oneshot::Sender<Result<T, Failed>>) -> Errand,
    ) -> Result<T, String> {
        let Self { path, mailbox } = self;
        let turn = || {
            use link::Path;
            path.turn(Time::ZERO, &mut VecGuest::default());
        };
        errand(mailbox, turn, make).map_err(|failed| failed.to_string())
    }

    fn pool(&mut self, overwrite: bool) -> Result<(), String> {
        let device = "disk".to_owned();
        let create = |answer| PoolErrand::Create { device, journal: None, overwrite, answer };
        self.ask(|answer| Errand::Pool(create(answer))).map(|pool| {
            assert_eq!(pool.state, PoolState::Open);
        })
    }

    fn volume(&mut self, volume: &str, domain: Option<&str>) -> Result<VolumeInfo, String> {
        let (device, name, domain) = ("disk".to_owned(), name(volume), domain.map(str::to_owned));
        let size = Size(8 << 20);
        self.ask(|answer| Errand::Create { device, name, size, read_only: false, domain, answer })
    }

    fn snapshot(&mut self, volumes: &[&str], as_is: bool) -> Result<usize, String> {
        let volumes = volumes.iter().map(|volume| name(volume)).collect();
        let take = |answer| SnapshotErrand::Take { volumes, name: name("s"), as_is, answer };
        self.ask(|answer| Errand::Snapshot(take(answer))).map(|taken| taken.len())
    }

    fn attach(&mut self, volume: &str) -> VolumeHandle {
        attach(&mut self.path, volume, Access::Write).expect("free").handle
    }

    fn write(&mut self, volume: VolumeHandle, start: u64, fill: u8, bytes: usize) {
        io(&mut self.path, volume, Op::Write, start, vec![fill; bytes]).expect("written");
    }

    fn read(&mut self, volume: VolumeHandle, start: u64) -> u8 {
        let data = io(&mut self.path, volume, Op::Read, start, vec![0xee; 512]).expect("read");
        assert!(data.iter().all(|&byte| byte == data[0]));
        data[0]
    }

    fn restore(&mut self, volume: &str, force: bool) -> Result<VolumeInfo, String> {
        let (volume, snapshot) = (name(volume), name("s"));
        self.ask(|answer| {
            Errand::Snapshot(SnapshotErrand::Restore { volume, name: snapshot, force, answer })
        })
    }
}

#[test]
fn a_volume_of_a_pool_is_written_snapshotted_restored_and_cloned() {
    let place = Place::new();
    let mut rig = place.start(Some("key"));
    let refused = rig.volume("early", Some("tenant")).expect_err("no pool yet");
    assert!(refused.contains("no pool"), "{refused}");
    rig.pool(false).expect("made");
    assert!(rig.pool(false).expect_err("it is one").contains("already"));
    let made = rig.volume("vm", Some("tenant")).expect("created");
    assert_eq!((made.domain.as_deref(), made.generation), (Some("tenant"), 1));
    let vm = rig.attach("vm");
    assert_eq!(rig.read(vm, 77), 0);
    // Both ends inside of a block: the pool has only whole ones.
    rig.write(vm, 3, 1, 9 * 512);
    assert_eq!([2, 3, 11, 12].map(|at| rig.read(vm, at)), [0, 1, 1, 0]);

    assert_eq!(rig.snapshot(&["vm"], false), Ok(1));
    assert!(rig.snapshot(&["vm"], false).expect_err("taken").contains("already"));
    rig.write(vm, 8, 2, 4096);
    let diff = |answer| {
        let (volume, from) = (name("vm"), name("s"));
        Errand::Snapshot(SnapshotErrand::Diff { volume, from, to: None, start: Lba(0), answer })
    };
    let (ranges, next) = rig.ask(diff).expect("compared");
    assert_eq!(
        ranges.iter().map(|range| (range.start.0, range.count.0)).collect::<Vec<_>>(),
        [(1, 1)]
    );
    assert_eq!(next, None);

    let refused = rig.restore("vm", false).expect_err("it is attached");
    assert!(refused.contains("--force"), "{refused}");
    let restored = rig.restore("vm", true).expect("restored");
    assert_eq!((restored.generation, restored.attachments.len()), (2, 0));
    let gone = io(&mut rig.path, vm, Op::Write, 0, vec![9; 512]);
    assert_eq!(gone, Err(BlockError::NotAttached), "who had it does not go on");
    let vm = rig.attach("vm");
    assert_eq!([3, 8, 11].map(|at| rig.read(vm, at)), [1, 1, 1]);

    let clone = |answer| {
        let (volume, to) = (name("vm"), name("copy"));
        Errand::Snapshot(SnapshotErrand::Clone {
            volume,
            name: name("s"),
            to,
            read_only: false,
            answer,
        })
    };
    assert_eq!(rig.ask(clone).expect("cloned").domain.as_deref(), Some("tenant"));
    let copy = rig.attach("copy");
    rig.write(copy, 3, 5, 512);
    assert_eq!((rig.read(copy, 3), rig.read(copy, 4), rig.read(vm, 3)), (5, 1, 1));
}

/// A server restarts with the attachment, the generation and the data as they
/// were; a snapshot has to wait for the writer, who may bring what was lost.
#[test]
fn after_a_restart_a_pool_has_what_was_flushed_and_who_has_it() {
    let place = Place::new();
    let before = {
        let mut rig = place.start(Some("key"));
        rig.pool(false).expect("made");
        rig.volume("vm", None).expect("created");
        rig.volume("other", None).expect("created");
        let attached = attach(&mut rig.path, "vm", Access::Write).expect("free");
        io(&mut rig.path, attached.handle, Op::WriteThrough, 16, vec![4; 8192]).expect("written");
        attached
    };
    let mut rig = place.start(Some("key"));
    let refused = rig.snapshot(&["vm", "other"], false).expect_err("its writer is away");
    assert!(refused.contains("--as-is") && refused.contains("vm"), "{refused}");
    let again = attach(&mut rig.path, "vm", Access::Write).expect("its own");
    assert_eq!((again.volume_id, again.generation), (before.volume_id, before.generation));
    assert_ne!(again.verifier, before.verifier);
    assert_eq!(rig.read(again.handle, 16), 4);
    assert_eq!((again.stored_verifier, rig.read(again.handle, 16)), (before.verifier, 4));
    let refused = rig.snapshot(&["vm", "other"], false).expect_err("it still sends it again");
    assert!(refused.contains("--as-is"), "{refused}");
    let request = AttachRequest::new(name("vm"), Access::Write);
    let AttachReply::Attached(settled) = rig.path.settle(request) else { panic!("its own") };
    assert_eq!((settled.handle, settled.stored_verifier), (again.handle, again.verifier));
    assert_eq!(rig.snapshot(&["vm", "other"], false), Ok(2), "it has come back");
    rig.path.detach(again.handle).expect("stored");
    let delete = |snapshots| move |answer| Errand::Delete { name: name("vm"), snapshots, answer };
    assert!(rig.ask(delete(false)).expect_err("a snapshot").contains("--snapshots"));
    rig.ask(delete(true)).expect("deleted");
}

#[test]
fn a_pool_without_its_secret_is_locked_and_nothing_else_is() {
    let place = Place::new();
    write_key(&place.file("wrong"), 8);
    {
        let mut rig = place.start(None);
        let refused = rig.pool(false).expect_err("nothing unlocks it");
        assert!(refused.contains("key-file:"), "{refused}");
        rig.volume("raw", None).expect("created");
    }
    {
        let mut rig = place.start(Some("key"));
        let refused = rig.pool(true).expect_err("a volume is there");
        assert!(refused.contains("raw"), "{refused}");
        rig.ask(|answer| Errand::Delete { name: name("raw"), snapshots: false, answer })
            .expect("deleted");
        rig.pool(false).expect("made");
        rig.volume("vm", None).expect("created");
    }
    for (key, says) in
        [(None, "unlock ="), (Some("wrong"), "does not open"), (Some("nokey"), "nokey")]
    {
        let mut rig = place.start(key);
        let pools = rig.ask(|answer| Errand::Pool(PoolErrand::List(answer))).expect("told");
        assert_eq!(pools[0].state, PoolState::Locked);
        let problem = pools[0].problem.as_deref().expect("a reason");
        assert!(problem.contains(says), "{problem}");
        assert!(rig.volume("new", None).expect_err("locked").contains(says));
        let refused = attach(&mut rig.path, "vm", Access::Write);
        assert_eq!(refused, Err(Refused::Unknown));
        let refused = rig.pool(false).expect_err("something is there");
        assert!(key.is_none() || refused.contains("--overwrite"), "{refused}");
    }
    let mut rig = place.start(Some("key"));
    rig.attach("vm");
}

#[test]
fn keys_are_added_removed_rotated_and_erased() {
    use interpose::vault::{Cost, NewWay, Secret};
    let place = Place::new();
    write_key(&place.file("second"), 8);
    {
        let mut rig = place.start(Some("key"));
        rig.pool(false).expect("made");
        rig.volume("a", Some("one")).expect("created");
        rig.volume("b", Some("two")).expect("created");
        let (a, b) = (rig.attach("a"), rig.attach("b"));
        rig.write(a, 0, 1, 4096);
        rig.write(b, 0, 1, 4096);
        let device = || "disk".to_owned();
        let secret = Secret::key_file(vec![8; 32].into());
        let chance = block_core::Chance::new(|| 5);
        let way = NewWay::new("second", &secret, Cost::LEAST, &chance).expect("a way");
        let add = |answer| Errand::Key(KeyErrand::Add { device: device(), way, answer });
        assert_eq!(rig.ask(add).expect("added").ways.len(), 2);
        let remove = |way: &str| {
            let name = way.to_owned();
            move |answer| Errand::Key(KeyErrand::Remove { device: "disk".to_owned(), name, answer })
        };
        assert_eq!(rig.ask(remove("first")).expect("removed").ways.len(), 1);
        assert!(rig.ask(remove("second")).expect_err("the last").contains("last way"));
        let rotate = |domain: &str| {
            let domain = domain.to_owned();
            move |answer| {
                Errand::Key(KeyErrand::Rotate { device: "disk".to_owned(), domain, answer })
            }
        };
        let keys = rig.ask(rotate("one")).expect("rotated");
        let one = keys.domains.iter().find(|domain| domain.name == "one").expect("there");
        assert_eq!((one.keys, &one.volumes[..]), (2, &["a".to_owned()][..]));
        assert!(rig.ask(rotate("three")).expect_err("none").contains("no domain 'three'"));
        let erase = |answer| {
            Errand::Key(KeyErrand::Erase {
                device: "disk".to_owned(),
                domain: "two".to_owned(),
                answer,
            })
        };
        assert!(rig.ask(erase).expect_err("attached").contains("attached"));
        rig.path.detach(b).expect("stored");
        rig.ask(erase).expect("erased");
        assert_eq!(rig.read(a, 0), 1);
        let b = rig.attach("b");
        assert!(io(&mut rig.path, b, Op::Read, 0, vec![0; 4096]).is_err());
    }
    let mut rig = place.start(Some("second"));
    let a = rig.attach("a");
    assert_eq!(rig.read(a, 0), 1);
}
