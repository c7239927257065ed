//! A thread that drives a soft controller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::SoftController;

/// Drives a controller until dropped.
#[derive(Debug)]
pub struct Runner {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    pub(super) fn start(controller: Arc<SoftController>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::<AtomicU64>::default();
        let (seen, done) = (Arc::clone(&stop), Arc::clone(&rounds));
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let moved = controller.work();
                done.fetch_add(1, Ordering::Release);
                if moved == 0 {
                    std::thread::yield_now();
                }
            }
        });
        Self { stop, rounds, thread: Some(thread) }
    }

    /// Waits until the controller has looked at everything that was asked of it
    /// before: whoever has a clock of its own must not run ahead of a thread that
    /// gets no time.
    pub fn keep_up(&self) {
        // The round that goes on may have begun before.
        let after = self.rounds.load(Ordering::Acquire) + 2;
        while self.rounds.load(Ordering::Acquire) < after {
            std::thread::yield_now();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
