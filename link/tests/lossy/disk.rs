//! The disk behind the server: it takes its time, and what was not flushed is
//! in a cache that a killed host loses in part.

use std::collections::BTreeMap;
use std::time::Duration;

use block_core::unit::{MAX_REQUEST_BYTES, SECTORS_PER_BLOCK};
use block_core::{BLOCK_SIZE, BlockError, Buffer, Op, Pool, SECTOR_SIZE, SectorRange, Time};
use link::{
    AttachReply, AttachRequest, Attached, Caller, Host, Reply, SessionIndex, SlotRef, VolumeHandle,
    Work,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub(crate) const SECTORS: u64 = 2048;
const HANDLE: VolumeHandle = VolumeHandle(11);

/// What a sector holds.
type Sector = [u8; SECTOR_SIZE];

pub(crate) struct Disk {
    pub(crate) data: Vec<Sector>,
    pub(crate) durable: Vec<Sector>,
    /// What was written to a sector since it was flushed, the oldest first.
    cached: BTreeMap<u64, Vec<Sector>>,
    verifier: u64,
    /// The verifier that the front was told, and the one that is settled.
    told: u64,
    settled: u64,
    small: Pool,
    large: Pool,
    pub(crate) running: Vec<(Time, SlotRef, Work)>,
    /// How often a write ran, by its place and first bytes.
    pub(crate) ran: BTreeMap<(u64, Vec<u8>), usize>,
    pub(crate) now: Time,
    random: StdRng,
}

impl Disk {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            data: vec![[0; SECTOR_SIZE]; SECTORS as usize],
            durable: vec![[0; SECTOR_SIZE]; SECTORS as usize],
            cached: BTreeMap::new(),
            verifier: 1,
            told: 0,
            settled: 1,
            small: Pool::private(4, 3 * BLOCK_SIZE).expect("memory"),
            large: Pool::private(2, MAX_REQUEST_BYTES + BLOCK_SIZE).expect("memory"),
            running: Vec::new(),
            ran: BTreeMap::new(),
            now: Time::ZERO,
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// The host dies: what runs is gone, and of each sector's cached versions
    /// any may have reached the medium.
    pub(crate) fn kill(&mut self) {
        self.running.clear();
        self.ran.clear();
        self.lose_cache();
    }

    /// The device is reset under the server, which goes on.
    pub(crate) fn lose_cache(&mut self) {
        let all = self.random.random_range(0..3);
        for (sector, versions) in std::mem::take(&mut self.cached) {
            let reached = match all {
                0 => 0,
                1 => versions.len(),
                _ => self.random.random_range(0..=versions.len()),
            };
            if let Some(last) = reached.checked_sub(1) {
                self.durable[sector as usize] = versions[last];
            }
        }
        self.data.copy_from_slice(&self.durable);
        self.verifier = self.random.random();
    }

    /// Whether the front has said that what it had answered is there.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled == self.verifier
    }

    /// Whether the cache was lost since the front was told a verifier.
    pub(crate) fn has_lost(&self) -> bool {
        self.told != self.verifier
    }

    fn put(&mut self, sector: u64, content: Sector, through: bool) {
        self.data[sector as usize] = content;
        if through {
            self.durable[sector as usize] = content;
            self.cached.remove(&sector);
        } else {
            self.cached.entry(sector).or_default().push(content);
        }
    }

    fn attach(&mut self, request: &AttachRequest) -> Reply {
        if request.settled == self.verifier {
            self.settled = self.verifier;
        }
        self.told = self.verifier;
        let attached = Attached {
            handle: HANDLE,
            volume_id: [1; 16],
            generation: 1,
            verifier: self.verifier,
            stored_verifier: self.settled,
            sectors: SECTORS,
            read_only: false,
        };
        let attach = Some(Box::new(AttachReply::Attached(attached)));
        Reply { attach, ..Reply::plain(Ok(()), 0) }
    }

    pub(crate) fn run(&mut self, work: Work) -> Reply {
        let (volume, mut request) = match work {
            Work::Block { volume, request } => (volume, request),
            Work::Detach(_) => return Reply::plain(Ok(()), 0),
            Work::Attach(request) => return self.attach(&request),
        };
        assert_eq!(volume, HANDLE);
        // A flush may also tell by its verifier.
        if self.has_lost() && (request.op != Op::Flush || self.random.random()) {
            let lost = Reply::plain(Err(BlockError::Lost), 0);
            return Reply { buffer: request.buffer, ..lost };
        }
        let Some(range) = request.range else {
            while let Some((sector, _)) = self.cached.pop_first() {
                self.durable[sector as usize] = self.data[sector as usize];
            }
            return Reply::plain(Ok(()), self.verifier);
        };
        if range.end() > SECTORS {
            return Reply::plain(Err(BlockError::OutOfRange), 0);
        }
        let through = request.op.writes_through();
        let data = request.buffer.as_deref_mut().map(|buffer| {
            &mut buffer[range.offset_in_block()..range.offset_in_block() + range.bytes() as usize]
        });
        match (request.op, data) {
            (Op::Read, Some(data)) => {
                for (into, sector) in data.chunks_exact_mut(SECTOR_SIZE).zip(range.start()..) {
                    into.copy_from_slice(&self.data[sector as usize]);
                }
            }
            (_, Some(data)) => {
                *self.ran.entry((range.start(), data[..16].to_vec())).or_default() += 1;
                for (content, sector) in
                    data.as_chunks::<SECTOR_SIZE>().0.iter().zip(range.start()..)
                {
                    self.put(sector, *content, through);
                }
            }
            (op, None) => {
                changed(op, range).for_each(|sector| self.put(sector, [0; SECTOR_SIZE], through));
            }
        }
        Reply { buffer: request.buffer, ..Reply::plain(Ok(()), 0) }
    }
}

/// The sectors that an operation changes.
pub(crate) fn changed(op: Op, range: SectorRange) -> std::ops::Range<u64> {
    if op == Op::Discard {
        let blocks = range.blocks_covered();
        blocks.start.0 * SECTORS_PER_BLOCK..(blocks.start.0 + blocks.count.0) * SECTORS_PER_BLOCK
    } else {
        range.start()..range.end()
    }
}

impl Host for Disk {
    fn buffer(&mut self, bytes: usize, _: usize) -> Option<Buffer> {
        if bytes <= self.small.buffer_bytes() { self.small.take() } else { self.large.take() }
    }

    fn admits(&mut self, _: &Caller) -> bool {
        true
    }

    fn opened(&mut self, _: SessionIndex, _: Caller, _: u64, _: u16) {}

    fn start(&mut self, at: SlotRef, work: Work) {
        let busy = self.running.iter().any(|(_, other, _)| *other == at);
        assert!(!busy, "a slot runs one request at a time");
        let due = self.now + Duration::from_micros(self.random.random_range(5..3000));
        self.running.push((due, at, work));
    }

    fn closing(&mut self, _session: SessionIndex) {}

    fn closed(&mut self, session: SessionIndex) {
        let left = self.running.iter().any(|(_, at, _)| at.session == session);
        assert!(!left, "a session is forgotten after its last request");
    }
}
