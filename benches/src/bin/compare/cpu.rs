//! Who used the machine: CPU time from `/proc`, ours and everyone else's.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;

/// CPU time used up to one moment, in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    at: Instant,
    machine: u64,
    ours: u64,
}

impl Sample {
    /// Reads the machine's time, and that of this process, its children that
    /// have ended, and the living ones in `pids`.
    pub(crate) fn take(pids: impl Iterator<Item = u32>) -> anyhow::Result<Self> {
        let mut ours = own_ticks()?;
        for pid in pids {
            // One that has ended is reported by whoever looks after it.
            ours += process_ticks(&format!("/proc/{pid}/stat")).map_or(0, |(own, _)| own);
        }
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let machine = parse_machine(&stat).context("/proc/stat is not what proc(5) describes")?;
        Ok(Self { at: Instant::now(), machine, ours })
    }

    /// Cores that others kept busy since an earlier sample of the same processes.
    pub(crate) fn others_since(&self, earlier: &Self) -> f64 {
        let elapsed = self.at.duration_since(earlier.at).max(Duration::from_micros(1));
        let machine = self.machine.saturating_sub(earlier.machine);
        let others = machine.saturating_sub(self.ours.saturating_sub(earlier.ours));
        others as f64 / rustix::param::clock_ticks_per_second() as f64 / elapsed.as_secs_f64()
    }
}

fn own_ticks() -> anyhow::Result<u64> {
    let ticks = process_ticks("/proc/self/stat");
    let (own, ended) = ticks.context("/proc/self/stat is not what proc(5) describes")?;
    Ok(own + ended)
}

fn process_ticks(file: &str) -> Option<(u64, u64)> {
    parse_process(&fs::read_to_string(file).ok()?)
}

/// Busy ticks of all cores, from the first line of `/proc/stat`: user, nice,
/// system and stolen time. Interrupts are left out: on a machine whose network
/// is its loopback they are the subject's own work, and no process is charged.
fn parse_machine(stat: &str) -> Option<u64> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace()
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let &[user, nice, system, _idle, _iowait, _irq, _softirq, stolen, ..] = &fields[..] else {
        return None;
    };
    Some(user + nice + system + stolen)
}

/// Ticks of a process and of its children that have ended and were waited
/// for: fields 14 to 17 of proc(5).
fn parse_process(stat: &str) -> Option<(u64, u64)> {
    // The second field is the program's name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let mut two = || Some(ticks.next()?.ok()? + ticks.next()?.ok()?);
    Some((two()?, two()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_and_interrupts_are_nobodys_work() {
        let stat = "cpu  10 20 30 4000 500 600 700 8 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse_machine(stat), Some(10 + 20 + 30 + 8));
        assert_eq!(parse_machine("cpu0 1 2 3 4 5 6 7 8"), None);
        assert_eq!(parse_machine("cpu  1 2 3"), None);
    }

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 7 3 20 0 1 0 100 1 1";
        assert_eq!(parse_process(stat), Some((200, 10)));
        assert_eq!(parse_process("7 (a) S 1"), None);
    }

    #[test]
    fn what_we_did_not_use_others_did() {
        let hz = rustix::param::clock_ticks_per_second();
        let begin = Instant::now();
        let earlier = Sample { at: begin, machine: 1000, ours: 500 };
        let second = begin + Duration::from_secs(2);
        let later = Sample { at: second, machine: 1000 + 3 * hz, ours: 500 + 2 * hz };
        assert!((later.others_since(&earlier) - 0.5).abs() < 1e-9);
        // Ticks are rounded: ours may seem to exceed the machine's.
        let rounded = Sample { at: second, machine: 1000, ours: 501 };
        assert_eq!(rounded.others_since(&earlier), 0.0);
    }

    /// A bench that has ended moves from "living" to "ended and waited for".
    #[test]
    fn the_time_of_a_child_that_ended_is_ours() {
        let before = own_ticks().expect("our own process");
        let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        let status = std::process::Command::new("sh").args(["-c", script]).status();
        assert!(status.expect("a shell").success());
        assert!(own_ticks().expect("our own process") > before + 2);
    }
}
