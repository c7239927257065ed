//! What a controller says about itself and its namespaces (NVMe Base 2.0,
//! section 5.17; NVM Command Set 1.0, section 4.1.5).

use block_core::unit::{BLOCK_SIZE, BlockCount};

/// Bytes of every Identify answer.
pub const IDENTIFY_BYTES: usize = 4096;
/// An Identify answer.
pub type Page = [u8; IDENTIFY_BYTES];

/// Byte offsets in the controller data structure (Base 2.0, figure 275).
pub(crate) mod controller_at {
    pub(crate) const SERIAL: usize = 4;
    pub(crate) const MODEL: usize = 24;
    pub(crate) const FIRMWARE: usize = 64;
    pub(crate) const MDTS: usize = 77;
    pub(crate) const CNTLID: usize = 78;
    pub(crate) const VERSION: usize = 80;
    pub(crate) const CNTRLTYPE: usize = 111;
    pub(crate) const OACS: usize = 256;
    pub(crate) const ACL: usize = 258;
    pub(crate) const AERL: usize = 259;
    pub(crate) const SQES: usize = 512;
    pub(crate) const CQES: usize = 513;
    pub(crate) const NAMESPACES: usize = 516;
    pub(crate) const ONCS: usize = 520;
    pub(crate) const VWC: usize = 525;
    pub(crate) const SUBNQN: usize = 768;
}

/// Byte offsets in the namespace data structure (NVM Command Set 1.0, figure
/// 97).
pub(crate) mod namespace_at {
    pub(crate) const NSZE: usize = 0;
    pub(crate) const NCAP: usize = 8;
    pub(crate) const NUSE: usize = 16;
    pub(crate) const NLBAF: usize = 25;
    pub(crate) const FLBAS: usize = 26;
    pub(crate) const DPS: usize = 29;
    pub(crate) const DLFEAT: usize = 33;
    pub(crate) const NGUID: usize = 104;
    pub(crate) const LBAF: usize = 128;
}

/// Byte offsets in the NVM command set's controller data structure (NVM
/// Command Set 1.0, figure 101).
pub(crate) mod limits_at {
    pub(crate) const WZSL: usize = 1;
    pub(crate) const DMRSL: usize = 4;
    pub(crate) const DMSL: usize = 8;
}

/// OACS: Doorbell Buffer Config is supported.
pub(crate) const OACS_DOORBELL_BUFFERS: u16 = 1 << 8;
/// ONCS: Dataset Management is supported.
pub(crate) const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS: Write Zeroes is supported.
pub(crate) const ONCS_WRITE_ZEROES: u16 = 1 << 3;

/// The first version whose controllers have command-set structures.
const VERSION_2_0: u32 = 0x0002_0000;

/// The size of a logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LbaSize {
    /// 512 bytes.
    B512,
    /// 4096 bytes.
    B4096,
}

impl LbaSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        1 << self.bits()
    }

    /// log2 of the size.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// Logical blocks in a block of 4096 bytes.
    #[must_use]
    pub const fn per_block(self) -> u64 {
        (BLOCK_SIZE / self.bytes()) as u64
    }

    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            9 => Some(Self::B512),
            12 => Some(Self::B4096),
            _ => None,
        }
    }
}

/// The controller data structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Version of the specification: major << 16 | minor << 8 | tertiary.
    pub version: u32,
    /// The largest namespace ID that is valid, whether there is one or not (NN).
    pub last_namespace: u32,
    /// Most bytes of one data transfer (MDTS), `None` without a limit.
    pub max_transfer: Option<u64>,
    /// Whether writes may rest in a volatile cache.
    pub has_volatile_cache: bool,
    /// Whether Write Zeroes is there.
    pub has_write_zeroes: bool,
    /// Whether Dataset Management is there.
    pub has_dataset_management: bool,
    /// Whether doorbells can be shadowed in memory.
    pub has_shadow_doorbells: bool,
    /// Entry sizes of 64 and 16 bytes are among those supported.
    pub has_usual_entries: bool,
}

