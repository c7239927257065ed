//! What is on a device that holds raw volumes, byte by byte.
//!
//! ```text
//! block 0            superblock, copy A
//! block 1..1025      volume records, copy A
//! block 1025         superblock, copy B
//! block 1026..2050   volume records, copy B
//! block 2050..2304   zero
//! block 2304..       the volumes' extents, in units of 256 blocks (1 MiB)
//! ```
//!
//! A superblock (all numbers little-endian):
//!
//! ```text
//! 0    crc32c of bytes 4..4096, u32
//! 4    version, u16 | state, u8 (1 formatting, 2 ready) | zero, u8
//! 8    "vRIO raw"
//! 16   device id, 16 bytes: binds the records to this formatting
//! 32   blocks of the device when it was formatted, u64
//! 40   places for volumes, u32 (version 1: zero, and there are 1024) | zero
//! ```
//!
//! A volume record, one block for each place (there is room for 1024):
//!
//! ```text
//! 0    crc32c of bytes 4..4096, u32
//! 4    kind, u8 (0 free, 1 raw volume) | access, u8 (0 nobody, 1 readers,
//!      2 a writer) | flags, u8 (1 read-only) | name length, u8
//! 8    sequence, u64: of two valid copies the higher one counts
//! 16   device id, 16 bytes
//! 32   place, u32 | extents, u16 | attachments, u16
//! 40   volume id, 16 bytes
//! 56   generation, u64
//! 64   blocks, u64
//! 72   order epoch, u32 | bytes of settings, u16 | zero, u16
//! 80   name, 63 bytes | zero
//! 144  zero, 16 bytes
//! 160  64 extents: start u64 | count u64
//! 1184 64 attachments: front 16 bytes | incarnation u64 | verifier u64
//! 3232 settings, 512 bytes | zero
//! ```
//!
//! A record is changed by writing copy A, durably, and then copy B, durably;
//! a place whose copies differ is put right before it is changed again. So a
//! crash leaves the old record or the new one, at rest both copies are equal,
//! and one of them may rot.

use block_core::crc32c;
use block_core::unit::{BLOCK_SIZE, BlockCount, Extent, Pba};
use interpose::layout::provenance::Provenance;
use link::attach::MAX_NAME_BYTES;
use link::{FrontId, VolumeName};

use crate::attachments::{Attachment, Attachments, MAX_FRONTS};

/// Most volumes on one device.
pub const MAX_PLACES: usize = 1024;

/// Places of the smallest device. A device gets one for each unit of its space,
/// since no volume takes less; it may grow later.
const LEAST_PLACES: usize = 64;

/// Most runs of blocks that one volume is made of.
pub const MAX_EXTENTS: usize = 64;

/// Most bytes of a volume's settings.
pub const MAX_SETTINGS: usize = 512;

/// Blocks of one copy of superblock and records.
pub const COPY_BLOCKS: u64 = 1 + MAX_PLACES as u64;

/// Space is given out in units of this many blocks (1 MiB), so that it
/// fragments slowly.
pub const UNIT_BLOCKS: u64 = 256;

/// Where the volumes' space begins.
pub const DATA_START: Pba = Pba((2 * COPY_BLOCKS).next_multiple_of(UNIT_BLOCKS));

/// The smallest device: the catalog and one unit.
pub const MIN_BLOCKS: BlockCount = BlockCount(DATA_START.0 + UNIT_BLOCKS);

const VERSION: u16 = 2;

/// The version in which each device had all places.
const ALL_PLACES: u16 = 1;

const MAGIC: &[u8; 8] = b"vRIO raw";

const NAME: usize = 80;
const EXTENTS: usize = 160;
const EXTENT_BYTES: usize = 16;
const ATTACHMENTS: usize = EXTENTS + MAX_EXTENTS * EXTENT_BYTES;
const ATTACHMENT_BYTES: usize = 32;
const SETTINGS: usize = ATTACHMENTS + MAX_FRONTS * ATTACHMENT_BYTES;

const _: () = assert!(ATTACHMENTS == 1184);
const _: () = assert!(SETTINGS == 3232);
const _: () = assert!(SETTINGS + MAX_SETTINGS <= BLOCK_SIZE);
const _: () = assert!(NAME + MAX_NAME_BYTES < 144);
const _: () = assert!(DATA_START.0 == 2304);

/// Names one formatting of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceId(pub [u8; 16]);

/// Names a volume for as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 16]);

/// Which of the two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Written first.
    A,
    /// Written second.
    B,
}

impl Copy {
    /// Where this copy's superblock is.
    #[must_use]
    pub const fn superblock(self) -> Pba {
        match self {
            Self::A => Pba(0),
            Self::B => Pba(COPY_BLOCKS),
        }
    }

