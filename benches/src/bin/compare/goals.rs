//! What vRIO is to reach beside others, and whether it did in this run.

use crate::report::{CellReport, Report, Row};
use crate::subject::Subject;

/// The figure that a goal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Iops,
    P50,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A bound on the ratio of a subject's figure to that of another.
#[derive(Clone, Copy, Debug)]
struct Goal {
    /// Whether it must be reached, or is aimed at.
    must: bool,
    of: Subject,
    beside: Subject,
    depth: u16,
    figure: Figure,
    bound: Bound,
}

const fn must(of: Subject, beside: Subject, depth: u16, figure: Figure, bound: Bound) -> Goal {
    Goal { must: true, of, beside, depth, figure, bound }
}

const fn aim(of: Subject, beside: Subject, depth: u16, figure: Figure, bound: Bound) -> Goal {
    Goal { must: false, of, beside, depth, figure, bound }
}

const GOALS: [Goal; 11] = {
    use Bound::{AtLeast, AtMost};
    use Figure::{Iops, P50};
    use Subject::*;
    [
        must(Local, Qsd, 32, Iops, AtLeast(3.0)),
        must(Local, Qsd, 1, P50, AtMost(0.25)),
        must(Vrio, Nbdkit, 32, Iops, AtLeast(5.0)),
        must(Vrio, Nbdkit, 1, P50, AtMost(0.6)),
        aim(Local, Skeleton, 32, Iops, AtLeast(0.5)),
        aim(Local, Skeleton, 1, P50, AtMost(2.0)),
        aim(Vrio, SkeletonUdp, 32, Iops, AtLeast(0.5)),
        aim(Vrio, SkeletonUdp, 1, P50, AtMost(1.25)),
        aim(Ethernet, Vrio, 1, P50, AtMost(1.0)),
        aim(Ethernet, Frames, 1, P50, AtMost(1.0)),
        must(LocalAdaptive, Local, 8, P50, AtMost(1.2)),
    ]
};

/// SPDK 26.05 with a device in memory, on another machine: without a network, and over
/// NVMe/TCP on the loopback with front and target in one thread. Reads; the CPU time is
/// all but the client's.
const SPDK: [(Subject, &str); 2] = [
    (
        Subject::Local,
        "SPDK elsewhere: 440 k/s at depth 32 with 2.2 us of CPU each, p50 2.3 us at 1",
    ),
    (Subject::Vrio, "SPDK elsewhere: 124 k/s at depth 32 with 7.8 us of CPU each, p50 30 us at 1"),
];

/// Lines about the goals that this report can say something about.
pub(crate) fn judge(report: &Report) -> Vec<String> {
    let judged = |goal: &Goal| {
        let cells = report.cells.iter().filter(|cell| cell.cell.depth == goal.depth);
        cells.filter_map(|cell| goal.judge(cell)).collect::<Vec<_>>()
    };
    let mut lines: Vec<String> = GOALS.iter().flat_map(judged).collect();
    lines.extend(
        SPDK.iter().filter_map(|&(subject, figures)| beside_spdk(report, subject, figures)),
    );
    if !lines.is_empty() {
        lines.insert(0, "\nGoals, by the medians of the rounds' ratios".to_owned());
    }
    lines
}

impl Goal {
    fn judge(&self, cell: &CellReport) -> Option<String> {
        let Self { of, beside, .. } = self;
        let ratio = row(cell, *of)?.ratios.iter().find(|ratio| ratio.to == beside.name())?;
        let times = match self.figure {
            Figure::Iops => ratio.iops?,
            Figure::P50 => ratio.p50?,
        };
        let (reached, bound) = match self.bound {
            Bound::AtLeast(least) => (times >= least, format!("at least {least}")),
            Bound::AtMost(most) => (times <= most, format!("at most {most}")),
        };
        let kind = if self.must { "must" } else { "aim" };
        let figure = if self.figure == Figure::Iops { "IOPS" } else { "p50" };
        let what = format!("{} of {} beside {}", figure, of.name(), beside.name());
        let cell = format!("{} at depth {}", cell.cell.direction.name(), cell.cell.depth);
        let verdict = if reached { "reached" } else { "MISSED" };
        Some(format!("  {kind:<4} {what:<42} {cell:<18} {times:>7.2}, {bound:<13} {verdict}"))
    }
}

fn beside_spdk(report: &Report, subject: Subject, figures: &str) -> Option<String> {
    let reads = |depth: u16| {
        let is_it = |cell: &&CellReport| {
            cell.cell.direction == crate::workload::Direction::Read
                && cell.cell.depth == depth
                && cell.cell.rate.is_none()
        };
        row(report.cells.iter().find(is_it)?, subject)?.median
    };
    let (busy, alone) = (reads(32)?, reads(1)?);
    let name = subject.name();
    Some(format!(
        "  {name}: {:.0} k/s with {:.1} us, p50 {:.1} us; {figures}",
        busy.iops / 1e3,
        busy.service_cpu_us,
        alone.p50_us
    ))
}

fn row(cell: &CellReport, subject: Subject) -> Option<&Row> {
    cell.rows.iter().find(|row| row.subject == subject.name())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::Options;
    use crate::round::Rounds;
    use crate::workload::{Cell, Direction, Shot};

    fn shot(iops: f64) -> Shot {
        let us = 1e6 / iops;
        Shot { iops, p50_us: us, p99_us: us, client_cpu_us: us, service_cpu_us: us }
    }

    /// A goal that is missed must not be printed as reached, and one of another depth
    /// says nothing.
    #[test]
    fn goals_are_judged_at_their_depth_and_by_their_figure() {
        let options = Options::try_parse_from(["compare", "--dir", "/"]).expect("options");
        let mut report = Report::new(&options, Vec::new());
        let subjects = [Subject::Local, Subject::Qsd];
        let baselines = [Subject::Qsd];
        for (depth, local) in [(1, 500.0), (32, 299.0)] {
            let cell = Cell { direction: Direction::Read, depth, rate: None };
            let kept = vec![vec![shot(local), shot(100.0)]];
            let rounds = Rounds { kept, dropped: 0, disturbed: 0 };
            report.add(cell, &subjects, &baselines, rounds);
        }
        let lines = judge(&report);
        let about = |words: &str| lines.iter().find(|line| line.contains(words)).expect(words);
        assert!(about("IOPS of vrio local beside qsd").ends_with("MISSED"), "{lines:?}");
        assert!(about("p50 of vrio local beside qsd").ends_with("reached"), "{lines:?}");
        assert!(about("SPDK").contains("2.3 us"));
        assert_eq!(lines.len(), 4);
    }
}
