//! One process of a subject: on one core, never outliving us, frozen while
//! others are measured.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A process that has not ended so long after SIGTERM is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A running child. Dropping it ends the process, first kindly.
#[derive(Debug)]
pub(crate) struct Process {
    program: String,
    child: Child,
    log: PathBuf,
}

/// A command that the kernel kills when this process ends, however it ends.
pub(crate) fn tied(program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    // Ctrl-C at a terminal is ours alone: the children end in our order.
    command.process_group(0);
    command
}

/// Where a process runs.
#[derive(Clone, Debug)]
pub(crate) struct Place<'a> {
    /// The one core that it has.
    pub(crate) cpu: usize,
    /// Its folder, where its log is.
    pub(crate) folder: &'a Path,
    /// Its network namespace, if it has one of its own.
    pub(crate) namespace: Option<String>,
}

impl Process {
    /// Starts `program`, with everything it says in a log in its folder.
    pub(crate) fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: &[A],
        place: &Place<'_>,
    ) -> anyhow::Result<Self> {
        let Place { cpu, folder, namespace } = place;
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = folder.join(format!("{name}.log"));
        // Two processes of one program share a log.
        let out = File::options().create(true).append(true).open(&log);
        let out = out.with_context(|| format!("cannot write {}", log.display()))?;
        let err = out.try_clone().context("cannot duplicate a file descriptor")?;
        let mut command = tied(OsStr::new("taskset"));
        command.args(["-c", &cpu.to_string()]);
        if let Some(namespace) = namespace {
            command.args(["ip", "netns", "exec", namespace]);
        }
        let child = command
            .arg(program)
            .args(arguments)
            .current_dir(folder)
            .stdout(out)
            .stderr(err)
            .spawn()
            .context("cannot run setpriv (Debian: util-linux)")?;
        Ok(Self { program: name, child, log })
    }

    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// The program's own process id: setpriv, taskset and ip turn into it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the process's last words, when it has ended.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait().context("cannot ask for a child's state")? else {
            return Ok(());
        };
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("with code {code}"),
            (None, Some(signal)) => format!("by signal {signal}"),
            (None, None) => "for no known reason".to_owned(),
        };
        bail!("{} ended {how}; it said:\n{}", self.program, self.last_words())
    }

    /// The end of the log, indented.
    pub(crate) fn last_words(&self) -> String {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let last = &lines[lines.len().saturating_sub(10)..];
        if last.is_empty() {
            "    nothing".to_owned()
        } else {
            format!("    {}", last.join("\n    "))
        }
    }

    /// Takes the core from the process until [`thaw`](Self::thaw): a poller
    /// would otherwise disturb whoever is measured next.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Until it is waited for, a process that has ended keeps its number.
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        self.signal(Signal::TERM);
        self.thaw();
        let begin = Instant::now();
        while begin.elapsed() < GRACE {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // Fails only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path, script: &str) -> Process {
        let place = Place { cpu: 0, folder, namespace: None };
        let process = Process::start(Path::new("/bin/sh"), &["-c", script], &place);
        process.expect("setpriv, taskset and a shell")
    }

    fn status(pid: u32, field: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a living process");
        let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("a known field");
        line.trim_start_matches(':').trim().to_owned()
    }

    fn becomes(what: &str, mut holds: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < Duration::from_secs(5), "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A peer on two cores looks up to twice as fast as it is; a poller that
    /// goes on while another subject is measured halves that one's figures.
    #[test]
    fn a_process_has_one_core_and_none_while_frozen() {
        let folder = tempfile::tempdir().expect("a folder");
        let process = sleeper(folder.path(), "while :; do :; done");
        let pid = process.pid();
        becomes("one core", || status(pid, "Cpus_allowed_list") == "0");
        becomes("the shell itself", || status(pid, "Name") == "sh");
        process.freeze();
        becomes("stopped", || status(pid, "State").starts_with('T'));
        process.thaw();
        becomes("running", || status(pid, "State").starts_with('R'));
    }

    /// SIGTERM alone does nothing to a stopped process: it must be thawed too.
    #[test]
    fn dropping_ends_a_frozen_process_and_lets_it_clean_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "trap 'touch cleaned; exit 0' TERM; touch ready; while :; do sleep 0.01; done";
        let process = sleeper(folder.path(), script);
        let pid = process.pid();
        becomes("ready", || folder.path().join("ready").exists());
        process.freeze();
        becomes("stopped", || status(pid, "State").starts_with('T'));
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(folder.path().join("cleaned").exists());
    }

    #[test]
    fn a_process_that_ends_is_named_with_what_it_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut process = sleeper(folder.path(), "echo no such volume >&2; exit 3");
        let mut sentence = String::new();
        becomes("ended", || {
            process.check_alive().inspect_err(|error| sentence = error.to_string()).is_err()
        });
        assert_eq!(sentence, "sh ended with code 3; it said:\n    no such volume");
    }
}
