//! The command register (PCI Local Bus 3.0, section 6.2.2).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where it is in configuration space.
const COMMAND: u64 = 4;

const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const NO_PIN_INTERRUPT: u16 = 1 << 10;

/// Turns memory space on, pin interrupts off, and lets the device reach memory or not.
/// `configuration` is where its configuration space begins in the file.
///
/// # Errors
/// The kernel's; a device that is gone takes no command.
pub(super) fn set_master(file: &File, configuration: u64, is_master: bool) -> io::Result<()> {
    let at = configuration + COMMAND;
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, at)?;
    let others = u16::from_le_bytes(bytes) & !BUS_MASTER;
    let master = if is_master { BUS_MASTER } else { 0 };
    let command = others | MEMORY_SPACE | NO_PIN_INTERRUPT | master;
    file.write_all_at(&command.to_le_bytes(), at)
}
