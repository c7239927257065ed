//! Ctrl-C: noticed where we wait, so that every child and file goes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a wait looks; no measurable load, and no wait that a user notices.
const LOOK: Duration = Duration::from_millis(20);

/// Whether the user wants the comparison to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from now on. The second signal ends this process at once; the
    /// kernel then ends its children, but the files stay.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&asked))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&asked)))
                .context("cannot listen for signals")?;
        }
        Ok(Self { asked })
    }

    /// Waits until `ready` says so; `Ok(false)` when that takes longer than `limit`.
    ///
    /// # Errors
    /// The user's wish to stop, and whatever `ready` fails with.
    pub(crate) fn wait_until(
        &self,
        limit: Duration,
        mut ready: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<bool> {
        let begin = Instant::now();
        loop {
            self.check()?;
            if ready()? {
                return Ok(true);
            }
            if begin.elapsed() > limit {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.asked.load(Ordering::Relaxed) {
            bail!("stopped on request; nothing is left behind");
        }
        Ok(())
    }
}
