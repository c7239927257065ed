//! The bus to a soft controller: stores, loads, and memory of this process.

use std::io;
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
}
