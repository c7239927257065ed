//! A driver that writes whatever it likes, wherever it likes, also into the
//! record of what is in flight. The device writes only where it was told that
//! it may, asks the path only for what the disk has, and ends.

use std::fs::File;
use std::os::unix::fs::FileExt;

use block_core::unit::MAX_REQUEST_BYTES;
use fuzz::{Metered, Script, Target};

use super::*;
use crate::guest_memory::{Region, RegionSpec};
use crate::in_flight::{Area, AreaSpec, make};
use crate::ring::{DESCRIPTOR_BYTES, RingAddresses, RingSize};

#[global_allocator]
static ALLOCATOR: Metered = Metered;

/// What a queue of the tests' size and the check have on the heap.
const HEAP: usize = 4 << 20;

const SIZE: u16 = 8;
const SECTORS: u64 = 64;

/// Guest memory: two regions that touch, and one that does not. In their file
/// they stand apart, and what is between them is nobody's.
const REGIONS: [(u64, u64); 3] = [(0, 0x8000), (0x8000, 0x1000), (0x10000, 0x2000)];
const FILE_GAP: u64 = 0x1000;
const FILE_BYTES: usize = 0xf000;
/// Where the front-end sees the guest's memory.
const USER: u64 = 1 << 40;

const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x1800;
const INDIRECT: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const STATUS: u64 = 0x3800;
const DATA: u64 = 0x4000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

/// Where a byte of guest memory is in the file.
fn in_file(at: u64) -> Option<usize> {
    let mut offset = FILE_GAP;
    for (start, len) in REGIONS {
        if (start..start + len).contains(&at) {
            return Some((offset + at - start) as usize);
        }
        offset += len + FILE_GAP;
    }
    None
}

/// The guest: its memory, and what it knows that nobody else may change.
struct Guest {
    file: File,
    memory: Arc<GuestMemory>,
    /// What the file holds but for what the device may write.
    known: Vec<u8>,
    /// What the device was told that it may write.
    told: Vec<bool>,
    area: File,
    spec: AreaSpec,
}

