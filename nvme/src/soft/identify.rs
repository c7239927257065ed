//! What the soft controller says about itself: the structures that
//! [`crate::identify`] reads, written.

use super::SoftOptions;
use super::admin::MAX_EVENTS;
use super::namespace::SoftNamespace;
use super::registers::VERSION;
use crate::PAGE;
use crate::identify::{
    OACS_DOORBELL_BUFFERS, ONCS_DATASET_MANAGEMENT, ONCS_WRITE_ZEROES, Page, controller_at,
    namespace_at,
};

const MODEL: &str = "vRIO soft controller";
/// Entry sizes, required in the low and largest in the high half: 2^6, 2^4.
const SUBMISSION_ENTRIES: u8 = 0x66;
const COMPLETION_ENTRIES: u8 = 0x44;
/// CNTRLTYPE: an I/O controller.
const IO_CONTROLLER: u8 = 1;
/// VWC: a cache is there; a flush may name all namespaces.
const CACHE_WITH_BROADCAST: u8 = 0b111;
/// DLFEAT: deallocated blocks read as zero; Write Zeroes can deallocate.
const ZERO_AFTER_DEALLOCATE: u8 = 0b1001;
/// Namespace identifier types (Base 2.0, figure 276): NGUID and command set.
const NGUID_TYPE: u8 = 2;
const COMMAND_SET_TYPE: u8 = 4;

pub(super) fn controller(page: &mut Page, options: &SoftOptions, namespaces: u32) {
    text(&mut page[controller_at::SERIAL..controller_at::MODEL], &options.serial);
    text(&mut page[controller_at::MODEL..controller_at::FIRMWARE], MODEL);
    text(&mut page[controller_at::FIRMWARE..][..8], env!("CARGO_PKG_VERSION"));
    page[controller_at::MDTS] = (options.max_transfer / PAGE).trailing_zeros() as u8;
    put(page, controller_at::CNTLID, &1_u16.to_le_bytes());
    put(page, controller_at::VERSION, &VERSION.to_le_bytes());
    page[controller_at::CNTRLTYPE] = IO_CONTROLLER;
    let shadows = if options.shadow_doorbells { OACS_DOORBELL_BUFFERS } else { 0 };
    put(page, controller_at::OACS, &shadows.to_le_bytes());
    page[controller_at::ACL] = 3;
    page[controller_at::AERL] = MAX_EVENTS as u8 - 1;
    page[controller_at::SQES] = SUBMISSION_ENTRIES;
    page[controller_at::CQES] = COMPLETION_ENTRIES;
    put(page, controller_at::NAMESPACES, &namespaces.to_le_bytes());
    let zeroes = if options.write_zeroes { ONCS_WRITE_ZEROES } else { 0 };
    let ranges = if options.deallocate { ONCS_DATASET_MANAGEMENT } else { 0 };
    put(page, controller_at::ONCS, &(zeroes | ranges).to_le_bytes());
    page[controller_at::VWC] = if options.write_cache { CACHE_WITH_BROADCAST } else { 0 };
    let name = format!("nqn.2014-08.org.nvmexpress:vrio:{}", options.serial);
    let name = &name.as_bytes()[..name.len().min(223)];
    put(page, controller_at::SUBNQN, name);
}

pub(super) fn namespace(
    page: &mut Page,
    namespace: &SoftNamespace,
    options: &SoftOptions,
    id: u32,
) {
    let size = namespace.lba_count().to_le_bytes();
    for at in [namespace_at::NSZE, namespace_at::NCAP, namespace_at::NUSE] {
        put(page, at, &size);
    }
    // One format, the first: all zero in NLBAF and FLBAS.
    page[namespace_at::NLBAF] = 0;
    page[namespace_at::FLBAS] = 0;
    page[namespace_at::DLFEAT] = ZERO_AFTER_DEALLOCATE;
    put(page, namespace_at::NGUID, &guid(options, id));
    put(page, namespace_at::LBAF, &(namespace.lba_size().bits() << 16).to_le_bytes());
}

pub(super) fn active_namespaces(page: &mut Page, after: u32, last: u32) {
    let ids = (after.saturating_add(1)..=last).take(PAGE / 4);
    for (place, id) in page.chunks_exact_mut(4).zip(ids) {
        place.copy_from_slice(&id.to_le_bytes());
    }
}

pub(super) fn descriptors(page: &mut Page, options: &SoftOptions, id: u32) {
    put(page, 0, &[NGUID_TYPE, 16, 0, 0]);
    put(page, 4, &guid(options, id));
    put(page, 20, &[COMMAND_SET_TYPE, 1, 0, 0, 0]);
}

/// A number that is the same at every start and differs between controllers
/// and namespaces: the serial number, hashed (FNV-1a), and the ID.
fn guid(options: &SoftOptions, id: u32) -> [u8; 16] {
    let hash = options.serial.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut guid = [0; 16];
    guid[..8].copy_from_slice(&hash.to_be_bytes());
    guid[12..].copy_from_slice(&id.to_be_bytes());
    guid
}

/// ASCII, padded with spaces (Base 2.0, section 1.4.2).
fn text(place: &mut [u8], text: &str) {
    place.fill(b' ');
    for (to, byte) in place.iter_mut().zip(text.bytes().filter(|byte| (0x20..0x7f).contains(byte)))
    {
        *to = byte;
    }
}

fn put(page: &mut Page, at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}
