//! Streams, over the control socket: one step of them for each request.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use block_core::Lba;
use interpose::layout::stream::Body as Content;
use interpose::pool::Piece;

use super::body::{Body, parse_body, parse_domain, parse_name, parse_snapshot};
use super::refusal::{Outcome, Refusal};
use super::{Office, Shared};
use crate::api::{
    AskExport, EndImport, Exported, ImportInfo, STEP_BYTES, SnapshotInfo, StartImport, Step,
};
use crate::errand::{Errand, SnapshotErrand, StreamErrand};
use crate::store::{Arriving, BeginImport};

pub(super) fn routes() -> Router<Arc<Office>> {
    let put = post(put).layer(DefaultBodyLimit::max(STEP_BYTES));
    Router::new()
        .route("/volumes/{name}/snapshots/{snapshot}/export", post(export))
        .route("/volumes/{name}/import", post(begin))
        .route("/volumes/{name}/import/blocks", put)
        .route("/volumes/{name}/import/end", post(end))
}

async fn export(
    State(office): Shared,
    Path((volume, name)): Path<(String, String)>,
    body: Body,
) -> Outcome<Vec<u8>> {
    let (volume, name) = (parse_name(&volume)?, parse_snapshot(&name)?);
    let AskExport { from, go_on } = parse_body(body)?;
    let base = from.as_deref().map(parse_snapshot).transpose()?;
    let worker = office.worker_of(&volume)?;
    let Some(go_on) = go_on else {
        let errand = |answer| Errand::Stream(StreamErrand::Manifest { volume, name, base, answer });
        let manifest = office.ask(worker, errand).await?;
        return Ok(Exported::encode(Some(Lba(0)), &[Content::Manifest(manifest)]));
    };
    let (about, from) = (go_on.about.about().ok_or_else(wrong)?, Lba(go_on.block));
    let errand =
        |answer| Errand::Stream(StreamErrand::Export { volume, name, base, about, from, answer });
    let exported = office.ask(worker, errand).await?;
    let bodies: Vec<Content<'_>> = exported.pieces.iter().map(Piece::body).collect();
    Ok(Exported::encode(exported.next, &bodies))
}

async fn begin(
    State(office): Shared,
    Path(volume): Path<String>,
    body: Body,
) -> Outcome<Json<ImportInfo>> {
    let volume = parse_name(&volume)?;
    let StartImport { manifest, name, device, domain } = parse_body(body)?;
    let name = parse_snapshot(&name)?;
    let domain = domain.map(parse_domain).transpose()?;
    let manifest = manifest.manifest().ok_or_else(wrong)?;
    let (device, worker) = match office.directory.worker_of(&volume) {
        Some(worker) => (device, worker),
        None => {
            let (device, worker) = office.device(device.as_deref())?;
            (Some(device), worker)
        }
    };
    let import = BeginImport { volume, name, domain, manifest };
    let errand = |answer| Errand::Stream(StreamErrand::Begin { device, import, answer });
    let at = office.ask(worker, errand).await?;
    Ok(Json(ImportInfo { block: at.0 }))
}

async fn put(
    State(office): Shared,
    Path(volume): Path<String>,
    body: Body,
) -> Outcome<Json<ImportInfo>> {
    let volume = parse_name(&volume)?;
    let bytes = body.map_err(|rejected| {
        Refusal::new(rejected.status(), "a part of the stream did not arrive as a whole")
    })?;
    let Step { about, after, upto, pieces } = Step::parse(&bytes).map_err(|_| wrong())?;
    drop(bytes);
    let step = Arriving { about, after: Lba(after), upto: Lba(upto), pieces };
    let worker = office.worker_of(&volume)?;
    let errand = |answer| Errand::Stream(StreamErrand::Put { volume, step, answer });
    let at = office.ask(worker, errand).await?;
    Ok(Json(ImportInfo { block: at.0 }))
}

async fn end(
    State(office): Shared,
    Path(volume): Path<String>,
    body: Body,
) -> Outcome<(StatusCode, Json<SnapshotInfo>)> {
    let volume = parse_name(&volume)?;
    let EndImport { about, name, as_is } = parse_body(body)?;
    let (about, name) = (about.about().ok_or_else(wrong)?, parse_snapshot(&name)?);
    let worker = office.worker_of(&volume)?;
    let (imported, taken) = (volume.clone(), name.clone());
    let errand = |answer| {
        let volume = imported;
        Errand::Stream(StreamErrand::End { volume, about, name: taken, as_is, answer })
    };
    office.ask(worker, errand).await?;
    let errand = |answer| Errand::Snapshot(SnapshotErrand::Show { volume, name, answer });
    Ok((StatusCode::CREATED, Json(office.ask(worker, errand).await?)))
}

fn wrong() -> Refusal {
    let sentence = "what was sent is no part of a stream; use the `vrio` of the server's version";
    Refusal::new(StatusCode::BAD_REQUEST, sentence)
}
