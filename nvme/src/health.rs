//! The SMART / Health Information log (NVMe Base 2.0, section 5.16.1.3).

use crate::identify::Page;

/// Bytes of the log.
pub(crate) const HEALTH_BYTES: u32 = 512;

/// Byte offsets in the log (figure 207).
pub(crate) mod health_at {
    pub(crate) const WARNING: usize = 0;
    pub(crate) const TEMPERATURE: usize = 1;
    pub(crate) const SPARE: usize = 3;
    pub(crate) const SPARE_THRESHOLD: usize = 4;
    pub(crate) const USED: usize = 5;
    pub(crate) const UNITS_READ: usize = 32;
    pub(crate) const UNITS_WRITTEN: usize = 48;
    pub(crate) const READS: usize = 64;
    pub(crate) const WRITES: usize = 80;
    pub(crate) const POWER_CYCLES: usize = 112;
    pub(crate) const POWER_ON_HOURS: usize = 128;
    pub(crate) const UNSAFE_SHUTDOWNS: usize = 144;
    pub(crate) const MEDIA_ERRORS: usize = 160;
    pub(crate) const LOGGED_ERRORS: usize = 176;
}

/// A data unit of the log: a thousand times 512 bytes, rounded up.
pub(crate) const DATA_UNIT_BYTES: u64 = 512_000;

/// How a device is, by its own account, since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthLog {
    /// What is critical, by bit: spare blocks, temperature, reliability, read only,
    /// backup of volatile memory, persistent memory.
    pub critical_warning: u8,
    /// Composite temperature in kelvin.
    pub kelvin: u16,
    /// Spare blocks left, in percent.
    pub spare_percent: u8,
    /// Below this many percent spare blocks are critical.
    pub spare_threshold_percent: u8,
    /// Of the device's life that its maker expects, in percent; can exceed 100.
    pub used_percent: u8,
    /// Bytes read, in steps of 512,000.
    pub bytes_read: u128,
    /// Bytes written, in steps of 512,000.
    pub bytes_written: u128,
    /// Read commands.
    pub reads: u128,
    /// Write commands.
    pub writes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours with power.
    pub power_on_hours: u128,
    /// Times that the power went without a shutdown.
    pub unsafe_shutdowns: u128,
    /// Times that data was not as it was written.
    pub media_errors: u128,
    /// Entries that the error log ever had.
    pub logged_errors: u128,
}

impl HealthLog {
    /// Decodes the log.
    #[must_use]
    pub fn parse(page: &Page) -> Self {
        let large = |at: usize| {
            let bytes = page[at..at + 16].iter().rev();
            bytes.fold(0, |sum: u128, &byte| sum << 8 | u128::from(byte))
        };
        let bytes = |at| large(at).saturating_mul(u128::from(DATA_UNIT_BYTES));
        let kelvin = &page[health_at::TEMPERATURE..];
        Self {
            critical_warning: page[health_at::WARNING],
            kelvin: u16::from_le_bytes([kelvin[0], kelvin[1]]),
            spare_percent: page[health_at::SPARE],
            spare_threshold_percent: page[health_at::SPARE_THRESHOLD],
            used_percent: page[health_at::USED],
            bytes_read: bytes(health_at::UNITS_READ),
            bytes_written: bytes(health_at::UNITS_WRITTEN),
            reads: large(health_at::READS),
            writes: large(health_at::WRITES),
            power_cycles: large(health_at::POWER_CYCLES),
            power_on_hours: large(health_at::POWER_ON_HOURS),
            unsafe_shutdowns: large(health_at::UNSAFE_SHUTDOWNS),
            media_errors: large(health_at::MEDIA_ERRORS),
            logged_errors: large(health_at::LOGGED_ERRORS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identify::IDENTIFY_BYTES;

    #[test]
    fn a_log_of_ones_and_counters_beyond_64_bits_are_read() {
        let log = HealthLog::parse(&[0xff; IDENTIFY_BYTES]);
        assert_eq!((log.kelvin, log.bytes_read), (u16::MAX, u128::MAX));
        let mut page = [0; IDENTIFY_BYTES];
        page[health_at::TEMPERATURE..][..2].copy_from_slice(&300_u16.to_le_bytes());
        page[health_at::UNITS_WRITTEN + 8] = 1;
        page[health_at::WRITES] = 9;
        let log = HealthLog::parse(&page);
        assert_eq!((log.kelvin, log.writes), (300, 9));
        assert_eq!(log.bytes_written, (1 << 64) * 512_000);
    }
}
