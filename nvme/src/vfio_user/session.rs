//! One driver's connection to a soft controller: its messages, between the
//! controller's work. Nothing that it says is believed.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use block_core::Memory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::socket::{self, Message};
use super::wire::{
    CAPABILITIES, DEVICE_IS_PCI, DEVICE_RESETS, ERROR, Fields, HAS_CAPABILITIES, Header, MAJOR,
    MAPPABLE, MINOR, NO_REPLY, READABLE, REPLY, SPARSE_MAPPING, WRITABLE, Writer, command,
};
use super::{BAR0, CONFIGURATION, INTERRUPT_KINDS, REGIONS};
use crate::PAGE;
use crate::registers::{CC, CSTS, CSTS_READY, DOORBELLS};
use crate::soft::SoftController;

/// How long a driver may take to send the rest of a message, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Rounds of work between two looks at the socket.
const ROUNDS_PER_LOOK: u32 = 64;
/// Rounds without work after which the thread naps: doorbells in shared memory wake
/// nobody.
const ROUNDS_AWAKE: u32 = 20_000;
/// How long it naps.
const NAP: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Pieces of memory that a driver may open at a time.
const MOST_WINDOWS: usize = 256;

/// PCI configuration: 256 bytes, of which a driver may change the command register
/// and the register addresses.
const CONFIGURATION_BYTES: usize = 256;
const COMMAND_REGISTER: usize = 4;
const BAR0_REGISTER: usize = 0x10;

/// Errors of an answer.
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

type Answer = Result<Vec<u8>, u32>;

pub(super) struct Session<'a> {
    soft: &'a SoftController,
    stream: UnixStream,
    doorbells: (BorrowedFd<'a>, usize),
    windows: Vec<(u64, Arc<Memory>)>,
    configuration: [u8; CONFIGURATION_BYTES],
}

impl<'a> Session<'a> {
    pub(super) fn new(
        soft: &'a SoftController,
        stream: UnixStream,
        doorbells: (BorrowedFd<'a>, usize),
    ) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let configuration = initial_configuration();
        Ok(Self { soft, stream, doorbells, windows: Vec::new(), configuration })
    }

    /// Serves until the driver leaves.
    pub(super) fn run(mut self, is_over: &dyn Fn() -> bool) -> io::Result<()> {
        let mut idle = 0_u32;
        let mut rounds = 0_u32;
        while !is_over() {
            idle = if self.soft.work() > 0 { 0 } else { idle.saturating_add(1) };
            rounds = rounds.wrapping_add(1);
            if idle < ROUNDS_AWAKE && !rounds.is_multiple_of(ROUNDS_PER_LOOK) {
                continue;
            }
            if idle > 0 {
                std::thread::yield_now();
            }
            let wait = if idle < ROUNDS_AWAKE { &NO_TIME } else { &NAP };
            if !self.has_message(wait)? {
                continue;
            }
            idle = 0;
            let Some(message) = socket::receive(&self.stream)? else { break };
            self.serve(message)?;
        }
        Ok(())
    }

    fn has_message(&self, wait: &Timespec) -> io::Result<bool> {
        let mut source = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut source, Some(wait)) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn serve(&mut self, message: Message) -> io::Result<()> {
        let header = message.header;
        if header.flags & REPLY != 0 {
            return Ok(()); // Nothing was asked.
        }
        let region = header.command == command::REGION_INFO;
        let answer = self.answer(message);
        if header.flags & NO_REPLY != 0 {
            return Ok(());
        }
        let (flags, error) = match &answer {
            Ok(_) => (REPLY, 0),
            Err(error) => (REPLY | ERROR, *error),
        };
        let answer = answer.unwrap_or_default();
        // Only the region with the doorbells has anything to map.
        let is_mappable =
            region && Fields(answer.get(4..).unwrap_or(&[])).u32().unwrap_or(0) & MAPPABLE != 0;
        let descriptors = if is_mappable { &[self.doorbells.0][..] } else { &[] };
        let message = Header { flags, error, ..header }.with(&answer);
        socket::send(&self.stream, &message, descriptors)
    }

