//! What the control socket speaks: the bodies of its requests and answers, for
//! the server and for its clients.

mod health;
mod hooks;
mod key;
mod pool;
mod right;
mod snapshot;
mod stream;

use link::Access;
use serde::{Deserialize, Serialize};

use crate::size::Size;
pub use health::HealthInfo;
pub use hooks::{HooksInfo, KindInfo, LatencyInfo, RecordInfo, SetHooks, SetRecord, ThrottleInfo};
pub use key::{AddWay, DomainInfo, HexSecret, KeysInfo, SecretKind, WayInfo};
pub use pool::{
    CheckInfo, ChecksInfo, CreatePool, FigureInfo, LastCheck, PoolContent, PoolInfo, PoolState,
    ScheduleInfo, SetSchedule, StartCheck,
};
pub use right::{Authorize, RightInfo, RightsInfo};
pub use snapshot::{
    AskDiff, CloneSnapshot, DiffInfo, RangeInfo, RestoreSnapshot, SnapshotInfo, TakeSnapshots,
};
pub use stream::{
    AskExport, BadStep, EndImport, Exported, GoOn, Hex, ImportInfo, STEP_BYTES, StartImport, Step,
};

/// `GET /server`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    /// The server's version.
    pub version: String,
    /// Its polling threads.
    pub workers: Vec<WorkerInfo>,
    /// Its devices.
    pub devices: Vec<DeviceInfo>,
}

/// A polling thread of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Where fronts reach it.
    pub address: String,
    /// The core it is pinned to.
    pub cpu: Option<usize>,
    /// What it does when it has nothing to do.
    pub idle: String,
}

/// A device of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its name in the configuration.
    pub name: String,
    /// The worker that owns it, counted from 0.
    pub worker: usize,
    /// Its size.
    pub size: Size,
    /// What no volume uses.
    pub free: Size,
    /// How many volumes lie on it.
    pub volumes: usize,
    /// Whether all of it is a pool.
    pub is_pool: bool,
    /// Why it is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How often it came back from a reset since the server was started.
    #[serde(default)]
    pub resets: u64,
    /// How many commands it did not answer in time since then.
    #[serde(default)]
    pub late_commands: u64,
    /// How it is by its own account, not older than a minute of work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthInfo>,
}

/// `POST /volumes`; the answer is a [`VolumeInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its size: a number of bytes or a text such as "10G".
    pub size: Size,
    /// Which device to put it on; may be left out when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Whether nobody may change it.
    #[serde(default)]
    pub read_only: bool,
    /// With whose volumes it shares a key and blocks; in a pool only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
}

/// `PATCH /volumes/NAME`; the answer is a [`VolumeInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Its new size.
    pub size: Size,
    /// Whether it may lose its end.
    #[serde(default)]
    pub shrink: bool,
}

/// `DELETE /volumes/NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteVolume {
    /// Whether its snapshots go with it.
    #[serde(default)]
    pub snapshots: bool,
}

/// `POST /volumes/NAME/detach`; the answer is a [`VolumeInfo`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachVolume {
    /// Which front, as [`AttachmentInfo::front`] says it; everybody if left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front: Option<String>,
    /// Whether to take it away without asking them.
    #[serde(default)]
    pub force: bool,
}

/// `GET /volumes` answers a list of these, `GET /volumes/NAME` one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: String,
    /// The device it lies on.
    pub device: String,
    /// Its size.
    pub size: Size,
    /// Whether nobody may change it.
    pub read_only: bool,
    /// Raised by a forced detach and by a restore.
    pub generation: u64,
    /// In how many pieces it lies on the device; 0 in a pool.
    pub extents: usize,
    /// Whether it has come in part only: nobody may have it until all has.
    #[serde(default)]
    pub importing: bool,
    /// Its domain, if it lies in a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Who has it.
    pub attachments: Vec<AttachmentInfo>,
    /// What stands around its requests, and what it saw.
    #[serde(default)]
    pub hooks: HooksInfo,
}

/// A front that has a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentInfo {
    /// The front's identity.
    pub front: String,
    /// What it may do.
    pub access: AccessInfo,
    /// Whether the front has a session now.
    pub connected: bool,
    /// The key that seals that session; none, if it is in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What a front may do with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessInfo {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

impl From<Access> for AccessInfo {
    fn from(access: Access) -> Self {
        match access {
            Access::Read => Self::Read,
            Access::Write => Self::Write,
        }
    }
}

/// The answer to a request that did not work, with an HTTP status that is not
/// 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong and what to do, in one sentence.
    pub error: String,
}
