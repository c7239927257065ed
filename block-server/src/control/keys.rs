//! Keys of pools, over the control socket.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use block_core::Chance;
use interpose::vault::{Cost, NewWay, Secret};

use super::body::{Body, parse_body, parse_domain};
use super::refusal::{Outcome, Refusal};
use super::{Office, Shared};
use crate::api::{AddWay, KeysInfo, SecretKind};
use crate::errand::{Errand, KeyErrand};

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new()
        .route("/pools/{device}/keys", get(list).post(add))
        .route("/pools/{device}/keys/{name}", delete(remove))
        .route("/pools/{device}/domains/{domain}/rotate", post(rotate))
        .route("/pools/{device}/domains/{domain}/erase", post(erase))
}

async fn list(State(office): Shared, Path(device): Path<String>) -> Outcome<Json<KeysInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Key(KeyErrand::List { device, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

/// A passphrase becomes a key here: that takes long, and the worker's thread
/// has guests to serve.
async fn add(
    State(office): Shared,
    Path(device): Path<String>,
    body: Body,
) -> Outcome<(StatusCode, Json<KeysInfo>)> {
    let AddWay { name, kind, secret } = parse_body(body)?;
    let (device, worker) = office.device(Some(&device))?;
    let name = parse_domain(name)?;
    let wrong = |sentence: String| Refusal::new(StatusCode::BAD_REQUEST, sentence);
    let bytes = secret.bytes().ok_or_else(|| {
        wrong("a secret is sent as pairs of hexadecimal digits; this one is not".to_owned())
    })?;
    let secret = match kind {
        SecretKind::Passphrase => Secret::passphrase(bytes),
        SecretKind::KeyFile => Secret::key_file(bytes),
    };
    let way = NewWay::new(&name, &secret, Cost::USUAL, &Chance::new(office.draw));
    let way = way.map_err(|error| wrong(error.to_string()))?;
    let errand = |answer| Errand::Key(KeyErrand::Add { device, way, answer });
    Ok((StatusCode::CREATED, Json(office.ask(worker, errand).await?)))
}

async fn remove(
    State(office): Shared,
    Path((device, name)): Path<(String, String)>,
) -> Outcome<Json<KeysInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Key(KeyErrand::Remove { device, name, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

async fn rotate(
    State(office): Shared,
    Path((device, domain)): Path<(String, String)>,
) -> Outcome<Json<KeysInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Key(KeyErrand::Rotate { device, domain, answer });
    Ok(Json(office.ask(worker, errand).await?))
}

async fn erase(
    State(office): Shared,
    Path((device, domain)): Path<(String, String)>,
) -> Outcome<Json<KeysInfo>> {
    let (device, worker) = office.device(Some(&device))?;
    let errand = |answer| Errand::Key(KeyErrand::Erase { device, domain, answer });
    Ok(Json(office.ask(worker, errand).await?))
}
