//! The bus to a soft controller: stores, loads, and memory of this process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use block_core::DmaMemory;

use super::SoftController;
use crate::bus::Bus;

pub(super) struct SoftBus {
    controller: Arc<SoftController>,
    driven_here: bool,
}

impl SoftBus {
    pub(super) fn driven_here(controller: Arc<SoftController>) -> Self {
        Self { controller, driven_here: true }
    }

    pub(super) fn driven_elsewhere(controller: Arc<SoftController>) -> Self {
        Self { controller, driven_here: false }
    }
}

impl Bus for SoftBus {
    fn read32(&self, offset: u32) -> u32 {
        self.controller.registers.read(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.controller.registers.write(offset, value);
    }

    fn allocate(&self, bytes: usize) -> io::Result<DmaMemory> {
        self.controller.registry.allocate(bytes)
    }

    fn cut_off(&self) {
        self.controller.cut_off();
    }

    fn relax(&self) {
        if !self.driven_here || self.controller.work() == 0 {
            std::thread::yield_now();
        }
    }

    /// A disk rings that ends commands by itself. Then the controller has to do its part.
    fn has_interrupts(&self) -> bool {
        self.driven_here && !self.controller.bells.is_empty()
    }

    fn bells(&self) -> Vec<BorrowedFd<'_>> {
        let bells = self.controller.bells.iter();
        if self.driven_here { bells.map(AsFd::as_fd).collect() } else { Vec::new() }
    }
}
