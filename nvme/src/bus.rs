//! What reaches a controller: its registers, and memory that it reaches.

use std::io;
use std::os::fd::BorrowedFd;

use block_core::DmaMemory;

/// The way to one controller. The driver knows nothing else of it, so a PCI
/// device behind VFIO, a controller in another process and the soft controller
/// in this one look alike.
///
/// Offsets are those of the controller properties (NVMe Base 2.0, section
/// 3.1.3). A bus that has lost its controller reads all ones and ignores
/// writes: PCI does the same, and the driver knows what that means.
///
/// Ordering: what this thread wrote to DMA memory before `write32` is visible
/// to a controller that has seen the written value.
pub trait Bus: Send + Sync {
    /// Reads a 32-bit register, in one access.
    fn read32(&self, offset: u32) -> u32;

    /// Writes a 32-bit register or a doorbell, in one access.
    fn write32(&self, offset: u32, value: u32);

    /// Reads a 64-bit register. Two 32-bit accesses are always allowed
    /// (NVMe over PCIe 1.0, section 3.1.1); a bus with a single one overrides.
    fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes a 64-bit register, the low half first.
    fn write64(&self, offset: u32, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }

    /// Zeroed memory that the controller reaches at consecutive addresses
    /// beginning at a page.
    ///
    /// # Errors
    /// When there is no such memory (any more).
    fn allocate(&self, bytes: usize) -> io::Result<DmaMemory>;

    /// Takes the controller's way to memory away: when this returns, it reads
    /// and writes none, whatever it still does. PCI: bus mastering off, or its
    /// addresses unmapped. It is the last that is done to a controller that can
    /// neither be stopped nor started.
    fn cut_off(&self);

    /// Called again and again while the driver waits for an answer to a rare
    /// command. A soft controller of this thread does its work here; others
    /// let the processor rest for a moment.
    fn relax(&self);

    /// Whether a queue that was created with interrupts on vector 0 rings one of the
    /// [bells](Bus::bells).
    fn has_interrupts(&self) -> bool {
        false
    }

    /// Descriptors that become readable, edge by edge, when the controller has
    /// something to say. A thread that sleeps waits for them; nobody reads them.
    fn bells(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Whether a bell rings when the controller [is to be taken away](Bus::is_revoked), so
    /// that it is looked at also while nobody asks anything of it.
    fn announces_removal(&self) -> bool {
        false
    }

    /// Whether the controller is about to be taken away for good: it was unplugged, or
    /// its machine wants it back. It is not waited for.
    fn is_revoked(&self) -> bool {
        false
    }

    /// Does what a bus can do about a controller that neither stops nor answers: resets
    /// its function, connects to its process again. True when the controller is stopped
    /// now and touches no memory that it was given before.
    ///
    /// # Errors
    /// The kernel's.
    fn revive(&self) -> io::Result<bool> {
        Ok(false)
    }
}
