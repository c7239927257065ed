//! Pools, over the control socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::body::{Body, parse_body};
use super::refusal::Outcome;
use super::{Office, Shared};
use crate::api::{CheckInfo, CreatePool, PoolInfo, StartCheck};
use crate::errand::{Errand, PoolErrand};

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new()
        .route("/pools", get(list).post(create))
        .route("/pools/{device}", get(show))
        .route("/pools/{device}/grow", post(grow))
        .route("/pools/{device}/check", get(check).post(start_check))
}

async fn list(State(office): Shared) -> Outcome<Json<Vec<PoolInfo>>> {
    let mut pools: Vec<PoolInfo> =
        office.ask_all(|answer| Errand::Pool(PoolErrand::List(answer))).await?;
    pools.sort_by(|one, other| one.device.cmp(&other.device));
    Ok(Json(pools))
}

async fn create(State(office): Shared, body: Body) -> Outcome<(StatusCode, Json<PoolInfo>)> {
    let CreatePool { device, journal, overwrite } = parse_body(body)?;
    let (device, worker) = office.device(device.as_deref())?;
    let errand = |answer| Errand::Pool(PoolErrand::Create { device, journal, overwrite, answer });
    Ok((StatusCode::CREATED, Json(office.ask(worker, errand).await?)))
}

async fn show(State(office): Shared, Path(device): Path<String>) -> Outcome<Json<PoolInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Pool(PoolErrand::Show { device, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

async fn grow(State(office): Shared, Path(device): Path<String>) -> Outcome<Json<PoolInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Pool(PoolErrand::Grow { device, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

async fn start_check(
    State(office): Shared,
    Path(device): Path<String>,
    body: Body,
) -> Outcome<(StatusCode, Json<CheckInfo>)> {
    let StartCheck { rate } = parse_body(body)?;
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Pool(PoolErrand::StartCheck { device, rate, answer });
    Ok((StatusCode::ACCEPTED, Json(office.ask(worker, errand).await?)))
}

async fn check(State(office): Shared, Path(device): Path<String>) -> Outcome<Json<CheckInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Pool(PoolErrand::Check { device, answer });
    Ok(Json(office.ask(worker, errand).await?))
}
