//! The front's thread: rings on one side, the link on the other.

use std::time::Duration;

use block_core::Time;
use block_front::Front;
use link::wire::Wire;
use link::{Client, Path, VolumeHandle, VolumeState};
use turn::Station;

use super::FrontWire;
use super::config::Disk;
use super::known::Known;
use crate::stop::Stop;

/// How long a stopping front waits for what guests have under way.
const DRAIN: Duration = Duration::from_secs(10);

/// All disks of the front and the link that serves them.
pub(super) struct FrontStation<'a> {
    front: Front,
    client: Client<FrontWire>,
    known: Known,
    disks: &'a [Disk],
    stop: &'a Stop,
    /// When the front stops waiting, once it has been told to stop.
    until: Option<Time>,
    now: Time,
}

impl<'a> FrontStation<'a> {
    pub(super) fn new(
        front: Front,
        client: Client<FrontWire>,
        known: Known,
        disks: &'a [Disk],
        stop: &'a Stop,
    ) -> Self {
        Self { front, client, known, disks, stop, until: None, now: Time::ZERO }
    }

    /// Tells the guests what their disks have become.
    fn tell_sizes(&mut self) {
        let volumes: Vec<VolumeHandle> = self.front.volumes().collect();
        for (disk, volume) in volumes.into_iter().enumerate() {
            if let VolumeState::Attached(attached) = self.client.state(volume) {
                self.front.resized(disk, attached.sectors);
            }
        }
    }

    /// A guest has begun anew on a disk that another guest could not go on
    /// with: from now on the front answers for its volume.
    fn begin(&mut self, disk: usize) {
        let Some(volume) = self.front.volumes().nth(disk) else { return };
        self.client.settle(volume);
        if let VolumeState::Attached(attached) = self.client.state(volume)
            && let Err(error) = self.known.learn(&self.disks[disk], &attached)
        {
            // The next start refuses a guest that could go on: nothing worse.
            tracing::error!("{error:#}");
        }
    }

    /// The link, when the disks are gone.
    pub(super) fn into_client(self) -> Client<FrontWire> {
        self.client
    }
}

impl Station for FrontStation<'_> {
    fn turn(&mut self, now: Time) -> bool {
        self.now = now;
        if self.stop.is_asked() && self.until.is_none() {
            tracing::info!("told to stop: finishing what is under way");
            self.front.quiesce();
            self.until = Some(now + DRAIN);
        }
        let moved = self.front.turn(now, &mut self.client);
        while let Some(disk) = self.front.take_begun() {
            self.begin(disk);
        }
        if self.client.take_resized() {
            self.tell_sizes();
        }
        moved
    }

    fn announce_sleep(&mut self) {
        self.front.announce_sleep();
        self.client.wire_mut().announce_sleep();
    }

    fn has_work(&mut self) -> bool {
        self.front.has_work() || self.client.wire_mut().has_frames()
    }

    fn retract_sleep(&mut self) {
        self.front.retract_sleep();
        self.client.wire_mut().retract_sleep();
    }

    fn deadline(&self) -> Option<Time> {
        let ours = self.front.deadline().into_iter().chain(self.until);
        ours.chain(self.client.deadline()).min()
    }

    fn is_stopped(&self) -> bool {
        self.until.is_some_and(|until| self.front.is_quiet() || self.now >= until)
    }
}
