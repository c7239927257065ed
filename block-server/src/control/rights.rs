//! Who may have which volumes, over the control socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use link::{Access, PublicKey};
use tracing::info;

use super::body::{Body, parse_body};
use super::refusal::{Outcome, Refusal};
use super::{Office, Shared};
use crate::api::{Authorize, RightInfo, RightsInfo};
use crate::authorized::{ChangeError, Right};
use crate::directory::WorkerIndex;
use crate::errand::Errand;

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new().route("/rights", get(list)).route("/rights/{key}", put(give).delete(revoke))
}

async fn list(State(office): Shared) -> Json<RightsInfo> {
    Json(office.describe_rights())
}

async fn give(
    State(office): Shared,
    Path(key): Path<String>,
    body: Body,
) -> Outcome<Json<RightsInfo>> {
    let key = parse_key(&key)?;
    let Authorize { volumes, read_only } = parse_body(body)?;
    let volumes = volumes.parse().map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))?;
    let access = if read_only { Access::Read } else { Access::Write };
    let right = Right { key, volumes, access };
    let said = right.to_string();
    let is_narrower = office.authorized.give(right)?;
    info!(right = said, "authorized");
    if is_narrower {
        office.end_sessions(key).await?;
    }
    Ok(Json(office.describe_rights()))
}

async fn revoke(State(office): Shared, Path(key): Path<String>) -> Outcome<Json<RightsInfo>> {
    let key = parse_key(&key)?;
    if !office.authorized.revoke(&key)? {
        let sentence = format!("{key} has no rights; `vrio server list` shows what there is");
        return Err(Refusal::new(StatusCode::NOT_FOUND, sentence));
    }
    info!(%key, "its rights are revoked");
    office.end_sessions(key).await?;
    Ok(Json(office.describe_rights()))
}

fn parse_key(text: &str) -> Outcome<PublicKey> {
    text.parse().map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))
}

impl Office {
    fn describe_rights(&self) -> RightsInfo {
        let right = |right: Right| RightInfo {
            key: right.key.to_string(),
            access: right.access.into(),
            volumes: right.volumes.to_string(),
        };
        RightsInfo {
            server_keys: self.keys.iter().map(ToString::to_string).collect(),
            clear: self.clear,
            rights: self.authorized.list().into_iter().map(right).collect(),
        }
    }

    /// Ends what a key has open, at all workers, so that its fronts ask again.
    async fn end_sessions(&self, key: PublicKey) -> Outcome<()> {
        for worker in 0..self.workers.len() {
            let errand = |answer| Errand::EndSessions { key, answer };
            self.ask(WorkerIndex(worker), errand).await?;
        }
        Ok(())
    }
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, error)
    }
}
