//! Events of a soft controller: its temperature, which is always the same, against
//! thresholds that are not (NVMe Base 2.0, sections 5.2 and 5.27.1.3).

use super::engine::Engine;
use super::log::KELVIN;
use super::registers::Registers;
use crate::command::{feature, log};
use crate::completion::Status;

/// Health, of it temperature, and the log to read.
const TEMPERATURE_EVENT: u32 = 1 | 1 << 8 | (log::HEALTH as u32) << 16;

/// The bit of temperature among critical warnings, and in what a driver wants to be
/// told.
const TEMPERATURE_BIT: u8 = 1 << 1;

/// From here on a controller is too warm, if nobody says otherwise: 70 degrees.
const TOO_WARM: u16 = 343;

/// What is open and what was not told yet.
#[derive(Debug)]
pub(super) struct Events {
    /// Identifiers of the requests that are open.
    pub(super) requests: Vec<u16>,
    waiting: bool,
    /// Health was told about and its log not read since.
    masked: bool,
    /// Thresholds above and below.
    over: u16,
    under: u16,
}

impl Events {
    pub(super) fn new() -> Self {
        let requests = Vec::with_capacity(super::admin::MAX_EVENTS);
        Self { requests, waiting: false, masked: false, over: TOO_WARM, under: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.requests.clear();
        (self.waiting, self.masked, self.over, self.under) = (false, false, TOO_WARM, 0);
    }

    /// The critical warnings.
    pub(super) fn warning(&self) -> u8 {
        if KELVIN >= self.over || KELVIN <= self.under { TEMPERATURE_BIT } else { 0 }
    }

    /// The health log was read.
    pub(super) fn unmask(&mut self) {
        self.masked = false;
    }

    /// The threshold that dword 11 of a feature command names: above or below, of the
    /// composite temperature.
    pub(super) fn threshold(&mut self, selector: u32) -> Result<&mut u16, Status> {
        match (selector >> 16 & 0xf, selector >> 20 & 0b11) {
            (0 | 0xf, 0) => Ok(&mut self.over),
            (0 | 0xf, 1) => Ok(&mut self.under),
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

impl Engine {
    /// A threshold has changed.
    pub(super) fn judge_temperature(&mut self) {
        let wanted = self.features[usize::from(feature::ASYNC_EVENTS)] as u8;
        self.events.waiting |= self.events.warning() & wanted != 0;
    }

    /// Tells what waits to be told, if a request is open.
    pub(super) fn deliver_events(&mut self, registers: &Registers) {
        if !self.events.waiting || self.events.masked || !self.has_room(0, registers) {
            return;
        }
        if let Some(id) = self.events.requests.pop() {
            (self.events.waiting, self.events.masked) = (false, true);
            self.post(0, id, Status::SUCCESS, TEMPERATURE_EVENT);
        }
    }
}
