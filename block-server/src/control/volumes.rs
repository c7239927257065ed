//! Volumes, over the control socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::body::{Body, parse_body, parse_domain, parse_front, parse_name};
use super::refusal::Outcome;
use super::{Office, Shared};
use crate::api::{
    CreateVolume, DeleteVolume, DetachVolume, DeviceInfo, ResizeVolume, ServerInfo, VolumeInfo,
};
use crate::errand::Errand;

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new()
        .route("/server", get(server))
        .route("/volumes", get(list).post(create))
        .route("/volumes/{name}", get(show).patch(resize).delete(delete))
        .route("/volumes/{name}/detach", post(detach))
}

async fn server(State(office): Shared) -> Outcome<Json<ServerInfo>> {
    Ok(Json(office.server().await?))
}

async fn list(State(office): Shared) -> Outcome<Json<Vec<VolumeInfo>>> {
    Ok(Json(office.volumes().await?))
}

impl Office {
    pub(super) async fn server(&self) -> Outcome<ServerInfo> {
        let devices: Vec<DeviceInfo> = self.ask_all(Errand::Devices).await?;
        let workers = self.workers.iter().map(|(info, _)| info.clone()).collect();
        Ok(ServerInfo { version: self.version.clone(), workers, devices })
    }

    /// By name.
    pub(super) async fn volumes(&self) -> Outcome<Vec<VolumeInfo>> {
        let mut volumes: Vec<VolumeInfo> = self.ask_all(Errand::Volumes).await?;
        volumes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(volumes)
    }
}

async fn create(State(office): Shared, body: Body) -> Outcome<(StatusCode, Json<VolumeInfo>)> {
    let CreateVolume { name, size, device, read_only, domain } = parse_body(body)?;
    let name = parse_name(&name)?;
    let domain = domain.map(parse_domain).transpose()?;
    let (device, worker) = office.device(device.as_deref())?;
    let errand = |answer| Errand::Create { device, name, size, read_only, domain, answer };
    let volume = office.ask(worker, errand).await?;
    Ok((StatusCode::CREATED, Json(volume)))
}

async fn show(State(office): Shared, Path(name): Path<String>) -> Outcome<Json<VolumeInfo>> {
    let name = parse_name(&name)?;
    let worker = office.worker_of(&name)?;
    Ok(Json(office.ask(worker, |answer| Errand::Show { name, answer }).await?))
}

async fn resize(
    State(office): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Outcome<Json<VolumeInfo>> {
    let name = parse_name(&name)?;
    let ResizeVolume { size, shrink } = parse_body(body)?;
    let worker = office.worker_of(&name)?;
    let errand = |answer| Errand::Resize { name, size, shrink, answer };
    Ok(Json(office.ask(worker, errand).await?))
}

async fn delete(
    State(office): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Outcome<StatusCode> {
    let name = parse_name(&name)?;
    let DeleteVolume { snapshots } = parse_body(body)?;
    let worker = office.worker_of(&name)?;
    office.ask(worker, |answer| Errand::Delete { name, snapshots, answer }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn detach(
    State(office): Shared,
    Path(name): Path<String>,
    body: Body,
) -> Outcome<Json<VolumeInfo>> {
    let name = parse_name(&name)?;
    let DetachVolume { front, force } = parse_body(body)?;
    let front = front.as_deref().map(parse_front).transpose()?;
    let worker = office.worker_of(&name)?;
    let errand = |answer| Errand::Detach { name, front, force, answer };
    Ok(Json(office.ask(worker, errand).await?))
}
