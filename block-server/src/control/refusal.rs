//! What is said about a request that did not work.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use thiserror::Error;

use crate::api::Problem;
use crate::catalog::CommitError;
use crate::errand::Failed;
use crate::store::StoreError;

/// A request that did not work.
#[derive(Debug, Error)]
#[error("{sentence}")]
pub(super) struct Refusal {
    status: StatusCode,
    sentence: String,
}

pub(super) type Outcome<T> = Result<T, Refusal>;

impl Refusal {
    pub(super) fn new(status: StatusCode, sentence: impl ToString) -> Self {
        Self { status, sentence: sentence.to_string() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, axum::Json(Problem { error: self.sentence })).into_response()
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        let status = match &failed {
            Failed::NoDevice(_) => StatusCode::NOT_FOUND,
            Failed::Limits(_) => StatusCode::BAD_REQUEST,
            Failed::Store(error) => status(error),
        };
        Self::new(status, failed)
    }
}

const fn status(error: &StoreError) -> StatusCode {
    match error {
        StoreError::Unknown(_)
        | StoreError::NotAttached { .. }
        | StoreError::NoSnapshot { .. }
        | StoreError::NoDomainNamed(_)
        | StoreError::NoWay(_)
        | StoreError::NoCheck(_) => StatusCode::NOT_FOUND,
        StoreError::BadSize(_) | StoreError::NoDomain(_) => StatusCode::BAD_REQUEST,
        StoreError::Exists(_)
        | StoreError::Attached { .. }
        | StoreError::WouldShrink { .. }
        | StoreError::NotAPool(_)
        | StoreError::IsAPool(_)
        | StoreError::Locked(_)
        | StoreError::Changing
        | StoreError::Checking(_)
        | StoreError::HasVolumes { .. }
        | StoreError::HasSnapshots { .. }
        | StoreError::SnapshotExists { .. }
        | StoreError::TwoPools { .. }
        | StoreError::WriterAway { .. }
        | StoreError::Occupied { .. }
        | StoreError::NoSecret(_)
        | StoreError::Importing(_)
        | StoreError::LostImport(_)
        | StoreError::OtherSnapshot { .. }
        | StoreError::Pool(_) => StatusCode::CONFLICT,
        StoreError::TooMany(_) | StoreError::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
        StoreError::Device(_)
        | StoreError::Commit(CommitError::Unchanged(_) | CommitError::Unknown(_)) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}