    /// Where this copy of a place's record is.
    #[must_use]
    pub const fn record(self, place: usize) -> Pba {
        Pba(self.superblock().0 + 1 + place as u64)
    }
}

/// What the first block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// This formatting of the device.
    pub device: DeviceId,
    /// Its size then.
    pub blocks: BlockCount,
    /// How many volumes it has places for, at most [`MAX_PLACES`].
    pub places: usize,
    /// Whether the formatting came to its end.
    pub ready: bool,
}

/// What was found where a superblock belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A superblock.
    Valid(Superblock),
    /// Nothing but zeroes.
    Blank,
    /// A superblock of this later version.
    Newer(u16),
    /// A superblock whose checksum is wrong.
    Damaged,
    /// Something else, which is not ours to touch.
    Foreign,
}

impl Superblock {
    /// What formatting a device of this size begins with.
    #[must_use]
    pub fn begin(device: DeviceId, blocks: BlockCount) -> Self {
        let units = blocks.0.saturating_sub(DATA_START.0) / UNIT_BLOCKS;
        let places = units.clamp(LEAST_PLACES as u64, MAX_PLACES as u64) as usize;
        Self { device, blocks, places, ready: false }
    }

    /// The superblock as its block.
    pub fn encode(&self, block: &mut [u8; BLOCK_SIZE]) {
        block.fill(0);
        block[4..6].copy_from_slice(&VERSION.to_le_bytes());
        block[6] = if self.ready { 2 } else { 1 };
        block[8..16].copy_from_slice(MAGIC);
        block[16..32].copy_from_slice(&self.device.0);
        block[32..40].copy_from_slice(&self.blocks.0.to_le_bytes());
        block[40..44].copy_from_slice(&(self.places as u32).to_le_bytes());
        seal(block);
    }

    /// What a block that should be a superblock is.
    #[must_use]
    pub fn parse(block: &[u8; BLOCK_SIZE]) -> Found {
        if block.iter().all(|&byte| byte == 0) {
            return Found::Blank;
        }
        if &block[8..16] != MAGIC {
            return Found::Foreign;
        }
        if !is_sealed(block) {
            return Found::Damaged;
        }
        let version = u16::from_le_bytes(array(block, 4));
        if version > VERSION {
            return Found::Newer(version);
        }
        let ready = match block[6] {
            1 => false,
            2 => true,
            _ => return Found::Damaged,
        };
        let places = match (version, u32::from_le_bytes(array(block, 40)) as usize) {
            (ALL_PLACES, _) => MAX_PLACES,
            (VERSION, places @ 1..=MAX_PLACES) => places,
            _ => return Found::Damaged,
        };
        let blocks = BlockCount(u64::from_le_bytes(array(block, 32)));
        Found::Valid(Self { device: DeviceId(array(block, 16)), blocks, places, ready })
    }
}

/// What a place of the catalog holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Rises with every change of the place.
    pub sequence: u64,
    /// The volume, or `None` while the place is free.
    pub volume: Option<VolumeRecord>,
}

/// A volume, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// What it is called inside.
    pub id: VolumeId,
    /// What people call it.
    pub name: VolumeName,
    /// Its size; its extents hold at least so much.
    pub blocks: BlockCount,
    /// Whether nobody may change it.
    pub read_only: bool,
    /// Raised by restore, import and forced detach.
    pub generation: u64,
    /// The high part of order numbers: raised before a restarted server gives
    /// out the first one, so that they never repeat.
    pub order_epoch: u32,
    /// Where its blocks are, in order; none in a pool.
    pub extents: Vec<Extent>,
    /// Who has it.
    pub attachments: Attachments,
    /// How its requests are treated on their way, as bytes that only those
    /// look into who do it.
    pub settings: Vec<u8>,
    /// In a pool: what was imported into it.
    pub provenance: Provenance,
}