    fn answer(&mut self, message: Message) -> Answer {
        let Message { header, payload, descriptors } = message;
        let fields = Fields(&payload);
        match header.command {
            command::VERSION => agree(fields),
            command::DMA_MAP => {
                self.open_memory(fields, descriptors.into_iter().next().map(File::from))
            }
            command::DMA_UNMAP => {
                self.close_memory(fields)?;
                Ok(payload)
            }
            command::DEVICE_INFO => {
                let mut info = Writer::default();
                info.u32(16).u32(DEVICE_RESETS | DEVICE_IS_PCI).u32(REGIONS).u32(INTERRUPT_KINDS);
                Ok(info.0)
            }
            command::REGION_INFO => self.describe_region(fields),
            command::INTERRUPT_INFO => describe_interrupts(fields),
            command::REGION_READ => self.read(fields),
            command::REGION_WRITE => self.write(fields),
            command::RESET => {
                self.stop();
                Ok(Vec::new())
            }
            _ => Err(ENOTSUP),
        }
    }

    fn open_memory(&mut self, mut fields: Fields<'_>, file: Option<File>) -> Answer {
        let mut parse = || {
            let (_, _, offset) = (fields.u32()?, fields.u32()?, fields.u64()?);
            let (iova, bytes) = (fields.u64()?, fields.u64()?);
            let page = PAGE as u64;
            let aligned = (offset | iova | bytes).is_multiple_of(page) && bytes > 0;
            let end = iova.checked_add(bytes)?;
            offset.checked_add(bytes)?;
            aligned.then_some((offset, iova..end))
        };
        let (offset, range) = parse().ok_or(EINVAL)?;
        let bytes = usize::try_from(range.end - range.start).map_err(|_| EINVAL)?;
        let overlaps = self.windows.iter().any(|(iova, memory)| {
            *iova < range.end && range.start < iova.saturating_add(memory.len() as u64)
        });
        if overlaps {
            return Err(EINVAL);
        }
        if self.windows.len() == MOST_WINDOWS {
            return Err(ENOSPC);
        }
        // Without a file only messages would reach the memory, which no driver of
        // worth wants.
        let file = file.ok_or(ENOTSUP)?;
        let memory = Memory::of_file(&file, offset, bytes).map_err(|_| EINVAL)?;
        let memory = Arc::new(memory);
        self.soft.open_memory(range.start, &memory);
        self.windows.push((range.start, memory));
        Ok(Vec::new())
    }

    fn close_memory(&mut self, mut fields: Fields<'_>) -> Result<(), u32> {
        let mut parse = || {
            let _ = (fields.u32()?, fields.u32()?);
            Some((fields.u64()?, fields.u64()?))
        };
        let (iova, bytes) = parse().ok_or(EINVAL)?;
        let is_it =
            |(start, memory): &(u64, Arc<Memory>)| *start == iova && memory.len() as u64 == bytes;
        let index = self.windows.iter().position(is_it).ok_or(EINVAL)?;
        self.windows.swap_remove(index);
        self.soft.close_memory(iova);
        Ok(())
    }

    fn describe_region(&self, mut fields: Fields<'_>) -> Answer {
        let mut parse = || {
            let (room, _) = (fields.u32()?, fields.u32()?);
            Some((room, fields.u32()?))
        };
        let (room, index) = parse().ok_or(EINVAL)?;
        let mut info = Writer::default();
        match index {
            BAR0 => {
                let size = (PAGE + self.doorbells.1) as u64;
                let flags = READABLE | WRITABLE | MAPPABLE | HAS_CAPABILITIES;
                let full = 32 + 32;
                if room < full {
                    // The asker learns how much room it takes.
                    info.u32(full).u32(READABLE | WRITABLE | HAS_CAPABILITIES);
                    info.u32(index).u32(0).u64(size).u64(0);
                    return Ok(info.0);
                }
                info.u32(full).u32(flags).u32(index).u32(32).u64(size).u64(0);
                info.u16(SPARSE_MAPPING).u16(1).u32(0).u32(1).u32(0);
                info.u64(u64::from(DOORBELLS)).u64(self.doorbells.1 as u64);
            }
            CONFIGURATION => {
                info.u32(32).u32(READABLE | WRITABLE).u32(index).u32(0);
                info.u64(CONFIGURATION_BYTES as u64).u64(0);
            }
            index if index < REGIONS => {
                info.u32(32).u32(0).u32(index).u32(0).u64(0).u64(0);
            }
            _ => return Err(EINVAL),
        }
        Ok(info.0)
    }

