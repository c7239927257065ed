//! Before there are disks: getting the volumes.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use block_core::time::Clock;
use block_core::{BlockError, Time};
use link::hello::SessionRefused;
use link::wire::Wire;
use link::{Access, Client, Contact, Guest, Path, Refused, Token, VolumeHandle, VolumeState};
use turn::{Loop, Station};

use super::FrontWire;
use super::config::Disk;
use super::voice::Voice;
use crate::stop::Stop;

/// Attaches the volumes of all disks.
///
/// # Errors
/// A sentence, when a server refuses, or does not answer for `patience`.
pub(super) fn attach(
    turns: &Loop,
    clock: Clock,
    mut client: Client<FrontWire>,
    voice: &Voice,
    disks: &[Disk],
    patience: Option<Duration>,
    stop: &Stop,
) -> anyhow::Result<(Client<FrontWire>, Vec<VolumeHandle>)> {
    let start = clock.now();
    let volumes = disks
        .iter()
        .map(|disk| {
            let access = if disk.read_only { Access::Read } else { Access::Write };
            let peer = client.wire().inner().peer(&disk.server);
            let server = Contact { peer, security: voice.security(disk.server_key) };
            client.attach(start, server, disk.volume.clone(), access)
        })
        .collect::<Result<_, _>>()
        .context("cannot ask for the volumes")?;
    let until = patience.map(|patience| start + patience);
    let mut attaching = Attaching { client, voice, volumes, until, late: false, stop };
    turns.run(&mut attaching).context("the front cannot wait for its servers")?;
    let outcome = attaching.outcome(disks);
    let Attaching { mut client, volumes, .. } = attaching;
    if outcome.is_err() {
        give_back(turns, &mut client, &volumes)?;
    }
    outcome.map(|()| (client, volumes))
}

/// A client whose volumes are not all decided.
struct Attaching<'a> {
    client: Client<FrontWire>,
    voice: &'a Voice,
    volumes: Vec<VolumeHandle>,
    until: Option<Time>,
    late: bool,
    stop: &'a Stop,
}

impl Attaching<'_> {
    fn outcome(&self, disks: &[Disk]) -> anyhow::Result<()> {
        let mut pairs = disks.iter().zip(&self.volumes);
        pairs.try_for_each(|(disk, &volume)| self.outcome_of(disk, volume))
    }

    fn outcome_of(&self, disk: &Disk, volume: VolumeHandle) -> anyhow::Result<()> {
        let Disk { volume: name, server, .. } = disk;
        match self.client.state(volume) {
            VolumeState::Attached(_) => Ok(()),
            VolumeState::Refused(refused) => {
                let remedy = match refused {
                    Refused::NotAuthorized | Refused::OnlyToRead => self.voice.remedy(),
                    _ => String::new(),
                };
                Err(anyhow!("volume {name} at {server}: {refused}{remedy}"))
            }
            _ if self.stop.is_asked() => bail!("stopped before all volumes were attached"),
            _ => match self.client.session_refused(volume) {
                Some(refused) => {
                    let unknown = refused == SessionRefused::NotAuthorized;
                    let remedy = if unknown { self.voice.remedy() } else { String::new() };
                    Err(anyhow!("{server}: {refused}{remedy}"))
                }
                None => Err(anyhow!(
                    "no answer from {server} for volume {name}: is `vrio server` running \
                     there, and does its `listen` name this address? (connect_timeout_seconds = 0 \
                     waits for ever)"
                )),
            },
        }
    }

    /// Whether nothing more can be learned by waiting.
    fn is_decided(&self) -> bool {
        let waits = |&volume: &VolumeHandle| {
            self.client.state(volume) == VolumeState::Waiting
                && self.client.session_refused(volume).is_none()
        };
        !self.volumes.iter().any(waits)
    }
}

impl Station for Attaching<'_> {
    fn turn(&mut self, now: Time) -> bool {
        self.late = self.until.is_some_and(|until| now >= until);
        self.client.turn(now, &mut NoGuest)
    }

    fn announce_sleep(&mut self) {
        self.client.wire_mut().announce_sleep();
    }

    fn has_work(&mut self) -> bool {
        self.client.wire_mut().has_frames()
    }

    fn retract_sleep(&mut self) {
        self.client.wire_mut().retract_sleep();
    }

    fn deadline(&self) -> Option<Time> {
        self.client.deadline().into_iter().chain(self.until).min()
    }

    fn is_stopped(&self) -> bool {
        self.late || self.stop.is_asked() || self.is_decided()
    }
}

/// How long a server may take to flush volumes and to confirm that they were
/// given back.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// Gives volumes back and ends the sessions. Without this a front that comes
/// again would still have them, and nobody else could.
pub(super) fn give_back<W: Wire>(
    turns: &Loop,
    client: &mut Client<W>,
    volumes: &[VolumeHandle],
) -> anyhow::Result<()> {
    volumes.iter().for_each(|&volume| client.detach(volume));
    let now = turns.now();
    let mut giving = GivingBack { client, volumes, now, until: now + GIVE_BACK };
    turns.run(&mut giving).context("the front cannot wait for its servers")?;
    if !giving.is_done() {
        tracing::warn!(
            "a server did not confirm that its volumes were given back: they may stay attached to \
             this front"
        );
    }
    client.close();
    Ok(())
}

/// A client that gives its volumes back.
struct GivingBack<'a, W: Wire> {
    client: &'a mut Client<W>,
    volumes: &'a [VolumeHandle],
    now: Time,
    until: Time,
}

impl<W: Wire> GivingBack<'_, W> {
    fn is_done(&self) -> bool {
        self.volumes.iter().all(|&volume| self.client.state(volume) == VolumeState::Detached)
    }
}

impl<W: Wire> Station for GivingBack<'_, W> {
    fn turn(&mut self, now: Time) -> bool {
        self.now = now;
        self.client.turn(now, &mut NoGuest)
    }

    fn announce_sleep(&mut self) {
        self.client.wire_mut().announce_sleep();
    }

    fn has_work(&mut self) -> bool {
        self.client.wire_mut().has_frames()
    }

    fn retract_sleep(&mut self) {
        self.client.wire_mut().retract_sleep();
    }

    fn deadline(&self) -> Option<Time> {
        Some(self.client.deadline().map_or(self.until, |deadline| deadline.min(self.until)))
    }

    fn is_stopped(&self) -> bool {
        self.now >= self.until || self.is_done()
    }
}

/// The guest of a client that serves none yet, or none any more.
pub(crate) struct NoGuest;

impl Guest for NoGuest {
    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, _: Token, _: Result<(), BlockError>) {}
}
