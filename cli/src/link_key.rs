//! The keys by which fronts and servers know each other on the link: files that
//! nobody but their owner may read, as ssh's are.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use block_server::unlock::read_private;
use link::SecretKey;

/// The key in a file.
pub(crate) fn read(file: &Path) -> anyhow::Result<SecretKey> {
    let bytes = read_private(file)?;
    let text = std::str::from_utf8(&bytes).ok().map(str::trim_end);
    let text = text.with_context(|| format!("{} is no key of the link", file.display()))?;
    SecretKey::parse(text).with_context(|| format!("{} is no key of the link", file.display()))
}

/// A new key, in a file that must not be there.
pub(crate) fn make(file: &Path) -> anyhow::Result<SecretKey> {
    let name = file.display();
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make a folder for {name}"))?;
    }
    let mut options = OpenOptions::new();
    let mut opened = match options.write(true).create_new(true).mode(0o600).open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{name} is there already; a key that others know is not overwritten")
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {name}")),
    };
    let key = SecretKey::generate(&mut rand::rng());
    let mut line = key.to_text();
    line.push('\n');
    let written = opened.write_all(line.as_bytes()).and_then(|()| opened.sync_all());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    written
        .and_then(|()| File::open(folder.unwrap_or(Path::new(".")))?.sync_all())
        .with_context(|| format!("cannot write {name}"))?;
    Ok(key)
}

/// The key in a file, which is made if it is not there.
pub(crate) fn read_or_make(file: &Path) -> anyhow::Result<SecretKey> {
    if file.exists() { read(file) } else { make(file) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_from_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state/key");
        let made = read_or_make(&file).expect("made").public();
        assert_eq!(read_or_make(&file).expect("read").public(), made);
        assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
        let error = make(&file).expect_err("there already").to_string();
        assert!(error.contains("not overwritten"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
        let error = read(&file).expect_err("others may read it").to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_key_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key");
        fs::write(&file, "-----BEGIN").expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
        let error = format!("{:#}", read(&file).expect_err("no key"));
        assert!(
            error.contains("is no key of the link") && error.contains("vrio-secret-"),
            "{error}"
        );
    }
}
