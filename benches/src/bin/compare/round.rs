//! Rounds: every subject once, close together in time; disturbed ones do not count.

use crate::workload::Shot;

/// One measurement with the verdict on it.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) shot: Shot,
    /// Why it does not count; `None` when the machine was quiet.
    pub(crate) disturbed: Option<String>,
}

/// How many rounds, and what becomes of disturbed ones.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Rounds that shall count.
    pub(crate) wanted: u32,
    /// Count disturbed rounds as well.
    pub(crate) keep_disturbed: bool,
}

/// The rounds of one workload.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rounds {
    /// Of each round that counts, one shot per subject, in the subjects' order.
    pub(crate) kept: Vec<Vec<Shot>>,
    pub(crate) dropped: u32,
    /// How many of `kept` were disturbed.
    pub(crate) disturbed: u32,
}

impl Policy {
    /// Repetitions for dropped rounds: as many again as wanted. A machine that
    /// disturbs more than half of them should be asked again later.
    fn attempts(&self) -> u32 {
        self.wanted.saturating_mul(2)
    }

    /// Measures `subjects` in rounds. `shoot` gets the subject's number and the
    /// round's seed, the same for all subjects of the round.
    pub(crate) fn run(
        &self,
        subjects: usize,
        mut shoot: impl FnMut(usize, u64) -> anyhow::Result<Taken>,
    ) -> anyhow::Result<Rounds> {
        let mut rounds = Rounds::default();
        for attempt in 0..self.attempts() {
            if rounds.kept.len() >= self.wanted as usize {
                break;
            }
            // Each round begins with another subject: none is always the one
            // that follows the slowest.
            let first = attempt as usize % subjects.max(1);
            let order = (first..subjects).chain(0..first);
            self.round(order, u64::from(attempt) + 1, &mut rounds, &mut shoot)?;
        }
        Ok(rounds)
    }

    fn round(
        &self,
        order: impl Iterator<Item = usize>,
        seed: u64,
        rounds: &mut Rounds,
        shoot: &mut impl FnMut(usize, u64) -> anyhow::Result<Taken>,
    ) -> anyhow::Result<()> {
        let mut shots = Vec::new();
        let mut disturbed = false;
        for subject in order {
            let taken = shoot(subject, seed)?;
            disturbed |= taken.disturbed.is_some();
            if disturbed && !self.keep_disturbed {
                rounds.dropped += 1;
                return Ok(());
            }
            shots.push((subject, taken.shot));
        }
        shots.sort_by_key(|&(subject, _)| subject);
        rounds.kept.push(shots.into_iter().map(|(_, shot)| shot).collect());
        rounds.disturbed += u32::from(disturbed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shot(iops: f64) -> Shot {
        Shot { iops, p50_us: 1.0, p99_us: 2.0, client_cpu_us: 1.0, service_cpu_us: 1.0 }
    }

    /// Subject `s` in the round of seed `r` has 100 s + r IOPS; the calls are noted.
    fn run(policy: Policy, subjects: usize, bad: &[(usize, u64)]) -> (Rounds, Vec<(usize, u64)>) {
        let mut calls = Vec::new();
        let rounds = policy.run(subjects, |subject, seed| {
            calls.push((subject, seed));
            let disturbed = bad.contains(&(subject, seed)).then(|| "a compiler ran".to_owned());
            Ok(Taken { shot: shot((100 * subject) as f64 + seed as f64), disturbed })
        });
        (rounds.expect("no shot fails"), calls)
    }

    #[test]
    fn rounds_interleave_and_begin_with_another_subject_each() {
        let (rounds, calls) = run(Policy { wanted: 2, keep_disturbed: false }, 3, &[]);
        assert_eq!(calls, [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (0, 2)]);
        let iops: Vec<Vec<f64>> =
            rounds.kept.iter().map(|round| round.iter().map(|shot| shot.iops).collect()).collect();
        assert_eq!(iops, [[1.0, 101.0, 201.0], [2.0, 102.0, 202.0]]);
    }

    /// A ratio of a quiet and a disturbed measurement is worth nothing, so the
    /// whole round goes, at once, and another takes its place.
    #[test]
    fn a_disturbed_round_is_dropped_whole_and_repeated() {
        let (rounds, calls) = run(Policy { wanted: 2, keep_disturbed: false }, 2, &[(0, 1)]);
        assert_eq!(calls, [(0, 1), (1, 2), (0, 2), (0, 3), (1, 3)]);
        assert_eq!((rounds.kept.len(), rounds.dropped, rounds.disturbed), (2, 1, 0));
    }

    #[test]
    fn a_machine_that_is_never_quiet_ends_the_run_all_the_same() {
        let bad: Vec<(usize, u64)> = (1..100).map(|seed| (0, seed)).collect();
        let (rounds, calls) = run(Policy { wanted: 3, keep_disturbed: false }, 1, &bad);
        assert_eq!((rounds.kept.len(), rounds.dropped, calls.len()), (0, 6, 6));
    }

    #[test]
    fn disturbed_rounds_count_when_that_was_asked_for_and_are_told() {
        let (rounds, _) = run(Policy { wanted: 2, keep_disturbed: true }, 2, &[(1, 1)]);
        assert_eq!((rounds.kept.len(), rounds.dropped, rounds.disturbed), (2, 0, 1));
    }
}
