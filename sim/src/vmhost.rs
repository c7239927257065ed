//! A VMhost: guests, and the front that serves their disks.

use std::io;
use std::time::Duration;

use block_core::{BlockError, Time};
use link::wire::memory::{End, Port};
use link::{
    Access, Client, ClientSettings, FrontId, Part, Path, Refusal, Token, VolumeHandle, VolumeState,
};

use crate::dice::Dice;
use crate::fabric::Fabric;
use crate::guest::{Asked, Guest, Memory};
use crate::oracle::Wrong;
use crate::trust::Trust;

/// How long a guest thinks before it asks for more.
const THINKING: (Duration, Duration) = (Duration::from_micros(1), Duration::from_millis(2));

/// Most requests that one turn takes from the rings.
const TAKEN_A_TURN: usize = 4;

/// How far apart the ports of a VMhost's fronts are.
const PORTS_APART: u16 = 100;

/// How the ids of the VMhosts that guests move to follow each other.
const MOVED: u8 = 50;

/// A VMhost.
pub struct VmHost {
    /// Its guests.
    pub guests: Vec<Guest>,
    id: FrontId,
    port: Port,
    incarnation: u64,
    client: Option<Client<End>>,
    volumes: Vec<(VolumeHandle, Port)>,
    memory: Memory,
    ghost: Option<Ghost>,
    /// It is told to end, and is started anew so long after it has.
    stopping: Option<Duration>,
    trust: Trust,
    thinks_until: Time,
    resting: bool,
    dice: Dice,
}

/// A front that was thought dead, and what its guests had asked for then.
struct Ghost {
    client: Client<End>,
    port: Port,
    memory: Memory,
    /// When it goes on.
    wakes: Time,
    /// Whether it gives its volumes back first.
    leaves: bool,
}

/// What a turn of a front did.
#[derive(Debug, Default)]
pub struct Turned {
    /// Whether anything moved.
    pub moved: bool,
    /// What ended.
    pub ended: Vec<(Token, Asked, Result<(), BlockError>)>,
    /// It was told to end, and has; it is started anew so long after.
    pub left: Option<Duration>,
}

impl VmHost {
    /// A VMhost with these guests, and where the server of each volume is. No
    /// front runs yet.
    #[must_use]
    pub fn new(number: usize, guests: Vec<(Guest, Port)>, trust: Trust, dice: Dice) -> Self {
        let volumes = guests.iter().map(|(_, port)| (VolumeHandle(0), *port)).collect();
        Self {
            guests: guests.into_iter().map(|(guest, _)| guest).collect(),
            id: FrontId([number as u8 + 1; 16]),
            port: Port(number as u16 + 1),
            incarnation: 0,
            client: None,
            volumes,
            memory: Memory::default(),
            ghost: None,
            stopping: None,
            trust,
            thinks_until: Time::ZERO,
            resting: false,
            dice,
        }
    }

