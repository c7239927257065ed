//! A namespace over a file: what survives, what it costs, and what others can
//! do to it.

mod harness;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use block_core::device::{Device, Durability};
use block_core::{BlockError, Pba};
use harness::{Drive, Rig, extent, filled, memory};
use nvme::soft::{FileIo, FileOptions, OpenError};
use tempfile::TempDir;

use nvme::{LbaSize, SoftNamespace, SoftOptions};

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

/// A folder, and how files in it are used.
struct Place {
    folder: TempDir,
    io: FileIo,
}

/// The usual file system, as it chooses and mapped; and tmpfs, where a read through a
/// mapping fills holes.
fn places() -> Vec<Place> {
    let memory = Path::new("/dev/shm");
    let usual = || tempfile::tempdir().expect("a folder");
    let mut places = vec![
        Place { folder: usual(), io: FileIo::Auto },
        Place { folder: usual(), io: FileIo::Mapped },
    ];
    places.extend(memory.is_dir().then(|| {
        let folder = tempfile::tempdir_in(memory).expect("a folder");
        Place { folder, io: FileIo::Auto }
    }));
    places
}

fn open(path: &Path, create: Option<u64>, io: FileIo) -> Result<SoftNamespace, OpenError> {
    SoftNamespace::file(&FileOptions { path: path.to_owned(), create, io }, LbaSize::B4096)
}

fn rig(path: &Path, io: FileIo, create: Option<u64>, write_cache: bool) -> Rig {
    let namespace = open(path, create, io).expect("a namespace");
    let options = SoftOptions { write_cache, ..SoftOptions::default() };
    Rig::new(options, vec![namespace, memory(16)], Drive::Here)
}

/// Bytes that the file takes on its file system.
fn taken(path: &Path) -> u64 {
    std::fs::metadata(path).expect("it is there").blocks() * 512
}

#[test]
fn data_survives_the_controller_and_holes_stay_holes() {
    places().iter().for_each(survives);
}

fn survives(Place { folder, io }: &Place) {
    let path = folder.path().join("disk");
    for (round, write_cache) in [(0_u8, true), (1, true), (2, false)] {
        let rig = rig(&path, *io, Some(64 * MIB), write_cache);
        let pool = rig.pool(1, 64 * BLOCK);
        let namespace = rig.namespace(1);
        assert_eq!(namespace.blocks().bytes(), 64 * MIB);
        assert_eq!(namespace.has_volatile_cache(), write_cache);
        // Reading all of it takes no space.
        for at in (0..64 * MIB / BLOCK as u64).step_by(64) {
            let (buffer, read) = rig.run(namespace.read(Pba(at), filled(&pool, 0xee), 0..64));
            assert_eq!(read, Ok(()));
            let expected = if at == 1024 { round } else { 0 };
            assert_eq!((buffer[0], buffer[63 * BLOCK]), (expected, expected), "at {at}");
        }
        assert!(taken(&path) <= MIB, "{} bytes taken", taken(&path));
        let write =
            namespace.write(Pba(1024), filled(&pool, round + 1), 0..64, Durability::Through);
        assert_eq!(rig.run(write).1, Ok(()));
        assert_eq!(rig.run(namespace.flush()), Ok(()));
        assert!(taken(&path) >= 64 * BLOCK as u64);
    }
    // What the blocks hold is in the file, where it can be found without us.
    let file = File::open(&path).expect("it is there");
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 1024 * BLOCK as u64).expect("data");
    assert_eq!(byte, [3]);
}

#[test]
fn deallocated_space_goes_back_to_the_file_system() {
    places().iter().for_each(goes_back);
}

fn goes_back(Place { folder, io }: &Place) {
    let path = folder.path().join("disk");
    let rig = rig(&path, *io, Some(16 * MIB), true);
    let pool = rig.pool(1, 256 * BLOCK);
    let namespace = rig.namespace(1);
    for at in (0..1024).step_by(256) {
        let write = namespace.write(Pba(at), filled(&pool, 5), 0..256, Durability::Cached);
        assert_eq!(rig.run(write).1, Ok(()));
    }
    rig.run(namespace.flush()).expect("a flush");
    let full = taken(&path);
    assert_eq!(rig.run(namespace.deallocate(extent(3, 500))), Ok(()));
    assert_eq!(rig.run(namespace.write_zeroes(extent(600, 300), true)), Ok(()));
    assert_eq!(rig.run(namespace.write_zeroes(extent(1000, 2), false)), Ok(()));
    rig.run(namespace.flush()).expect("a flush");
    assert!(taken(&path) + 790 * BLOCK as u64 <= full, "{} of {full}", taken(&path));
    // Written again in the middle of a hole, and read across its edges.
    let write = namespace.write(Pba(100), filled(&pool, 6), 0..1, Durability::Cached);
    assert_eq!(rig.run(write).1, Ok(()));
    for at in (0..1024).step_by(256) {
        let (buffer, read) = rig.run(namespace.read(Pba(at), filled(&pool, 1), 0..256));
        assert_eq!(read, Ok(()));
        for (block, at) in buffer.chunks_exact(BLOCK).zip(at..) {
            let expected = match at {
                100 => 6,
                3..503 | 600..900 | 1000..1002 => 0,
                _ => 5,
            };
            assert!(block.iter().all(|&byte| byte == expected), "block {at}");
        }
    }
    // Reading the holes has not filled them; one chunk has been written anew.
    assert!(taken(&path) + 750 * BLOCK as u64 <= full, "{} of {full}", taken(&path));
}

