//! Metrics, over the control socket, and over TCP to whoever can reach the address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tracing::{info, warn};

use super::refusal::{Outcome, Refusal};
use super::{ControlError, Office, Shared, no_such_method};
use crate::metrics;

/// Connections at a time over TCP; others wait.
const MOST_CONNECTIONS: usize = 16;

/// How long a connection over TCP may take for its one request.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long nobody is accepted when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) fn routes() -> Router<Arc<Office>> {
    Router::new().route("/metrics", get(show))
}

async fn show(State(office): Shared) -> Outcome<Response> {
    Ok(page_of(office.metrics().await?))
}

fn page_of(text: String) -> Response {
    ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

impl Office {
    async fn metrics(&self) -> Outcome<String> {
        let state = metrics::State {
            server: self.server().await?,
            volumes: self.volumes().await?,
            pools: self.pools().await?,
        };
        state.page().map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error))
    }
}

/// What is shown over TCP, which is made once a second at most: however many ask, the
/// workers are asked no more often.
struct Board {
    office: Arc<Office>,
    /// When it was made, and the text.
    last: Mutex<Option<(u64, String)>>,
}

async fn show_board(State(board): State<Arc<Board>>) -> Outcome<Response> {
    let mut last = board.last.lock().await;
    let now = (board.office.wall)();
    let text = match last.take().filter(|(second, _)| *second == now) {
        Some((_, text)) => text,
        None => board.office.metrics().await?,
    };
    *last = Some((now, text.clone()));
    Ok(page_of(text))
}

async fn nothing_else() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "there is /metrics here, and nothing else")
}

/// Binds the address: whoever connects waits until it is served.
pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, ControlError> {
    let failed = |error| ControlError::Metrics { address, error };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = TcpListener::from_std(listener).map_err(failed)?;
    info!(address = %listener.local_addr().map_err(failed)?, "metrics ready");
    Ok(listener)
}

/// Serves metrics to whoever connects, for ever; without a listener it only waits.
pub(super) async fn serve(listener: Option<TcpListener>, office: Arc<Office>) {
    let Some(listener) = listener else { return std::future::pending().await };
    let board = Arc::new(Board { office, last: Mutex::default() });
    let router = Router::new()
        .route("/metrics", get(show_board))
        .fallback(nothing_else)
        .method_not_allowed_fallback(no_such_method)
        .with_state(board);
    let seats = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("nobody can be accepted for metrics: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        let mut http = http1::Builder::new();
        let connection = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // Who says nothing, or nonsense, is not answered.
            let _ = tokio::time::timeout(PATIENCE, connection).await;
            drop(seat);
        });
    }
}
