//! The front's turn: from the guest's ring to a part, and back.

use std::path::Path as FilePath;

use anyhow::ensure;
use block_core::{BlockError, Time};
use block_front::{DiskOptions, Front};
use link::{Guest as Memory, Part, Path, Refusal, Source, Token, VolumeHandle};

use super::{OPERATIONS, Round};
use crate::guest;
use crate::guest::front_end::{
    DATA, Entry, FrontEnd, Guest, HEADER, IN, INDIRECT, NEXT, OUT, Ring, STATUS, WRITE, entry,
};
use crate::meter::Meter;
use crate::worker::Ticks;

/// Sectors of the disk.
const SECTORS: u64 = 1 << 20;

/// `VIRTIO_BLK_T_FLUSH`.
const FLUSH: u32 = 4;

/// Where indirect tables lie, 64 bytes for each.
const TABLES: u64 = 0x18_0000;

/// A kind of request of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Header and status, no data.
    Flush,
    /// Header, data and status.
    Read,
    /// The same in a table of their own.
    IndirectRead,
    /// Header, data and status.
    Write,
}

/// A front with one disk and the guest that uses it.
struct Subject {
    front: Front,
    path: OnCommand,
    guest: &'static Guest,
    ring: Ring<'static>,
    ticks: Ticks,
    heads: Vec<u16>,
    _connection: FrontEnd,
}

/// A path that takes every part, and ends them when it is told to.
struct OnCommand {
    taken: Vec<(Token, usize)>,
    ends: bool,
    data: Box<[u8]>,
}

impl Path for OnCommand {
    fn submit(&mut self, _: Time, part: Part, source: &mut impl Source) -> Result<(), Refusal> {
        let mut reads = 0;
        let bytes = part.range.map_or(0, |range| range.bytes() as usize);
        if part.op.carries_data() {
            source.fetch(part.token, &mut self.data[..bytes]).map_err(Refusal::Failed)?;
        } else {
            reads = bytes;
        }
        self.taken.push((part.token, reads));
        Ok(())
    }

    fn turn(&mut self, _: Time, guest: &mut impl Memory) -> bool {
        if !self.ends {
            return false;
        }
        for (token, bytes) in self.taken.drain(..) {
            if bytes > 0 {
                guest.place(token, 0, &self.data[..bytes]);
            }
            guest.complete(token, Ok(()));
        }
        true
    }

    fn deadline(&self) -> Option<Time> {
        None
    }

    fn abandon(&mut self, _: VolumeHandle, guest: &mut impl Memory) {
        for (token, _) in self.taken.drain(..) {
            guest.complete(token, Err(BlockError::Unreachable));
        }
    }
}

impl Subject {
    fn new(kind: Kind) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("socket");
        let mut front = front(&socket)?;
        let ticks = Ticks::default();
        let mut path = OnCommand {
            taken: Vec::with_capacity(OPERATIONS),
            ends: true,
            data: vec![7; 4096].into_boxed_slice(),
        };
        // As long-lived as the process: the ring is in it, and both are the stage's.
        let guest: &'static Guest = Box::leak(Box::new(Guest::new()));
        let (connection, ring) = guest::connect(&socket, guest, || {
            front.turn(ticks.pass(), &mut path);
        })?;
        let heads = (0..OPERATIONS as u16).map(|number| prepare(guest, &ring, kind, number));
        let heads = heads.collect();
        Ok(Self { front, path, guest, ring, ticks, heads, _connection: connection })
    }

    fn offer(&mut self) {
        self.heads.iter().for_each(|&head| self.ring.offer_silently(head));
        // A place that is not passed: the driver polls.
        self.ring.set_used_event(self.ring.used.wrapping_sub(1));
    }

    fn turn(&mut self) {
        self.front.turn(self.ticks.pass(), &mut self.path);
    }

    /// What the driver finds in the used ring.
    fn collect(&mut self) -> anyhow::Result<()> {
        let found = std::iter::from_fn(|| self.ring.take_used()).count();
        ensure!(found == OPERATIONS, "{found} of {OPERATIONS} requests came back");
        let is_done = |number: u64| self.guest.status(number) == 0;
        ensure!((0..OPERATIONS as u64).all(is_done), "a request failed");
        Ok(())
    }
}

fn front(socket: &FilePath) -> anyhow::Result<Front> {
    let options = DiskOptions::new("disk", socket, VolumeHandle(0), SECTORS);
    Ok(Front::new(vec![options.check()?])?)
}

/// Writes a chain down, and where it begins.
fn prepare(guest: &Guest, ring: &Ring<'_>, kind: Kind, number: u16) -> u16 {
    let (slot, sector) = (u64::from(number), u64::from(number) * 8);
    match kind {
        Kind::Read => ring.prepare(number, IN, sector, 4096),
        Kind::Write => ring.prepare(number, OUT, sector, 4096),
        Kind::Flush => {
            let head = ring.prepare(number, FLUSH, 0, 0);
            ring.describe_entry(head, (HEADER + 16 * slot, 16, NEXT, head + 2));
            head
        }
        Kind::IndirectRead => {
            let head = ring.prepare(number, IN, sector, 4096);
            let chain: [Entry; 3] = [
                (HEADER + 16 * slot, 16, NEXT, 1),
                (DATA + 0x1000 * slot, 4096, NEXT | WRITE, 2),
                (STATUS + slot, 1, WRITE, 0),
            ];
            let table = TABLES + 64 * slot;
            guest.put(table, &chain.into_iter().flat_map(entry).collect::<Vec<u8>>());
            ring.describe_entry(head, (table, 48, INDIRECT, 0));
            head
        }
    }
}

/// Turns that find nothing, neither in the ring nor in the path.
pub(super) fn empty_turn() -> anyhow::Result<Round> {
    let mut subject = Subject::new(Kind::Read)?;
    Ok(Box::new(move |meter: &mut Meter| {
        meter.measure(|| (0..OPERATIONS).for_each(|_| subject.turn()));
        Ok(())
    }))
}

/// The turn that takes a burst out of the ring: available entries, chains, headers, and
/// of writes the data.
pub(super) fn take(kind: Kind) -> anyhow::Result<Round> {
    let mut subject = Subject::new(kind)?;
    Ok(Box::new(move |meter: &mut Meter| {
        subject.offer();
        subject.path.ends = false;
        meter.measure(|| subject.turn());
        let taken = subject.path.taken.len();
        ensure!(taken == OPERATIONS, "{taken} of {OPERATIONS} requests were taken");
        subject.path.ends = true;
        subject.turn();
        subject.collect()
    }))
}

/// The turn in which a burst ends: data of reads, status bytes, used entries.
pub(super) fn answer(kind: Kind) -> anyhow::Result<Round> {
    let mut subject = Subject::new(kind)?;
    Ok(Box::new(move |meter: &mut Meter| {
        subject.offer();
        subject.path.ends = false;
        subject.turn();
        subject.path.ends = true;
        meter.measure(|| subject.turn());
        subject.collect()
    }))
}
