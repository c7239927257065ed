//! One measurement: the client, its workload, and what it says.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::interrupt::Interrupt;
use crate::process::tied;
use crate::service::{Door, Service};

/// The depths compared: a guest that waits for every answer, and a busy one.
pub(crate) const DEPTHS: [u16; 2] = [1, 32];

/// From this depth on the core is busy all the time, and CPU time per request
/// says what a request costs; below, a poller's time is mostly waiting.
const SATURATING_DEPTH: u16 = 32;

/// Time for the client beyond the measurement: connecting, and giving up on a
/// device that does not answer, after 30 s.
const CLIENT_SLACK: Duration = Duration::from_secs(60);

/// One workload of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Cell {
    pub(crate) direction: Direction,
    pub(crate) depth: u16,
    /// Requests that are offered each second; as many as are taken, if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<u32>,
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    Read,
    Write,
}

/// What one measurement brought. CPU time is per request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Shot {
    pub(crate) iops: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) client_cpu_us: f64,
    pub(crate) service_cpu_us: f64,
}

/// The client: `vrio bench`, polling on a core of its own.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    pub(crate) vrio: &'a Path,
    /// The floor's.
    pub(crate) skeleton: &'a Path,
    pub(crate) cpu: usize,
    /// Bytes of the disk that are used, from its beginning.
    pub(crate) disk_bytes: u64,
    pub(crate) interrupt: &'a Interrupt,
}

impl Cell {
    pub(crate) fn title(&self) -> String {
        let Self { direction, depth, rate } = self;
        let rate = rate.map_or(String::new(), |rate| format!(", {rate} a second"));
        format!("4 KiB random {}, depth {depth}{rate}", direction.name())
    }

    pub(crate) fn saturates(&self) -> bool {
        self.depth >= SATURATING_DEPTH && self.rate.is_none()
    }
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Read, Self::Write];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Of all that is asked for: which blocks follows from it, and what is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) seed: u64,
    /// Every block that is written is another one.
    pub(crate) differs: bool,
}

impl Client<'_> {
    /// Writes the whole disk once, so that no subject reads holes, allocates
    /// memory or meets a page for the first time while it is measured.
    pub(crate) fn fill(&self, service: &Service, content: Content) -> anyhow::Result<()> {
        let Door::Socket(socket) = service.door() else {
            // A floor has touched all of its memory by itself.
            return Ok(());
        };
        let bytes = self.disk_bytes.to_string();
        let mut command = self.vrio_bench(socket, service, content);
        command.args(["--rw=write", "--bs=256k", "--depth=4", "--bytes", &bytes]);
        self.run(command, Duration::from_secs(60)).map(drop)
    }

    /// Runs `cell` on the service for so long. Equal seeds give equal offsets.
    /// The second value says what makes the figures doubtful.
    pub(crate) fn measure(
        &self,
        service: &Service,
        cell: Cell,
        content: Content,
        length: Duration,
    ) -> anyhow::Result<(Shot, Option<String>)> {
        self.run(self.command(service, cell, content, length), length)?.into_shot()
    }

    /// The client that does so.
    pub(crate) fn command(
        &self,
        service: &Service,
        cell: Cell,
        content: Content,
        length: Duration,
    ) -> Command {
        let seconds = format!("--seconds={}", length.as_secs_f64());
        let depth = format!("--depth={}", cell.depth);
        let mut command = match service.door() {
            Door::Socket(socket) => {
                let writes = cell.direction == Direction::Write;
                let content = Content { differs: content.differs && writes, ..content };
                let mut command = self.vrio_bench(socket, service, content);
                command.arg(format!("--rw=rand{}", cell.direction.name())).arg("--bs=4k");
                command.args(cell.rate.map(|rate| format!("--rate={rate}")));
                command
            }
            Door::Ring(ring) => {
                let mut command = tied(self.skeleton.as_os_str());
                command.arg("bench").arg(ring).arg(format!("--blocks={}", self.disk_bytes / 4096));
                command.args((cell.direction == Direction::Write).then_some("--write"));
                command.arg(format!("--seed={}", content.seed));
                command.arg(format!("--pin={}", self.cpu));
                command.args(service.pids().map(|pid| format!("--pid={pid}")));
                command
            }
        };
        command.args([depth, seconds]);
        command
    }

    fn vrio_bench(&self, socket: &Path, service: &Service, content: Content) -> Command {
        let mut command = tied(self.vrio.as_os_str());
        command.arg("bench").arg(socket).args(["--json", "--overwrite", "--wait=poll"]);
        command.arg(format!("--pin={}", self.cpu)).arg(format!("--size={}", self.disk_bytes));
        command.arg(format!("--seed={}", content.seed));
        command.args(content.differs.then_some("--verify"));
        command.args(service.pids().map(|pid| format!("--pid=service={pid}")));
        command
    }

    fn run(&self, mut command: Command, length: Duration) -> anyhow::Result<Said> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run setpriv (Debian: util-linux)")?;
        // A report is a few KiB: a pipe holds it while we wait.
        let waited = self.interrupt.wait_until(length + CLIENT_SLACK, || {
            Ok(child.try_wait().context("cannot ask for the client's state")?.is_some())
        });
        if !matches!(waited, Ok(true)) {
            // Fails only for a client that has ended by itself.
            let _ = child.kill();
        }
        let status = child.wait().context("cannot wait for the client")?;
        if !waited? {
            bail!("the client did not end in time: the service hangs");
        }
        let (mut out, mut complaint) = (String::new(), String::new());
        if let (Some(stdout), Some(stderr)) = (&mut child.stdout, &mut child.stderr) {
            stdout.read_to_string(&mut out).context("cannot read the client's report")?;
            stderr.read_to_string(&mut complaint).context("cannot read the client's report")?;
        }
        if !status.success() {
            bail!("the client failed: {}", complaint.trim());
        }
        serde_json::from_str(&out).context("`vrio bench` of another version? Its report is strange")
    }
}