/// A guest that says "zero, and keep the space" means to write there when the
/// file system is full. The space was punched away like any other.
#[test]
fn zeroes_that_are_to_keep_their_space_keep_it() {
    places().iter().for_each(keeps_space);
}

fn keeps_space(Place { folder, io }: &Place) {
    let path = folder.path().join("disk");
    let rig = rig(&path, *io, Some(16 * MIB), true);
    let pool = rig.pool(1, 256 * BLOCK);
    let namespace = rig.namespace(1);
    for at in (0..1024).step_by(256) {
        let write = namespace.write(Pba(at), filled(&pool, 5), 0..256, Durability::Cached);
        assert_eq!(rig.run(write).1, Ok(()));
    }
    rig.run(namespace.flush()).expect("a flush");
    let full = taken(&path);
    // From the middle of the data into the hole behind it.
    assert_eq!(rig.run(namespace.write_zeroes(extent(500, 1000), false)), Ok(()));
    rig.run(namespace.flush()).expect("a flush");
    assert!(taken(&path) >= full + 476 * BLOCK as u64, "{} after {full}", taken(&path));
    for at in (256..1536).step_by(256) {
        let (buffer, read) = rig.run(namespace.read(Pba(at), filled(&pool, 1), 0..256));
        assert_eq!(read, Ok(()));
        for (block, at) in buffer.chunks_exact(BLOCK).zip(at..) {
            let expected = if at < 500 { 5 } else { 0 };
            assert!(block.iter().all(|&byte| byte == expected), "block {at}");
        }
    }
    assert_eq!(rig.run(namespace.write_zeroes(extent(500, 1000), true)), Ok(()));
    rig.run(namespace.flush()).expect("a flush");
    assert!(taken(&path) < full, "{} after {full}", taken(&path));
}

/// Someone truncates the file while it is in use. That namespace fails; the
/// other one and the process live on.
#[test]
fn a_file_cut_under_us_fails_its_namespace_and_no_other() {
    places().iter().for_each(cut_under_us);
}

fn cut_under_us(Place { folder, io }: &Place) {
    for case in ["read", "write", "hole"] {
        let path = folder.path().join(case);
        let rig = rig(&path, *io, Some(4 * MIB), true);
        let pool = rig.pool(1, BLOCK);
        let (namespace, other) = (rig.namespace(1), rig.namespace(2));
        let write = namespace.write(Pba(900), filled(&pool, 5), 0..1, Durability::Cached);
        assert_eq!(rig.run(write).1, Ok(()));
        OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(MIB)).expect("cut");
        let outcome = match case {
            "read" => rig.run(namespace.read(Pba(900), filled(&pool, 0), 0..1)).1,
            "hole" => rig.run(namespace.read(Pba(500), filled(&pool, 0), 0..1)).1,
            _ => {
                let buffer = filled(&pool, 5);
                rig.run(namespace.write(Pba(500), buffer, 0..1, Durability::Cached)).1
            }
        };
        assert_eq!(outcome, Err(BlockError::Medium), "{case}");
        // It stays failed, also where the file still is.
        let again = rig.run(namespace.read(Pba(0), filled(&pool, 0), 0..1)).1;
        assert_eq!(again, Err(BlockError::Medium));
        assert_eq!(rig.run(namespace.flush()), Err(BlockError::Medium));
        assert_eq!(rig.run(other.read(Pba(0), filled(&pool, 0), 0..1)).1, Ok(()));
    }
}

#[test]
fn a_file_that_cannot_serve_is_refused_with_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    let open = |path: &Path, create| open(path, create, FileIo::Auto);
    let sentence = |create| open(&path, create).expect_err("refused").to_string();
    assert!(sentence(None).contains("give a size to create it"));
    assert!(sentence(Some(5000)).contains("multiple of 4096"));
    assert!(!path.exists(), "a wrong size leaves no file");
    std::fs::write(&path, [1; 4095]).expect("a small file");
    assert!(sentence(None).contains("at least 4096"));
    std::fs::write(&path, [1; 5000]).expect("an odd file");
    let first = open(&path, Some(MIB)).expect("rounded down; what is there stays");
    assert!(sentence(None).contains("in use by another process"));
    drop(first);
    assert!(open(&path, None).is_ok());
    assert_eq!(std::fs::metadata(&path).expect("it is there").len(), 5000);
    let error = open(folder.path(), None).expect_err("a folder");
    assert!(matches!(error, OpenError::NotAFile { .. }), "{error}");
}

/// A server was killed while the kernel had commands of it, and the next one, started at
/// once, was refused the file: it stays locked until they have ended.
#[test]
fn a_file_that_is_about_to_be_given_up_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    let first = open(&path, Some(MIB), FileIo::Auto).expect("it is made");
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(first);
    });
    assert!(open(&path, None, FileIo::Auto).is_ok());
    holder.join().expect("it ends");
}
