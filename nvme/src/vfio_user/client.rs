//! The bus to a controller in another process: registers by messages, doorbells
//! and queues in memory that both have mapped.

use std::fs::File;
use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use block_core::{DmaMemory, Memory};
use rustix::event::{EventfdFlags, eventfd};

use super::socket::{self, Message};
use super::wire::{
    ACTION_TRIGGER, CAPABILITIES, DATA_EVENTFD, DMA_READ_WRITE, ERROR, Fields, HAS_CAPABILITIES,
    Header, INTERRUPT_BY_EVENTFD, KIND, MAJOR, MAPPABLE, MINOR, REPLY, SPARSE_MAPPING, Writer,
    command,
};
use super::{BAR0, CONFIGURATION, MSIX};
use crate::PAGE;
use crate::arena::Arena;
use crate::bus::Bus;
use crate::registers::{DOORBELLS, GONE};
use crate::sys::HalfWords;

/// The longest wait for an answer; a process that takes longer is gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// The same for each answer to a driver that connects again: the thread has other
/// devices, and tries again.
const SHORT_PATIENCE: Duration = Duration::from_millis(500);

/// Bytes of a region's description, without capabilities.
const REGION_INFO_BYTES: u32 = 32;
/// Room for a region's capabilities.
const CAPABILITY_BYTES: u32 = 4096;

/// Most of a region's doorbells that are mapped: 64 queue pairs at any stride.
const MOST_DOORBELL_BYTES: u64 = 1 << 20;

/// PCI: the command register, and memory space and bus master in it.
const PCI_COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 0b110;

/// Why a controller in another process cannot be reached.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it, the fields are their words.
pub enum ConnectError {
    #[error("nobody serves vfio-user on '{path}': {error}; start the controller's process first")]
    Connect { path: PathBuf, error: io::Error },
    #[error("the process behind '{path}' gave no sound answer to \"{asked}\": {error}")]
    Talk { path: PathBuf, asked: &'static str, error: io::Error },
    #[error(
        "the process behind '{path}' speaks vfio-user {major}, and 0 is needed; use another version of it"
    )]
    Version { path: PathBuf, major: u16 },
}

/// A bus over a vfio-user socket.
///
/// That a controller reaches no memory any more after [`Bus::cut_off`] is what its
/// process answers; nothing enforces it, as nothing does for a PCI device without an
/// IOMMU. It never reaches memory outside the arena.
pub struct VfioUserBus {
    path: PathBuf,
    line: Mutex<Line>,
    is_gone: AtomicBool,
    doorbells: Option<Doorbells>,
    /// Written to when a queue with interrupts has a completion, if there are any.
    bell: Option<OwnedFd>,
    arena: Arc<Arena>,
}

struct Line {
    stream: UnixStream,
    next_id: u16,
}

/// The doorbells that are mapped, by their offsets in the registers.
struct Doorbells {
    words: HalfWords,
    memory: Arc<Memory>,
    range: Range<u32>,
}

impl VfioUserBus {
    /// Connects, and opens the arena to the controller. Several buses may have the
    /// same one.
    ///
    /// # Errors
    /// A sentence about the step that failed.
    pub fn connect(path: &Path, arena: Arc<Arena>) -> Result<Arc<Self>, ConnectError> {
        let talk = |asked| move |error| ConnectError::Talk { path: path.to_owned(), asked, error };
        let (mut line, offer) = Line::open(path, &arena, PATIENCE)?;
        let bell = line.connect_bell().map_err(talk("connect interrupts"))?;
        if bell.is_none() {
            tracing::warn!("the controller has no MSI-X interrupts, so it is polled all the time");
        }
        let doorbells = offer.map(Doorbells::map).transpose().map_err(talk("region info"))?;
        line.wait_for(PATIENCE).map_err(talk("version"))?;
        let (path, line) = (path.to_owned(), Mutex::new(line));
        Ok(Arc::new(Self { path, line, is_gone: AtomicBool::new(false), doorbells, bell, arena }))
    }

    /// Whether doorbells are stores to shared memory, and not messages.
    #[must_use]
    pub fn has_mapped_doorbells(&self) -> bool {
        self.doorbells.is_some()
    }

