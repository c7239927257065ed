//! What is asked about snapshots.

use hyper::Method;
use hyper::body::Bytes;

use super::{Client, ClientError, body, escape, parse, volume_path};
use crate::api::{
    AskDiff, CloneSnapshot, DiffInfo, RestoreSnapshot, SnapshotInfo, TakeSnapshots, VolumeInfo,
};

impl Client {
    /// Takes snapshots of one moment.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn take_snapshots(&self, what: &TakeSnapshots) -> Result<Vec<SnapshotInfo>, ClientError> {
        parse(&self.ask(Method::POST, "/snapshots", body(what)?)?)
    }

    /// The snapshots of a volume, the oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn snapshots(&self, volume: &str) -> Result<Vec<SnapshotInfo>, ClientError> {
        parse(&self.ask(Method::GET, &volume_path(volume, "/snapshots"), Bytes::new())?)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn snapshot(&self, volume: &str, name: &str) -> Result<SnapshotInfo, ClientError> {
        parse(&self.ask(Method::GET, &snapshot_path(volume, name, ""), Bytes::new())?)
    }

    /// Makes a volume that begins as a snapshot.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn clone_snapshot(
        &self,
        volume: &str,
        name: &str,
        how: &CloneSnapshot,
    ) -> Result<VolumeInfo, ClientError> {
        parse(&self.ask(Method::POST, &snapshot_path(volume, name, "/clone"), body(how)?)?)
    }

    /// Makes a volume what a snapshot is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn restore_snapshot(
        &self,
        volume: &str,
        name: &str,
        how: &RestoreSnapshot,
    ) -> Result<VolumeInfo, ClientError> {
        parse(&self.ask(Method::POST, &snapshot_path(volume, name, "/restore"), body(how)?)?)
    }

    /// Deletes a snapshot. Its space comes back in the background.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &snapshot_path(volume, name, ""), Bytes::new()).map(|_| ())
    }

    /// A part of what differs between a snapshot and another one, or the
    /// volume as it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn diff(&self, volume: &str, what: &AskDiff) -> Result<DiffInfo, ClientError> {
        parse(&self.ask(Method::POST, &volume_path(volume, "/diff"), body(what)?)?)
    }
}

pub(super) fn snapshot_path(volume: &str, name: &str, below: &str) -> String {
    volume_path(volume, &format!("/snapshots/{}{below}", escape(name)))
}
