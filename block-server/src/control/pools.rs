//! Pools, over the control socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::body::{Body, parse_body};
use super::refusal::Outcome;
use super::{Office, Shared};
use crate::api::{CreatePool, PoolInfo};
use crate::errand::{Errand, PoolErrand};

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new()
        .route("/pools", get(list).post(create))
        .route("/pools/{device}", get(show))
        .route("/pools/{device}/grow", post(grow))
}

async fn list(State(office): Shared) -> Outcome<Json<Vec<PoolInfo>>> {
    Ok(Json(office.pools().await?))
}

async fn create(State(office): Shared, body: Body) -> Outcome<(StatusCode, Json<PoolInfo>)> {
    let CreatePool { device, journal, overwrite } = parse_body(body)?;
    let (device, worker) = office.device(device.as_deref())?;
    let errand = |answer| Errand::Pool(PoolErrand::Create { device, journal, overwrite, answer });
    let pool = office.ask(worker, errand).await?;
    office.checks.forget(&pool.device);
    Ok((StatusCode::CREATED, Json(pool)))
}

async fn show(State(office): Shared, Path(device): Path<String>) -> Outcome<Json<PoolInfo>> {
    Ok(Json(office.pool(&device).await?))
}

async fn grow(State(office): Shared, Path(device): Path<String>) -> Outcome<Json<PoolInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Pool(PoolErrand::Grow { device, answer });
    Ok(Json(office.with_checks(office.ask(worker, errand).await?)))
}

impl Office {
    /// By their devices' names.
    pub(super) async fn pools(&self) -> Outcome<Vec<PoolInfo>> {
        let list = |answer| Errand::Pool(PoolErrand::List(answer));
        let mut pools: Vec<PoolInfo> = self.ask_all(list).await?;
        pools.sort_by(|one, other| one.device.cmp(&other.device));
        Ok(pools.into_iter().map(|pool| self.with_checks(pool)).collect())
    }

    /// What there is to say about a pool.
    pub(super) async fn pool(&self, device: &str) -> Outcome<PoolInfo> {
        let (device, worker) = self.device(Some(device))?;
        let errand = |answer| Errand::Pool(PoolErrand::Show { device, answer });
        Ok(self.with_checks(self.ask(worker, errand).await?))
    }

    fn with_checks(&self, pool: PoolInfo) -> PoolInfo {
        PoolInfo { checks: self.checks.of(&pool.device), ..pool }
    }
}
