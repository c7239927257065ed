//! What is on disks, to the byte.

use super::*;
use crate::journal::block::{records, seal};
use crate::layout::Binding;

/// Says what it was given and seals nothing.
struct Plain(std::cell::RefCell<Vec<u8>>);

impl Seals for Plain {
    fn seal(&self, aad: &[u8], _: &mut [u8]) -> Option<Seal> {
        self.0.replace(aad.to_vec());
        Some(Seal { tag: *b"tag of the block", seq: 0x0403_0201, era: EraId(0x07_0605) })
    }

    fn open(&self, _: &Seal, _: &[u8], _: &mut [u8]) -> Option<()> {
        Some(())
    }
}

fn sample() -> Header {
    Header { count: 0x0102, number: 64 * 3 + 7, mark: 0x42, previous: *b"the one before.." }
}

/// The bytes of one header, written by hand: what is on disks must be read by
/// every later version.
#[test]
fn a_block_has_these_bytes() {
    let plain = Plain(Vec::new().into());
    let mut block = [0xee; BLOCK_SIZE];
    let tag = seal(&plain, &ring(64), &sample(), &mut block);
    assert_eq!(tag, Some(*b"tag of the block"));
    let expected = *b"tag of the block\
        \x05\x06\x07\x00\x01\x02\x03\x04\
        \x00\x00\x02\x01\x00\x00\x00\x00\
        \xc7\x00\x00\x00\x00\x00\x00\x00\
        \x42\x00\x00\x00\x00\x00\x00\x00\
        the one before..";
    assert_eq!(block[..HEADER_BYTES], expected);
    assert!(block[HEADER_BYTES..].iter().all(|&byte| byte == 0xee));

    let place = Pba(1024 + 5 + 7);
    let binding = Binding::page(crate::layout::Class::Journal, 0, place);
    let mut aad = binding.encode(&PoolId([9; 16])).to_vec();
    aad.extend(&expected[24..]);
    assert_eq!(*plain.0.borrow(), aad);

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
    seal(&*keys, &ring, &sample(), &mut sealed).expect("a key");
    let opens = |block: &[u8; BLOCK_SIZE], place: Pba| {
        let mut block = *block;
        let unproven = Unproven::parse(&ring, place, &block);
        unproven.and_then(|unproven| unproven.open(&*keys, &ring, &mut block)).is_some()
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

/// A block of one pool's journal lies on a disk that another pool has, or in
/// the same pool's other journal.
#[test]
fn a_block_opens_in_its_own_journal_only() {
    let keys = keys();
    let own = ring(64);
    let mut sealed = [0; BLOCK_SIZE];
    seal(&*keys, &own, &sample(), &mut sealed).expect("a key");
    let extent = Extent { start: Pba(1024 + 5), count: BlockCount(64) };
    for (pool, journal, expected) in [(9, 0, true), (8, 0, false), (9, 1, false)] {
        let ring = Ring::new(PoolId([pool; 16]), journal, extent).expect("large enough");
        let mut block = sealed;
        let unproven = Unproven::parse(&ring, ring.place(sample().number), &block);
        let opened = unproven.and_then(|unproven| unproven.open(&*keys, &ring, &mut block));
        assert_eq!(opened.is_some(), expected, "pool {pool}, journal {journal}");
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
        Ring::new(PoolId([9; 16]), 0, extent).is_some()
    };
    assert!(with(1024, 64));
    assert!(!with(1024, 63));
    assert!(!with(1 << 36, 64));
    assert!(!with(u64::MAX, u64::MAX));
}
