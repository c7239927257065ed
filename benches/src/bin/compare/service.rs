//! A subject that runs: its processes, and the socket that serves its disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use crate::interrupt::Interrupt;
use crate::process::Process;

/// A service that is not ready after so long will not be.
const START_LIMIT: Duration = Duration::from_secs(15);

/// The processes of one subject, first to last from the disk to the client.
#[derive(Debug)]
pub(crate) struct Service {
    processes: Vec<Process>,
    socket: PathBuf,
}

impl Service {
    /// A service without processes yet, whose disk will be at `socket`.
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { processes: Vec::new(), socket }
    }

    /// Adds a process and waits until it has made the file `sign`.
    pub(crate) fn add(
        &mut self,
        process: Process,
        sign: &Path,
        interrupt: &Interrupt,
    ) -> anyhow::Result<()> {
        // Owned first: whatever happens now, it ends with the service.
        self.processes.push(process);
        let ready = interrupt.wait_until(START_LIMIT, || {
            self.check_alive()?;
            Ok(sign.exists())
        })?;
        if ready {
            return Ok(());
        }
        let Some(process) = self.processes.last() else { return Ok(()) };
        bail!(
            "{} made no {} in {START_LIMIT:?}; it said:\n{}",
            process.program(),
            sign.display(),
            process.last_words()
        )
    }

    /// The vhost-user socket of the disk.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(Process::pid)
    }

    /// Fails when one of the processes has ended.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        self.processes.iter_mut().try_for_each(Process::check_alive)
    }

    pub(crate) fn freeze(&self) {
        self.processes.iter().for_each(Process::freeze);
    }

    pub(crate) fn thaw(&self) {
        self.processes.iter().for_each(Process::thaw);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // An end that says goodbye needs the other one awake, and there.
        self.thaw();
        while let Some(last) = self.processes.pop() {
            drop(last);
        }
    }
}