    /// Says something to the process; one that does not answer is gone until it has been
    /// connected to again.
    fn talk<T>(&self, act: impl FnOnce(&mut Line) -> io::Result<T>) -> Option<T> {
        if self.is_gone.load(Ordering::Relaxed) {
            return None;
        }
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        match act(&mut line) {
            Ok(value) => Some(value),
            Err(error) => {
                if !self.is_gone.swap(true, Ordering::Relaxed) {
                    tracing::error!("the controller's process does not answer any more: {error}");
                }
                None
            }
        }
    }
}

impl Bus for VfioUserBus {
    fn read32(&self, offset: u32) -> u32 {
        let read = self.talk(|line| line.read::<4>(BAR0, u64::from(offset)));
        read.map_or(GONE, u32::from_le_bytes)
    }

    fn write32(&self, offset: u32, value: u32) {
        if let Some(doorbells) = &self.doorbells
            && doorbells.range.contains(&offset)
        {
            let index = (offset - doorbells.range.start) as usize / 4;
            doorbells.words.store(index, value, Ordering::Release);
            return;
        }
        self.talk(|line| line.write(BAR0, u64::from(offset), &value.to_le_bytes()));
    }

    fn read64(&self, offset: u32) -> u64 {
        let read = self.talk(|line| line.read::<8>(BAR0, u64::from(offset)));
        read.map_or(u64::MAX, u64::from_le_bytes)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.talk(|line| line.write(BAR0, u64::from(offset), &value.to_le_bytes()));
    }

    fn allocate(&self, bytes: usize) -> io::Result<DmaMemory> {
        self.arena.allocate(bytes)
    }

    fn cut_off(&self) {
        self.talk(|line| line.close_memory(&self.arena));
        self.is_gone.store(true, Ordering::Relaxed);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn has_interrupts(&self) -> bool {
        self.bell.is_some()
    }

    fn bells(&self) -> Vec<BorrowedFd<'_>> {
        self.bell.iter().map(AsFd::as_fd).collect()
    }

    /// A process that was started again has a controller that is off, and the same
    /// process turns it off when its driver has left.
    fn revive(&self) -> io::Result<bool> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        // Before anything else: a process serves one driver at a time.
        let _ = line.stream.shutdown(Shutdown::Both);
        self.is_gone.store(true, Ordering::Relaxed);
        let opened = Line::open(&self.path, &self.arena, SHORT_PATIENCE);
        let (mut fresh, offer) = opened.map_err(io::Error::other)?;
        if let Some(bell) = &self.bell {
            fresh.give_bell(bell.as_fd())?;
        }
        match (&self.doorbells, offer) {
            (None, _) => {}
            (Some(doorbells), Some(offer)) if doorbells.bytes() == offer.bytes => {
                doorbells.memory.replace(Some((&offer.file, offer.at)))?;
            }
            (Some(_), _) => return Err(io::Error::other("its doorbells are other ones")),
        }
        fresh.wait_for(PATIENCE)?;
        *line = fresh;
        self.is_gone.store(false, Ordering::Relaxed);
        tracing::info!(socket = %self.path.display(), "connected to the controller's process again");
        Ok(true)
    }
}

/// Doorbells that a controller offers to be mapped.
struct Offer {
    file: File,
    at: u64,
    bytes: usize,
}

impl Doorbells {
    fn map(offer: Offer) -> io::Result<Self> {
        let memory = Arc::new(Memory::of_file(&offer.file, offer.at, offer.bytes)?);
        let words = HalfWords::new(Arc::clone(&memory), 0, offer.bytes / 4);
        let words = words.ok_or_else(malformed)?;
        Ok(Self { words, memory, range: DOORBELLS..DOORBELLS + offer.bytes as u32 })
    }

    fn bytes(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }
}

impl Line {
    /// Connects, agrees on a version, opens the arena; the doorbells that can be mapped.
    fn open(
        path: &Path,
        arena: &Arena,
        patience: Duration,
    ) -> Result<(Self, Option<Offer>), ConnectError> {
        let refused = |error| ConnectError::Connect { path: path.to_owned(), error };
        let stream = UnixStream::connect(path).map_err(refused)?;
        let mut line = Self { stream, next_id: 0 };
        line.wait_for(patience).map_err(refused)?;
        let talk = |asked| move |error| ConnectError::Talk { path: path.to_owned(), asked, error };
        let major = line.agree().map_err(talk("version"))?;
        if major != MAJOR {
            return Err(ConnectError::Version { path: path.to_owned(), major });
        }
        let offer = line.offered_doorbells().map_err(talk("region info"))?;
        line.open_memory(arena).map_err(talk("map memory"))?;
        let master = MEMORY_AND_MASTER.to_le_bytes();
        line.write(CONFIGURATION, PCI_COMMAND, &master).map_err(talk("enable bus mastering"))?;
        Ok((line, offer))
    }