impl ControllerInfo {
    /// Decodes the structure; `page_bits` is CAP's smallest page size, the
    /// unit of MDTS.
    #[must_use]
    pub fn parse(page: &Page, page_bits: u32) -> Self {
        let oncs = u16_at(page, controller_at::ONCS);
        Self {
            serial: text(&page[controller_at::SERIAL..controller_at::MODEL]),
            model: text(&page[controller_at::MODEL..controller_at::FIRMWARE]),
            firmware: text(&page[controller_at::FIRMWARE..controller_at::FIRMWARE + 8]),
            version: u32_at(page, controller_at::VERSION),
            last_namespace: u32_at(page, controller_at::NAMESPACES),
            max_transfer: power(page[controller_at::MDTS], page_bits),
            has_volatile_cache: page[controller_at::VWC] & 1 == 1,
            has_write_zeroes: oncs & ONCS_WRITE_ZEROES != 0,
            has_dataset_management: oncs & ONCS_DATASET_MANAGEMENT != 0,
            has_shadow_doorbells: u16_at(page, controller_at::OACS) & OACS_DOORBELL_BUFFERS != 0,
            has_usual_entries: holds(page[controller_at::SQES], 6)
                && holds(page[controller_at::CQES], 4),
        }
    }

    /// Whether the controller can be asked for its [`CommandLimits`].
    #[must_use]
    pub const fn has_command_limits(&self) -> bool {
        self.version >= VERSION_2_0
    }
}

/// Limits of commands without data, which MDTS does not bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandLimits {
    /// Most bytes of one Write Zeroes, `None` without a limit.
    pub write_zeroes: Option<u64>,
    /// Most logical blocks in a range of Dataset Management.
    pub range_blocks: u32,
}

impl CommandLimits {
    /// What holds when a controller says nothing.
    pub const UNSAID: Self = Self { write_zeroes: None, range_blocks: u32::MAX };

    /// Decodes the structure.
    #[must_use]
    pub fn parse(page: &Page, page_bits: u32) -> Self {
        // With one range a command, the limit of the command is one of the range.
        let range = limit(u64::from(u32_at(page, limits_at::DMRSL)));
        let command = limit(u64_at(page, limits_at::DMSL));
        Self {
            write_zeroes: power(page[limits_at::WZSL], page_bits),
            range_blocks: u32::try_from(range.min(command)).unwrap_or(u32::MAX),
        }
    }
}

/// A namespace that the driver can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// The namespace ID.
    pub id: u32,
    /// The logical block size it is formatted with.
    pub lba_size: LbaSize,
    /// How many logical blocks.
    pub lba_count: u64,
    /// A number that no other namespace has, or zero.
    pub guid: u128,
}

impl NamespaceInfo {
    /// The whole blocks of 4096 bytes.
    #[must_use]
    pub const fn blocks(&self) -> BlockCount {
        BlockCount(self.lba_count / self.lba_size.per_block())
    }

    /// Decodes the structure.
    ///
    /// # Errors
    /// [`FormatError`] when the namespace needs more than plain blocks.
    pub fn parse(id: u32, page: &Page) -> Result<Self, FormatError> {
        let format = page[namespace_at::FLBAS];
        let index = usize::from(format & 0xf | (format >> 5 & 0b11) << 4);
        let format = u32_at(page, namespace_at::LBAF + index * 4);
        if page[namespace_at::DPS] & 0b111 != 0 || format & 0xffff != 0 {
            return Err(FormatError::Metadata);
        }
        let bits = (format >> 16) as u8;
        let lba_size = LbaSize::from_bits(bits).ok_or(FormatError::LbaSize { bits })?;
        // A size whose last byte has no address is a lie; believing a smaller
        // one keeps every later sum in range.
        let lba_count = u64_at(page, namespace_at::NSZE).min(u64::MAX >> lba_size.bits());
        let guid = &page[namespace_at::NGUID..namespace_at::NGUID + 16];
        let guid = guid.iter().fold(0, |sum, &byte| sum << 8 | u128::from(byte));
        Ok(Self { id, lba_size, lba_count, guid })
    }
}

