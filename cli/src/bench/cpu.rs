//! CPU time of whole processes, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

/// A process to watch, with the name the report gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) name: String,
    pub(crate) pid: u32,
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pid) = text.split_once('=').unwrap_or(("", text));
        let pid = pid
            .parse()
            .ok()
            .filter(|&pid| pid > 0)
            .ok_or_else(|| format!("'{text}' is not NAME=PID or PID"))?;
        let name = if name.is_empty() { format!("pid {pid}") } else { name.to_owned() };
        Ok(Self { name, pid })
    }
}

/// The CPU time a process had used at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Since the process began, threads that ended included; in clock ticks.
    process: Duration,
    /// Of each living thread, by thread id; exact to the nanosecond, but a
    /// thread that ends takes its figure along.
    threads: BTreeMap<u32, Duration>,
}

impl Sample {
    /// Reads the time of all the process's threads.
    pub(crate) fn take(watched: &Watched) -> anyhow::Result<Self> {
        let Watched { name, pid } = watched;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("there is no process {pid} ({name}) to watch"))?;
        let process = parse_stat(&stat)
            .with_context(|| format!("/proc/{pid}/stat is not what proc(5) describes"))?;
        Ok(Self { process, threads: threads(*pid) })
    }

    /// The CPU time used since an earlier sample of the same process.
    pub(crate) fn since(&self, earlier: &Self) -> Duration {
        let same_threads = !self.threads.is_empty()
            && earlier.threads.keys().all(|thread| self.threads.contains_key(thread));
        if !same_threads {
            return self.process.saturating_sub(earlier.process);
        }
        self.threads
            .iter()
            .map(|(thread, now)| {
                now.saturating_sub(earlier.threads.get(thread).copied().unwrap_or_default())
            })
            .sum()
    }
}

fn threads(pid: u32) -> BTreeMap<u32, Duration> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return BTreeMap::new() };
    tasks
        .filter_map(|task| {
            let task = task.ok()?;
            let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let nanos = schedstat.split_whitespace().next()?.parse().ok()?;
            Some((task.file_name().to_str()?.parse().ok()?, Duration::from_nanos(nanos)))
        })
        .collect()
}

/// User and system time of `/proc/PID/stat`, fields 14 and 15 of proc(5).
fn parse_stat(stat: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks = user.checked_add(system)?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watched_process_has_a_name_or_its_number() {
        assert_eq!("front=12".parse(), Ok(Watched { name: "front".into(), pid: 12 }));
        assert_eq!("12".parse(), Ok(Watched { name: "pid 12".into(), pid: 12 }));
        for text in ["", "front", "front=", "0", "a=-3"] {
            assert!(text.parse::<Watched>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_program_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 1 0 100 1 1";
        let second = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(parse_stat(stat), Some(Duration::from_secs_f64(200.0 / second)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn time_spent_in_a_second_thread_counts() {
        let own = Watched { name: "test".into(), pid: std::process::id() };
        let before = Sample::take(&own).expect("our own process");
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let spinner = std::thread::spawn(move || {
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_millis(200) {
                std::hint::spin_loop();
            }
            stopped.recv()
        });
        std::thread::sleep(Duration::from_millis(300));
        let spent = Sample::take(&own).expect("our own process").since(&before);
        drop(stop);
        assert!(spinner.join().expect("it only spins").is_err());
        assert!(spent > Duration::from_millis(20), "{spent:?}");
    }
}
