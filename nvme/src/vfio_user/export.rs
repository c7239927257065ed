//! A soft controller that other processes use: a socket, and the memory of its
//! doorbells.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_core::Memory;
use rustix::event::{PollFd, PollFlags, poll};

use super::msix::MOST_VECTORS;
use super::session::Session;
use crate::PAGE;
use crate::arena::sealed_file;
use crate::soft::{SoftController, SoftNamespace, SoftOptions};

/// A soft controller on a socket, for one driver at a time.
#[derive(Debug)]
pub struct Exported {
    soft: Arc<SoftController>,
    /// Laid out as the registers are: doorbells begin at their second page.
    doorbells: File,
    doorbell_bytes: usize,
    listener: UnixListener,
    path: PathBuf,
}

impl Exported {
    /// Makes the controller and its socket, which only this user may open. A socket
    /// that nobody serves any more is replaced.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bind(
        path: &Path,
        options: SoftOptions,
        namespaces: Vec<SoftNamespace>,
    ) -> io::Result<Self> {
        // Each queue pair can have a vector.
        let queues = options.queues.min(MOST_VECTORS - 1);
        let options = SoftOptions { queues, ..options };
        let bytes = (2 * (usize::from(options.queues) + 1) * 4).next_multiple_of(PAGE);
        let doorbells = sealed_file("vrio-doorbells", (PAGE + bytes) as u64, None)?;
        let memory = Arc::new(Memory::of_file(&doorbells, PAGE as u64, bytes)?);
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                fs::remove_file(path)?;
                UnixListener::bind(path)?
            }
            bound => bound?,
        };
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        let soft = SoftController::with_doorbells(options, namespaces, memory);
        let path = path.to_owned();
        Ok(Self { soft, doorbells, doorbell_bytes: bytes, listener, path })
    }

    /// The controller, for its switches.
    #[must_use]
    pub fn soft(&self) -> &Arc<SoftController> {
        &self.soft
    }

    /// Serves one driver after the other and does the controller's work, until
    /// `is_over`; `bell` becomes readable then. When a driver has gone, the
    /// controller is stopped and forgets its memory.
    ///
    /// # Errors
    /// The kernel's, about the listening socket. What a driver does wrong ends its
    /// own connection.
    pub fn serve(&self, is_over: &dyn Fn() -> bool, bell: BorrowedFd<'_>) -> io::Result<()> {
        while !is_over() {
            let mut sources = [
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::from_borrowed_fd(bell, PollFlags::IN),
            ];
            match poll(&mut sources, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if is_over() || !sources[0].revents().contains(PollFlags::IN) {
                continue;
            }
            let (stream, _) = self.listener.accept()?;
            tracing::info!("a driver has connected");
            let file = (self.doorbells.as_fd(), self.doorbell_bytes);
            match Session::new(&self.soft, stream, file).and_then(|session| session.run(is_over)) {
                Ok(()) => tracing::info!("the driver has gone"),
                Err(error) => tracing::warn!("the driver is disconnected: {error}"),
            }
        }
        Ok(())
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a socket's process is gone.
fn is_dead(path: &Path) -> bool {
    let outcome = UnixStream::connect(path);
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