/// Why a namespace cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Its blocks carry metadata or protection information.
    #[error("its blocks carry metadata; format it without")]
    Metadata,
    /// Its logical blocks are neither 512 nor 4096 bytes.
    #[error("its logical blocks are 2^{bits} bytes; format it with 512 or 4096")]
    LbaSize {
        /// log2 of the size.
        bits: u8,
    },
}

/// A power of two in pages; 0 is "no limit".
fn power(exponent: u8, page_bits: u32) -> Option<u64> {
    (exponent != 0).then(|| 1_u64.checked_shl(u32::from(exponent) + page_bits).unwrap_or(u64::MAX))
}

/// 0 is "no limit".
const fn limit(value: u64) -> u64 {
    if value == 0 { u64::MAX } else { value }
}

/// Whether `bits` lies between the required and the largest entry size.
const fn holds(sizes: u8, bits: u8) -> bool {
    sizes & 0xf <= bits && bits <= sizes >> 4
}

fn text(bytes: &[u8]) -> String {
    let shown = bytes.iter().map(|&byte| if byte.is_ascii_graphic() { byte as char } else { ' ' });
    shown.collect::<String>().trim().to_owned()
}

fn u16_at(page: &Page, at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

fn u32_at(page: &Page, at: usize) -> u32 {
    u32::from(u16_at(page, at)) | u32::from(u16_at(page, at + 2)) << 16
}

fn u64_at(page: &Page, at: usize) -> u64 {
    u64::from(u32_at(page, at)) | u64::from(u32_at(page, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(flbas: u8, index: usize, format: u32) -> Page {
        let mut page = [0; IDENTIFY_BYTES];
        page[namespace_at::NSZE..][..8].copy_from_slice(&1001_u64.to_le_bytes());
        page[namespace_at::FLBAS] = flbas;
        page[namespace_at::LBAF + index * 4..][..4].copy_from_slice(&format.to_le_bytes());
        page
    }

    #[test]
    fn the_format_in_use_decides_the_block_size() {
        let info = NamespaceInfo::parse(1, &namespace(3, 3, 9 << 16)).expect("512-byte blocks");
        assert_eq!((info.lba_size, info.blocks()), (LbaSize::B512, BlockCount(125)));
        let upper = NamespaceInfo::parse(1, &namespace(1 << 5, 16, 12 << 16)).expect("format 16");
        assert_eq!((upper.lba_size, upper.blocks()), (LbaSize::B4096, BlockCount(1001)));
    }

    #[test]
    fn blocks_that_are_not_plain_are_refused_with_the_way_out() {
        let odd = NamespaceInfo::parse(1, &namespace(0, 0, 13 << 16));
        assert_eq!(odd, Err(FormatError::LbaSize { bits: 13 }));
        let metadata = NamespaceInfo::parse(1, &namespace(0, 0, 9 << 16 | 8));
        assert_eq!(metadata, Err(FormatError::Metadata));
    }

    /// Whatever bytes a controller answers with, decoding ends in a value.
    #[test]
    fn pages_of_ones_and_other_nonsense_are_decoded_without_overflow() {
        for byte in [0x00, 0x3f, 0x9c, 0xff] {
            let page = [byte; IDENTIFY_BYTES];
            let info = ControllerInfo::parse(&page, 27);
            assert!(info.max_transfer.is_none_or(|bytes| bytes >= 4096));
            let _ = CommandLimits::parse(&page, 27);
            let _ = NamespaceInfo::parse(1, &page);
        }
    }

    #[test]
    fn the_smaller_limit_of_deallocation_counts() {
        let mut page = [0; IDENTIFY_BYTES];
        assert_eq!(CommandLimits::parse(&page, 12), CommandLimits::UNSAID);
        page[limits_at::DMRSL..][..4].copy_from_slice(&100_u32.to_le_bytes());
        page[limits_at::DMSL..][..8].copy_from_slice(&64_u64.to_le_bytes());
        page[limits_at::WZSL] = 3;
        let limits = CommandLimits::parse(&page, 12);
        assert_eq!((limits.range_blocks, limits.write_zeroes), (64, Some(32 * 1024)));
    }
}
