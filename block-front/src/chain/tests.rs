//! The walk against a model that is slow and obvious, over tables that mean
//! well, lie a little, or are noise.

use std::fs::File;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use vm_memory::ByteValued;

use super::*;
use crate::guest_memory::tests::memory;
use crate::ring::{RingAddresses, RingSize};

const SIZE: u16 = 16;
/// The ring's table, and beside it an indirect one.
const TABLE: u64 = 0;
const INDIRECT: u64 = 0x1000;
const RINGS: u64 = 0x3000;
/// Where the front-end's addresses begin in the tests' memory.
const USER: u64 = 1 << 40;
/// Data, in two regions that touch and one that does not.
const LAYOUT: [(u64, u64); 3] = [(0, 0x8000), (0x8000, 0x1000), (0x10000, 0x1000)];

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const TABLE_FLAG: u16 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    at: u64,
    len: u32,
    flags: u16,
    next: u16,
}

struct World {
    memory: Arc<GuestMemory>,
    ring: RingMemory,
    _file: File,
}

fn world(table: &[Entry], indirect: &[Entry]) -> World {
    let (memory, file) = memory(&LAYOUT);
    for (base, entries) in [(TABLE, table), (INDIRECT, indirect)] {
        for (index, entry) in entries.iter().enumerate() {
            let raw =
                RawDescriptor::from(Descriptor::new(entry.at, entry.len, entry.flags, entry.next));
            memory.write(base + 16 * index as u64, raw.as_slice()).expect("there");
        }
    }
    let addresses = RingAddresses {
        descriptors: USER + TABLE,
        available: USER + RINGS,
        used: USER + RINGS + 0x800,
    };
    let size = RingSize::new(SIZE.into()).expect("a power of two");
    let ring = RingMemory::locate(&memory, size, addresses).expect("there");
    World { memory: Arc::new(memory), ring, _file: file }
}

fn run(world: &World, head: u16, negotiated: bool) -> (Walked, Vec<Piece>) {
    let mut pieces = [[0; 2]; MAX_PIECES];
    let mut copy = Box::new([0; _]);
    let walked = walk(head, &world.ring, &world.memory, negotiated, &mut copy, &mut pieces);
    (walked, pieces[..walked.pieces].to_vec())
}

/// Every byte that the device may read, then every byte that it may write;
/// `None` for a chain that lies.
fn model(table: &[Entry], indirect: &[Entry], head: u16) -> Option<[Vec<u64>; 2]> {
    let mut streams = [Vec::new(), Vec::new()];
    let mut entries = table;
    let mut visited = Vec::new();
    let mut index = usize::from(head);
    loop {
        let place = (entries.as_ptr(), index);
        if visited.contains(&place) {
            return None;
        }
        visited.push(place);
        let entry = *entries.get(index)?;
        if entry.flags & TABLE_FLAG != 0 {
            let nested = std::ptr::eq(entries.as_ptr(), indirect.as_ptr());
            let count = entry.len as usize / 16;
            let odd = !(entry.len as usize).is_multiple_of(16);
            if nested || odd || count == 0 || count > MAX_PIECES || entry.flags & NEXT != 0 {
                return None;
            }
            // The tests' memory is zero behind the entries, and an address
            // that is not the table's is left to the other tests.
            assert_eq!(entry.at, INDIRECT);
            entries = &indirect[..count.min(indirect.len())];
            index = 0;
            continue;
        }
        if entry.len > 0x12000 {
            return None; // more than all memory: do not list it
        }
        let exists = |at: u64| LAYOUT.iter().any(|&(start, len)| at >= start && at - start < len);
        let bytes: Vec<u64> = (0..u64::from(entry.len)).map(|n| entry.at.wrapping_add(n)).collect();
        if bytes.is_empty() || !bytes.iter().all(|&at| exists(at)) {
            return None;
        }
        let writable = entry.flags & WRITE != 0;
        if !writable && !streams[1].is_empty() {
            return None;
        }
        streams[usize::from(writable)].extend(bytes);
        if entry.flags & NEXT == 0 {
            let runs = |stream: &[u64]| 1 + stream.windows(2).filter(|w| w[0] + 1 != w[1]).count();
            let pieces: usize = streams.iter().filter(|s| !s.is_empty()).map(|s| runs(s)).sum();
            return (pieces <= MAX_PIECES).then_some(streams);
        }
        index = usize::from(entry.next);
    }
}

