//! The controller properties: offsets, and what their bits mean (NVMe Base
//! 2.0, section 3.1.3).

use std::time::Duration;

/// Controller Capabilities, 64 bits.
pub const CAP: u32 = 0x00;
/// Version.
pub const VS: u32 = 0x08;
/// Controller Configuration.
pub const CC: u32 = 0x14;
/// Controller Status.
pub const CSTS: u32 = 0x1c;
/// Admin Queue Attributes.
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address, 64 bits.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address, 64 bits.
pub const ACQ: u32 = 0x30;
/// The first doorbell (NVMe over PCIe 1.0, section 3.1.2).
pub const DOORBELLS: u32 = 0x1000;

/// The page size the driver uses: CC.MPS is 0.
pub const PAGE_BITS: u32 = 12;

/// What all ones mean on every bus: nobody answers.
pub const GONE: u32 = u32::MAX;

/// CAP, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Most entries an I/O queue can have (MQES, made 1-based).
    pub max_queue_entries: u32,
    /// The longest wait for CSTS.RDY to follow CC.EN (TO).
    pub ready_timeout: Duration,
    /// Bytes from one doorbell to the next (DSTRD).
    pub doorbell_stride: u32,
    /// Whether the NVM command set is there (CSS bit 0).
    pub has_nvm_commands: bool,
    /// log2 of the smallest memory page size (MPSMIN).
    pub min_page_bits: u32,
}

impl Capabilities {
    /// Decodes CAP.
    #[must_use]
    pub const fn parse(cap: u64) -> Self {
        Self {
            max_queue_entries: (cap & 0xffff) as u32 + 1,
            ready_timeout: Duration::from_millis(500 * ((cap >> 24) & 0xff)),
            doorbell_stride: 4 << ((cap >> 32) & 0xf),
            has_nvm_commands: cap >> 37 & 1 == 1,
            min_page_bits: ((cap >> 48) & 0xf) as u32 + 12,
        }
    }

    /// Where a queue's submission tail doorbell is.
    #[must_use]
    pub const fn submission_doorbell(&self, queue: u16) -> u32 {
        DOORBELLS + 2 * queue as u32 * self.doorbell_stride
    }

    /// Where a queue's completion head doorbell is.
    #[must_use]
    pub const fn completion_doorbell(&self, queue: u16) -> u32 {
        DOORBELLS + (2 * queue as u32 + 1) * self.doorbell_stride
    }
}

/// CC.EN.
pub const CC_ENABLE: u32 = 1;
/// CC.SHN: announce a normal shutdown.
pub const CC_SHUTDOWN: u32 = 0b01 << 14;
/// CC.SHN, both bits.
pub const CC_SHUTDOWN_MASK: u32 = 0b11 << 14;
/// CC.IOSQES and CC.IOCQES: entries of 2^6 and 2^4 bytes. CSS, MPS and AMS
/// are 0: NVM command set, 4096-byte pages, round robin.
pub const CC_ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;

/// CSTS.RDY.
pub const CSTS_READY: u32 = 1;
/// CSTS.CFS: the controller has failed and needs a reset.
pub const CSTS_FATAL: u32 = 1 << 1;
/// CSTS.SHST, both bits.
pub const CSTS_SHUTDOWN_MASK: u32 = 0b11 << 2;
/// CSTS.SHST: shutdown is complete.
pub const CSTS_SHUTDOWN_COMPLETE: u32 = 0b10 << 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// CAP of QEMU's emulated controller: a layout that we did not write.
    #[test]
    fn capabilities_of_a_known_controller_are_read_right() {
        let cap = Capabilities::parse(0x0040_1820_0f01_07ff);
        assert_eq!(cap.max_queue_entries, 2048);
        assert_eq!(cap.ready_timeout, Duration::from_millis(7500));
        assert_eq!(cap.doorbell_stride, 4);
        assert!(cap.has_nvm_commands);
        assert_eq!(cap.submission_doorbell(1), 0x1008);
        assert_eq!(cap.completion_doorbell(1), 0x100c);
    }

    #[test]
    fn the_stride_moves_doorbells_apart() {
        let cap = Capabilities::parse(2 << 32);
        assert_eq!(cap.doorbell_stride, 16);
        assert_eq!(cap.completion_doorbell(0), 0x1010);
        assert_eq!(cap.submission_doorbell(3), 0x1000 + 6 * 16);
    }
}
