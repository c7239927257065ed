//! `compare`: IOPS, latency and CPU time of block services, side by side.
//!
//! Run as `make compare`. One core polls as a guest would, the other has all of
//! the service; see `--help` for the method.

mod asleep;
mod cable;
mod cpu;
mod floor;
mod goals;
mod interrupt;
mod options;
mod ours;
mod peer;
mod process;
mod report;
mod round;
mod service;
mod statistics;
mod subject;
mod table;
mod workload;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use tempfile::TempDir;

use crate::interrupt::Interrupt;
use crate::options::{Options, Question};
use crate::report::Report;
use crate::round::{Policy, Taken};
use crate::service::Service;
use crate::subject::{Site, Subject};
use crate::table::Table;
use crate::workload::{Cell, Client, Content};

/// A subject that was frozen finds its caches, and its pace, in this time.
const WARM_UP: Duration = Duration::from_millis(250);

/// What disks are filled from; rounds have lower seeds.
const FIRST_SEED: u64 = 1 << 32;

/// Seeds of a workload; half of them are for warming up.
const SEEDS: u64 = 1 << 16;

/// Cores that others may use in a measurement that counts.
const QUIET: f64 = 0.3;

/// How long to wait, before a measurement, for a busy machine to become quiet.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a machine must have been quiet to be called so.
const GLANCE: Duration = Duration::from_millis(250);

fn main() -> ExitCode {
    match compare(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> anyhow::Result<()> {
    options.check()?;
    let vrio = options.vrio_binary()?;
    let interrupt = Interrupt::listen()?;
    let (subjects, skipped) = runnable(&options.distinct_subjects())?;
    let room: u64 = subjects.iter().map(|subject| subject.room()).sum();
    check_room(&options.dir, room * options.disk_bytes())?;
    let stage = stage(&options.dir)?;
    let skeleton = options.skeleton_binary()?;
    let client = Client {
        vrio: &vrio,
        skeleton: &skeleton,
        cpu: options.client_cpu,
        disk_bytes: options.disk_bytes(),
        interrupt: &interrupt,
    };
    let mut services = set_up(&subjects, stage.path(), options.subject_cpu, &client)?;

    let mut report = Report::new(options, skipped);
    let policy = Policy { wanted: options.rounds(), keep_disturbed: options.keep_disturbed() };
    for (number, cell) in (0_u64..).zip(options.cells()) {
        eprintln!("{}", cell.title());
        let rounds = policy.run(subjects.len(), |place, round| {
            if !options.keep_disturbed() {
                await_quiet(&interrupt)?;
            }
            let differs = subjects[place].stores_once();
            let content = Content { seed: SEEDS * number + round, differs };
            let taken = shoot(&client, &mut services[place], cell, content, options.seconds())
                .with_context(|| format!("{}: {}", subjects[place].name(), cell.title()))?;
            tell(subjects[place], round, &taken);
            Ok(taken)
        })?;
        report.add(cell, &subjects, options.baselines(), rounds);
    }
    if options.question == Question::Idle {
        for (subject, service) in subjects.iter().zip(&mut services) {
            let cell = options.cells()[0];
            report.asleep.extend(asleep::watch(*subject, service, &client, cell)?);
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).context("cannot write JSON")?);
    } else {
        print!("{}", Table(&report));
    }
    if !report.is_complete() {
        bail!(
            "the machine was too busy for {} rounds of each workload; run this again when it is \
             quiet, or take what there is with --keep-disturbed",
            options.rounds()
        );
    }
    Ok(())
}

/// The subjects that this machine can run, and sentences about the others.
fn runnable(asked: &[Subject]) -> anyhow::Result<(Vec<Subject>, Vec<String>)> {
    let (mut subjects, mut skipped) = (Vec::new(), Vec::new());
    for &subject in asked {
        let Some(obstacle) = subject.obstacle() else {
            subjects.push(subject);
            continue;
        };
        let sentence = format!("{}: {obstacle}", subject.name());
        eprintln!("SKIPPED {sentence}");
        skipped.push(sentence);
    }
    if subjects.is_empty() {
        bail!("nothing is left to measure");
    }
    Ok((subjects, skipped))
}

fn check_room(dir: &Path, needed: u64) -> anyhow::Result<()> {
    let room =
        rustix::fs::statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    let free = room.f_bavail * room.f_frsize;
    if free < needed {
        bail!(
            "{} has {} MiB free, and the disks need {}; name another folder with --dir, or \
             fewer subjects with --subjects",
            dir.display(),
            free >> 20,
            needed >> 20
        );
    }
    Ok(())
}

/// A folder for everything, removed when dropped.
fn stage(dir: &Path) -> anyhow::Result<TempDir> {
    let made = tempfile::Builder::new().prefix("vrio-compare-").tempdir_in(dir);
    made.with_context(|| format!("cannot make a folder in {}", dir.display()))
}

/// Starts and fills every subject, and leaves it frozen.
fn set_up(
    subjects: &[Subject],
    stage: &Path,
    cpu: usize,
    client: &Client<'_>,
) -> anyhow::Result<Vec<Service>> {
    let mut services = Vec::new();
    for subject in subjects {
        eprintln!("starting {}", subject.name());
        let folder = stage.join(format!("{subject:?}"));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (vrio, skeleton) = (client.vrio.to_owned(), client.skeleton.to_owned());
        let site = Site { vrio, skeleton, folder, cpu, disk_bytes: client.disk_bytes };
        let mut service = subject.start(&site, client.interrupt).context(subject.name())?;
        let content = Content { seed: FIRST_SEED, differs: subject.stores_once() };
        let filled = client.fill(&service, content);
        // Its last words say more than the client's complaint.
        service.check_alive().and(filled).context(subject.name())?;
        service.freeze();
        services.push(service);
    }
    Ok(services)
}

/// Waits a while for the machine to become quiet. All subjects are frozen now,
/// so whatever runs is someone else; a measurement will tell if it goes on.
fn await_quiet(interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut earlier = cpu::Sample::take([].into_iter())?;
    interrupt.wait_until(PATIENCE, || {
        std::thread::sleep(GLANCE);
        let now = cpu::Sample::take([].into_iter())?;
        let busy = now.others_since(&earlier);
        earlier = now;
        Ok(busy <= QUIET)
    })?;
    Ok(())
}

/// Measures one subject once, alone on the machine as far as we can tell.
fn shoot(
    client: &Client<'_>,
    service: &mut Service,
    cell: Cell,
    content: Content,
    seconds: f64,
) -> anyhow::Result<Taken> {
    service.thaw();
    // Other blocks: what is written twice a pool stores once.
    let warm = Content { seed: content.seed + SEEDS / 2, ..content };
    client.measure(service, cell, warm, WARM_UP)?;
    let before = cpu::Sample::take(service.pids())?;
    let measured = client.measure(service, cell, content, Duration::from_secs_f64(seconds));
    let others = cpu::Sample::take(service.pids())?.others_since(&before);
    let (shot, doubts) = service.check_alive().and(measured)?;
    service.freeze();
    let busy = (others > QUIET).then(|| format!("others used {others:.2} of a core"));
    Ok(Taken { shot, disturbed: busy.or(doubts) })
}

fn tell(subject: Subject, seed: u64, taken: &Taken) {
    let (name, iops, p50) = (subject.name(), taken.shot.iops, taken.shot.p50_us);
    let doubt = taken.disturbed.as_ref().map(|why| format!("  DISTURBED: {why}"));
    eprintln!(
        "  round {seed}: {name:<18} {iops:>9.0} IOPS, p50 {p50:.1} us{}",
        doubt.unwrap_or_default()
    );
}
