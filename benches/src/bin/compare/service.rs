//! A subject that runs: its processes, and the socket that serves its disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;

use crate::cable::Cable;
use crate::interrupt::Interrupt;
use crate::process::Process;

/// A service that is not ready after so long will not be.
const START_LIMIT: Duration = Duration::from_secs(15);

/// Where a client comes in.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// A vhost-user socket.
    Socket(PathBuf),
    /// The ring of a floor, which has a client of its own.
    Ring(PathBuf),
}

/// The processes of one subject, first to last from the disk to the client.
#[derive(Debug)]
pub(crate) struct Service {
    processes: Vec<Process>,
    door: Door,
    /// The network between them; it goes after them.
    cable: Option<Cable>,
}

impl Service {
    /// A service without processes yet, whose disk will be behind `door`.
    pub(crate) fn at(door: Door, cable: Option<Cable>) -> Self {
        Self { processes: Vec::new(), door, cable }
    }

    /// The network namespace of the server (0) or of the front (1), if they have any.
    pub(crate) fn namespace(&self, end: usize) -> Option<String> {
        self.cable.as_ref().map(|cable| cable.end(end).to_owned())
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

    pub(crate) fn door(&self) -> &Door {
        &self.door
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