    /// Where its front is.
    #[must_use]
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Whether its front runs.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.client.is_some()
    }

    /// Starts the front, which attaches its volumes.
    ///
    /// # Errors
    /// The kernel's, when it has no memory to give.
    pub fn start(&mut self, now: Time, fabric: &Fabric) -> io::Result<()> {
        self.incarnation += 1;
        let settings = ClientSettings {
            front: self.id,
            incarnation: self.incarnation,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: self.dice.number(),
            kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
        };
        let security = self.trust.security(self.id, &mut self.dice);
        let mut client = Client::new(fabric.end(self.port), settings);
        for (guest, (handle, server)) in self.guests.iter().zip(&mut self.volumes) {
            *handle = client.attach(
                now,
                Trust::contact(&security, *server),
                guest.volume.clone(),
                Access::Write,
            )?;
        }
        self.client = Some(client);
        Ok(())
    }

    /// The front's process is killed. Its guests live: what they wait for is
    /// in their rings, and the next front takes it from there.
    pub fn kill_front(&mut self) {
        (self.client, self.stopping) = (None, None);
        self.memory.poison();
        self.guests.iter_mut().for_each(Guest::is_left);
        for token in self.memory.under_way() {
            let disk = self.memory.asked(token).disk;
            self.guests[disk].ring.push_back(token);
        }
    }

    /// The front is told to end: it takes nothing from the rings any more, and
    /// when what it has taken has ended it gives its volumes back. Its guests
    /// live. It is started anew at that time after.
    pub fn stop(&mut self, pause: Duration) {
        self.stopping = Some(pause);
    }

    /// The whole VMhost fails. Its guests start anew later.
    pub fn fail(&mut self) {
        (self.client, self.stopping) = (None, None);
        self.leave_guests();
    }

    /// The VMhost is thought dead, and its guests start anew with a later start
    /// of the front, somewhere else. The old one goes on at `wakes`: it has its
    /// sessions, its unanswered requests, and all that it had kept.
    pub fn haunt(&mut self, wakes: Time, may_leave: bool) {
        let Some(client) = self.client.take() else { return };
        self.stopping = None;
        let memory = self.leave_guests();
        let leaves = self.dice.happens(300) && may_leave;
        self.ghost = Some(Ghost { client, port: self.port, memory, wakes, leaves });
        self.port = Port(self.port.0 + PORTS_APART);
    }

    /// What is started next is the front of another VMhost.
    pub fn be_another(&mut self) {
        self.id.0[15] = self.id.0[15].wrapping_add(MOVED);
        self.incarnation = 0;
    }

    /// The guests are gone, with all they had asked for.
    fn leave_guests(&mut self) -> Memory {
        self.guests.iter_mut().for_each(Guest::is_left);
        let anew = self.memory.anew();
        let left = std::mem::replace(&mut self.memory, anew);
        left.all().for_each(|(token, asked)| self.guests[asked.disk].lose(token, asked));
        left
    }

    fn turn_ghost(&mut self, now: Time) -> bool {
        let Some(ghost) = self.ghost.as_mut().filter(|ghost| ghost.wakes <= now) else {
            return false;
        };
        if std::mem::take(&mut ghost.leaves) {
            self.volumes.iter().for_each(|(volume, _)| ghost.client.detach(*volume));
        }
        let moved = ghost.client.turn(now, &mut ghost.memory);
        // Nobody is there any more who would hear of it.
        moved | !ghost.memory.take_ended().is_empty()
    }

    /// Whether a frame to that port comes here.
    #[must_use]
    pub fn hears(&self, port: Port) -> bool {
        self.port == port || self.ghost.as_ref().is_some_and(|ghost| ghost.port == port)
    }

    /// Guests ask for nothing new.
    pub fn rest(&mut self) {
        self.resting = true;
    }

    /// Whether all guests have what they asked for, and want no more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.guests.iter().all(Guest::is_done)
    }

    /// Each guest asks for something out of turn.
    pub fn each_guest(&mut self, mut asks: impl FnMut(&mut Guest, &mut Memory, &mut Dice)) {
        for guest in &mut self.guests {
            asks(guest, &mut self.memory, &mut self.dice);
        }
    }

    /// One turn of the front.
    ///
    /// # Errors
    /// When a guest sees what it must not.
    pub fn turn(&mut self, now: Time) -> Result<Turned, Wrong> {
        let haunted = self.turn_ghost(now);
        if let Some(pause) = self.leave() {
            return Ok(Turned { moved: true, left: Some(pause), ..Turned::default() });
        }
        let nothing = Turned { moved: haunted, ..Turned::default() };
        let Some(client) = &mut self.client else { return Ok(nothing) };
        if !self.resting && now >= self.thinks_until {
            for guest in self.guests.iter_mut().filter(|guest| guest.wants_more()) {
                guest.ask_something(&mut self.memory, &mut self.dice);
            }
            let thinking = self.dice.span(THINKING.0..=THINKING.1);
            self.thinks_until = now + thinking;
        }
        let mut failed = Vec::new();
        let mut moved = haunted;
        let takes = if self.stopping.is_some() { 0 } else { TAKEN_A_TURN };
        for (guest, (volume, _)) in self.guests.iter_mut().zip(&self.volumes) {
            for _ in 0..takes {
                let Some(&token) = guest.ring.front() else { break };
                let asked = self.memory.asked(token);
                let part = Part { token, volume: *volume, op: asked.op, range: asked.range };
                match client.submit(now, part, &mut self.memory) {
                    Ok(()) => {}
                    Err(Refusal::Busy) => break,
                    Err(Refusal::Failed(error)) => failed.push((token, error)),
                }
                guest.ring.pop_front();
                moved = true;
            }
        }
        for (token, error) in failed {
            link::Guest::complete(&mut self.memory, token, Err(error));
        }
        moved |= client.turn(now, &mut self.memory);
        for (guest, (volume, _)) in self.guests.iter_mut().zip(&self.volumes) {
            if let VolumeState::Attached(attached) = client.state(*volume) {
                guest.is_served(&attached);
                // The guest accepts what it was told.
                client.settle(*volume);
            }
        }
        let ended = self.memory.take_ended();
        for (token, asked, outcome) in &ended {
            self.guests[asked.disk].end(*token, asked, *outcome)?;
        }
        Ok(Turned { moved: moved || !ended.is_empty(), ended, left: None })
    }

    /// Goes on with ending, if it was told to end; when it has, in how long it
    /// is started anew.
    fn leave(&mut self) -> Option<Duration> {
        self.stopping?;
        let waiting: usize = self.guests.iter().map(|guest| guest.ring.len()).sum();
        if self.memory.under_way().len() > waiting {
            return None;
        }
        if !self.is_detached() {
            self.detach();
            return None;
        }
        if let Some(mut client) = self.client.take() {
            client.close();
        }
        self.guests.iter_mut().for_each(Guest::is_given_back);
        self.stopping.take()
    }

    /// When the front must be turned though nothing comes.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let ghost = self.ghost.as_ref();
        let ghost = ghost.and_then(|ghost| Some(ghost.client.deadline()?.max(ghost.wakes)));
        let Some(client) = &self.client else { return ghost };
        let thinking = !self.resting && self.guests.iter().any(Guest::wants_more);
        let thinking = thinking.then_some(self.thinks_until);
        [client.deadline(), thinking, ghost].into_iter().flatten().min()
    }

    /// Gives all volumes back.
    pub fn detach(&mut self) {
        if let Some(client) = &mut self.client {
            self.volumes.iter().for_each(|(volume, _)| client.detach(*volume));
        }
    }

    /// Whether all volumes were given back.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        let Some(client) = &self.client else { return false };
        self.volumes.iter().all(|(volume, _)| client.state(*volume) == VolumeState::Detached)
    }

    /// Whether all volumes are served, and shall be.
    #[must_use]
    pub fn has_all(&self) -> bool {
        self.stopping.is_none()
            && self.client.as_ref().is_some_and(|client| {
                let mut states = self.volumes.iter().map(|(volume, _)| client.state(*volume));
                states.all(|state| matches!(state, VolumeState::Attached(_)))
            })
    }

    /// What its front and guests wait for, for people.
    #[must_use]
    pub fn waits_for(&self) -> String {
        let Some(client) = &self.client else { return "its front to start".to_owned() };
        let disks = self.guests.iter().zip(&self.volumes).map(|(guest, (volume, _))| {
            let waiting: Vec<String> = self
                .memory
                .under_way()
                .into_iter()
                .filter(|token| self.memory.asked(*token).disk == usize::from(volume.0))
                .map(|token| format!("{} {:?}", token.0, self.memory.asked(token).op))
                .collect();
            let state = client.state(*volume);
            format!(
                "{} ({state:?}, {} in the ring): {}",
                guest.volume,
                guest.ring.len(),
                waiting.join(", ")
            )
        });
        disks.collect::<Vec<_>>().join("; ")
    }
}