    /// An eventfd that the controller's vector 0 rings from now on, if it has one.
    fn connect_bell(&mut self) -> io::Result<Option<OwnedFd>> {
        let mut question = Writer::default();
        question.u32(16).u32(0).u32(MSIX).u32(0);
        let answer = self.ask(command::INTERRUPT_INFO, &question.0, &[])?;
        let mut fields = Fields(&answer.payload);
        let mut parse = || {
            let (_, flags, _) = (fields.u32()?, fields.u32()?, fields.u32()?);
            Some((flags, fields.u32()?))
        };
        let (flags, count) = parse().ok_or_else(malformed)?;
        if count == 0 || flags & INTERRUPT_BY_EVENTFD == 0 {
            return Ok(None);
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.give_bell(bell.as_fd())?;
        Ok(Some(bell))
    }

    fn give_bell(&mut self, bell: BorrowedFd<'_>) -> io::Result<()> {
        let mut set = Writer::default();
        set.u32(20).u32(DATA_EVENTFD | ACTION_TRIGGER).u32(MSIX).u32(0).u32(1);
        self.ask(command::SET_INTERRUPTS, &set.0, &[bell]).map(drop)
    }

    /// How long each answer is waited for.
    fn wait_for(&self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))?;
        self.stream.set_write_timeout(Some(patience))
    }

    fn agree(&mut self) -> io::Result<u16> {
        let mut offer = Writer::default();
        offer.u16(MAJOR).u16(MINOR);
        offer.0.extend_from_slice(CAPABILITIES);
        let answer = self.ask(command::VERSION, &offer.0, &[])?;
        Fields(&answer.payload).u16().ok_or_else(malformed)
    }

    /// The doorbells, if the controller lets them be mapped from the first one on.
    fn offered_doorbells(&mut self) -> io::Result<Option<Offer>> {
        let mut question = Writer::default();
        question.u32(REGION_INFO_BYTES + CAPABILITY_BYTES).u32(0).u32(BAR0).u32(0).u64(0).u64(0);
        let answer = self.ask(command::REGION_INFO, &question.0, &[])?;
        let region = Region::parse(&answer.payload).ok_or_else(malformed)?;
        let first = u64::from(DOORBELLS);
        let area = region.areas.iter().find(|area| area.contains(&first));
        let (Some(area), Some(descriptor)) = (area, answer.descriptors.into_iter().next()) else {
            return Ok(None);
        };
        let bytes = (area.end - first).min(MOST_DOORBELL_BYTES) as usize / PAGE * PAGE;
        if bytes == 0 {
            return Ok(None);
        }
        let at = region.file_offset.checked_add(first).ok_or_else(malformed)?;
        Ok(Some(Offer { file: File::from(descriptor), at, bytes }))
    }

    fn open_memory(&mut self, arena: &Arena) -> io::Result<()> {
        let range = arena.range();
        let mut map = Writer::default();
        map.u32(32).u32(DMA_READ_WRITE).u64(range.start).u64(arena.iova());
        map.u64(range.end - range.start);
        self.ask(command::DMA_MAP, &map.0, &[arena.file().as_fd()]).map(drop)
    }

    fn close_memory(&mut self, arena: &Arena) -> io::Result<()> {
        let range = arena.range();
        let mut unmap = Writer::default();
        unmap.u32(24).u32(0).u64(arena.iova()).u64(range.end - range.start);
        self.ask(command::DMA_UNMAP, &unmap.0, &[]).map(drop)
    }

    fn read<const N: usize>(&mut self, region: u32, offset: u64) -> io::Result<[u8; N]> {
        let mut access = Writer::default();
        access.u64(offset).u32(region).u32(N as u32);
        let answer = self.ask(command::REGION_READ, &access.0, &[])?;
        answer.payload.get(16..).and_then(|data| data.first_chunk().copied()).ok_or_else(malformed)
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut access = Writer::default();
        access.u64(offset).u32(region).u32(data.len() as u32);
        access.0.extend_from_slice(data);
        self.ask(command::REGION_WRITE, &access.0, &[]).map(drop)
    }

    /// Sends a command and waits for its answer.
    fn ask(
        &mut self,
        command: u16,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<Message> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let header = Header { id, command, bytes: 0, flags: 0, error: 0 };
        socket::send(&self.stream, &header.with(payload), descriptors)?;
        let answer = socket::receive(&self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if answer.header.id != id || answer.header.flags & KIND != REPLY {
            return Err(malformed());
        }
        if answer.header.flags & ERROR != 0 {
            return Err(io::Error::from_raw_os_error(answer.header.error as i32));
        }
        Ok(answer)
    }
}

