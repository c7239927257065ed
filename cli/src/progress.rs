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
    let bar = bar();
    bar.set_prefix(what.to_owned());
    let mut next_line = Instant::now() + LINE;
    loop {
        let Step { done, total, message, outcome } = ask()?;
        if let Some(outcome) = outcome {
            bar.finish_and_clear();
            return Ok(outcome);
        }
        bar.set_length(total.max(1));
        bar.set_position(done);
        bar.set_message(message.clone());
        if bar.is_hidden() && Instant::now() >= next_line {
            next_line += LINE;
            let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0);
            eprintln!("{what}: {percent} %  {message}");
        }
        std::thread::sleep(BEAT);
    }
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %  {msg}");
    ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