/// What we want of the client's report.
#[derive(Debug, Deserialize)]
struct Said {
    iops: f64,
    kinds: Vec<SaidKind>,
    /// The client first, then the processes of the service.
    cpu: Vec<SaidCpu>,
    notes: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct SaidKind {
    latency_ns: SaidLatency,
}

#[derive(Debug, Deserialize)]
struct SaidLatency {
    p50: u64,
    p99: u64,
}

#[derive(Debug, Deserialize)]
struct SaidCpu {
    /// CPU seconds per million requests are microseconds per request.
    seconds_per_million_ios: f64,
}

impl Said {
    fn into_shot(self) -> anyhow::Result<(Shot, Option<String>)> {
        let ([kind], [client, service @ ..]) = (&self.kinds[..], &self.cpu[..]) else {
            bail!("`vrio bench` reports no request of the one kind that it was to send");
        };
        let shot = Shot {
            iops: self.iops,
            p50_us: kind.latency_ns.p50 as f64 / 1e3,
            p99_us: kind.latency_ns.p99 as f64 / 1e3,
            client_cpu_us: client.seconds_per_million_ios,
            service_cpu_us: service.iter().map(|process| process.seconds_per_million_ios).sum(),
        };
        let mut doubts = String::new();
        for note in &self.notes {
            let between = if doubts.is_empty() { "" } else { "; " };
            // Writing to a String cannot fail.
            let _ = write!(doubts, "{between}{note}");
        }
        Ok((shot, (!doubts.is_empty()).then_some(doubts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(kinds: &str, notes: &str) -> Said {
        let text = format!(
            r#"{{"iops": 500.0, "ios": 1500, "kinds": [{kinds}], "notes": [{notes}], "cpu": [
                {{"name": "vrio bench", "seconds_per_million_ios": 2.0}},
                {{"name": "service", "seconds_per_million_ios": 3.0}},
                {{"name": "service", "seconds_per_million_ios": 4.5}}]}}"#
        );
        serde_json::from_str(&text).expect("a report")
    }

    const KIND: &str = r#"{"kind": "read", "latency_ns": {"p50": 9500, "p99": 20100, "max": 7}}"#;

    #[test]
    fn the_service_is_charged_for_all_its_processes() {
        let (shot, doubts) = said(KIND, "").into_shot().expect("one kind");
        let expected = Shot {
            iops: 500.0,
            p50_us: 9.5,
            p99_us: 20.1,
            client_cpu_us: 2.0,
            service_cpu_us: 7.5,
        };
        assert_eq!((shot, doubts), (expected, None));
    }

    #[test]
    fn what_the_client_notes_makes_its_figures_doubtful() {
        let (_, doubts) = said(KIND, r#""starved", "a process ended""#).into_shot().expect("one");
        assert_eq!(doubts.as_deref(), Some("starved; a process ended"));
    }

    #[test]
    fn a_run_without_a_request_is_no_figure() {
        assert!(said("", "").into_shot().is_err());
    }
}