fn bytes(pieces: &[Piece]) -> Vec<u64> {
    pieces.iter().flat_map(|&[at, len]| at..at + len).collect()
}

fn check(table: &[Entry], indirect: &[Entry], head: u16) -> Result<(), TestCaseError> {
    let world = world(table, indirect);
    let (walked, pieces) = run(&world, head, true);
    let expected = model(table, indirect, head);
    prop_assert_eq!(walked.lied, expected.is_none(), "{:?}", walked);
    if let Some(status) = walked.status {
        let names = |e: &Entry| e.flags & WRITE != 0 && status.wrapping_sub(e.at) < e.len.into();
        prop_assert!(table.iter().chain(indirect).any(names), "the status is the driver's");
        prop_assert!(world.memory.holds(status, 1));
    }
    if let Some([readable, writable]) = expected {
        prop_assert_eq!(walked.readable_bytes, readable.len() as u64);
        prop_assert_eq!(walked.writable_bytes, writable.len() as u64);
        prop_assert_eq!(walked.status, writable.last().copied());
        prop_assert_eq!(bytes(&pieces[..walked.readable]), readable);
        prop_assert_eq!(bytes(&pieces[walked.readable..]), writable);
    }
    Ok(())
}

fn segment() -> impl Strategy<Value = (u64, u32)> {
    let at = prop_oneof![0x4000u64..0x8ff0, 0x10000u64..0x10f00, Just(0x7ff8), Just(0x8fff)];
    (at, 1u32..0x80)
}

/// A change that a hostile driver makes to one entry.
fn lie() -> impl Strategy<Value = (usize, u8, u64)> {
    (0usize..SIZE as usize, 0u8..8, any::<u64>())
}

fn apply(entries: &mut [Entry], (index, what, value): (usize, u8, u64)) {
    let count = entries.len();
    let Some(entry) = entries.get_mut(index % count.max(1)) else { return };
    let is_table = entry.flags & TABLE_FLAG != 0;
    match what {
        0 => entry.next = (value % 20) as u16,
        1 => entry.next = value as u16,
        2 => entry.flags ^= NEXT,
        3 => entry.flags ^= WRITE,
        4 => entry.len = [0, 1, 15, 17, 0x1000, u32::MAX][value as usize % 6],
        5 if !is_table => entry.at = value,
        6 if !is_table => entry.at = [0x8ff0, 0xffff, u64::MAX, u64::MAX - 15][value as usize % 4],
        7 if !is_table => (entry.flags, entry.at) = (entry.flags | TABLE_FLAG, INDIRECT),
        _ => {}
    }
}

/// A chain of the segments at places in the order of `places`.
fn chain(readable: &[(u64, u32)], writable: &[(u64, u32)], places: &[u16]) -> Vec<Entry> {
    let empty = Entry { at: 0, len: 0, flags: 0, next: 0 };
    let mut entries = vec![empty; places.len()];
    let all = readable.iter().map(|s| (s, 0)).chain(writable.iter().map(|s| (s, WRITE)));
    let segments: Vec<_> = all.collect();
    for (number, &(&(at, len), write)) in segments.iter().enumerate() {
        let last = number + 1 == segments.len();
        let (flags, next) = if last { (write, 0) } else { (write | NEXT, places[number + 1]) };
        entries[usize::from(places[number])] = Entry { at, len, flags, next };
    }
    entries
}