impl Record {
    /// The record of `place` as its block.
    ///
    /// # Panics
    /// If the record has more extents or attachments than there are places
    /// for; whoever makes records keeps the limits.
    pub fn encode(&self, device: DeviceId, place: usize, block: &mut [u8; BLOCK_SIZE]) {
        block.fill(0);
        block[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        block[16..32].copy_from_slice(&device.0);
        block[32..36].copy_from_slice(&(place as u32).to_le_bytes());
        if let Some(volume) = &self.volume {
            volume.encode(block);
        }
        seal(block);
    }

    /// The record in the block of `place`, or `None` when the block is not
    /// the record that belongs there.
    #[must_use]
    pub fn parse(block: &[u8; BLOCK_SIZE], device: DeviceId, place: usize) -> Option<Self> {
        let belongs =
            block[16..32] == device.0 && u32::from_le_bytes(array(block, 32)) as usize == place;
        if !is_sealed(block) || !belongs {
            return None;
        }
        let volume = match block[4] {
            0 => None,
            1 => Some(VolumeRecord::parse(block)?),
            _ => return None,
        };
        Some(Self { sequence: u64::from_le_bytes(array(block, 8)), volume })
    }
}

impl VolumeRecord {
    fn encode(&self, block: &mut [u8; BLOCK_SIZE]) {
        assert!(self.extents.len() <= MAX_EXTENTS && self.attachments.count() <= MAX_FRONTS);
        assert!(self.settings.len() <= MAX_SETTINGS);
        let name = self.name.as_str().as_bytes();
        block[4] = 1;
        block[5] = match self.attachments {
            Attachments::None => 0,
            Attachments::Readers(_) => 1,
            Attachments::Writer(_) => 2,
        };
        block[6] = u8::from(self.read_only);
        block[7] = name.len() as u8;
        block[36..38].copy_from_slice(&(self.extents.len() as u16).to_le_bytes());
        block[38..40].copy_from_slice(&(self.attachments.count() as u16).to_le_bytes());
        block[40..56].copy_from_slice(&self.id.0);
        block[56..64].copy_from_slice(&self.generation.to_le_bytes());
        block[64..72].copy_from_slice(&self.blocks.0.to_le_bytes());
        block[72..76].copy_from_slice(&self.order_epoch.to_le_bytes());
        block[76..78].copy_from_slice(&(self.settings.len() as u16).to_le_bytes());
        block[SETTINGS..SETTINGS + self.settings.len()].copy_from_slice(&self.settings);
        block[NAME..NAME + name.len()].copy_from_slice(name);
        for (at, extent) in (EXTENTS..).step_by(EXTENT_BYTES).zip(&self.extents) {
            block[at..at + 8].copy_from_slice(&extent.start.0.to_le_bytes());
            block[at + 8..at + 16].copy_from_slice(&extent.count.0.to_le_bytes());
        }
        let places = (ATTACHMENTS..).step_by(ATTACHMENT_BYTES);
        for (at, (_, attachment)) in places.zip(self.attachments.iter()) {
            block[at..at + 16].copy_from_slice(&attachment.front.0);
            block[at + 16..at + 24].copy_from_slice(&attachment.incarnation.to_le_bytes());
            block[at + 24..at + 32].copy_from_slice(&attachment.verifier.to_le_bytes());
        }
    }

    fn parse(block: &[u8; BLOCK_SIZE]) -> Option<Self> {
        let name = block.get(NAME..NAME + usize::from(block[7]).min(MAX_NAME_BYTES + 1))?;
        let name = VolumeName::new(std::str::from_utf8(name).ok()?).ok()?;
        let extents = usize::from(u16::from_le_bytes(array(block, 36)));
        let attachments = usize::from(u16::from_le_bytes(array(block, 38)));
        let settings = usize::from(u16::from_le_bytes(array(block, 76)));
        if extents > MAX_EXTENTS || attachments > MAX_FRONTS || settings > MAX_SETTINGS {
            return None;
        }
        let extents: Vec<Extent> = (EXTENTS..)
            .step_by(EXTENT_BYTES)
            .take(extents)
            .map(|at| Extent {
                start: Pba(u64::from_le_bytes(array(block, at))),
                count: BlockCount(u64::from_le_bytes(array(block, at + 8))),
            })
            .collect();
        let blocks = BlockCount(u64::from_le_bytes(array(block, 64)));
        let room = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.count.0))?;
        if blocks.0 == 0 || blocks.0 > room {
            return None;
        }
        let mut attached =
            (ATTACHMENTS..).step_by(ATTACHMENT_BYTES).take(attachments).map(|at| Attachment {
                front: FrontId(array(block, at)),
                incarnation: u64::from_le_bytes(array(block, at + 16)),
                verifier: u64::from_le_bytes(array(block, at + 24)),
            });
        let attachments = match (block[5], attachments) {
            (0, 0) => Attachments::None,
            (1, 1..) => Attachments::Readers(attached.collect()),
            (2, 1) => Attachments::Writer(attached.next()?),
            _ => return None,
        };
        Some(Self {
            id: VolumeId(array(block, 40)),
            name,
            blocks,
            read_only: block[6] & 1 != 0,
            generation: u64::from_le_bytes(array(block, 56)),
            order_epoch: u32::from_le_bytes(array(block, 72)),
            extents,
            attachments,
            settings: block[SETTINGS..SETTINGS + settings].to_vec(),
            provenance: Provenance::default(),
        })
    }
}

fn seal(block: &mut [u8; BLOCK_SIZE]) {
    let sum = crc32c(&[&block[4..]]);
    block[..4].copy_from_slice(&sum.to_le_bytes());
}