/// What can be mapped of a region.
struct Region {
    /// Where the region begins in the file that came with its description.
    file_offset: u64,
    areas: Vec<Range<u64>>,
}

impl Region {
    fn parse(payload: &[u8]) -> Option<Self> {
        let mut fields = Fields(payload);
        let (_, flags, _) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (mut next, size) = (fields.u32()?, fields.u64()?);
        let file_offset = fields.u64()?;
        let mut areas = Vec::new();
        if flags & MAPPABLE == 0 {
            return Some(Self { file_offset, areas });
        }
        if flags & HAS_CAPABILITIES == 0 {
            areas.push(0..size);
            next = 0;
        }
        let mut listed = false;
        while next != 0 {
            let mut fields = Fields(payload.get(next as usize..)?);
            let (id, _) = (fields.u16()?, fields.u16()?);
            let following = fields.u32()?;
            if id == SPARSE_MAPPING {
                listed = true;
                let (count, _) = (fields.u32()?, fields.u32()?);
                for _ in 0..count {
                    let (start, bytes) = (fields.u64()?, fields.u64()?);
                    areas.push(start..start.checked_add(bytes)?.min(size));
                }
            }
            if following != 0 && following <= next {
                return None; // A list that goes back has no end.
            }
            next = following;
        }
        if flags & HAS_CAPABILITIES != 0 && !listed {
            areas.push(0..size);
        }
        Some(Self { file_offset, areas })
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is malformed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Identifier, where the next one is, and areas by start and size.
    type Listed<'a> = (u16, u32, &'a [(u64, u64)]);

    fn described(flags: u32, capabilities: &[Listed<'_>]) -> Vec<u8> {
        let mut info = Writer::default();
        info.u32(0).u32(flags).u32(0).u32(if capabilities.is_empty() { 0 } else { 32 });
        info.u64(0x4000).u64(0);
        for (id, next, areas) in capabilities {
            info.u16(*id).u16(1).u32(*next).u32(areas.len() as u32).u32(0);
            for (start, bytes) in *areas {
                info.u64(*start).u64(*bytes);
            }
        }
        info.0
    }

    #[test]
    fn the_parts_of_a_region_that_can_be_mapped_are_found_behind_other_capabilities() {
        let list = [(9, 48, &[][..]), (SPARSE_MAPPING, 0, &[(0x1000, 0x2000)][..])];
        let region = Region::parse(&described(MAPPABLE | HAS_CAPABILITIES, &list));
        assert_eq!(region.expect("sound").areas.first(), Some(&(0x1000..0x3000)));
        let whole = Region::parse(&described(MAPPABLE, &[])).expect("sound");
        assert_eq!(whole.areas.first(), Some(&(0..0x4000)));
        assert!(Region::parse(&described(0, &list)).expect("sound").areas.is_empty());
    }

    #[test]
    fn descriptions_that_lie_end_in_nothing() {
        let flags = MAPPABLE | HAS_CAPABILITIES;
        let circle = [(9, 32, &[][..])];
        assert!(Region::parse(&described(flags, &circle)).is_none(), "a list without an end");
        let outside = [(9, 4000, &[][..])];
        assert!(Region::parse(&described(flags, &outside)).is_none());
        let beyond = [(SPARSE_MAPPING, 0, &[(u64::MAX, 2)][..])];
        assert!(Region::parse(&described(flags, &beyond)).is_none());
        let mut cut = described(flags, &[(SPARSE_MAPPING, 0, &[(0x1000, 0x1000)][..])]);
        cut.truncate(cut.len() - 1);
        assert!(Region::parse(&cut).is_none(), "fewer areas than were said");
    }
}
