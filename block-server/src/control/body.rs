//! What comes in a request, parsed.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use link::{FrontId, VolumeName};
use serde::de::DeserializeOwned;

use super::refusal::{Outcome, Refusal};
use crate::size::Size;
use interpose::vault::MAX_NAME_BYTES as MAX_KEY_NAME_BYTES;

/// Most bytes of a request's body.
pub(super) const BODY_BYTES: usize = 64 * 1024;

/// A request's body, if it arrived.
pub(super) type Body = Result<Bytes, BytesRejection>;

/// A body, whatever it calls itself. None at all is an empty object.
pub(super) fn parse_body<T: DeserializeOwned>(body: Body) -> Outcome<T> {
    let body = body.map_err(|rejected| match rejected.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let most = Size(BODY_BYTES as u64);
            let sentence = format!("the request's body has at most {most} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
        }
        status => Refusal::new(status, "the request's body did not arrive as a whole"),
    })?;
    let body = if body.is_empty() { b"{}" } else { &body[..] };
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the request's body is wrong: {error}"))
    })
}

pub(super) fn parse_name(name: &str) -> Outcome<VolumeName> {
    VolumeName::new(name).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))
}

pub(super) fn parse_front(text: &str) -> Outcome<FrontId> {
    let id = uuid::Uuid::parse_str(text).map(|id| FrontId(id.into_bytes()));
    id.map_err(|_| {
        let sentence = format!("'{}' is not a front's identity (a UUID)", text.escape_debug());
        Refusal::new(StatusCode::BAD_REQUEST, sentence)
    })
}

/// A snapshot is called as a volume could be.
pub(super) fn parse_snapshot(name: &str) -> Outcome<VolumeName> {
    VolumeName::new(name).map_err(|_| {
        let sentence = format!(
            "'{}' is not a snapshot's name: it has 1 to 63 letters, digits, '.', '_' or '-', and \
             begins with a letter or digit",
            name.escape_debug()
        );
        Refusal::new(StatusCode::BAD_REQUEST, sentence)
    })
}

/// The name of a domain, or of a way to unlock a pool.
pub(super) fn parse_domain(name: String) -> Outcome<String> {
    let fits = name.len() <= MAX_KEY_NAME_BYTES && VolumeName::new(&name).is_ok();
    if fits {
        return Ok(name);
    }
    let sentence = format!(
        "'{}' is not a name for keys: it has 1 to {MAX_KEY_NAME_BYTES} letters, digits, '.', '_' or \
         '-', and begins with a letter or digit",
        name.escape_debug()
    );
    Err(Refusal::new(StatusCode::BAD_REQUEST, sentence))
}
