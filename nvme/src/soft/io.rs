//! The NVM command set (NVM Command Set 1.0, section 3.2).

use std::ops::Range;

use super::engine::Engine;
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

impl Engine {
    /// Executes one I/O command; returns how many bytes it moved or made holes
    /// of.
    pub(super) fn serve_io(&mut self, command: &Command) -> Result<usize, Status> {
        // No fused operations, no SGLs.
        if command.flags() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        match command.opcode() {
            io::READ => self.read(command),
            io::WRITE => self.write(command),
            io::FLUSH => self.flush(command),
            io::WRITE_ZEROES if self.options.write_zeroes => self.write_zeroes(command),
            io::DATASET_MANAGEMENT if self.options.deallocate => self.manage_dataset(command),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn read(&mut self, command: &Command) -> Result<usize, Status> {
        let (index, bytes) = self.transfer(command)?;
        let namespace = &mut self.namespaces[index];
        let mut at = bytes.start;
        for piece in &self.pieces {
            let memory = self.windows.memory(piece.place);
            namespace.read(at, memory, piece.place.offset, piece.bytes)?;
            at += piece.bytes as u64;
        }
        self.served.reads += 1;
        self.served.bytes_read += bytes.end - bytes.start;
        Ok((bytes.end - bytes.start) as usize)
    }

    fn write(&mut self, command: &Command) -> Result<usize, Status> {
        let (index, bytes) = self.transfer(command)?;
        let namespace = &mut self.namespaces[index];
        let mut at = bytes.start;
        for piece in &self.pieces {
            let memory = self.windows.memory(piece.place);
            namespace.write(at, memory, piece.place.offset, piece.bytes)?;
            at += piece.bytes as u64;
        }
        if command.dword(12) & FORCE_UNIT_ACCESS != 0 {
            namespace.persist(bytes.clone())?;
        }
        self.served.writes += 1;
        self.served.bytes_written += bytes.end - bytes.start;
        Ok((bytes.end - bytes.start) as usize)
    }

    fn flush(&mut self, command: &Command) -> Result<usize, Status> {
        if command.namespace() == ALL_NAMESPACES {
            let status = self.flush_all();
            return if status.is_success() { Ok(0) } else { Err(status) };
        }
        let index = self.namespace_index(command)?;
        self.namespaces[index].flush()?;
        Ok(0)
    }

    fn write_zeroes(&mut self, command: &Command) -> Result<usize, Status> {
        let index = self.namespace_index(command)?;
        let namespace = &mut self.namespaces[index];
        let bytes = namespace.bytes_of(command.start(), command.block_count())?;
        let keep = command.dword(12) & DEALLOCATE_ZEROES == 0;
        namespace.zero(bytes.clone(), keep)?;
        if command.dword(12) & FORCE_UNIT_ACCESS != 0 {
            namespace.persist(bytes.clone())?;
        }
        Ok((bytes.end - bytes.start) as usize)
    }

    fn manage_dataset(&mut self, command: &Command) -> Result<usize, Status> {
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
        let mut given_back = 0;
        if command.dword(11) & DATASET_DEALLOCATE != 0 {
            for bytes in ranges[..copied].chunks_exact(RANGE_BYTES) {
                let (start, count) = range(bytes);
                let bytes = namespace.bytes_of(start, count)?;
                given_back += (bytes.end - bytes.start) as usize;
                namespace.deallocate(bytes)?;
            }
        }
        Ok(given_back)
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
