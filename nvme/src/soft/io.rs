//! The NVM command set (NVM Command Set 1.0, section 3.2).

use std::ops::Range;

use super::direct::Owner;
use super::engine::Engine;
use super::namespace::{Disk, whole_pages};
use super::prp;
use crate::command::{
    ALL_NAMESPACES, Command, DATASET_DEALLOCATE, DEALLOCATE_ZEROES, FORCE_UNIT_ACCESS, io,
};
use crate::completion::Status;
use crate::sys;

/// Bytes of a range of Dataset Management (figure 41).
const RANGE_BYTES: usize = 16;
/// Most ranges of a command.
const MAX_RANGES: usize = 256;

/// How far a sound command is.
pub(super) enum Progress {
    /// It is done; so many bytes were moved or made holes of.
    Done(usize),
    /// It is under way: its disk says when it has ended.
    UnderWay,
}

use Progress::{Done, UnderWay};

impl Engine {
    /// Executes one I/O command of a queue, or begins it.
    pub(super) fn serve_io(&mut self, queue: u16, command: &Command) -> Result<Progress, Status> {
        // No fused operations, no SGLs.
        if command.flags() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match command.opcode() {
            io::READ => self.read(queue, command),
            io::WRITE => self.write(queue, command),
            io::FLUSH => self.flush(queue, command),
            io::WRITE_ZEROES if self.options.write_zeroes => self.write_zeroes(queue, command),
            io::DATASET_MANAGEMENT if self.options.deallocate => {
                self.manage_dataset(queue, command)
            }
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn read(&mut self, queue: u16, command: &Command) -> Result<Progress, Status> {
        let (index, bytes) = self.transfer(command)?;
        let disk = match &mut self.namespaces[index].disk {
            Disk::InPlace(disk) => disk,
            Disk::Direct(disk) => {
                let pieces = (&self.windows, &self.pieces[..]);
                return disk.read(owner(queue, command), bytes, pieces).map(|()| UnderWay);
            }
        };
        let mut at = bytes.start;
        for piece in &self.pieces {
            let memory = self.windows.memory(piece.place);
            disk.read(at, memory, piece.place.offset, piece.bytes)?;
            at += piece.bytes as u64;
        }
        self.served.reads += 1;
        self.served.bytes_read += bytes.end - bytes.start;
        Ok(Done((bytes.end - bytes.start) as usize))
    }

    fn write(&mut self, queue: u16, command: &Command) -> Result<Progress, Status> {
        let (index, bytes) = self.transfer(command)?;
        let through = command.dword(12) & FORCE_UNIT_ACCESS != 0;
        let disk = match &mut self.namespaces[index].disk {
            Disk::InPlace(disk) => disk,
            Disk::Direct(disk) => {
                let pieces = (&self.windows, &self.pieces[..]);
                let begun = disk.write(owner(queue, command), bytes, pieces, through);
                return begun.map(|()| UnderWay);
            }
        };
        let mut at = bytes.start;
        for piece in &self.pieces {
            let memory = self.windows.memory(piece.place);
            disk.write(at, memory, piece.place.offset, piece.bytes)?;
            at += piece.bytes as u64;
        }
        if through {
            disk.persist(bytes.clone())?;
        }
        self.served.writes += 1;
        self.served.bytes_written += bytes.end - bytes.start;
        Ok(Done((bytes.end - bytes.start) as usize))
    }

    fn flush(&mut self, queue: u16, command: &Command) -> Result<Progress, Status> {
        if command.namespace() == ALL_NAMESPACES {
            let status = self.flush_all();
            return if status.is_success() { Ok(Done(0)) } else { Err(status) };
        }
        let index = self.namespace_index(command)?;
        match &mut self.namespaces[index].disk {
            Disk::InPlace(disk) => disk.flush().map(|()| Done(0)),
            Disk::Direct(disk) => disk.flush(owner(queue, command)).map(|()| UnderWay),
        }
    }

    fn write_zeroes(&mut self, queue: u16, command: &Command) -> Result<Progress, Status> {
        let index = self.namespace_index(command)?;
        let namespace = &mut self.namespaces[index];
        let bytes = namespace.bytes_of(command.start(), command.block_count())?;
        let keep = command.dword(12) & DEALLOCATE_ZEROES == 0;
        let through = command.dword(12) & FORCE_UNIT_ACCESS != 0;
        let disk = match &mut namespace.disk {
            Disk::InPlace(disk) => disk,
            Disk::Direct(disk) => {
                let begun = disk.zero(owner(queue, command), bytes, keep, through);
                return begun.map(|()| UnderWay);
            }
        };
        disk.zero(bytes.clone(), keep)?;
        if through {
            disk.persist(bytes.clone())?;
        }
        Ok(Done((bytes.end - bytes.start) as usize))
    }

    fn manage_dataset(&mut self, queue: u16, command: &Command) -> Result<Progress, Status> {
        let index = self.namespace_index(command)?;
        let count = (command.dword(10) & 0xff) as usize + 1;
        let pointers = (command.prp1(), command.prp2());
        prp::resolve(&self.windows, pointers, count * RANGE_BYTES, &mut self.pieces)?;
        // Copied once: what is checked is what is done.
        let mut ranges = [0; MAX_RANGES * RANGE_BYTES];
        let mut copied = 0;
        for piece in &self.pieces {
            let to = &mut ranges[copied..copied + piece.bytes];
            sys::copy_out(self.windows.memory(piece.place), piece.place.offset, to);
            copied += piece.bytes;
        }
        let namespace = &mut self.namespaces[index];
        let range = |bytes: &[u8]| {
            let count = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let start = bytes[8..16].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
            (start, count)
        };
        for bytes in ranges[..copied].chunks_exact(RANGE_BYTES) {
            let (start, count) = range(bytes);
            namespace.bytes_of(start, count)?;
        }
        if command.dword(11) & DATASET_DEALLOCATE == 0 {
            return Ok(Done(0));
        }
        let lba_bits = namespace.lba_size().bits();
        let ranges = ranges[..copied].chunks_exact(RANGE_BYTES).map(|bytes| {
            let (start, count) = range(bytes);
            start << lba_bits..(start + u64::from(count)) << lba_bits
        });
        let disk = match &mut namespace.disk {
            Disk::InPlace(disk) => disk,
            Disk::Direct(disk) => {
                let whole = ranges.map(|range| whole_pages(&range));
                let begun = disk.deallocate(owner(queue, command), whole)?;
                return Ok(if begun { UnderWay } else { Done(0) });
            }
        };
        let mut given_back = 0;
        for bytes in ranges {
            given_back += (bytes.end - bytes.start) as usize;
            disk.deallocate(bytes)?;
        }
        Ok(Done(given_back))
    }

    /// Everything about a read or write that can be wrong, before a byte moves.
    fn transfer(&mut self, command: &Command) -> Result<(usize, Range<u64>), Status> {
        let index = self.namespace_index(command)?;
        let bytes = self.namespaces[index].bytes_of(command.start(), command.block_count())?;
        let length = (bytes.end - bytes.start) as usize;
        if length > self.options.max_transfer {
            return Err(Status::INVALID_FIELD);
        }
        let pointers = (command.prp1(), command.prp2());
        prp::resolve(&self.windows, pointers, length, &mut self.pieces)?;
        Ok((index, bytes))
    }

    fn namespace_index(&self, command: &Command) -> Result<usize, Status> {
        let index = (command.namespace() as usize).wrapping_sub(1);
        if index < self.namespaces.len() { Ok(index) } else { Err(Status::INVALID_NAMESPACE) }
    }
}

/// The command, as whoever does it later names it.
fn owner(queue: u16, command: &Command) -> Owner {
    Owner { queue, id: command.id() }
}
