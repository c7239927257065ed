//! The report: medians and ratios of the rounds, as JSON or for the table.

use std::fs;

use serde::Serialize;

use crate::asleep::Asleep;
use crate::options::Options;
use crate::round::Rounds;
use crate::statistics::{median, median_ratio};
use crate::subject::Subject;
use crate::workload::{Cell, Shot};

/// All that was found; field names carry the units.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) rounds_wanted: u32,
    pub(crate) disk_bytes: u64,
    pub(crate) client_cpu: usize,
    pub(crate) subject_cpu: usize,
    /// Subjects that could not run, in sentences.
    pub(crate) skipped: Vec<String>,
    pub(crate) cells: Vec<CellReport>,
    /// How soon it sleeps, where that was asked.
    pub(crate) asleep: Vec<Asleep>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

/// One workload.
#[derive(Debug, Serialize)]
pub(crate) struct CellReport {
    #[serde(flatten)]
    pub(crate) cell: Cell,
    pub(crate) rounds_kept: usize,
    pub(crate) rounds_dropped: u32,
    /// Of the rounds kept, those in which the machine was busy.
    pub(crate) rounds_disturbed: u32,
    pub(crate) rows: Vec<Row>,
}

/// One subject under one workload.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) subject: &'static str,
    /// Of each figure by itself; absent when no round counts.
    pub(crate) median: Option<Shot>,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) rounds: Vec<Shot>,
}

/// Figures in relation to those of another subject, the medians of the rounds' ratios.
#[derive(Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) to: &'static str,
    pub(crate) iops: Option<f64>,
    pub(crate) p50: Option<f64>,
}

impl Report {
    pub(crate) fn new(options: &Options, skipped: Vec<String>) -> Self {
        Self {
            machine: Machine::this(),
            seconds: options.seconds(),
            rounds_wanted: options.rounds(),
            disk_bytes: options.disk_bytes(),
            client_cpu: options.client_cpu,
            subject_cpu: options.subject_cpu,
            skipped,
            cells: Vec::new(),
            asleep: Vec::new(),
        }
    }

    /// Adds a workload's rounds, whose shots are in the order of `subjects`.
    pub(crate) fn add(
        &mut self,
        cell: Cell,
        subjects: &[Subject],
        baselines: &[Subject],
        rounds: Rounds,
    ) {
        let row = |(place, subject): (usize, &Subject)| {
            Row::new(*subject, place, subjects, baselines, &rounds)
        };
        self.cells.push(CellReport {
            cell,
            rounds_kept: rounds.kept.len(),
            rounds_dropped: rounds.dropped,
            rounds_disturbed: rounds.disturbed,
            rows: subjects.iter().enumerate().map(row).collect(),
        });
    }

    /// Whether every workload has all its rounds.
    pub(crate) fn is_complete(&self) -> bool {
        self.cells.iter().all(|cell| cell.rounds_kept >= self.rounds_wanted as usize)
    }
}

impl Row {
    fn new(
        subject: Subject,
        place: usize,
        subjects: &[Subject],
        baselines: &[Subject],
        rounds: &Rounds,
    ) -> Self {
        let shots: Vec<Shot> = rounds.kept.iter().map(|round| round[place]).collect();
        let ratio = |base: Subject| {
            let base_place = subjects.iter().position(|&other| other == base)?;
            let of = |figure: fn(&Shot) -> f64| {
                let pair = |round: &Vec<Shot>| (figure(&round[place]), figure(&round[base_place]));
                median_ratio(rounds.kept.iter().map(pair))
            };
            let (iops, p50) = (of(|shot| shot.iops), of(|shot| shot.p50_us));
            Some(Ratio { to: base.name(), iops, p50 })
        };
        Self {
            subject: subject.name(),
            median: median_shot(&shots),
            ratios: baselines.iter().copied().filter_map(ratio).collect(),
            rounds: shots,
        }
    }
}

fn median_shot(shots: &[Shot]) -> Option<Shot> {
    let of = |figure: fn(&Shot) -> f64| median(shots.iter().map(figure));
    Some(Shot {
        iops: of(|shot| shot.iops)?,
        p50_us: of(|shot| shot.p50_us)?,
        p99_us: of(|shot| shot.p99_us)?,
        client_cpu_us: of(|shot| shot.client_cpu_us)?,
        service_cpu_us: of(|shot| shot.service_cpu_us)?,
    })
}

impl Machine {
    fn this() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            processor: model.map_or("an unnamed processor", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel
                .map_or("of an unknown version".to_owned(), |name| name.trim().to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Direction;

    fn shot(iops: f64) -> Shot {
        let us = 1e6 / iops;
        Shot { iops, p50_us: us, p99_us: 2.0 * us, client_cpu_us: us, service_cpu_us: us }
    }

    #[test]
    fn rows_take_their_own_shots_and_name_what_they_are_set_against() {
        let subjects = [Subject::QemuNbd, Subject::Qsd];
        let kept = [(50.0, 100.0), (30.0, 120.0), (60.0, 200.0)];
        let rounds = Rounds {
            kept: kept.map(|(chain, local)| vec![shot(chain), shot(local)]).to_vec(),
            dropped: 1,
            disturbed: 0,
        };
        let mut report = Report {
            machine: Machine::this(),
            seconds: 3.0,
            rounds_wanted: 3,
            disk_bytes: 1,
            client_cpu: 0,
            subject_cpu: 1,
            skipped: Vec::new(),
            cells: Vec::new(),
            asleep: Vec::new(),
        };
        let baselines = [Subject::Qsd, Subject::Nbdkit];
        let cell = Cell { direction: Direction::Read, depth: 1, rate: None };
        report.add(cell, &subjects, &baselines, rounds);
        let [chain, local] = &report.cells[0].rows[..] else { panic!("two rows") };
        assert_eq!(chain.median.map(|shot| shot.iops), Some(50.0));
        assert_eq!(local.median.map(|shot| shot.iops), Some(120.0));
        assert!(report.is_complete());
        // nbdkit did not run: there is no column for it.
        let [ratio] = &chain.ratios[..] else { panic!("one ratio") };
        assert_eq!((ratio.to, ratio.iops), ("qsd", Some(0.3)));
        assert_eq!(ratio.p50.map(|times| (times * 100.0).round()), Some(333.0));

        let cell = Cell { direction: Direction::Write, ..cell };
        report.add(cell, &subjects, &baselines, Rounds::default());
        assert!(!report.is_complete());
        assert_eq!(report.cells[1].rows[0].median, None);
    }
}
