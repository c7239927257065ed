//! What is on disks, to the byte.

use super::*;
use crate::journal::block::{records, seal};
use crate::layout::DomainId;

fn sample() -> Header {
    Header { count: 0x0102, number: 64 * 3 + 7, mark: 0x42, previous: *b"the one before.." }
}

/// The bytes of one header, and what its seal is bound to, written by hand:
/// what is on disks must be read by every later version.
#[test]
fn a_block_has_these_bytes() {
    let vault = keys();
    let mut block = [0xee; BLOCK_SIZE];
    let tag = seal(&vault, &ring(64), &sample(), &mut block).expect("a key");
    let bound = *b"\x00\x00\x02\x01\x00\x00\x00\x00\
        \xc7\x00\x00\x00\x00\x00\x00\x00\
        \x42\x00\x00\x00\x00\x00\x00\x00\
        the one before..";
    assert_eq!(block[..16], tag);
    assert_eq!(block[16..20], vault.era().expect("begun").0.to_le_bytes());
    assert_eq!(block[20..24], [0; 4], "the era's first seal");
    assert_eq!(block[24..HEADER_BYTES], bound);

    let binding = *b"\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\x09\
        \x00\x00\x00\x00\x08\x00\x00\x00\
        \x0c\x04\x00\x00\x00\x00\x00\x00";
    let aad = [&binding[..], &bound[..]].concat();
    let by_hand = Seal { tag, seq: 0, era: vault.era().expect("begun") };
    let body = &mut block[HEADER_BYTES..].to_vec();
    assert_eq!(vault.open(DomainId::METADATA, &by_hand, &aad, body), Ok(()));
    assert!(body.iter().all(|&byte| byte == 0xee));

    let place = Pba(1024 + 5 + 7);
    let parsed = Unproven::parse(&ring(64), place, &block).expect("sound");
    assert_eq!(*parsed.claim(), sample());
}

/// A disk flips any one bit of a block's header, or one of each byte of its
/// body: no such block opens.
#[test]
fn no_bit_of_a_block_turns_unseen() {
    let keys = keys();
    let ring = ring(64);
    let place = ring.place(sample().number);
    let mut sealed = [0; BLOCK_SIZE];
    seal(&keys, &ring, &sample(), &mut sealed).expect("a key");
    let opens = |block: &[u8; BLOCK_SIZE], place: Pba| {
        let mut block = *block;
        let unproven = Unproven::parse(&ring, place, &block);
        unproven.and_then(|unproven| unproven.open(&keys, &ring, &mut block)).is_some()
    };
    assert!(opens(&sealed, place));
    assert!(!opens(&sealed, Pba(place.0 + 1)));
    let header = 0..HEADER_BYTES * 8;
    let body = (HEADER_BYTES * 8..BLOCK_SIZE * 8).step_by(8).map(|bit| bit + bit / 8 % 8);
    for bit in header.chain(body) {
        sealed[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&sealed, place), "bit {bit}");
        sealed[bit / 8] ^= 1 << (bit % 8);
    }
}

/// A block of one journal lies where another one of the same pool is.
#[test]
fn a_block_opens_in_its_own_journal_only() {
    let vault = keys();
    let mut sealed = [0; BLOCK_SIZE];
    seal(&vault, &ring(64), &sample(), &mut sealed).expect("a key");
    let extent = Extent { start: Pba(1024 + 5), count: BlockCount(64) };
    let place = ring(64).place(sample().number);
    for (journal, expected) in [(0, true), (1, false)] {
        let ring = Ring::new(journal, extent).expect("large enough");
        // Also when it says so itself.
        for claimed in [0u16, 1] {
            let mut block = sealed;
            block[24..26].copy_from_slice(&claimed.to_le_bytes());
            let unproven = Unproven::parse(&ring, place, &block);
            let opened = unproven.and_then(|unproven| unproven.open(&vault, &ring, &mut block));
            assert_eq!(opened.is_some(), expected && claimed == 0, "journal {journal}");
        }
    }
}

/// The seal is good, and still: fewer records than the header says, or
/// something after the last one.
#[test]
fn a_body_is_its_records_and_zeroes() {
    let mut block = [0; BLOCK_SIZE];
    let said = [record(1, 5), record(1, 6)];
    said[0].encode(&mut block[HEADER_BYTES..]);
    said[1].encode(&mut block[HEADER_BYTES + said[0].bytes()..]);
    let read = |count, block: &[u8]| {
        let mut found = Vec::new();
        let sink = |record| {
            found.push(record);
            Ok(())
        };
        records(count, block, sink).map(|()| found)
    };
    assert_eq!(read(2, &block).as_deref(), Ok(&said[..]));
    assert!(read(1, &block).is_err());
    assert!(read(3, &block).is_err());
    block[BLOCK_SIZE - 1] = 1;
    assert!(read(2, &block).is_err());
}

#[test]
fn a_ring_is_neither_tiny_nor_larger_than_a_pool() {
    let with = |start, count| {
        let extent = Extent { start: Pba(start), count: BlockCount(count) };
        Ring::new(0, extent).is_some()
    };
    assert!(with(1024, 64));
    assert!(!with(1024, 63));
    assert!(!with(1 << 36, 64));
    assert!(!with(u64::MAX, u64::MAX));
}
