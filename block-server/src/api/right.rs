//! Which fronts may have which volumes.

use serde::{Deserialize, Serialize};

use super::AccessInfo;

/// `GET /rights` answers this, and so do the changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RightsInfo {
    /// The public keys by which fronts know this server, the newest first.
    pub server_keys: Vec<String>,
    /// Whether fronts without a key may have every volume.
    pub clear: bool,
    /// What each key is good for.
    pub rights: Vec<RightInfo>,
}

/// What a key is good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RightInfo {
    /// A front's public key.
    pub key: String,
    /// What its front may do.
    pub access: AccessInfo,
    /// With which volumes: `*` stands for any letters, `?` for one.
    pub volumes: String,
}

/// `PUT /rights/KEY`; `DELETE /rights/KEY` takes all rights of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorize {
    /// To which volumes.
    pub volumes: String,
    /// Reading only.
    #[serde(default)]
    pub read_only: bool,
}
