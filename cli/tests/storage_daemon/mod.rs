//! A device that we did not write: QEMU's storage daemon on a sparse file.

// Every test file that includes this uses its own part of it.
#![allow(dead_code)]

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running daemon with one vhost-user-blk export of two queues.
pub(crate) struct StorageDaemon {
    child: Child,
    directory: TempDir,
}

impl StorageDaemon {
    /// Starts a daemon over `bytes` of zeroes, with more export options such
    /// as `writable=on`. `None`, and a line that says so, without QEMU.
    pub(crate) fn start(test: &str, bytes: u64, options: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let image = directory.path().join("disk.raw");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("a sparse file");
        let socket = directory.path().join("disk.sock");
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,discard=unmap,filename={}", image.display()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,num-queues=2,\
                 addr.type=unix,addr.path={},{options}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("SKIPPED {test}: qemu-storage-daemon (Debian: qemu-utils): {error}");
                return None;
            }
        };
        let daemon = Self { child, directory };
        let begin = Instant::now();
        while !daemon.socket().exists() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the daemon made no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(daemon)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("disk.sock")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.directory.path().join("disk.raw")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends the daemon at once, as a crash would; its socket stays behind.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // A daemon that has already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
