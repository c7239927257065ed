//! What happens in a run, told.

use std::fmt;

use block_core::Time;

/// Hears a story, line by line.
pub type Listener = Box<dyn FnMut(&str)>;

/// The story of a run, if somebody listens.
#[derive(Default)]
pub struct Story {
    listener: Option<Listener>,
}

impl Story {
    /// A story for a listener.
    #[must_use]
    pub const fn new(listener: Option<Listener>) -> Self {
        Self { listener }
    }

    /// Tells what happened.
    pub fn tell(&mut self, now: Time, what: impl FnOnce() -> String) {
        if let Some(listener) = &mut self.listener {
            listener(&format!("{:>12.3} ms  {}", now.nanos() as f64 / 1e6, what()));
        }
    }
}

impl fmt::Debug for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Story")
    }
}
