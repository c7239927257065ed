//! Somebody who looks whether a check comes back.

use std::process::abort;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than any check takes on a machine that does much else: what takes
/// longer does not come back.
const PATIENCE: Duration = Duration::from_secs(100);

type Running = Arc<Mutex<(Vec<u8>, Instant)>>;

/// The one who looks.
#[derive(Debug)]
pub(crate) struct Watch {
    running: Running,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks from now on.
    pub(crate) fn start(name: &'static str) -> Self {
        let running: Running = Arc::new(Mutex::new((Vec::new(), Instant::now())));
        let seen = Arc::clone(&running);
        let (end, ended) = channel();
        let thread = std::thread::spawn(move || {
            while ended.recv_timeout(PATIENCE / 10) == Err(RecvTimeoutError::Timeout) {
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                if seen.1.elapsed() > PATIENCE {
                    eprintln!("{name} hangs with VRIO_FUZZ_INPUT={}", crate::to_hex(&seen.0));
                    abort();
                }
            }
        });
        Self { running, end: Some(end), thread: Some(thread) }
    }

    /// A check begins.
    pub(crate) fn begins(&self, input: &[u8]) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.0.clear();
        running.0.extend_from_slice(input);
        running.1 = Instant::now();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}
