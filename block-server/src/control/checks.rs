//! Checks of pools, over the control socket and by themselves.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::body::{Body, parse_body};
use super::refusal::{Outcome, Refusal};
use super::{Office, Shared};
use crate::api::{CheckInfo, LastCheck, PoolInfo, SetSchedule, StartCheck};
use crate::checks::BadSchedule;
use crate::errand::{Errand, PoolErrand};
use crate::size::Size;

/// The longest sleep: machines are suspended, and clocks are set.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// Findings that are kept of a check that has ended: whoever needs more checks
/// again.
const MOST_KEPT: usize = 100;

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new()
        .route("/pools/{device}/check", get(check).post(start_check))
        .route("/pools/{device}/check/schedule", put(set_schedule))
}

async fn start_check(
    State(office): Shared,
    Path(device): Path<String>,
    body: Body,
) -> Outcome<(StatusCode, Json<CheckInfo>)> {
    let StartCheck { rate } = parse_body(body)?;
    Ok((StatusCode::ACCEPTED, Json(begin(&office, &device, rate).await?)))
}

/// The check that runs; else the last one, also one of an earlier server.
async fn check(State(office): Shared, Path(device): Path<String>) -> Outcome<Json<CheckInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Pool(PoolErrand::Check { device: device.clone(), answer });
    match office.ask(worker, errand).await {
        Ok(check) => Ok(Json(check)),
        Err(refusal) => match office.checks.of(&device).last {
            Some(last) => Ok(Json(last.check)),
            None => Err(refusal),
        },
    }
}

async fn set_schedule(
    State(office): Shared,
    Path(device): Path<String>,
    body: Body,
) -> Outcome<Json<PoolInfo>> {
    let SetSchedule { schedule } = parse_body(body)?;
    let pool = office.pool(&device).await?;
    office.checks.set(&pool.device, schedule).map_err(|bad| {
        let status = match &bad {
            BadSchedule::Every | BadSchedule::Rate => StatusCode::BAD_REQUEST,
            BadSchedule::File { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal::new(status, bad)
    })?;
    Ok(Json(office.pool(&device).await?))
}

/// Begins the checks whose time has come, for ever.
pub(super) async fn keep_schedules(office: Arc<Office>) {
    loop {
        for (device, rate) in office.checks.due((office.wall)()) {
            match begin(&office, &device, Some(rate)).await {
                Ok(_) => info!(%device, %rate, "check began, by its schedule"),
                Err(refusal) => warn!(%device, "a scheduled check did not begin: {refusal}"),
            }
        }
        let wait = office.checks.next().map(|next| next.saturating_sub((office.wall)()));
        let wait = wait.map_or(LONGEST_SLEEP, Duration::from_secs).min(LONGEST_SLEEP);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = office.checks.changed() => {}
        }
    }
}

/// Begins a check, and keeps what comes of it.
async fn begin(office: &Arc<Office>, device: &str, rate: Option<Size>) -> Outcome<CheckInfo> {
    let (device, worker) = office.device(Some(device))?;
    let (ended, outcome) = oneshot::channel();
    let errand = |answer| {
        let device = device.clone();
        Errand::Pool(PoolErrand::StartCheck { device, rate, ended, answer })
    };
    let begun = office.ask(worker, errand).await?;
    let (office, began) = (Arc::clone(office), (office.wall)());
    tokio::spawn(async move {
        // A check that the server's end cuts off has found nothing.
        if let Ok(check) = outcome.await {
            conclude(&office, &device, began, check);
        }
    });
    Ok(begun)
}

fn conclude(office: &Office, device: &str, began: u64, mut check: CheckInfo) {
    check.findings.truncate(MOST_KEPT);
    let CheckInfo { done, wrong, failed, .. } = &check;
    if *wrong > 0 {
        warn!(%device, wrong, "the check found something; `vrio pool check --status` tells what");
    }
    match failed {
        Some(why) => warn!(%device, "the check has not looked at everything: {why}"),
        None => info!(%device, %done, wrong, "check ended"),
    }
    office.checks.ended(device, LastCheck { began, ended: (office.wall)(), check });
}
