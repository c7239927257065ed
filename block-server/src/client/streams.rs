//! What is asked about streams.

use hyper::Method;
use hyper::body::Bytes;

use super::snapshots::snapshot_path;
use super::{Client, ClientError, body, parse, volume_path};
use crate::api::{AskExport, EndImport, Exported, ImportInfo, SnapshotInfo, StartImport, Step};

impl Client {
    /// Some of what a stream holds.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn export(
        &self,
        volume: &str,
        name: &str,
        what: &AskExport,
    ) -> Result<Exported, ClientError> {
        let path = snapshot_path(volume, name, "/export");
        let answer = self.ask(Method::POST, &path, body(what)?)?;
        Exported::parse(&answer).map_err(|error| ClientError::NoAnswer(error.to_string()))
    }

    /// Begins to import a stream into a volume, or goes on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn begin_import(
        &self,
        volume: &str,
        what: &StartImport,
    ) -> Result<ImportInfo, ClientError> {
        parse(&self.ask(Method::POST, &volume_path(volume, "/import"), body(what)?)?)
    }

    /// Imports what comes next.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn import_blocks(&self, volume: &str, step: &Step) -> Result<ImportInfo, ClientError> {
        let path = volume_path(volume, "/import/blocks");
        parse(&self.ask(Method::POST, &path, Bytes::from(step.encode()))?)
    }

    /// Ends an import of which all has come.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn end_import(&self, volume: &str, what: &EndImport) -> Result<SnapshotInfo, ClientError> {
        parse(&self.ask(Method::POST, &volume_path(volume, "/import/end"), body(what)?)?)
    }
}
