//! The command line.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::subject::Subject;
use crate::workload::{Cell, DEPTHS, Direction};

/// A low rate: a tenth of what the slowest of ours can do, and a hundred times what
/// a clock's tick would hide.
const IDLE_RATE: u32 = 10_000;

/// Requests that may be under way then: enough that none waits for another.
const IDLE_DEPTH: u16 = 8;

/// Questions that have subjects and workloads of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Question {
    /// vRIO beside the bare skeleton of its path and beside QEMU's own servers
    Peers,
    /// Wires, seals and pools beside each other; networks with real frames
    Wires,
    /// Sleeping beside spinning at a low rate, and how soon sleep comes
    Idle,
}

/// Compare remote block services as a guest sees them, on two cores.
///
/// A polling vhost-user-blk client has one core, everything of the service it
/// talks to the other. All services hold the same file size and get the same
/// offsets, one after the other in every round. A round in which anything else
/// used more than 0.3 of a core is dropped and repeated.
#[derive(clap::Parser, Debug)]
#[command(name = "compare", version)]
pub(crate) struct Options {
    /// What to find out
    #[arg(value_enum, default_value_t = Question::Peers)]
    pub(crate) question: Question,

    /// Rounds that count, for each workload [default: 5, or 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// Length of one measurement [default: 3, of wires 2, with --quick 0.3]
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,

    /// Other subjects than the question's, in this order
    #[arg(long, value_enum, value_delimiter = ',')]
    subjects: Vec<Subject>,

    /// Try everything in less than a minute: disks of 128 MiB, one short round, on a
    /// busy machine too
    #[arg(long)]
    quick: bool,

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
    keep_disturbed: bool,

    /// Print the report as JSON, with every round
    #[arg(long)]
    pub(crate) json: bool,
}

impl Options {
    /// Refuses what would be found out only minutes later.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let seconds = self.seconds();
        if !(0.1..=3600.0).contains(&seconds) {
            bail!("--seconds {seconds} is not between 0.1 and 3600");
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

    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    pub(crate) fn seconds(&self) -> f64 {
        // Wires are many, and an answer is wanted within ten minutes.
        let usual = if self.question == Question::Wires { 2.0 } else { 3.0 };
        self.seconds.unwrap_or(if self.quick { 0.3 } else { usual })
    }

    pub(crate) fn keep_disturbed(&self) -> bool {
        self.keep_disturbed || self.quick
    }

    /// Larger than the caches, small enough for a few of them in memory.
    pub(crate) fn disk_bytes(&self) -> u64 {
        if self.quick { 128 << 20 } else { 1 << 30 }
    }

    /// The workloads to measure, in the order of the report.
    pub(crate) fn cells(&self) -> Vec<Cell> {
        let (usual, rate) = match self.question {
            Question::Idle => (vec![IDLE_DEPTH], Some(IDLE_RATE)),
            Question::Peers | Question::Wires => (DEPTHS.to_vec(), None),
        };
        let depths = self.only_depth.map_or(usual, |depth| vec![depth]);
        let at = |depth| Direction::BOTH.map(|direction| Cell { direction, depth, rate });
        depths.into_iter().flat_map(at).collect()
    }

    /// The subjects to measure, each once.
    pub(crate) fn distinct_subjects(&self) -> Vec<Subject> {
        use Subject::*;
        let usual: &[Subject] = match self.question {
            Question::Peers => &[Skeleton, Local, Qsd, SkeletonUdp, Vrio, Nbdkit],
            Question::Wires => {
                &[Vrio, Sealed, Pool, Memory, Ethernet, Frames, SkeletonFrames, NbdkitFrames]
            }
            Question::Idle => &[Local, LocalAdaptive, Vrio, VrioAdaptive],
        };
        let asked = if self.subjects.is_empty() { usual } else { &self.subjects };
        let mut distinct = Vec::new();
        for &subject in asked {
            if !distinct.contains(&subject) {
                distinct.push(subject);
            }
        }
        distinct
    }

    /// The subjects that all are set in relation to.
    pub(crate) fn baselines(&self) -> &'static [Subject] {
        use Subject::*;
        match self.question {
            Question::Peers => &[Skeleton, Qsd, SkeletonUdp, Nbdkit],
            Question::Wires => &[Vrio, Frames, SkeletonFrames, NbdkitFrames],
            Question::Idle => &[Local, Vrio],
        }
    }

    /// The floor's binary.
    pub(crate) fn skeleton_binary(&self) -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let binary = own.with_file_name("skeleton");
        if !binary.is_file() {
            bail!(
                "there is no {}: build it with `cargo build --release -p benches`",
                binary.display()
            );
        }
        Ok(binary)
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
        assert_eq!((options.rounds(), options.seconds()), (5, 3.0));
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
    fn a_question_has_its_subjects_and_workloads() {
        let idle = parse(&["idle"]);
        let cells: Vec<String> = idle.cells().iter().map(Cell::title).collect();
        assert_eq!(cells[0], "4 KiB random read, depth 8, 10000 a second");
        assert!(idle.distinct_subjects().contains(&Subject::LocalAdaptive));
        let quick = parse(&["wires", "--quick"]);
        assert_eq!((quick.rounds(), quick.seconds(), quick.keep_disturbed()), (1, 0.3, true));
        assert!(quick.distinct_subjects().contains(&Subject::Ethernet));
        assert_eq!(parse(&["wires", "--seconds", "5"]).seconds(), 5.0);
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
