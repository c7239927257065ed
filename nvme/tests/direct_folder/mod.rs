//! A folder on a file system that serves files directly, for whichever test needs one.

use std::path::Path;

use nvme::soft::{FileIo, FileOptions};
use nvme::{LbaSize, SoftNamespace};
use tempfile::TempDir;

const MISSING: &str = "neither TMPDIR nor the build's folder is on a file system with O_DIRECT \
    that serves it without threads (ext4, XFS); name one by TMPDIR";

/// The usual one, or beside what was built. Where neither can (tmpfs cannot) it says what
/// is skipped.
pub(crate) fn direct_folder(what: &str) -> Option<TempDir> {
    let built = std::env::current_exe().expect("this program");
    let places = [std::env::temp_dir(), built.parent().unwrap_or(Path::new("/")).to_owned()];
    let found = places.iter().find_map(|place| {
        let folder = tempfile::tempdir_in(place).ok()?;
        let path = folder.path().join("probe");
        let options = FileOptions { path, create: Some(4096), io: FileIo::Direct };
        SoftNamespace::file(&options, LbaSize::B512).is_ok().then_some(folder)
    });
    if found.is_none() {
        println!("SKIPPED {what}: {MISSING}");
        eprintln!("SKIPPED {what}: {MISSING}");
    }
    found
}
