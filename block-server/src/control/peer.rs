//! Who may ask what on the control socket. The kernel says whose process is at
//! the other end.

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use rustix::process::{Uid, geteuid};
use tokio::net::UnixListener;
use tracing::warn;

use super::refusal::{Outcome, Refusal};

/// The user at the other end (`SO_PEERCRED`); none, if the kernel does not say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(Option<Uid>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self(credentials.map(|credentials| Uid::from_raw(credentials.uid())))
    }
}

impl Peer {
    /// Root and the server's own user may do everything.
    fn is_keeper(self) -> bool {
        self.0.is_some_and(|user| user.is_root() || user == geteuid())
    }
}

/// Lets others than the keepers look, and change nothing: the socket's mode lets
/// them come as far as here.
pub(super) async fn check(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Outcome<Response> {
    if peer.is_keeper() || request.method() == Method::GET {
        return Ok(next.run(request).await);
    }
    let (method, path) = (request.method(), request.uri().path());
    warn!(?peer, %method, path, "refused on the control socket");
    let sentence = "this user may look and change nothing; run the command as the server's user";
    Err(Refusal::new(StatusCode::FORBIDDEN, sentence))
}
