//! One driver's connection to a soft controller: its messages, between the
//! controller's work. Nothing that it says is believed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use block_core::Memory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::configuration::{CONFIGURATION_BYTES, Configuration};
use super::msix::{self, Msix};
use super::socket::{self, Message};
use super::wire::{
    CAPABILITIES, DEVICE_IS_PCI, DEVICE_RESETS, EINVAL, ENOSPC, ENOTSUP, ERROR, Fields,
    HAS_CAPABILITIES, Header, MAJOR, MAPPABLE, MINOR, NO_REPLY, READABLE, REPLY, SPARSE_MAPPING,
    UNMAP_ALL, WRITABLE, Writer, command,
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

type Answer = Result<Vec<u8>, u32>;

pub(super) struct Session<'a> {
    soft: &'a SoftController,
    stream: UnixStream,
    doorbells: (BorrowedFd<'a>, usize),
    windows: Vec<Window>,
    configuration: Configuration,
    msix: Msix,
}

/// Addresses that the driver has given memory to.
struct Window {
    range: Range<u64>,
    /// The memory, if the controller reaches it: as long as this is here.
    memory: Option<Arc<Memory>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        soft: &'a SoftController,
        stream: UnixStream,
        doorbells: (BorrowedFd<'a>, usize),
    ) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let vectors = soft.vectors();
        let (configuration, msix) = (Configuration::new(vectors), Msix::new(vectors));
        Ok(Self { soft, stream, doorbells, windows: Vec::new(), configuration, msix })
    }

    /// Serves until the driver leaves.
    pub(super) fn run(mut self, is_over: &dyn Fn() -> bool) -> io::Result<()> {
        let mut idle = 0_u32;
        let mut rounds = 0_u32;
        while !is_over() {
            idle = if self.soft.work() > 0 { 0 } else { idle.saturating_add(1) };
            for vector in self.soft.take_interrupts() {
                self.msix.ring(usize::from(vector));
            }
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
            command::INTERRUPT_INFO => self.msix.describe(fields),
            command::SET_INTERRUPTS => {
                self.msix.set(fields, descriptors)?;
                Ok(Vec::new())
            }
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
        let overlaps =
            |window: &Window| window.range.start < range.end && range.start < window.range.end;
        if self.windows.iter().any(overlaps) {
            return Err(EINVAL);
        }
        if self.windows.len() == MOST_WINDOWS {
            return Err(ENOSPC);
        }
        // QEMU tells of its machine's ROMs too, without a file: only messages would reach
        // them. A command that names such memory ends with an error.
        let memory = file.map(|file| Memory::of_file(&file, offset, bytes).map(Arc::new));
        let memory = memory.transpose().map_err(|_| EINVAL)?;
        if let Some(memory) = &memory {
            self.soft.open_memory(range.start, memory);
        }
        self.windows.push(Window { range, memory });
        Ok(Vec::new())
    }

    fn close_memory(&mut self, mut fields: Fields<'_>) -> Result<(), u32> {
        let mut parse = || {
            let (_, flags) = (fields.u32()?, fields.u32()?);
            Some((flags, fields.u64()?, fields.u64()?))
        };
        let (flags, iova, bytes) = parse().ok_or(EINVAL)?;
        if flags & UNMAP_ALL != 0 {
            self.close_all();
            return Ok(());
        }
        let end = iova.checked_add(bytes).ok_or(EINVAL)?;
        let index = self.windows.iter().position(|window| window.range == (iova..end));
        self.close(index.ok_or(EINVAL)?);
        Ok(())
    }

    fn close(&mut self, index: usize) {
        let window = self.windows.swap_remove(index);
        if window.memory.is_some() {
            self.soft.close_memory(window.range.start);
        }
    }

    fn close_all(&mut self) {
        while !self.windows.is_empty() {
            self.close(0);
        }
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
                let size = (PAGE + self.doorbells.1).next_power_of_two() as u64;
                let flags = READABLE | WRITABLE | MAPPABLE | HAS_CAPABILITIES;
                let full = 32 + 32;
                if room < full {
                    // The asker learns how much room it takes; without it there is no list.
                    info.u32(full).u32(READABLE | WRITABLE);
                    info.u32(index).u32(0).u64(size).u64(0);
                    return Ok(info.0);
                }
                info.u32(full).u32(flags).u32(index).u32(32).u64(size).u64(0);
                info.u16(SPARSE_MAPPING).u16(1).u32(0).u32(1).u32(0);
                info.u64(u64::from(DOORBELLS)).u64(self.doorbells.1 as u64);
            }
            CONFIGURATION | msix::BAR => {
                let is_table = index == msix::BAR;
                let bytes = if is_table { self.msix.region_bytes() } else { CONFIGURATION_BYTES };
                info.u32(32).u32(READABLE | WRITABLE).u32(index).u32(0);
                info.u64(bytes as u64).u64(0);
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
                answer.extend_from_slice(self.configuration.read(access.range()).ok_or(EINVAL)?);
            }
            msix::BAR => {
                answer.extend_from_slice(self.msix.read(access.range()).ok_or(EINVAL)?);
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
            CONFIGURATION => self.configuration.write(access.range(), data).ok_or(EINVAL)?,
            msix::BAR => self.msix.write(access.range(), data).ok_or(EINVAL)?,
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
            self.soft.finish();
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.stop();
        self.close_all();
        // They were for this driver.
        let _ = self.soft.take_interrupts().count();
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

    fn range(&self) -> Range<usize> {
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