fn is_sealed(block: &[u8; BLOCK_SIZE]) -> bool {
    u32::from_le_bytes(array(block, 0)) == crc32c(&[&block[4..]])
}

/// The bytes at a constant place of a block.
fn array<const N: usize>(block: &[u8; BLOCK_SIZE], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId([3; 16]);

    fn full() -> Record {
        let attachment = |number| Attachment {
            front: FrontId([number; 16]),
            incarnation: 1 << 40,
            verifier: u64::MAX,
        };
        let extent = |at: u64| Extent { start: Pba(at << 33), count: BlockCount(1 << 20) };
        Record {
            sequence: 77,
            volume: Some(VolumeRecord {
                id: VolumeId([9; 16]),
                name: VolumeName::new(&"x".repeat(MAX_NAME_BYTES)).expect("a name"),
                blocks: BlockCount(64 << 20),
                read_only: true,
                generation: u64::MAX,
                order_epoch: u32::MAX,
                extents: (0..MAX_EXTENTS as u64).map(extent).collect(),
                attachments: Attachments::Readers((0..MAX_FRONTS as u8).map(attachment).collect()),
                settings: vec![5; MAX_SETTINGS],
                provenance: Provenance::default(),
            }),
        }
    }

    #[test]
    fn a_full_record_survives_and_any_changed_bit_is_noticed() {
        let mut block = [0; BLOCK_SIZE];
        full().encode(DEVICE, 1023, &mut block);
        assert_eq!(Record::parse(&block, DEVICE, 1023), Some(full()));
        assert_eq!(Record::parse(&block, DEVICE, 1022), None, "another place's record");
        assert_eq!(Record::parse(&block, DeviceId([4; 16]), 1023), None, "another formatting");
        for bit in 0..BLOCK_SIZE * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::parse(&block, DEVICE, 1023), None, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    /// Devices of the first version said nothing of places and had all of them.
    #[test]
    fn a_device_of_the_first_version_keeps_its_places() {
        let current = Superblock::begin(DEVICE, BlockCount(4096));
        assert_eq!(current.places, LEAST_PLACES);
        let said = |version: u16, places: u32| {
            let mut block = [0; BLOCK_SIZE];
            current.encode(&mut block);
            block[4..6].copy_from_slice(&version.to_le_bytes());
            block[40..44].copy_from_slice(&places.to_le_bytes());
            seal(&mut block);
            Superblock::parse(&block)
        };
        let first = Superblock { places: MAX_PLACES, ..current };
        assert_eq!(said(ALL_PLACES, 0), Found::Valid(first));
        assert_eq!(said(VERSION, 7), Found::Valid(Superblock { places: 7, ..current }));
        for wrong in [0, 1025, u32::MAX] {
            assert_eq!(said(VERSION, wrong), Found::Damaged, "{wrong} places");
        }
        assert_eq!(said(0, 64), Found::Damaged);
    }

    /// Whoever can write the device can also compute a checksum.
    #[test]
    fn a_sealed_record_that_lies_is_no_record() {
        let mut good = [0; BLOCK_SIZE];
        full().encode(DEVICE, 0, &mut good);
        let lies: [(usize, &[u8]); 8] = [
            (4, &[2]),
            (5, &[2]),
            (5, &[0]),
            (7, &[0]),
            (7, &[255]),
            (36, &u16::MAX.to_le_bytes()),
            (64, &u64::MAX.to_le_bytes()),
            (76, &u16::MAX.to_le_bytes()),
        ];
        for (at, lie) in lies {
            let mut block = good;
            block[at..at + lie.len()].copy_from_slice(lie);
            seal(&mut block);
            assert_eq!(Record::parse(&block, DEVICE, 0), None, "{lie:?} at {at}");
        }
        let mut block = good;
        block[EXTENTS + 8..EXTENTS + 16].copy_from_slice(&u64::MAX.to_le_bytes());
        seal(&mut block);
        assert_eq!(Record::parse(&block, DEVICE, 0), None, "extents whose sum overflows");
    }

    #[test]
    fn a_superblock_says_what_it_is() {
        let mut block = [0; BLOCK_SIZE];
        assert_eq!(Superblock::parse(&block), Found::Blank);
        let begun = Superblock::begin(DEVICE, BlockCount(1 << 40));
        assert_eq!(begun.places, MAX_PLACES);
        let superblock = Superblock { ready: true, places: 65, ..begun };
        superblock.encode(&mut block);
        assert_eq!(Superblock::parse(&block), Found::Valid(superblock));
        block[4] = 9;
        assert_eq!(Superblock::parse(&block), Found::Damaged);
        seal(&mut block);
        assert_eq!(Superblock::parse(&block), Found::Newer(9));
        block[8] = b'X';
        assert_eq!(Superblock::parse(&block), Found::Foreign);
    }
}
