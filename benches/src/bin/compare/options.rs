//! The command line.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::subject::Subject;
use crate::workload::{Cell, DEPTHS, Direction};

/// Compare remote block services as a guest sees them, on two cores.
///
/// A polling vhost-user-blk client has one core, everything of the service it
/// talks to the other. All services hold the same file size and get the same
/// offsets, one after the other in every round. A round in which anything else
/// used more than 0.3 of a core is dropped and repeated.
#[derive(clap::Parser, Debug)]
#[command(name = "compare", version)]
pub(crate) struct Options {
    /// Rounds that count, for each workload
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,

    /// Length of one measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    pub(crate) seconds: f64,

    /// What to measure, in this order
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Subject::DEFAULT)]
    pub(crate) subjects: Vec<Subject>,

    /// Measure at this depth alone, not at 1 and 32
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=341))]
    pub(crate) only_depth: Option<u16>,

    /// Where the disks' files are made, 1 GiB for each subject; tmpfs, unless
    /// the question is about a disk
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    pub(crate) dir: PathBuf,

    /// The core of the client
    #[arg(long, value_name = "CPU", default_value_t = 0)]
    pub(crate) client_cpu: usize,

    /// The core of everything that is measured
    #[arg(long, value_name = "CPU", default_value_t = 1)]
    pub(crate) subject_cpu: usize,

    /// The vrio binary [default: beside this one]
    #[arg(long, value_name = "FILE")]
    pub(crate) vrio: Option<PathBuf>,

    /// Count disturbed rounds too: figures of a busy machine, for a first look
    #[arg(long)]
    pub(crate) keep_disturbed: bool,

    /// Print the report as JSON, with every round
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    /// Refuses what would be found out only minutes later.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if !(self.seconds >= 0.1 && self.seconds <= 3600.0) {
            bail!("--seconds {} is not between 0.1 and 3600", self.seconds);
        }
        if self.client_cpu == self.subject_cpu {
            bail!(
                "client and subject would share core {}: two pollers on one core measure the \
                 scheduler; name two cores with --client-cpu and --subject-cpu",
                self.client_cpu
            );
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if cpus < 2 {
            bail!("this comparison needs two cores, and this process may use one");
        }
        if !self.dir.is_dir() {
            bail!("--dir {} is not a folder", self.dir.display());
        }
        Ok(())
    }

    /// The workloads to measure, in the order of the report.
    pub(crate) fn cells(&self) -> Vec<Cell> {
        let depths = self.only_depth.map_or(DEPTHS.to_vec(), |depth| vec![depth]);
        let at = |depth| Direction::BOTH.map(|direction| Cell { direction, depth });
        depths.into_iter().flat_map(at).collect()
    }

    /// The subjects asked for, each once.
    pub(crate) fn distinct_subjects(&self) -> Vec<Subject> {
        let mut distinct = Vec::new();
        for &subject in &self.subjects {
            if !distinct.contains(&subject) {
                distinct.push(subject);
            }
        }
        distinct
    }

    /// The binary that holds the client, and our own subjects.
    pub(crate) fn vrio_binary(&self) -> anyhow::Result<PathBuf> {
        let binary = match &self.vrio {
            Some(binary) => binary.clone(),
            None => {
                let own = std::env::current_exe().context("cannot tell where this program is")?;
                own.with_file_name("vrio")
            }
        };
        if !binary.is_file() {
            bail!(
                "there is no {}: build it with `cargo build --release -p vrio`, or name it with \
                 --vrio",
                binary.display()
            );
        }
        // Subjects start in folders of their own.
        binary.canonicalize().with_context(|| format!("cannot find {}", binary.display()))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(arguments: &[&str]) -> Options {
        let all = [&["compare", "--dir", "/"], arguments].concat();
        Options::try_parse_from(all).expect("arguments that clap takes")
    }

    #[test]
    fn without_options_the_method_is_five_rounds_of_three_seconds_at_both_depths() {
        let options = parse(&[]);
        assert_eq!((options.rounds, options.seconds), (5, 3.0));
        let cells: Vec<String> = options.cells().iter().map(Cell::title).collect();
        assert_eq!(
            cells,
            [
                "4 KiB random read, depth 1",
                "4 KiB random write, depth 1",
                "4 KiB random read, depth 32",
                "4 KiB random write, depth 32",
            ]
        );
    }

    #[test]
    fn a_subject_named_twice_is_measured_once() {
        let options = parse(&["--subjects", "nbdkit,qsd,nbdkit"]);
        assert_eq!(options.distinct_subjects(), [Subject::Nbdkit, Subject::Qsd]);
    }

    #[test]
    fn a_shared_core_and_a_senseless_length_are_refused_by_name() {
        let cases = [
            (&["--client-cpu", "1"][..], "core 1"),
            (&["--seconds", "0"], "--seconds"),
            (&["--seconds", "NaN"], "--seconds"),
            (&["--dir", "/nowhere/at/all"], "/nowhere/at/all"),
        ];
        for (arguments, named) in cases {
            let sentence = Options::try_parse_from([&["compare"], arguments].concat())
                .expect("arguments that clap takes")
                .check()
                .expect_err("refused")
                .to_string();
            assert!(sentence.contains(named), "{sentence:?} should name {named:?}");
        }
    }
}
