//! What the control socket speaks about pools.

use serde::{Deserialize, Serialize};

use crate::size::Size;

/// `POST /pools`; the answer is a [`PoolInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreatePool {
    /// Which device becomes a pool as a whole; may be left out when there is
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The journal's size; by the device's size if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Size>,
    /// Whether to make it also where a pool is that does not open. What it
    /// holds is lost.
    #[serde(default)]
    pub overwrite: bool,
}

/// `GET /pools` answers a list of these, `GET /pools/DEVICE` one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// The device that is the pool.
    pub device: String,
    /// Whether it is served.
    pub state: PoolState,
    /// Why it is not, or not fully.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its size.
    pub size: Size,
    /// What is in it, if it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<PoolContent>,
    /// When it is checked, and what came of it.
    #[serde(default)]
    pub checks: ChecksInfo,
}

/// A pool's checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChecksInfo {
    /// How often the server makes one by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleInfo>,
    /// When it makes the next one, in seconds since 1970; the past means at
    /// once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// The last one that ended, whoever began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastCheck>,
}

/// How often a pool is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleInfo {
    /// Seconds from the end of a check to the next one.
    pub every_seconds: u64,
    /// Most bytes that it reads in a second.
    pub rate: Size,
}

/// A check that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCheck {
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// When it ended, in seconds since 1970.
    pub ended: u64,
    /// What it found.
    pub check: CheckInfo,
}

/// `PUT /pools/DEVICE/check/schedule`; the answer is a [`PoolInfo`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSchedule {
    /// How often it is checked; never if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleInfo>,
}

/// Whether a pool is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolState {
    /// It is.
    Open,
    /// It can be read.
    ReadOnly,
    /// It did not open.
    Locked,
}

/// What is in an open pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolContent {
    /// Its identity.
    pub id: String,
    /// How many volumes.
    pub volumes: usize,
    /// How many snapshots.
    pub snapshots: usize,
    /// What nobody uses.
    pub free: Size,
    /// Whether writes wait, or fail, for want of room.
    pub full: bool,
    /// Blocks of guests, each once.
    pub data: Size,
    /// Pages that say where they are.
    pub metadata: Size,
    /// The journal.
    pub journal: Size,
    /// What volumes and snapshots refer to: `data` and what deduplication
    /// saves.
    pub referenced: Size,
    /// The sizes of all volumes.
    pub provisioned: Size,
    /// Volumes and snapshots whose space comes back in the background.
    pub deleting: usize,
    /// Blocks that they still have, as far as that is known.
    pub deleting_left: u64,
    /// Blocks that the index for sharing knows, and how many it has room for.
    pub index: [usize; 2],
    /// What guests did since the pool was opened.
    pub since: Vec<FigureInfo>,
}

/// How often something happened to a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FigureInfo {
    /// What.
    pub name: String,
    /// To how many blocks; of checkpoints, how many.
    pub blocks: u64,
}

/// `POST /pools/DEVICE/check`; the answer is a [`CheckInfo`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartCheck {
    /// Most bytes that it reads in a second; as fast as it goes if left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Size>,
}

/// `GET /pools/DEVICE/check`: the check that runs, or the last one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckInfo {
    /// Whether it still runs.
    pub running: bool,
    /// What it looks at: first the pool's own pages, then guests' blocks.
    pub phase: String,
    /// How much it has looked at.
    pub done: Size,
    /// How much there is, as far as it knows.
    pub total: Size,
    /// What is wrong, a sentence each; the first ones if there are many.
    pub findings: Vec<String>,
    /// How many things are wrong.
    pub wrong: u64,
    /// Why it has not looked at everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}
