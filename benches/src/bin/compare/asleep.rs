//! How soon a subject sleeps when load ends.

use std::fmt;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::service::Service;
use crate::statistics::median;
use crate::subject::Subject;
use crate::workload::{Cell, Client, Content};

/// Times that load ends.
const ENDS: u64 = 5;

/// How long there is load before.
const LOAD: Duration = Duration::from_millis(400);

/// A client that has not begun after so long will not.
const PATIENCE: Duration = Duration::from_secs(10);

/// A subject that has not run for so long sleeps.
const SILENCE: Duration = Duration::from_millis(50);

/// A subject that runs for so long after the load does not sleep at all.
const NEVER: Duration = Duration::from_millis(500);

/// How often it is looked at.
const LOOK: Duration = Duration::from_micros(200);

/// What was seen of a subject.
#[derive(Debug, Serialize)]
pub(crate) struct Asleep {
    subject: &'static str,
    /// From the end of the load until the last of its threads went to sleep.
    ms: Vec<f64>,
}

impl fmt::Display for Asleep {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let most = self.ms.iter().copied().fold(0.0, f64::max);
        let middle = median(self.ms.iter().copied()).unwrap_or(0.0);
        let verdict = if most <= 10.0 { "reached" } else { "MISSED" };
        write!(
            out,
            "{}: asleep {middle:.1} ms after load ends, {most:.1} at most of {}; at most 10 {verdict}",
            self.subject,
            self.ms.len()
        )
    }
}

/// Ends the load a few times; none for subjects that are not meant to sleep.
pub(crate) fn watch(
    subject: Subject,
    service: &mut Service,
    client: &Client<'_>,
    cell: Cell,
) -> anyhow::Result<Option<Asleep>> {
    if !matches!(subject, Subject::LocalAdaptive | Subject::VrioAdaptive) {
        return Ok(None);
    }
    service.thaw();
    let ends = (0..ENDS).map(|seed| {
        client.interrupt.check()?;
        let slept = end_of_load(service, client, cell, seed);
        service.check_alive()?;
        slept
    });
    let ms = ends.collect::<anyhow::Result<Vec<f64>>>()?;
    service.freeze();
    Ok(Some(Asleep { subject: subject.name(), ms }))
}

/// Stops a client in the middle of its work, which it does not take leave of: the guest
/// is there and asks for nothing.
fn end_of_load(
    service: &Service,
    client: &Client<'_>,
    cell: Cell,
    seed: u64,
) -> anyhow::Result<f64> {
    let before = usage(service);
    let content = Content { seed, differs: false };
    let mut command = client.command(service, cell, content, Duration::from_secs(60));
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run setpriv (Debian: util-linux)")?;
    // One that was not asked for anything would seem to be the quickest.
    let begun = client.interrupt.wait_until(PATIENCE, || Ok(usage(service) > before));
    std::thread::sleep(LOAD);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let stopped = pid
        .context("a process has a number")
        .and_then(|pid| kill_process(pid, Signal::STOP).context("the client has ended too early"));
    let slept = stopped.map(|()| last_run(service));
    // Fails only for a client that has ended by itself.
    let _ = child.kill();
    child.wait().context("cannot wait for the client")?;
    ensure!(begun?, "the client has not asked for anything in {PATIENCE:?}");
    slept.map(|slept| slept.as_secs_f64() * 1e3)
}

/// From now until the service ran last.
fn last_run(service: &Service) -> Duration {
    let start = Instant::now();
    let mut last = Duration::ZERO;
    let mut used = usage(service);
    while start.elapsed() < NEVER && start.elapsed() - last < SILENCE {
        std::thread::sleep(LOOK);
        let now = usage(service);
        if now != used {
            (used, last) = (now, start.elapsed());
        }
    }
    last
}

/// What all threads have used, in nanoseconds. The kernel brings it up to date when one
/// of them goes to sleep.
fn usage(service: &Service) -> u64 {
    let tasks = service.pids().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok());
    let nanos = tasks.flatten().flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    nanos.sum()
}
