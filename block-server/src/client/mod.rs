//! The other end of the control socket, for the command line.

mod pools;
mod rights;
mod snapshots;
mod streams;

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use crate::api::{
    CreateVolume, DeleteVolume, DetachVolume, Problem, ResizeVolume, ServerInfo, SetHooks,
    VolumeInfo,
};

/// Why a server could not be asked, or what it said.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no vrio server listens on {0}; start one with `vrio server`, or say where its control \
         socket is"
    )]
    NoServer(PathBuf),
    /// The socket is not for this user.
    #[error("{0} may not be used by this user; run the command as the server's user")]
    NotAllowed(PathBuf),
    /// It cannot be reached for another reason.
    #[error("the server cannot be reached on {socket}: {error}; look at its log")]
    Unreachable {
        /// Where.
        socket: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It went away while it was asked, or is no vrio server.
    #[error("the server gave no answer that can be understood ({0}); look at its log")]
    NoAnswer(String),
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// A server's control socket, as its user sees it. Each call is one
/// connection and blocks until it is answered.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The server whose control socket is at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// What the server is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn server(&self) -> Result<ServerInfo, ClientError> {
        parse(&self.ask(Method::GET, "/server", Bytes::new())?)
    }

    /// All its volumes, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>, ClientError> {
        parse(&self.ask(Method::GET, "/volumes", Bytes::new())?)
    }

    /// One volume.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn volume(&self, name: &str) -> Result<VolumeInfo, ClientError> {
        parse(&self.ask(Method::GET, &volume_path(name, ""), Bytes::new())?)
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn create(&self, volume: &CreateVolume) -> Result<VolumeInfo, ClientError> {
        parse(&self.ask(Method::POST, "/volumes", body(volume)?)?)
    }

    /// Gives a volume another size.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resize(&self, name: &str, to: &ResizeVolume) -> Result<VolumeInfo, ClientError> {
        parse(&self.ask(Method::PATCH, &volume_path(name, ""), body(to)?)?)
    }

    /// Sets what stands around a volume's requests.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_hooks(&self, name: &str, to: &SetHooks) -> Result<VolumeInfo, ClientError> {
        parse(&self.ask(Method::PATCH, &volume_path(name, "/hooks"), body(to)?)?)
    }

    /// Deletes a volume.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn delete(&self, name: &str, how: &DeleteVolume) -> Result<(), ClientError> {
        self.ask(Method::DELETE, &volume_path(name, ""), body(how)?).map(|_| ())
    }

    /// Takes a volume away from a front.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn detach(&self, name: &str, how: &DetachVolume) -> Result<VolumeInfo, ClientError> {
        parse(&self.ask(Method::POST, &volume_path(name, "/detach"), body(how)?)?)
    }

    fn ask(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        let runtime = runtime.map_err(|error| self.unreachable(error))?;
        runtime.block_on(self.exchange(method, path, body))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Bytes, ClientError> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| self.unreachable(error))?;
        let no_answer = |error: hyper::Error| ClientError::NoAnswer(error.to_string());
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(no_answer)?;
        // Its outcome is the exchange's, which is looked at below.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "vrio")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::NoAnswer(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(no_answer)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(no_answer)?.to_bytes();
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }

    fn unreachable(&self, error: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoServer(socket)
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed(socket),
            _ => ClientError::Unreachable { socket, error },
        }
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => ClientError::Refused(problem.error),
        Err(_) => ClientError::NoAnswer(format!("status {status} without a reason")),
    }
}

fn volume_path(name: &str, below: &str) -> String {
    format!("/volumes/{}{below}", escape(name))
}

/// A name as a part of a path. One that needs escaping is no name; the server
/// says so.
fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn body(value: &impl Serialize) -> Result<Bytes, ClientError> {
    let json = serde_json::to_vec(value);
    json.map(Bytes::from).map_err(|error| ClientError::NoAnswer(error.to_string()))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::NoAnswer(error.to_string()))
}
