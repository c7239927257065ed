//! Asynchronous events: what a controller says without being asked (NVMe Base 2.0,
//! section 5.2). One request for one is always open; who is told of an event reads the
//! log that it points at, which makes room for the next of its kind.

use std::fmt;

use crate::command::{Command, log};
use crate::health::HEALTH_BYTES;

/// What the driver wants to be told (section 5.27.1.8): everything about health.
pub(crate) const WANTED: u32 = 0b1_1111;

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about: 0 errors, 1 health, 2 notices, others as the figures say.
    pub kind: u8,
    /// What of that.
    pub information: u8,
    /// The log that tells more.
    pub log: u8,
}

impl Event {
    /// Decodes dword 0 of an event request's completion (figure 146).
    #[must_use]
    pub const fn parse(result: u32) -> Self {
        Self {
            kind: result as u8 & 0b111,
            information: (result >> 8) as u8,
            log: (result >> 16) as u8,
        }
    }

    /// Reads the log, so that the next event of this kind can come.
    pub(crate) const fn question(self) -> Command {
        let bytes = match self.log {
            log::ERRORS => 64,
            log::HEALTH => HEALTH_BYTES,
            _ => crate::PAGE as u32,
        };
        Command::get_log_page(self.log, bytes)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match (self.kind, self.information) {
            (0, _) => "it has noted an error in its error log",
            (1, 0) => "it is not reliable any more",
            (1, 1) => "its temperature is beyond a threshold",
            (1, 2) => "its spare blocks are below their threshold",
            (2, 0) => "its namespaces have changed",
            (2, 1) => "new firmware is about to be activated",
            (kind, information) => {
                return write!(f, "an event of type {kind}, information {information:#04x}");
            }
        };
        f.write_str(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_it_is_about() {
        let event = Event::parse(0x0002_0101);
        assert_eq!(event, Event { kind: 1, information: 1, log: log::HEALTH });
        assert!(event.to_string().contains("temperature"));
        assert!(Event::parse(u32::MAX).to_string().contains("type 7"));
    }
}
