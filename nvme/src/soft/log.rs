//! What a soft controller logs (NVMe Base 2.0, section 5.16.1).

use super::engine::Engine;
use crate::PAGE;
use crate::command::{Command, log};
use crate::completion::Status;
use crate::health::{DATA_UNIT_BYTES, HEALTH_BYTES, health_at};
use crate::identify::{IDENTIFY_BYTES, Page};

/// Room temperature: a soft controller does not get warm by itself.
pub(super) const KELVIN: u16 = 300;

/// Below this many percent spare blocks would be critical; there are 100.
const SPARE_THRESHOLD: u8 = 10;

/// Get Log Page: what the log's event has told stays untold to others.
const RETAIN_EVENT: u32 = 1 << 15;

/// What was served since the controller was made; it does not outlive the process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Served {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) bytes_read: u64,
    pub(super) bytes_written: u64,
}

impl Engine {
    /// Error information and firmware slots are there and empty; health is not.
    pub(super) fn get_log_page(&mut self, command: &Command) -> Result<u32, Status> {
        let id = command.dword(10) as u8;
        if !matches!(id, log::ERRORS | log::HEALTH | log::FIRMWARE) {
            return Err(Status::INVALID_LOG_PAGE);
        }
        let dwords =
            u64::from(command.dword(10) >> 16) | u64::from(command.dword(11) & 0xffff) << 16;
        let offset = u64::from(command.dword(12)) | u64::from(command.dword(13)) << 32;
        if offset >= u64::from(HEALTH_BYTES) || !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        let bytes = (dwords + 1) * 4;
        let bytes = usize::try_from(bytes).map_or(PAGE, |bytes| bytes.min(PAGE));
        let mut page: Page = [0; IDENTIFY_BYTES];
        if id == log::HEALTH {
            self.health(&mut page);
        }
        page.copy_within(offset as usize.., 0);
        page[IDENTIFY_BYTES - offset as usize..].fill(0);
        self.answer(command, &page[..bytes])?;
        if id == log::HEALTH && command.dword(10) & RETAIN_EVENT == 0 {
            self.events.unmask();
        }
        Ok(0)
    }

    fn health(&self, page: &mut Page) {
        let mut put =
            |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let units = |bytes: u64| bytes.div_ceil(DATA_UNIT_BYTES);
        put(health_at::UNITS_READ, units(self.served.bytes_read));
        put(health_at::UNITS_WRITTEN, units(self.served.bytes_written));
        put(health_at::READS, self.served.reads);
        put(health_at::WRITES, self.served.writes);
        put(health_at::POWER_CYCLES, 1);
        page[health_at::TEMPERATURE..][..2].copy_from_slice(&KELVIN.to_le_bytes());
        page[health_at::WARNING] = self.events.warning();
        page[health_at::SPARE] = 100;
        page[health_at::SPARE_THRESHOLD] = SPARE_THRESHOLD;
    }
}
