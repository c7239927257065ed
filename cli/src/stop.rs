//! Being told to stop: SIGTERM and SIGINT, noticed between turns and able to
//! end a sleep.

use std::io::{Read, Write};
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
    ringer: UnixStream,
}

/// Rings the bell when it is dropped: a thread that holds one cannot end
/// unnoticed.
#[derive(Debug)]
pub(crate) struct Ringer(UnixStream);

impl Drop for Ringer {
    fn drop(&mut self) {
        // A full pipe rings already.
        let _ = self.0.write(&[0]);
    }
}

impl Stop {
    /// Listens for the signals from now on. A second one ends the process at
    /// once, as it would have without this.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let (bell, ringer) = UnixStream::pair().context("cannot make a socket pair")?;
        ringer.set_nonblocking(true).context("cannot make a socket pair")?;
        for signal in [SIGINT, SIGTERM] {
            let hooked = (|| {
                signal_hook::flag::register_conditional_default(signal, Arc::clone(&asked))?;
                signal_hook::flag::register(signal, Arc::clone(&asked))?;
                signal_hook::low_level::pipe::register(signal, ringer.try_clone()?)
            })();
            hooked.context("cannot listen for signals")?;
        }
        Ok(Self { asked, bell, ringer })
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Something that rings the bell at its end.
    pub(crate) fn ringer(&self) -> anyhow::Result<Ringer> {
        let ringer = self.ringer.try_clone().context("no descriptor is left")?;
        Ok(Ringer(ringer))
    }

    /// Waits until a signal comes or a [`Ringer`] is dropped.
    pub(crate) fn wait(&self) {
        // An error ends the wait as a signal would.
        let _ = (&self.bell).read(&mut [0]);
    }

    /// What becomes readable when a signal comes.
    pub(crate) fn bell(&self) -> &UnixStream {
        &self.bell
    }
}
