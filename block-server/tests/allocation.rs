//! A request allocates nothing: not in the path, the worker, the volume, the
//! driver nor the soft controller. An allocation per request costs a tenth of
//! its time, and its tail is unbounded.

mod support;

use allocations::{Counting, of_all_threads};
use block_core::{BlockError, Op, SectorRange, Time};
use block_server::LocalPath;
use link::{Access, Guest, Part, Path, Source, Token, VolumeHandle};
use support::{SoftPath, VecGuest, attach, create, front, memory_worker};

#[global_allocator]
static COUNTING: Counting = Counting;

const DEPTH: u64 = 64;

/// A guest with one piece of memory for all its parts.
struct Counter {
    memory: Vec<u8>,
    free: Vec<u64>,
    ended: usize,
    outcome: Result<(), BlockError>,
}

impl Source for Counter {
    fn fetch(&mut self, _: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.copy_from_slice(&self.memory[..into.len()]);
        Ok(())
    }
}

impl Guest for Counter {
    fn place(&mut self, _: Token, offset: usize, bytes: &[u8]) {
        self.memory[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        self.free.push(token.0);
        self.ended += 1;
        self.outcome = self.outcome.and(outcome);
    }
}

/// Every kind of request, whole blocks and parts, many of them overlapping.
fn part(number: u64, volume: VolumeHandle, token: u64) -> Part {
    let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let (op, start, count) = match number % 16 {
        0..4 => (Op::Read, at % 2000 * 8, 8),
        4..8 => (Op::Write, at % 2000 * 8, 8),
        8 => (Op::Write, at % 200, 3),
        9 => (Op::WriteThrough, at % 200, 17),
        10 => (Op::Read, at % 8000, 256),
        11 => (Op::Write, at % 8000, 256),
        12 => (Op::Flush, 0, 0),
        13 => (Op::Discard, at % 8000, 64),
        14 => (Op::WriteZeroes, at % 200, 13),
        _ => (Op::WriteZeroesUnmap, at % 8000, 64),
    };
    Part { token: Token(token), volume, op, range: SectorRange::new(start, count) }
}

fn serve(path: &mut SoftPath, volume: VolumeHandle, guest: &mut Counter, requests: u64) {
    let mut number = 0;
    guest.ended = 0;
    while guest.ended < requests as usize {
        while number < requests
            && let Some(token) = guest.free.pop()
        {
            if path.submit(Time::ZERO, part(number, volume, token), guest).is_err() {
                guest.free.push(token);
                break;
            }
            number += 1;
        }
        path.turn(Time::ZERO, guest);
    }
}

#[test]
fn no_request_allocates_at_steady_state() {
    let (worker, mailbox) = memory_worker();
    let mut path = LocalPath::over_nvme(worker, front(1), 1, DEPTH as u16);
    let turn = || {
        path.turn(Time::ZERO, &mut VecGuest::default());
    };
    create(&mailbox, turn, "vm", 16 << 20).expect("created");
    let volume = attach(&mut path, "vm", Access::Write).expect("free").handle;
    let mut guest =
        Counter { memory: vec![5; 131_072], free: (0..DEPTH).collect(), ended: 0, outcome: Ok(()) };
    serve(&mut path, volume, &mut guest, 5_000);
    let before = of_all_threads();
    serve(&mut path, volume, &mut guest, 50_000);
    let allocations = of_all_threads() - before;
    guest.outcome.expect("every request works");
    assert_eq!(allocations, 0, "in 50,000 requests");
}
