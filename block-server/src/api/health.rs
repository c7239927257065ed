//! How a device is.

use nvme::HealthLog;
use serde::{Deserialize, Serialize};

/// Of the SMART / health log of a device (NVMe Base 2.0, section 5.16.1.3), since it was
/// made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthInfo {
    /// What is critical, by bit: spare blocks, temperature, reliability, read only, backup
    /// of volatile memory, persistent memory. 0 is well.
    pub critical_warning: u8,
    /// Temperature.
    pub celsius: i32,
    /// Spare blocks left.
    pub spare_percent: u8,
    /// Of the life that its maker expects; can exceed 100.
    pub used_percent: u8,
    /// Bytes read, in steps of 512,000.
    pub bytes_read: u64,
    /// Bytes written, in steps of 512,000.
    pub bytes_written: u64,
    /// Hours with power.
    pub power_on_hours: u64,
    /// Times that the power went without a shutdown.
    pub unsafe_shutdowns: u64,
    /// Times that data was not as it was written.
    pub media_errors: u64,
}

impl From<&HealthLog> for HealthInfo {
    fn from(log: &HealthLog) -> Self {
        // JSON's readers have 64 bits; no device lives so long.
        let small = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        Self {
            critical_warning: log.critical_warning,
            celsius: i32::from(log.kelvin) - 273,
            spare_percent: log.spare_percent,
            used_percent: log.used_percent,
            bytes_read: small(log.bytes_read),
            bytes_written: small(log.bytes_written),
            power_on_hours: small(log.power_on_hours),
            unsafe_shutdowns: small(log.unsafe_shutdowns),
            media_errors: small(log.media_errors),
        }
    }
}
