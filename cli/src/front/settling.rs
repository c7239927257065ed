//! What earlier starts of this front had answered: is it all there?
//!
//! A front that dies takes with it the copies of what it had answered and
//! nobody had flushed. As long as the volume's verifier is the stored one the
//! server has them; a flush under it makes them durable. After that nothing
//! depends on a front that is no more.

use anyhow::{Context, bail};
use block_core::{BlockError, Op, Time};
use block_front::DiskSpec;
use link::path::Refusal;
use link::wire::Wire;
use link::{Attached, Client, Guest, Part, Path, Token, VolumeHandle, VolumeState};
use turn::{Loop, Station};

use super::config::Disk;
use crate::stop::Stop;

/// Flushes each volume that lacks nothing yet, and answers for those that lack
/// nothing then. The disks of the others serve only guests that start anew.
///
/// # Errors
/// A sentence, when a volume went away meanwhile or its disk makes no sense.
pub(super) fn settle<W: Wire>(
    turns: &Loop,
    client: &mut Client<W>,
    disks: &[Disk],
    volumes: &[VolumeHandle],
    stop: &Stop,
) -> anyhow::Result<Vec<DiskSpec>> {
    let flushes = Flushes(vec![Flush::Due; volumes.len()]);
    let mut settling = Settling { client, volumes, flushes, stop };
    turns.run(&mut settling).context("the front cannot wait for its servers")?;
    let Settling { client, flushes, .. } = settling;
    if flushes.0.iter().any(|flush| matches!(flush, Flush::Due | Flush::UnderWay)) {
        bail!("stopped before all volumes were flushed");
    }
    let mut specs = Vec::with_capacity(disks.len());
    for ((disk, &volume), flush) in disks.iter().zip(volumes).zip(flushes.0) {
        let VolumeState::Attached(mut attached) = client.state(volume) else {
            bail!("volume {} went away before its disk was there", disk.volume);
        };
        if flush != Flush::Done {
            // Nobody knows what would be missed later.
            attached.stored_verifier = !attached.verifier;
        }
        let spec = super::disk_spec(disk, volume, &attached)?;
        if !spec.has_lost_writes() {
            client.settle(volume);
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// How far the flush of a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Due,
    UnderWay,
    Done,
    /// There is no flush, or no use for one.
    Failed,
}

/// The flushes, by the volumes' places, which are their tokens.
struct Flushes(Vec<Flush>);

/// A client whose volumes are flushed.
struct Settling<'a, W: Wire> {
    client: &'a mut Client<W>,
    volumes: &'a [VolumeHandle],
    flushes: Flushes,
    stop: &'a Stop,
}

impl<W: Wire> Settling<'_, W> {
    fn attached(&self, place: usize) -> Option<Attached> {
        match self.client.state(self.volumes[place]) {
            VolumeState::Attached(attached) => Some(attached),
            _ => None,
        }
    }

    fn ask(&mut self, now: Time, place: usize) -> bool {
        let Some(attached) = self.attached(place) else { return false };
        self.flushes.0[place] = match attached.stored_verifier == attached.verifier {
            _ if attached.read_only => Flush::Done,
            false => Flush::Failed,
            true => {
                let (token, volume) = (Token(place as u64), self.volumes[place]);
                let part = Part { token, volume, op: Op::Flush, range: None };
                match self.client.submit(now, part, &mut self.flushes) {
                    Ok(()) => Flush::UnderWay,
                    Err(Refusal::Busy) => Flush::Due,
                    Err(Refusal::Failed(_)) => Flush::Failed,
                }
            }
        };
        self.flushes.0[place] != Flush::Due
    }
}

impl<W: Wire> Station for Settling<'_, W> {
    fn turn(&mut self, now: Time) -> bool {
        let mut moved = false;
        for place in 0..self.volumes.len() {
            if self.flushes.0[place] == Flush::Due {
                moved |= self.ask(now, place);
            }
        }
        moved | self.client.turn(now, &mut self.flushes)
    }

    fn announce_sleep(&mut self) {}

    fn has_work(&mut self) -> bool {
        false
    }

    fn retract_sleep(&mut self) {}

    fn deadline(&self) -> Option<Time> {
        self.client.deadline()
    }

    fn is_stopped(&self) -> bool {
        let over = |place: usize| {
            // The verifier is looked at after the flush.
            matches!(self.flushes.0[place], Flush::Done | Flush::Failed)
                && match self.client.state(self.volumes[place]) {
                    VolumeState::Waiting => false,
                    // Gone for good, or there.
                    _ => true,
                }
        };
        self.stop.is_asked() || (0..self.volumes.len()).all(over)
    }
}

impl Guest for Flushes {
    fn fetch(&mut self, _: Token, _: &mut [u8]) -> Result<(), BlockError> {
        Err(BlockError::Malformed)
    }

    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        self.0[token.0 as usize] = if outcome.is_ok() { Flush::Done } else { Flush::Failed };
    }
}
