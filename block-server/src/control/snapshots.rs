//! Snapshots, over the control socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use block_core::{BlockCount, Lba};

use super::body::{Body, parse_body, parse_name, parse_snapshot};
use super::refusal::{Outcome, Refusal};
use super::{Office, Shared};
use crate::api::{
    AskDiff, CloneSnapshot, DiffInfo, RangeInfo, RestoreSnapshot, SnapshotInfo, TakeSnapshots,
    VolumeInfo,
};
use crate::errand::{Errand, SnapshotErrand};

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new()
        .route("/snapshots", post(take))
        .route("/volumes/{name}/snapshots", get(list))
        .route("/volumes/{name}/snapshots/{snapshot}", get(show).delete(delete))
        .route("/volumes/{name}/snapshots/{snapshot}/clone", post(clone))
        .route("/volumes/{name}/snapshots/{snapshot}/restore", post(restore))
        .route("/volumes/{name}/diff", post(diff))
}

async fn take(State(office): Shared, body: Body) -> Outcome<(StatusCode, Json<Vec<SnapshotInfo>>)> {
    let TakeSnapshots { volumes, name, as_is } = parse_body(body)?;
    let volumes = volumes.iter().map(|volume| parse_name(volume)).collect::<Outcome<Vec<_>>>()?;
    let name = parse_snapshot(&name)?;
    let [first, others @ ..] = &volumes[..] else {
        let sentence = "no volume was named; say of which ones the snapshot is to be taken";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, sentence));
    };
    let worker = office.worker_of(first)?;
    for other in others {
        if office.worker_of(other)? != worker {
            let sentence = format!(
                "'{first}' and '{other}' lie in different pools; snapshots of one moment are of \
                 volumes of one pool"
            );
            return Err(Refusal::new(StatusCode::CONFLICT, sentence));
        }
    }
    let errand = |answer| Errand::Snapshot(SnapshotErrand::Take { volumes, name, as_is, answer });
    Ok((StatusCode::CREATED, Json(office.ask(worker, errand).await?)))
}

async fn list(
    State(office): Shared,
    Path(volume): Path<String>,
) -> Outcome<Json<Vec<SnapshotInfo>>> {
    let volume = parse_name(&volume)?;
    let worker = office.worker_of(&volume)?;
    let errand = |answer| Errand::Snapshot(SnapshotErrand::List { volume, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

async fn show(
    State(office): Shared,
    Path((volume, name)): Path<(String, String)>,
) -> Outcome<Json<SnapshotInfo>> {
    let (volume, name) = (parse_name(&volume)?, parse_snapshot(&name)?);
    let worker = office.worker_of(&volume)?;
    let errand = |answer| Errand::Snapshot(SnapshotErrand::Show { volume, name, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

async fn delete(
    State(office): Shared,
    Path((volume, name)): Path<(String, String)>,
) -> Outcome<StatusCode> {
    let (volume, name) = (parse_name(&volume)?, parse_snapshot(&name)?);
    let worker = office.worker_of(&volume)?;
    let errand = |answer| Errand::Snapshot(SnapshotErrand::Delete { volume, name, answer });
    office.ask(worker, errand).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clone(
    State(office): Shared,
    Path((volume, name)): Path<(String, String)>,
    body: Body,
) -> Outcome<(StatusCode, Json<VolumeInfo>)> {
    let (volume, name) = (parse_name(&volume)?, parse_snapshot(&name)?);
    let CloneSnapshot { name: to, read_only } = parse_body(body)?;
    let to = parse_name(&to)?;
    let worker = office.worker_of(&volume)?;
    let errand =
        |answer| Errand::Snapshot(SnapshotErrand::Clone { volume, name, to, read_only, answer });
    Ok((StatusCode::CREATED, Json(office.ask(worker, errand).await?)))
}

async fn restore(
    State(office): Shared,
    Path((volume, name)): Path<(String, String)>,
    body: Body,
) -> Outcome<Json<VolumeInfo>> {
    let (volume, name) = (parse_name(&volume)?, parse_snapshot(&name)?);
    let RestoreSnapshot { force } = parse_body(body)?;
    let worker = office.worker_of(&volume)?;
    let errand = |answer| Errand::Snapshot(SnapshotErrand::Restore { volume, name, force, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

async fn diff(
    State(office): Shared,
    Path(volume): Path<String>,
    body: Body,
) -> Outcome<Json<DiffInfo>> {
    let volume = parse_name(&volume)?;
    let AskDiff { from, to, start } = parse_body(body)?;
    let from = parse_snapshot(&from)?;
    let to = to.as_deref().map(parse_snapshot).transpose()?;
    let start = Lba(BlockCount::in_bytes(start).0);
    let worker = office.worker_of(&volume)?;
    let errand =
        |answer| Errand::Snapshot(SnapshotErrand::Diff { volume, from, to, start, answer });
    let (ranges, next) = office.ask(worker, errand).await?;
    let bytes = |block: Lba| BlockCount(block.0).bytes();
    let ranges = ranges
        .into_iter()
        .map(|range| RangeInfo { offset: bytes(range.start), bytes: range.count.bytes() });
    Ok(Json(DiffInfo { ranges: ranges.collect(), next: next.map(bytes) }))
}
