//! What the control socket speaks about snapshots.

use serde::{Deserialize, Serialize};

use crate::size::Size;

/// `POST /snapshots`; the answer is a list of [`SnapshotInfo`], one for each
/// volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeSnapshots {
    /// Of which volumes: all at one moment. They lie in one pool.
    pub volumes: Vec<String>,
    /// What they are called.
    pub name: String,
    /// Whether to take it although a volume's writer may have writes that
    /// were answered, not flushed, and lost.
    #[serde(default)]
    pub as_is: bool,
}

/// `GET /volumes/NAME/snapshots` answers a list of these,
/// `GET /volumes/NAME/snapshots/SNAPSHOT` one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Of which volume.
    pub volume: String,
    /// What it is called.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
    /// The volume's size then.
    pub size: Size,
    /// Taken although its writer may have had unflushed writes that were
    /// lost.
    pub as_is: bool,
    /// How many volumes and snapshots go on from it: more than one when it was
    /// cloned or restored.
    pub branches: usize,
}

/// `POST /volumes/NAME/snapshots/SNAPSHOT/clone`; the answer is a
/// [`VolumeInfo`](super::VolumeInfo).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneSnapshot {
    /// The new volume's name.
    pub name: String,
    /// Whether nobody may change it.
    #[serde(default)]
    pub read_only: bool,
}

/// `POST /volumes/NAME/snapshots/SNAPSHOT/restore`; the answer is a
/// [`VolumeInfo`](super::VolumeInfo).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// Whether to take the volume away from the fronts that have it.
    #[serde(default)]
    pub force: bool,
}

/// `POST /volumes/NAME/diff`; the answer is a [`DiffInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskDiff {
    /// A snapshot of the volume.
    pub from: String,
    /// A later one; the volume as it is now if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The byte to begin at: the last answer's `next`.
    #[serde(default)]
    pub start: u64,
}

/// A part of the ranges that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffInfo {
    /// What differs, in order.
    pub ranges: Vec<RangeInfo>,
    /// Where the next part begins, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// A run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeInfo {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}