    fn read(&self, mut fields: Fields<'_>) -> Answer {
        let (access, _) = Access::parse(&mut fields).ok_or(EINVAL)?;
        let mut answer = access.described();
        match access.region {
            CONFIGURATION => {
                answer.extend_from_slice(self.configuration.get(access.range()).ok_or(EINVAL)?);
            }
            BAR0 => {
                for offset in access.registers().ok_or(EINVAL)? {
                    answer.extend(self.soft.read_register(offset).to_le_bytes());
                }
            }
            _ => return Err(EINVAL),
        }
        Ok(answer)
    }

    fn write(&mut self, mut fields: Fields<'_>) -> Answer {
        let (access, data) = Access::parse(&mut fields).ok_or(EINVAL)?;
        let data = data.get(..access.count).ok_or(EINVAL)?;
        match access.region {
            CONFIGURATION => {
                self.configuration.get(access.range()).ok_or(EINVAL)?;
                for (at, byte) in access.range().zip(data) {
                    match at {
                        COMMAND_REGISTER => self.configuration[at] = byte & 0b111,
                        // The address decodes as many bytes as the region has.
                        at if (BAR0_REGISTER + 2..BAR0_REGISTER + 8).contains(&at) => {
                            self.configuration[at] = *byte;
                        }
                        _ => {}
                    }
                }
            }
            BAR0 => {
                let words = data
                    .chunks_exact(4)
                    .map(|word| word.first_chunk().copied().map_or(0, u32::from_le_bytes));
                for (offset, value) in access.registers().ok_or(EINVAL)?.zip(words) {
                    self.soft.write_register(offset, value);
                }
            }
            _ => return Err(EINVAL),
        }
        Ok(access.described())
    }

    /// Resets the controller.
    fn stop(&self) {
        self.soft.write_register(CC, 0);
        // It may be hung by a switch; then it reaches no memory either.
        for _ in 0..1000 {
            self.soft.work();
            if self.soft.read_register(CSTS) & CSTS_READY == 0 {
                break;
            }
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.stop();
        for (iova, _) in self.windows.drain(..) {
            self.soft.close_memory(iova);
        }
    }
}

/// An access to a region.
struct Access {
    region: u32,
    offset: u64,
    count: usize,
}

impl Access {
    /// The access, and the data that follows it.
    fn parse<'a>(fields: &mut Fields<'a>) -> Option<(Self, &'a [u8])> {
        let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        let sound = count > 0 && count as usize <= PAGE && offset < 1 << 32;
        sound.then_some((Self { region, offset, count: count as usize }, fields.0))
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.offset as usize..self.offset as usize + self.count
    }

    /// The registers that it names: whole ones only.
    fn registers(&self) -> Option<impl Iterator<Item = u32> + use<>> {
        let whole = self.offset.is_multiple_of(4) && self.count.is_multiple_of(4);
        let range = self.range();
        let within = range.end <= u32::MAX as usize;
        (whole && within).then(|| range.step_by(4).map(|offset| offset as u32))
    }

    fn described(&self) -> Vec<u8> {
        let mut answer = Writer::default();
        answer.u64(self.offset).u32(self.region).u32(self.count as u32);
        answer.0
    }
}

fn agree(mut fields: Fields<'_>) -> Answer {
    let mut parse = || Some((fields.u16()?, fields.u16()?));
    let (major, minor) = parse().ok_or(EINVAL)?;
    if major != MAJOR {
        return Err(EINVAL);
    }
    let mut answer = Writer::default();
    answer.u16(MAJOR).u16(minor.min(MINOR));
    answer.0.extend_from_slice(CAPABILITIES);
    Ok(answer.0)
}

/// There are none: drivers poll.
fn describe_interrupts(mut fields: Fields<'_>) -> Answer {
    let mut parse = || {
        let _ = (fields.u32()?, fields.u32()?);
        fields.u32()
    };
    let index = parse().filter(|&index| index < INTERRUPT_KINDS).ok_or(EINVAL)?;
    let mut info = Writer::default();
    info.u32(16).u32(0).u32(index).u32(0);
    Ok(info.0)
}

/// A PCI header (PCI 3.0, section 6.1): an NVMe controller with 64-bit registers.
fn initial_configuration() -> [u8; CONFIGURATION_BYTES] {
    let mut bytes = [0; CONFIGURATION_BYTES];
    // Vendor and device, which nobody has: drivers look at the class.
    bytes[..4].copy_from_slice(&[0x72, 0x76, 0x6f, 0x69]);
    bytes[9..12].copy_from_slice(&[0x02, 0x08, 0x01]);
    // BAR 0: memory, 64 bits.
    bytes[BAR0_REGISTER] = 0b100;
    bytes
}
