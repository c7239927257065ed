//! The PCI configuration of an exported controller: 256 bytes, of which a driver may
//! change the command register, register addresses, and whether MSI-X is on.

use std::ops::Range;

use super::msix;

pub(super) const CONFIGURATION_BYTES: usize = 256;

const COMMAND: usize = 4;
const STATUS: usize = 6;
const BAR0_REGISTER: usize = 0x10;
const TABLE_BAR_REGISTER: usize = BAR0_REGISTER + 4 * msix::BAR as usize;
const CAPABILITIES_POINTER: usize = 0x34;
/// Where the one capability is.
const CAPABILITY: usize = 0x40;
/// The high byte of its control register, and what a driver may say there: MSI-X is on,
/// and all vectors are masked.
const MSIX_CONTROL: usize = CAPABILITY + 3;
const MSIX_SWITCHES: u8 = 0b1100_0000;

/// A PCI header (PCI 3.0, section 6.1): an NVMe controller with 64-bit registers, and
/// MSI-X.
pub(super) struct Configuration([u8; CONFIGURATION_BYTES]);

impl Configuration {
    pub(super) fn new(vectors: u16) -> Self {
        let mut bytes = [0; CONFIGURATION_BYTES];
        // Vendor and device, which nobody has: drivers look at the class.
        bytes[..4].copy_from_slice(&[0x72, 0x76, 0x6f, 0x69]);
        bytes[9..12].copy_from_slice(&[0x02, 0x08, 0x01]);
        // There are capabilities.
        bytes[STATUS] = 1 << 4;
        bytes[CAPABILITIES_POINTER] = CAPABILITY as u8;
        // Memory: 64 bits the registers, 32 bits the table.
        bytes[BAR0_REGISTER] = 0b100;
        let capability = msix::capability(vectors);
        bytes[CAPABILITY..CAPABILITY + capability.len()].copy_from_slice(&capability);
        Self(bytes)
    }

    pub(super) fn read(&self, range: Range<usize>) -> Option<&[u8]> {
        self.0.get(range)
    }

    /// Nothing when the range is not in it. What cannot be changed stays.
    pub(super) fn write(&mut self, range: Range<usize>, data: &[u8]) -> Option<()> {
        self.0.get(range.clone())?;
        for (at, byte) in range.zip(data) {
            match at {
                COMMAND => self.0[at] = byte & 0b111,
                // An address decodes at least as many bytes as the region has.
                at if (BAR0_REGISTER + 2..BAR0_REGISTER + 8).contains(&at)
                    || (TABLE_BAR_REGISTER + 2..TABLE_BAR_REGISTER + 4).contains(&at) =>
                {
                    self.0[at] = *byte;
                }
                MSIX_CONTROL => {
                    self.0[at] = self.0[at] & !MSIX_SWITCHES | byte & MSIX_SWITCHES;
                }
                _ => {}
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a driver finds on its way along the list, and that it cannot bend it.
    #[test]
    fn the_capability_is_found_and_only_its_switches_move() {
        let mut configuration = Configuration::new(17);
        configuration.write(0..CONFIGURATION_BYTES, &[0xff; CONFIGURATION_BYTES]).expect("inside");
        let read = |at: usize| u16::from_le_bytes([configuration.0[at], configuration.0[at + 1]]);
        assert_eq!(read(STATUS) & 1 << 4, 1 << 4);
        let at = usize::from(configuration.0[CAPABILITIES_POINTER]);
        assert_eq!(read(at), 0x11, "MSI-X, and nothing after it");
        assert_eq!(read(at + 2), 0b11 << 14 | 16, "17 vectors, on and masked");
        assert_eq!(configuration.0[at + 4] & 0b111, msix::BAR as u8);
        assert!(
            configuration.write(250..258, &[0; 8]).is_none()
                && configuration.read(0..257).is_none()
        );
    }
}
