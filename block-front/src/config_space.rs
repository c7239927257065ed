//! What the driver is told: feature bits and configuration space
//! (virtio 1.2, sections 5.2.3 and 5.2.4).
//!
//! Only what a test covers is offered.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use block_core::BLOCK_SIZE;
use block_core::unit::{MAX_REQUEST_BYTES, SECTORS_PER_BLOCK};

use crate::chain::SEG_MAX;
use crate::disk::DiskSpec;

/// Most ranges in one discard or write-zeroes command.
pub(crate) const MAX_RANGES: u32 = 32;

/// Most sectors in one discarded range: 2 GiB less a sector, QEMU's own limit.
/// A limit of zero crashes Windows.
pub(crate) const MAX_DISCARD_SECTORS: u32 = 0x3f_ffff;

/// Most sectors in one zeroed range: 64 MiB, since the device may have to
/// write them.
pub(crate) const MAX_WRITE_ZEROES_SECTORS: u32 = 0x2_0000;

/// Where `writeback` is: the only byte that a driver may change.
pub(crate) const WRITEBACK_AT: u32 = 32;

/// Bytes up to the end of `write_zeroes_may_unmap` and its padding.
const CONFIG_BYTES: usize = 60;

/// Most bytes of configuration space that a front-end may ask for
/// (vhost-user, "Virtio device config space").
pub(crate) const CONFIG_LIMIT: usize = 256;

/// Bit 30: protocol features are spoken.
pub(crate) const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

const fn bit(number: u32) -> u64 {
    1 << number
}

/// Indirect tables may be used.
pub(crate) const INDIRECT: u64 = bit(VIRTIO_RING_F_INDIRECT_DESC);

/// Kicks and calls are asked for by index.
pub(crate) const EVENT_INDEX: u64 = bit(VIRTIO_RING_F_EVENT_IDX);

/// The driver flushes.
pub(crate) const FLUSH: u64 = bit(VIRTIO_BLK_F_FLUSH);

/// The feature bits that are offered for `disk`.
pub(crate) fn features(disk: &DiskSpec) -> u64 {
    let mut offered = bit(VIRTIO_F_VERSION_1)
        | PROTOCOL_FEATURES
        | INDIRECT
        | EVENT_INDEX
        | FLUSH
        | bit(VIRTIO_BLK_F_CONFIG_WCE)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_TOPOLOGY)
        | bit(VIRTIO_BLK_F_MQ);
    if disk.is_read_only() {
        offered |= bit(VIRTIO_BLK_F_RO);
    } else {
        offered |= bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES);
    }
    offered
}

/// The protocol features that are offered for every disk.
pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// `struct virtio_blk_config` of a disk of `sectors` sectors.
pub(crate) fn config_space(disk: &DiskSpec, sectors: u64, writeback: bool) -> [u8; CONFIG_LIMIT] {
    let logical = disk.logical_block_size();
    let in_logical = |bytes: usize| bytes as u32 / logical;
    let mut space = [0; CONFIG_LIMIT];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(12, &u32::from(SEG_MAX).to_le_bytes());
    put(20, &logical.to_le_bytes());
    // Topology: physical blocks of 4096 bytes, which begin at byte 0.
    put(24, &[in_logical(BLOCK_SIZE).trailing_zeros() as u8]);
    put(26, &(in_logical(BLOCK_SIZE) as u16).to_le_bytes());
    put(28, &in_logical(MAX_REQUEST_BYTES).to_le_bytes());
    put(WRITEBACK_AT as usize, &[u8::from(writeback)]);
    put(34, &disk.queues().to_le_bytes());
    if !disk.is_read_only() {
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &(SECTORS_PER_BLOCK as u32).to_le_bytes());
        put(48, &MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[1]);
    }
    space
}

const _: () = assert!(CONFIG_BYTES <= CONFIG_LIMIT);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::DiskOptions;

    fn u32_at(space: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(space[at..at + 4].try_into().expect("four bytes"))
    }

    fn disk(change: impl FnOnce(&mut DiskOptions)) -> DiskSpec {
        let mut options = DiskOptions::new("a", "/tmp/a", link::VolumeHandle(0), 4096);
        change(&mut options);
        options.check().expect("a valid disk")
    }

    /// Windows divides by these limits.
    #[test]
    fn no_limit_of_a_feature_that_is_offered_is_zero() {
        let disk = disk(|_| ());
        let space = config_space(&disk, 4096, true);
        for at in [0, 12, 20, 28, 36, 40, 44, 48, 52] {
            assert_ne!(u32_at(&space, at), 0, "at {at}");
        }
        assert_eq!(u32_at(&space, 8), 0, "size_max is not offered");
        assert_eq!(space[24], 3, "eight logical blocks in a physical one");
        assert_eq!(space[32], 1);
        assert_eq!(u16::from_le_bytes([space[34], space[35]]), 64);
    }

    #[test]
    fn blocks_of_4096_bytes_are_their_own_physical_blocks() {
        let disk = disk(|options| options.logical_block_size = 4096);
        let space = config_space(&disk, 4096, false);
        assert_eq!((u32_at(&space, 20), space[24], space[26], space[32]), (4096, 0, 1, 0));
    }

    #[test]
    fn a_read_only_disk_offers_no_change() {
        let disk = disk(|options| options.read_only = true);
        let offered = features(&disk);
        assert_ne!(offered & bit(VIRTIO_BLK_F_RO), 0);
        assert_eq!(offered & (bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)), 0);
    }
}
