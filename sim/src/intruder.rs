//! A front that wants a volume which another one writes to.

use std::io;

use block_core::{BlockError, Time};
use link::wire::memory::{End, Port};
use link::{
    Access, Client, ClientSettings, FrontId, Guest, Path, Token, VolumeHandle, VolumeName,
    VolumeState,
};

use crate::dice::Dice;
use crate::fabric::Fabric;
use crate::iohost::IoHost;
use crate::oracle::Wrong;
use crate::trust::Trust;

/// Where it is.
pub const PORT: Port = Port(500);

/// The front.
#[derive(Debug)]
pub struct Intruder {
    client: Client<End>,
    volume: VolumeHandle,
}

/// It asks for nothing.
struct Nobody;

impl Guest for Nobody {
    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, _: Token, _: Result<(), BlockError>) {}
}

impl Intruder {
    /// Asks a worker for the volume.
    ///
    /// # Errors
    /// The kernel's, when it has no memory to give.
    pub fn start(
        now: Time,
        fabric: &Fabric,
        volume: VolumeName,
        worker: usize,
        trust: Trust,
    ) -> io::Result<Self> {
        let settings = ClientSettings {
            front: FrontId([0xee; 16]),
            incarnation: 1,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: 1,
            kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
        };
        let security = trust.security(settings.front, &mut Dice::new(1));
        let contact = Trust::contact(&security, IoHost::port(worker));
        let mut client = Client::new(fabric.end(PORT), settings);
        let volume = client.attach(now, contact, volume, Access::Write)?;
        Ok(Self { client, volume })
    }

    /// One turn; whether anything moved.
    ///
    /// # Errors
    /// When it gets the volume.
    pub fn turn(&mut self, now: Time) -> Result<bool, Wrong> {
        let moved = self.client.turn(now, &mut Nobody);
        match self.client.state(self.volume) {
            VolumeState::Attached(_) => {
                Err(Wrong("two fronts have the same volume to write".to_owned()))
            }
            _ => Ok(moved),
        }
    }

    /// Whether it has the server's word.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.client.state(self.volume), VolumeState::Refused(_))
    }

    /// When it must be turned though nothing comes.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.client.deadline()
    }
}
