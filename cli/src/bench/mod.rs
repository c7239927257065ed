//! `vrio bench`: a guest stand-in without a virtual machine.
//!
//! It drives any vhost-user block device as a guest's driver would, measures,
//! and on request verifies every block. A run goes through the modules in this
//! order: `args`, `plan` (what was asked, and does it fit the device),
//! `workload` (what to request), `run` (the loop) between `driver` (the device)
//! and `ledger` with `pattern` (what blocks must hold), `tally`, `report`.

mod args;
mod bytes;
mod cpu;
pub(crate) mod driver;
mod ledger;
pub(crate) mod pace;
mod pattern;
mod plan;
pub(crate) mod progress;
mod random;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod schedule;
mod sys;
pub(crate) mod tally;
pub(crate) mod workload;

pub(crate) use args::BenchArgs;

use std::sync::mpsc;
use std::thread;

use anyhow::{Context, anyhow, bail};
use rustix::thread::{CpuSet, sched_setaffinity};

use cpu::{Sample, Watched};
use driver::{Device, Rings};
use pace::{Check, Gauge, Limits, Pace};
use plan::{Fitted, Plan};
use report::{Outcome, Report};
use run::{Loop, Source};
use tally::Tally;
use workload::Workload;

/// Runs the bench and prints its report.
///
/// # Errors
/// A sentence, when the run could not begin, the device went away, a request
/// failed, or a block did not hold what was written to it.
pub(crate) fn run(args: BenchArgs) -> anyhow::Result<()> {
    let plan = Plan::new(args)?;
    for watched in &plan.watched {
        Sample::take(watched)?;
    }
    if let Some(cpu) = plan.pin {
        pin(cpu)?;
    }
    let device = Device::connect(&plan.socket, plan.wishes)?;
    let fitted = plan.fit(device.facts())?;
    let pulse = device.pulse();
    let rings = device.start(
        plan.queues,
        plan.depth,
        fitted.slot_len,
        fitted.segment,
        plan.is_sleeping(),
    )?;

    let gauge = Gauge::default();
    let outcome = thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        let (plan, fitted, gauge) = (&plan, &fitted, &gauge);
        let worker = scope.spawn(move || {
            let outcome = measure(plan, fitted, rings, gauge);
            drop(running);
            outcome
        });
        progress::watch(gauge, plan.pace.limits, &pulse, &ended);
        worker.join().unwrap_or_else(|_| Err(anyhow!("the measuring thread broke down")))
    })?;

    let report = Report::new(&plan, &fitted, &outcome);
    if plan.json {
        println!("{}", serde_json::to_string_pretty(&report).context("cannot print JSON")?);
    } else {
        print!("{}", report.text());
    }
    match report.complaint() {
        Some(complaint) => bail!(complaint),
        None => Ok(()),
    }
}

/// The measured run, then what belongs to it and is not measured: one flush,
/// and with verification the reading back of every written block.
fn measure(plan: &Plan, fitted: &Fitted, rings: Rings, gauge: &Gauge) -> anyhow::Result<Outcome> {
    let Fitted { region, shape, slot_len, .. } = fitted;
    let mut work = Loop::new(rings, plan.queues, plan.depth, *region, shape.grains, gauge);
    work.fill_buffers(*slot_len);
    let (mut measured, mut after) = (Tally::new(), Tally::new());

    let own = Watched { name: "vrio bench".into(), pid: std::process::id() };
    let watched: Vec<&Watched> = std::iter::once(&own).chain(&plan.watched).collect();
    let before: Vec<Sample> =
        watched.iter().map(|watched| Sample::take(watched)).collect::<anyhow::Result<_>>()?;
    let source = Source::Workload(Workload::new(shape.clone()));
    let elapsed = work.run(source, &plan.pace, &mut measured)?;
    let used = |(watched, before): (&&Watched, &Sample)| {
        let now = Sample::take(watched).ok();
        ((*watched).clone(), now.map(|now| now.since(before)))
    };
    let cpu = watched.iter().zip(&before).map(used).collect();

    if fitted.final_flush {
        work.flush(&plan.pace, &mut after)?;
    }
    let known_grains = work.known_grains();
    if region.check == Check::OwnWrites {
        gauge.reading_back.store(true, std::sync::atomic::Ordering::Relaxed);
        let most = *slot_len as u32 / region.grain;
        let pace =
            Pace { limits: Limits::default(), rate: None, flush_every: None, ..plan.pace.clone() };
        work.run(Source::ReadBack { from: 0, most }, &pace, &mut after)?;
    }
    Ok(Outcome { elapsed, measured, after, known_grains, cpu })
}

fn pin(cpu: usize) -> anyhow::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        bail!("--pin {cpu} is above the largest CPU number, {}", CpuSet::MAX_CPU - 1);
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus)
        .with_context(|| format!("this machine has no CPU {cpu} that --pin could use"))
}
