//! What a person sees while a server does something that takes long: a bar on
//! a terminal, a line now and then off one.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the server is asked.
const BEAT: Duration = Duration::from_millis(200);

/// How often a line is written off a terminal.
const LINE: Duration = Duration::from_secs(10);

/// How far something is.
pub(crate) struct Step<T> {
    /// What is done, in any unit.
    pub(crate) done: u64,
    /// What there is, in the same unit; may change.
    pub(crate) total: u64,
    /// What to say beside it.
    pub(crate) message: String,
    /// The outcome, once it has come.
    pub(crate) outcome: Option<T>,
}

/// Asks again and again until there is an outcome.
pub(crate) fn follow<T>(
    what: &str,
    mut ask: impl FnMut() -> anyhow::Result<Step<T>>,
) -> anyhow::Result<T> {
    let mut flow = Flow::new(what);
    loop {
        let Step { done, total, message, outcome } = ask()?;
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
        flow.at(done, total, message);
        std::thread::sleep(BEAT);
    }
}

/// How far this process is with something. What was shown goes when this is
/// dropped.
pub(crate) struct Flow {
    what: String,
    bar: ProgressBar,
    next_line: Instant,
}

impl Flow {
    pub(crate) fn new(what: &str) -> Self {
        let (what, bar) = (what.to_owned(), bar());
        bar.set_prefix(what.clone());
        Self { what, bar, next_line: Instant::now() + LINE }
    }

    /// It is at `done` of `total`, in any unit.
    pub(crate) fn at(&mut self, done: u64, total: u64, message: String) {
        self.bar.set_length(total.max(1));
        self.bar.set_position(done);
        if self.bar.is_hidden() && Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE;
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
            eprintln!("{}: {percent} %  {message}", self.what);
        }
        self.bar.set_message(message);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %  {msg}");
    ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
