//! The power is cut while a device is made a pool. What comes back is a device
//! without volumes, as before, or the pool: never one that nobody can use.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block_core::unit::{BLOCK_SIZE, BlockCount, SECTOR_SIZE};
use block_core::{Chance, Pool};

use super::disk::{Medium, SimDisk};
use crate::catalog::{DESK_BYTES, Formatting};
use crate::config::PoolConfig;
use crate::layout::{DeviceId, Superblock};
use crate::pooled::page_buffers;
use crate::remembered::Rollback;
use crate::size::Size;
use crate::store::{Means, Store, StoreError};
use crate::unlock::Unlock;

/// 64 MiB.
const BLOCKS: u64 = 16 * 1024;

/// Cuts next to each other at both ends of the making; in between every 97th
/// command is one.
const DENSE: usize = 40;

/// Runs a future on the disk until it is ready, or until the disk has executed
/// `limit` commands. It may give way now and then without a command.
fn drive<T>(disk: &SimDisk, limit: usize, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut idle) = (pin!(future), 0);
    loop {
        if let Poll::Ready(ready) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(ready);
        }
        if disk.executed() >= limit {
            return None;
        }
        idle = if disk.step() { 0 } else { idle + 1 };
        assert!(idle < 1000, "nothing moves any more");
    }
}

async fn open(disk: &SimDisk, key: &Path) -> Rc<Store<SimDisk>> {
    let desks = Pool::private(1, DESK_BYTES).expect("memory");
    let scratch = Pool::private(1, BLOCK_SIZE).expect("memory").take();
    let drawn = std::cell::Cell::new(disk.executed() as u64 + 1);
    let chance = Chance::new(move || {
        drawn.set(drawn.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
        drawn.get()
    });
    let pool = PoolConfig { page_cache: Size(4 << 20), ..PoolConfig::default() };
    let means = Means {
        name: "disk".to_owned(),
        device: RefCell::new(Rc::new(disk.clone())),
        desks,
        scratch: Rc::new(tokio::sync::Mutex::new(scratch)),
        transfers: crate::store::Transfers::new(Pool::private(2, BLOCK_SIZE).expect("memory")),
        chance,
        wall: || 0,
        pages: Pool::private(page_buffers(&pool), BLOCK_SIZE).expect("memory"),
        unlock: Some(Unlock::KeyFile(key.to_owned())),
        pool,
        rollback: Rollback::Unnoticed,
    };
    let opened = Store::open(means, Formatting::IfBlank).await;
    Rc::new(opened.expect("the server starts").0)
}

/// Makes a pool on what held raw volumes until the power is cut; how many
/// commands that took, and what is left.
fn make(key: &Path, limit: usize, overwrite: Option<&Medium>) -> (Option<usize>, Medium) {
    let medium = overwrite.cloned().unwrap_or_default();
    let disk = SimDisk::new(medium, BLOCKS, limit as u64);
    let store = drive(&disk, usize::MAX, open(&disk, key)).expect("it opens");
    let before = disk.executed();
    let making = store.create_pool(None, overwrite.is_some());
    match drive(&disk, before.saturating_add(limit), making) {
        Some(made) => {
            made.expect("a pool");
            (Some(disk.executed() - before), disk.shut_down())
        }
        None => (None, disk.cut()),
    }
}

fn comes_back(key: &Path, medium: Medium, cut: usize) {
    let disk = SimDisk::new(medium, BLOCKS, 1);
    let store = drive(&disk, usize::MAX, open(&disk, key)).expect("it opens");
    assert_eq!(store.problem(), None, "after {cut} commands");
    let again = drive(&disk, usize::MAX, store.create_pool(None, false)).expect("it ends");
    match again {
        Ok(_) | Err(StoreError::IsAPool(_)) => {}
        Err(error) => panic!("after {cut} commands: {error}"),
    }
}

fn key() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key");
    fs::write(&key, [7; 32]).expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
    (folder, key)
}

/// A server is killed while it makes a pool. If the device is neither blank
/// nor a pool then, the server does not even start with it.
#[test]
fn a_pool_is_made_as_a_whole_or_not_at_all() {
    let (_folder, key) = key();
    let (commands, _) = make(&key, usize::MAX, None);
    let commands = commands.expect("it was made");
    assert!(commands > 3 * DENSE, "{commands}");
    let ends = (1..DENSE).chain(commands - DENSE..commands);
    for cut in ends.chain((DENSE..commands - DENSE).step_by(97)) {
        let (made, left) = make(&key, cut, None);
        assert_eq!(made, None);
        comes_back(&key, left, cut);
    }
}

/// A pool's last write, over a first block that says "being formatted for raw
/// volumes", is torn: half of the block is new. The server took the rest for
/// raw volumes that are damaged, and did not start.
#[test]
fn a_torn_first_block_does_not_hide_a_pool() {
    let (_folder, key) = key();
    let (_, mut medium) = make(&key, usize::MAX, None);
    let mut begun = [0; BLOCK_SIZE];
    Superblock::begin(DeviceId([1; 16]), BlockCount(BLOCKS)).encode(&mut begun);
    let mut torn = medium.block(0);
    torn[..SECTOR_SIZE].copy_from_slice(&begun[..SECTOR_SIZE]);
    medium.set(0, torn);
    let disk = SimDisk::new(medium, BLOCKS, 1);
    let store = drive(&disk, usize::MAX, open(&disk, &key)).expect("it opens");
    let again = drive(&disk, usize::MAX, store.create_pool(None, false)).expect("it ends");
    assert!(matches!(again, Err(StoreError::IsAPool(_))), "it is a pool already");
}

/// A pool that does not open is given up for a new one. It may be there until
/// that is made, and nothing between the two.
#[test]
fn a_pool_that_is_made_over_another_one_leaves_no_third_thing() {
    let (_folder, key) = key();
    let (_, old) = make(&key, usize::MAX, None);
    fs::write(&key, [9; 32]).expect("written");
    let (commands, _) = make(&key, usize::MAX, Some(&old));
    let commands = commands.expect("it was made");
    for cut in (1..commands).step_by(41).chain(commands - 9..commands) {
        let (_, left) = make(&key, cut, Some(&old));
        let disk = SimDisk::new(left, BLOCKS, 1);
        let store = drive(&disk, usize::MAX, open(&disk, &key)).expect("it opens");
        let again = drive(&disk, usize::MAX, store.create_pool(None, false)).expect("it ends");
        match again {
            Ok(_) | Err(StoreError::IsAPool(_)) => {}
            Err(StoreError::Occupied { why, .. }) => assert!(why.contains("disk"), "{why}"),
            Err(error) => panic!("after {cut} commands: {error}"),
        }
    }
}