fn places(count: u16) -> impl Strategy<Value = Vec<u16>> {
    Just((0..count).collect::<Vec<u16>>()).prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_chain_in_the_ring(
        readable in vec(segment(), 1..8),
        writable in vec(segment(), 0..8),
        places in places(SIZE),
        lies in vec(lie(), 0..3),
    ) {
        let mut table = chain(&readable, &writable, &places);
        lies.into_iter().for_each(|lie| apply(&mut table, lie));
        check(&table, &[], places[0])?;
    }

    #[test]
    fn a_chain_in_an_indirect_table(
        readable in vec(segment(), 1..70),
        writable in vec(segment(), 0..70),
        lies in vec(lie(), 0..3),
        ring_lies in vec(lie(), 0..2),
        behind_data in any::<bool>(),
    ) {
        // The walk begins at an indirect table's first entry.
        let places: Vec<u16> = (0..(readable.len() + writable.len()) as u16).collect();
        let mut indirect = chain(&readable, &writable, &places);
        lies.into_iter().for_each(|lie| apply(&mut indirect, lie));
        let len = 16 * indirect.len() as u32;
        let data = Entry { at: 0x5000, len: 16, flags: NEXT, next: 1 };
        let points = Entry { at: INDIRECT, len, flags: TABLE_FLAG, next: 0 };
        let nothing = Entry { at: 0, len: 0, flags: 0, next: 0 };
        let mut table = vec![nothing; SIZE.into()];
        (table[0], table[1]) = if behind_data { (data, points) } else { (points, nothing) };
        ring_lies.into_iter().for_each(|lie| apply(&mut table[..2], lie));
        // A longer table than was written is zeroes, and memory ends it.
        indirect.resize(256, nothing);
        check(&table, &indirect, 0)?;
    }

    #[test]
    fn noise(
        noise in vec((any::<u64>(), any::<u32>(), any::<u16>(), 0u16..20), SIZE as usize),
        head in 0..SIZE,
    ) {
        let entry = |&(at, len, flags, next): &(u64, u32, u16, u16)| {
            let at = if flags & TABLE_FLAG != 0 { INDIRECT } else { at % 0x12000 };
            Entry { at, len: len % 0x200, flags, next }
        };
        let table: Vec<Entry> = noise.iter().map(entry).collect();
        let nothing = Entry { at: 0, len: 0, flags: 0, next: 0 };
        check(&table, &[nothing; 64], head)?;
    }
}

/// A driver that did not negotiate indirect tables has none.
#[test]
fn an_indirect_table_must_have_been_negotiated() {
    let entry = Entry { at: 0x5000, len: 64, flags: WRITE, next: 0 };
    let points = Entry { at: INDIRECT, len: 16, flags: TABLE_FLAG, next: 0 };
    let world = world(&[points], &[entry]);
    assert!(!run(&world, 0, true).0.lied);
    let (walked, _) = run(&world, 0, false);
    assert!(walked.lied);
    assert_eq!(walked.status, Some(0x503f), "it can be told so");
}

/// An indirect table that is not in memory, or ends outside of it.
#[test]
fn an_indirect_table_must_be_in_memory() {
    for at in [0xffff, 0x8ff8, u64::MAX - 7] {
        let points = Entry { at, len: 16, flags: TABLE_FLAG, next: 0 };
        let (walked, _) = run(&world(&[points], &[]), 0, true);
        assert!(walked.lied && walked.status.is_none());
    }
}

/// Streams are read across pieces and regions, and never past their end.
#[test]
fn a_stream_is_read_and_written_from_any_place() {
    let (memory, _file) = memory(&LAYOUT);
    let pieces = [[0x7ffc, 8], [0x10000, 4], [0x100, 3]];
    let data: Vec<u8> = (1..=15).collect();
    write(&memory, &pieces, 0, &data).expect("there");
    for skip in 0..15 {
        for len in 0..15 - skip {
            let mut read_back = vec![0; len];
            read(&memory, &pieces, skip as u64, &mut read_back).expect("there");
            assert_eq!(read_back, data[skip..skip + len]);
        }
    }
    assert_eq!(read(&memory, &pieces, 1, &mut [0; 15]), Err(NotThere));
}
