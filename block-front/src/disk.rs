//! What a disk is: the options that a user gives, and the same after they
//! have been found to make sense.

use std::path::PathBuf;

use block_core::SECTOR_SIZE;
use block_core::unit::SECTORS_PER_BLOCK;
use link::VolumeHandle;
use thiserror::Error;

use crate::command::ID_BYTES;

/// Most queues that a disk has. QEMU asks for one per virtual CPU and does
/// not start when a disk has fewer.
pub const MAX_QUEUES: u16 = 64;

/// How a disk is to be presented, not yet checked.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// For messages.
    pub name: String,
    /// The UNIX socket that QEMU connects to. It is made at start and removed
    /// at the end.
    pub socket: PathBuf,
    /// The attached volume that serves the disk.
    pub volume: VolumeHandle,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Bytes in a logical block: 512, or 4096, from which firmware does not
    /// boot.
    pub logical_block_size: u32,
    /// What the guest sees as the disk's serial number, at most 20 bytes.
    pub serial: String,
    /// Number of queues, at most [`MAX_QUEUES`].
    pub queues: u16,
    /// Why a guest that goes on would find another disk than it knows: then
    /// only one that starts anew is served; see [`Front::take_begun`].
    ///
    /// [`Front::take_begun`]: crate::Front::take_begun
    pub breach: Option<Breach>,
}

/// What came between a disk and the guest that has used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Writes that an earlier front had answered may be missing.
    LostWrites,
    /// The volume is another one, or was restored or taken away by force.
    OtherVolume,
}

impl DiskOptions {
    /// A writable disk with the usual properties: blocks of 512 bytes,
    /// [`MAX_QUEUES`] queues, the beginning of the name as serial number.
    pub fn new(
        name: impl Into<String>,
        socket: impl Into<PathBuf>,
        volume: VolumeHandle,
        sectors: u64,
    ) -> Self {
        let name = name.into();
        let fits = (0..=ID_BYTES).rev().find(|&end| name.is_char_boundary(end)).unwrap_or(0);
        Self {
            serial: name[..fits].to_owned(),
            name,
            socket: socket.into(),
            volume,
            sectors,
            read_only: false,
            logical_block_size: SECTOR_SIZE as u32,
            queues: MAX_QUEUES,
            breach: None,
        }
    }

    /// The disk, if it makes sense.
    ///
    /// # Errors
    /// The first thing that does not.
    pub fn check(self) -> Result<DiskSpec, SpecError> {
        let name = || self.name.clone();
        if self.sectors == 0 {
            return Err(SpecError::Empty { name: name() });
        }
        if self.sectors > u64::MAX / SECTOR_SIZE as u64 {
            return Err(SpecError::TooLarge { name: name(), sectors: self.sectors });
        }
        match self.logical_block_size {
            512 => {}
            4096 if self.sectors.is_multiple_of(SECTORS_PER_BLOCK) => {}
            4096 => return Err(SpecError::PartialBlock { name: name(), sectors: self.sectors }),
            bytes => return Err(SpecError::BlockSize { name: name(), bytes }),
        }
        if self.serial.len() > ID_BYTES {
            return Err(SpecError::Serial { name: name(), serial: self.serial.clone() });
        }
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(SpecError::Queues { name: name(), queues: self.queues });
        }
        Ok(DiskSpec(self))
    }
}

/// A disk whose options have been checked.
#[derive(Clone, Debug)]
pub struct DiskSpec(DiskOptions);

impl DiskSpec {
    /// For messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The socket that QEMU connects to.
    #[must_use]
    pub fn socket(&self) -> &std::path::Path {
        &self.0.socket
    }

    /// The attached volume that serves the disk.
    #[must_use]
    pub const fn volume(&self) -> VolumeHandle {
        self.0.volume
    }

    /// Size in sectors when the disk was made.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.0.sectors
    }

    /// Whether the guest may only read.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    /// Bytes in a logical block.
    #[must_use]
    pub const fn logical_block_size(&self) -> u32 {
        self.0.logical_block_size
    }

    /// Number of queues.
    #[must_use]
    pub const fn queues(&self) -> u16 {
        self.0.queues
    }

    /// Why a guest that goes on cannot be served.
    #[must_use]
    pub const fn breach(&self) -> Option<Breach> {
        self.0.breach
    }

    /// The serial number, padded with NUL.
    pub(crate) fn id(&self) -> [u8; ID_BYTES] {
        let mut id = [0; ID_BYTES];
        id[..self.0.serial.len()].copy_from_slice(self.0.serial.as_bytes());
        id
    }
}

/// Why a disk's options make no sense.
#[derive(Debug, Error)]
pub enum SpecError {
    /// No sector.
    #[error("disk {name}: the volume is empty; resize it to at least one block")]
    Empty {
        /// The disk.
        name: String,
    },
    /// No 64-bit number of bytes.
    #[error("disk {name}: {sectors} sectors are more than a disk can have")]
    TooLarge {
        /// The disk.
        name: String,
        /// Its size.
        sectors: u64,
    },
    /// Blocks of 4096 bytes, and a part of one at the end.
    #[error(
        "disk {name}: {sectors} sectors are not whole blocks of 4096 bytes; resize the volume \
         or use logical blocks of 512 bytes"
    )]
    PartialBlock {
        /// The disk.
        name: String,
        /// Its size.
        sectors: u64,
    },
    /// Neither 512 nor 4096.
    #[error("disk {name}: logical blocks of {bytes} bytes; use 512 or 4096")]
    BlockSize {
        /// The disk.
        name: String,
        /// The size asked for.
        bytes: u32,
    },
    /// More than virtio's 20 bytes.
    #[error(
        "disk {name}: the serial number {serial:?} is longer than {ID_BYTES} bytes; shorten it"
    )]
    Serial {
        /// The disk.
        name: String,
        /// The serial number asked for.
        serial: String,
    },
    /// None or too many.
    #[error("disk {name}: {queues} queues; use 1 to {MAX_QUEUES}")]
    Queues {
        /// The disk.
        name: String,
        /// The number asked for.
        queues: u16,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut DiskOptions)) -> String {
        let mut options = DiskOptions::new("vda", "/tmp/vda", VolumeHandle(1), 8);
        change(&mut options);
        options.check().expect_err("a mistake").to_string()
    }

    #[test]
    fn each_mistake_is_told_in_a_sentence_that_names_the_disk() {
        for sentence in [
            refusal(|options| options.sectors = 0),
            refusal(|options| options.sectors = u64::MAX),
            refusal(|options| options.logical_block_size = 1024),
            refusal(|options| (options.logical_block_size, options.sectors) = (4096, 9)),
            refusal(|options| options.serial = "123456789012345678901".into()),
            refusal(|options| options.queues = 0),
            refusal(|options| options.queues = 65),
        ] {
            assert!(sentence.starts_with("disk vda: "), "{sentence}");
        }
    }

    #[test]
    fn a_long_name_still_makes_a_serial_number() {
        let name = "a-volume-name-that-is-lång";
        let disk = DiskOptions::new(name, "/tmp/a", VolumeHandle(0), 8).check().expect("valid");
        assert_eq!(&disk.id(), b"a-volume-name-that-i");
        let short = DiskOptions::new("ab", "/tmp/a", VolumeHandle(0), 8).check().expect("valid");
        assert_eq!(&short.id()[..3], b"ab\0");
    }
}
