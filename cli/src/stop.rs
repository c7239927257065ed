//! Being told to stop: SIGTERM and SIGINT, noticed between turns and able to
//! end a sleep.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Whether the process was told to stop.
#[derive(Debug)]
pub(crate) struct Stop {
    asked: Arc<AtomicBool>,
    bell: UnixStream,
}

impl Stop {
    /// Listens for the signals from now on. A second one ends the process at
    /// once, as it would have without this.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let (bell, ringer) = UnixStream::pair().context("cannot make a socket pair")?;
        bell.set_nonblocking(true).context("cannot make a socket pair")?;
        for signal in [SIGINT, SIGTERM] {
            let hooked = (|| {
                signal_hook::flag::register_conditional_default(signal, Arc::clone(&asked))?;
                signal_hook::flag::register(signal, Arc::clone(&asked))?;
                signal_hook::low_level::pipe::register(signal, ringer.try_clone()?)
            })();
            hooked.context("cannot listen for signals")?;
        }
        Ok(Self { asked, bell })
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// What becomes readable when a signal comes.
    pub(crate) fn bell(&self) -> &UnixStream {
        &self.bell
    }
}