impl Guest {
    fn new() -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(FILE_BYTES as u64).expect("grow");
        let mut offset = FILE_GAP;
        let regions = REGIONS.map(|(guest, len)| {
            let spec = RegionSpec { guest, len, user: USER + guest, offset };
            offset += len + FILE_GAP;
            Arc::new(Region::map(spec, &file).expect("map"))
        });
        assert_eq!(offset, FILE_BYTES as u64);
        let memory = Arc::new(GuestMemory::new(&regions).expect("a table"));
        let (spec, area) = make(1, SIZE, 1).expect("an area");
        let mut guest = Self {
            file,
            memory,
            known: vec![0; FILE_BYTES],
            told: vec![false; FILE_BYTES],
            area: area.into(),
            spec,
        };
        guest.tell(USED, 4 + 8 * u64::from(SIZE) + 2);
        guest
    }

    fn queue(&self, base: u16, record: bool) -> Option<Box<Queue>> {
        let size = RingSize::new(SIZE.into()).expect("a size");
        let at = RingAddresses {
            descriptors: USER + TABLE,
            available: USER + AVAILABLE,
            used: USER + USED,
        };
        let ring = RingMemory::locate(&self.memory, size, at).expect("there");
        let area = Area::map(self.spec, &self.area, 1).expect("map");
        let record = record.then(|| area.record(0, size).expect("a record"));
        let (ring, _) = Ring::start(ring, base, false, record).ok()?;
        Some(Queue::new(ring, Arc::clone(&self.memory), None, true, true))
    }

    /// The driver writes.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, &byte) in (at..).zip(bytes) {
            let Some(place) = in_file(at) else { continue };
            self.known[place] = byte;
            self.memory.write(at, &[byte]).expect("there");
        }
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read(at, &mut bytes).expect("there");
        bytes
    }

    fn describe(&mut self, at: u64, (address, len, flags, next): (u64, u32, u16, u16)) {
        let words = [address, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48];
        self.put(at, words.map(u64::to_le_bytes).as_flattened());
    }

    fn offer(&mut self, head: u16) {
        let index = u16::from_le_bytes(self.get(AVAILABLE + 2));
        self.put(AVAILABLE + 4 + u64::from(index % SIZE) * 2, &head.to_le_bytes());
        self.put(AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// A chain as good drivers make them, from descriptor `head` on.
    fn request(&mut self, head: u16, kind: u32, sector: u64, bytes: u32, indirect: bool) {
        let header = HEADERS + u64::from(head) * 16;
        self.put(header, [u64::from(kind), sector].map(u64::to_le_bytes).as_flattened());
        let write = if kind == 1 || kind > 8 { 0 } else { WRITE };
        let data = DATA + u64::from(head) * 0x800;
        let (table, first) = match indirect {
            true => (INDIRECT + u64::from(head) * 0x40, 0),
            false => (TABLE, head),
        };
        let place = |index: u16| table + u64::from(index % SIZE) * 16;
        let next = |index: u16| (first + index) % SIZE;
        self.describe(place(first), (header, 16, NEXT, next(1)));
        self.describe(place(first + 1), (data, bytes, NEXT | write, next(2)));
        self.describe(place(first + 2), (STATUS + u64::from(head), 1, WRITE, 0));
        if indirect {
            let len = 3 * DESCRIPTOR_BYTES as u32;
            self.describe(TABLE + u64::from(head) * 16, (table, len, INDIRECT_FLAG, 0));
        }
    }

    /// The device may write there.
    fn tell(&mut self, at: u64, len: u64) {
        let mut offset = FILE_GAP;
        for (start, size) in REGIONS {
            let (from, to) = (at.max(start), at.saturating_add(len).min(start + size));
            if from < to {
                let (from, to) = (offset + from - start, offset + to - start);
                self.told[from as usize..to as usize].fill(true);
            }
            offset += size + FILE_GAP;
        }
    }

    /// The device may write where a descriptor says so, in the ring's table or
    /// in one that such a descriptor names.
    fn tell_what_is_described(&mut self) {
        for index in 0..u64::from(SIZE) {
            let (at, len, flags) = descriptor(&self.get(TABLE + index * 16));
            if flags & WRITE != 0 {
                self.tell(at, len);
            }
            if flags & INDIRECT_FLAG == 0 {
                continue;
            }
            for entry in 0..(len / 16).min(u64::from(MAX_QUEUE_SIZE)) {
                let Some(place) = at.checked_add(entry * 16) else { break };
                if !self.memory.holds(place, 16) {
                    break;
                }
                let (at, len, flags) = descriptor(&self.get(place));
                if flags & WRITE != 0 {
                    self.tell(at, len);
                }
            }
        }
    }

    /// Nothing else was written.
    fn check(&self) {
        let mut now = vec![0; FILE_BYTES];
        self.file.read_exact_at(&mut now, 0).expect("read");
        let strange = (0..FILE_BYTES).find(|&at| now[at] != self.known[at] && !self.told[at]);
        assert_eq!(strange, None, "the device wrote to this byte of the guest's file");
    }
}

fn descriptor(bytes: &[u8; 16]) -> (u64, u64, u16) {
    let ([at, rest], _) = bytes.as_chunks::<8>() else { unreachable!("two of eight") };
    let rest = u64::from_le_bytes(*rest);
    (u64::from_le_bytes(*at), rest & 0xffff_ffff, (rest >> 32) as u16)
}

const LIMITS: Limits = Limits { sectors: SECTORS, read_only: false, write_through: false };
const ID: [u8; ID_BYTES] = [b'i'; ID_BYTES];

/// The path, as far as it is there.
#[derive(Default)]
struct Parts {
    under_way: Vec<(Place, Op, Option<SectorRange>)>,
}

impl Parts {
    /// What the queue offers now, and what the path makes of it; whether there
    /// may be more.
    fn take(
        &mut self,
        guest: &mut Guest,
        queue: &mut Queue,
        script: &mut Script<'_>,
    ) -> Result<bool, Broken> {
        guest.tell_what_is_described();
        let (place, op, range) = match queue.offer(&LIMITS, &ID, false)? {
            Offer::Nothing => return Ok(false),
            Offer::Served => return Ok(true),
            Offer::Part(place, op, range) => (place, op, range),
        };
        assert_eq!(range.is_none(), op == Op::Flush);
        assert!(range.is_none_or(|range| range.end() <= SECTORS), "the disk has that");
        let bytes = range.map_or(0, |range| range.bytes()) as usize;
        let moves = op == Op::Read || op.carries_data();
        assert!(!moves || bytes <= MAX_REQUEST_BYTES, "a part that can be sent");
        match script.byte() {
            250.. => queue.refused(Status::Failed)?,
            240.. => return Ok(false),
            _ => {
                if op.carries_data() && queue.fetch(place, &mut vec![0; bytes]).is_err() {
                    queue.refused(Status::Failed)?;
                    return Ok(true);
                }
                let again = self.under_way.iter().any(|(other, ..)| *other == place);
                assert!(!again, "a part is offered once");
                queue.took();
                self.under_way.push((place, op, range));
            }
        }
        Ok(true)
    }

    fn end(&mut self, queue: &mut Queue, script: &mut Script<'_>) -> Result<(), Broken> {
        if self.under_way.is_empty() {
            return Ok(());
        }
        let (place, op, range) = self.under_way.swap_remove(script.below(self.under_way.len()));
        let bytes = range.filter(|_| op == Op::Read).map_or(0, |range| range.bytes()) as usize;
        // More than the part has is not put anywhere.
        assert!(op != Op::Read || queue.put(place, bytes, &[0]).is_err());
        let failed = script.byte() >= 0xf0 || queue.put(place, 0, &vec![CONTENT; bytes]).is_err();
        queue.complete(place, if failed { Err(BlockError::Medium) } else { Ok(()) })
    }
}

/// What the disk holds.
const CONTENT: u8 = 0;

/// The driver does something. A decision of zero asks for something good.
fn drive(guest: &mut Guest, script: &mut Script<'_>) {
    let head = script.below(usize::from(SIZE)) as u16;
    match script.byte() {
        0..100 => {
            let kind = [0, 1, 4, 8, 11, 13, 99][script.below(7)];
            let bytes = [512, 4096, 0x800, 16, 32, 20, 1][script.below(7)];
            let (sector, indirect) = (script.below(SECTORS as usize) as u64, script.below(3) == 1);
            guest.request(head, kind, sector, bytes, indirect);
            if kind > 8 {
                let range = [script.number(), script.number()].map(u64::to_le_bytes);
                guest.put(DATA + u64::from(head) * 0x800, range.as_flattened());
            }
            guest.offer(head);
        }
        100..140 => {
            let table = if script.below(2) == 0 { TABLE } else { INDIRECT };
            let flags = script.below(8) as u16;
            let entry = (script.number(), script.number() as u32, flags, script.number() as u16);
            guest.describe(table + u64::from(head) * 16, entry);
        }
        140..170 => {
            let (field, bytes) = [(0, 8), (8, 4), (12, 2), (14, 2)][script.below(4)];
            let number = script.number().to_le_bytes();
            let table = if script.below(2) == 0 { TABLE } else { INDIRECT };
            guest.put(table + u64::from(head) * 16 + field, &number[..bytes]);
        }
        170..190 => guest.offer(script.number() as u16),
        190..200 => guest.put(AVAILABLE + 2, &(script.number() as u16).to_le_bytes()),
        200..210 => {
            let index = u16::from_le_bytes(guest.get(AVAILABLE + 2));
            guest.put(AVAILABLE + 2, &index.wrapping_add(script.below(9) as u16).to_le_bytes());
        }
        210..220 => {
            let (at, number) = (script.number(), script.number().to_le_bytes());
            let entries = script.below(9);
            guest.put(HEADERS + at % 0x800, &number[..entries.min(8)]);
        }
        220..240 => {
            let at = script.number() % 0x12000;
            let bytes = script.bytes(16).to_vec();
            guest.put(at, &bytes);
        }
        _ => {
            let at = script.below(guest.spec.len as usize) as u64;
            let bytes = script.bytes(4);
            // A part of the area is enough.
            let _ = guest.area.write_at(bytes, at.min(guest.spec.len - bytes.len() as u64));
        }
    }
}

/// Runs until the disk cuts the driver off, or the script is over; then all
/// that was taken ends.
fn serve(
    guest: &mut Guest,
    queue: &mut Queue,
    parts: &mut Parts,
    script: &mut Script<'_>,
) -> Result<(), Broken> {
    while !script.is_over() {
        for _ in 0..=script.below(3) {
            drive(guest, script);
        }
        let mut turns = 0;
        while parts.take(guest, queue, script)? {
            turns += 1;
            assert!(turns < 8 * MAX_PIECES, "a ring has an end");
            if script.byte() >= 0xc0 {
                break;
            }
        }
        for _ in 0..script.below(5) {
            parts.end(queue, script)?;
        }
        queue.publish()?;
    }
    let mut script = Script::new(&[]);
    while !parts.under_way.is_empty() || queue.current.is_some() {
        while queue.current.is_some() && parts.take(guest, queue, &mut script)? {}
        parts.end(queue, &mut script)?;
    }
    queue.publish()
}

/// A good request, after all that.
fn serves_a_good_request(guest: &mut Guest, queue: &mut Queue) {
    guest.request(0, 0, 3, 512, false);
    guest.put(DATA, &[0xee; 512]);
    guest.put(STATUS, &[0xee]);
    guest.tell_what_is_described();
    let next = queue.base();
    (0..SIZE).for_each(|place| guest.put(AVAILABLE + 4 + u64::from(place) * 2, &[0, 0]));
    guest.put(AVAILABLE + 2, &next.wrapping_add(1).to_le_bytes());
    let offer = queue.offer(&LIMITS, &ID, false);
    let Ok(Offer::Part(place, Op::Read, Some(range))) = offer else { panic!("{offer:?}") };
    assert_eq!((range.start(), range.count()), (3, 1));
    queue.took();
    queue.put(place, 0, &[7; 512]).expect("there");
    queue.complete(place, Ok(())).expect("a good driver");
    assert_eq!(guest.get::<512>(DATA), [7; 512]);
    assert_eq!(guest.get::<1>(STATUS), [0]);
}

#[test]
fn a_driver_that_lies_harms_only_itself() {
    let good: Vec<u8> = (0..20u8)
        .flat_map(|n| [0, n % 8, 0, n, n / 3, n * 3, 0, n, 4, 4, 0, 0, 0, 0, 4, 0, 0, 0, 0])
        .collect();
    Target::new("a_driver_that_lies_harms_only_itself")
        .with([&[0, 0][..], &good].concat())
        .with([&[1, 0][..], &good].concat())
        .cases(6000)
        .may_allocate(HEAP)
        .run(|input| {
            let mut script = Script::new(input);
            let mut guest = Guest::new();
            let (record, base) = (script.byte() % 2 == 1, 0);
            let past = script.below(4) == 3;
            for _ in 0..if past { script.below(6) } else { 0 } {
                drive(&mut guest, &mut script);
            }
            let Some(mut queue) = guest.queue(base, record) else { return (9, 0, 0) };
            let mut parts = Parts::default();
            let outcome = serve(&mut guest, &mut queue, &mut parts, &mut script);
            guest.check();
            let broken = outcome.err();
            if broken.is_none() {
                assert!(queue.free.len() == usize::from(SIZE));
                // Entries that it has seen were offered before.
                if !queue.has_work(false) && !queue.ring.has_left() {
                    serves_a_good_request(&mut guest, &mut queue);
                }
            }
            let used = u16::from_le_bytes(guest.get(USED + 2));
            (broken.map_or(0, |why| why as u8 + 1), used, guest.told.iter().filter(|t| **t).count())
        });
}
