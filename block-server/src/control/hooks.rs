//! What stands around a volume's requests, over the control socket.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::patch;
use axum::{Json, Router};

use super::body::{Body, parse_body, parse_name};
use super::refusal::{Outcome, Refusal};
use super::{Office, Shared};
use crate::api::{SetHooks, SetRecord, VolumeInfo};
use crate::errand::Errand;
use crate::hooked::{HookChange, RecordChange};
use crate::size::Size;
use crate::traces::wait_for;

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new().route("/volumes/{name}/hooks", patch(set_hooks))
}

async fn set_hooks(
    State(office): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Outcome<Json<VolumeInfo>> {
    let name = parse_name(&name)?;
    let asked: SetHooks = parse_body(body)?;
    let worker = office.worker_of(&name)?;
    let _changing = office.traces.changing().await;
    let record = match &asked.record {
        None => None,
        Some(SetRecord::Off) => Some(RecordChange::Off),
        Some(SetRecord::File(path)) => {
            let sink = office.traces.begin(&name, path);
            let refused = |error| Refusal::new(StatusCode::CONFLICT, error);
            Some(RecordChange::Begin { sink: sink.map_err(refused)?, asked: (office.wall)() })
        }
    };
    let change = HookChange {
        iops: asked.iops,
        bytes: asked.bytes.map(Size::bytes),
        burst: asked.burst_millis.map(Duration::from_millis),
        record,
    };
    let errand = |answer| Errand::SetHooks { name: name.clone(), change, answer };
    let volume = office.ask(worker, errand).await?;
    // What was recorded until here is whole when this is answered.
    let ended = match asked.record {
        None => Vec::new(),
        Some(SetRecord::Off) => office.traces.take(&name, 0),
        Some(SetRecord::File(_)) => office.traces.take(&name, 1),
    };
    // It fails only when the thread that waits panics, which says so itself.
    let _ = tokio::task::spawn_blocking(|| wait_for(ended)).await;
    Ok(Json(volume))
}
