//! The work that is counted: bursts of requests, each served to its end.

use allocations::of_this_thread;
use anyhow::{Context, ensure};
use benches::guest;
use benches::guest::front_end::{Guest, IN, OUT, Ring};
use block_core::Op;
use clap::ValueEnum;

use crate::row::Row;
use crate::subject::{BLOCKS, Subject};

/// Bursts before it is counted, and while.
const WARM_UP: usize = 300;
const BURSTS: usize = 500;

/// Turns in which a burst must have ended: a request takes two of each side.
const MOST_TURNS: usize = 100;

/// Whose turns are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Front,
    Server,
}

/// Requests that are counted.
pub(crate) fn requests(depth: u16) -> f64 {
    (BURSTS * usize::from(depth)) as f64
}

/// What makes a process of this program do the row's work, to be watched.
pub(crate) fn work_arguments(row: Row, depth: u16) -> anyhow::Result<[String; 3]> {
    let value = row.to_possible_value().context("every row has a name")?;
    Ok(["work".to_owned(), value.get_name().to_owned(), depth.to_string()])
}

/// Serves the bursts; allocations of those that are counted. Around these the
/// process asks for its parent's id, which nothing else does.
pub(crate) fn work(row: Row, depth: u16) -> anyhow::Result<u64> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let mut subject =
        if row.is_fused() { Subject::fused(&socket)? } else { Subject::apart(&socket)? };
    let guest = Guest::new();
    let (_connection, ring) = guest::connect(&socket, &guest, || subject.turn_front())?;
    let mut driver = Driver { guest: &guest, ring, chance: 0x9e37_79b9_7f4a_7c15, depth };
    for _ in 0..WARM_UP {
        driver.burst(row.op(), &mut subject, Subject::turn_front, Subject::turn_server)?;
    }
    let before = of_this_thread();
    let mut driven = 0;
    let _ = rustix::process::getppid();
    for _ in 0..BURSTS {
        driven += driver.burst(row.op(), &mut subject, counted_front, counted_server)?;
    }
    let _ = rustix::process::getppid();
    Ok(of_this_thread() - before - driven)
}

/// The turns that callgrind counts.
#[inline(never)]
fn counted_front(subject: &mut Subject) {
    subject.turn_front();
}

/// The same.
#[inline(never)]
fn counted_server(subject: &mut Subject) {
    subject.turn_server();
}

/// A guest's driver that polls.
struct Driver<'a> {
    guest: &'a Guest,
    ring: Ring<'a>,
    chance: u64,
    depth: u16,
}

impl Driver<'_> {
    /// Offers a burst and turns both sides until all of it came back; what the
    /// driver itself allocated.
    fn burst(
        &mut self,
        op: Op,
        subject: &mut Subject,
        front: fn(&mut Subject),
        server: fn(&mut Subject),
    ) -> anyhow::Result<u64> {
        let begun = of_this_thread();
        let kind = if op == Op::Read { IN } else { OUT };
        for number in 0..self.depth {
            let block = self.next_block();
            let head = self.ring.prepare(number, kind, block * 8, 4096);
            self.ring.offer_silently(head);
        }
        self.ring.set_used_event(self.ring.used);
        let mut driven = of_this_thread() - begun;
        let mut waited_for = self.depth;
        for _ in 0..MOST_TURNS {
            front(subject);
            server(subject);
            let begun = of_this_thread();
            while let Some((head, _)) = self.ring.take_used() {
                ensure!(self.guest.status(u64::from(head) / 3) == 0, "a request failed");
                waited_for -= 1;
            }
            driven += of_this_thread() - begun;
            if waited_for == 0 {
                return Ok(driven);
            }
        }
        anyhow::bail!("{waited_for} requests did not come back")
    }

    fn next_block(&mut self) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance % BLOCKS
    }
}
