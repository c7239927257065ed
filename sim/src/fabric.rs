//! The network between fronts and workers: it loses, doubles, reorders, delays,
//! damages and replays frames, cuts ends off, and has an MTU.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use block_core::Time;
use link::frame::{HEADER_BYTES, IN_THE_CLEAR};
use link::wire::memory::{Datagram, End, Network, Port};

use crate::attacker::Attacker;
use crate::dice::Dice;
use crate::oracle::Wrong;

/// What the network does to frames, as chances in a thousand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameFaults {
    /// They vanish.
    pub loss: u32,
    /// They come twice.
    pub double: u32,
    /// A bit of them is another one.
    pub damage: u32,
    /// They come late, and so out of order.
    pub late: u32,
    /// A frame of long ago comes again.
    pub replay: u32,
    /// Somebody in the middle does something.
    pub attack: u32,
}

/// How many old frames the network can bring again.
const OLD_FRAMES: usize = 64;

/// How long a frame takes.
const TRIP: Duration = Duration::from_micros(10);

/// All frames on their way.
#[derive(Debug)]
pub struct Fabric {
    network: Network,
    /// By arrival; the number keeps those that arrive together in order.
    on_the_way: BTreeMap<(Time, u64), Datagram>,
    next_number: u64,
    old: Vec<Datagram>,
    cut_off: Vec<Port>,
    /// There from when they first do something: a world without them is as it
    /// would be if there were none.
    attacker: Option<Attacker>,
    /// By whom, in which session and under which counter frames were sealed.
    sealed: HashSet<(Port, u32, u64)>,
    /// One that was sealed under the counter of another.
    reused: Option<(Port, u32, u64)>,
    /// What goes wrong now.
    pub faults: FrameFaults,
    /// Larger frames do not pass.
    pub mtu: usize,
    dice: Dice,
}

impl Fabric {
    /// A network without ends that carries frames of up to `mtu` bytes.
    #[must_use]
    pub fn new(mtu: usize, dice: Dice) -> Self {
        Self {
            network: Network::new(),
            on_the_way: BTreeMap::new(),
            next_number: 0,
            old: Vec::with_capacity(OLD_FRAMES),
            cut_off: Vec::new(),
            attacker: None,
            sealed: HashSet::new(),
            reused: None,
            faults: FrameFaults::default(),
            mtu,
            dice,
        }
    }

    /// An end with that number. Nobody hears an older one any more.
    #[must_use]
    pub fn end(&self, port: Port) -> End {
        self.network.end(port)
    }

    /// Nothing comes to that end or leaves it until it is joined.
    pub fn cut_off(&mut self, port: Port) {
        self.cut_off.push(port);
    }

    /// Frames come to that end and leave it again.
    pub fn join(&mut self, port: Port) {
        self.cut_off.retain(|other| *other != port);
    }

    /// Takes what was sent and decides what becomes of it.
    pub fn collect(&mut self, now: Time) {
        while let Some(datagram) = self.network.take() {
            self.note_seal(&datagram);
            if self.faults.attack > 0 {
                self.attack(now, &datagram);
            }
            if self.dice.happens(self.faults.replay) && !self.old.is_empty() {
                let old = self.old[self.dice.below(self.old.len())].clone();
                self.send(now, old, false);
            }
            if datagram.bytes.len() > self.mtu || self.dice.happens(self.faults.loss) {
                continue;
            }
            self.remember(&datagram);
            if self.dice.happens(self.faults.double) {
                // A copy that comes late finds that the first one was served.
                let late = self.dice.happens(500);
                self.send(now, datagram.clone(), late);
            }
            self.send(now, datagram, false);
        }
    }

    fn attack(&mut self, now: Time, passing: &Datagram) {
        let dice = &mut self.dice;
        let attacker = self.attacker.get_or_insert_with(|| Attacker::new(dice.split()));
        attacker.hear(passing);
        if self.dice.happens(self.faults.attack) {
            for made in attacker.act(passing) {
                self.send(now, made, false);
            }
        }
    }

    /// No end may seal two frames under one counter: whoever heard both could
    /// read and make others.
    fn note_seal(&mut self, datagram: &Datagram) {
        let Some(head) = datagram.bytes.first_chunk::<HEADER_BYTES>() else { return };
        if head[39] & IN_THE_CLEAR == 0 {
            let session = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
            let counter = std::array::from_fn(|at| head[8 + at]);
            let seal = (datagram.from, session, u64::from_le_bytes(counter));
            if !self.sealed.insert(seal) {
                self.reused = Some(seal);
            }
        }
    }

    /// Says so if a counter was used twice; else how many frames were sealed.
    ///
    /// # Errors
    /// Whose counter it was.
    pub fn each_seal_is_new(&self) -> Result<usize, Wrong> {
        match self.reused {
            None => Ok(self.sealed.len()),
            Some((port, session, counter)) => Err(Wrong(format!(
                "{port:?} has sealed two frames of session {session} under counter {counter}"
            ))),
        }
    }

    fn send(&mut self, now: Time, mut datagram: Datagram, late: bool) {
        if self.dice.happens(self.faults.damage) && !datagram.bytes.is_empty() {
            let at = self.dice.below(datagram.bytes.len());
            datagram.bytes[at] ^= 1 << self.dice.below(8);
        }
        let mut trip = TRIP;
        if late || self.dice.happens(self.faults.late) {
            trip += self.dice.span(Duration::from_micros(5)..=Duration::from_millis(30));
        }
        self.next_number += 1;
        self.on_the_way.insert((now + trip, self.next_number), datagram);
    }

    fn remember(&mut self, datagram: &Datagram) {
        if self.faults.replay == 0 {
            return;
        }
        if self.old.len() < OLD_FRAMES {
            self.old.push(datagram.clone());
        } else if self.dice.happens(100) {
            let at = self.dice.below(OLD_FRAMES);
            self.old[at] = datagram.clone();
        }
    }

    /// When the next frame arrives.
    #[must_use]
    pub fn next_arrival(&self) -> Option<Time> {
        self.on_the_way.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets everything arrive that is due; says to whom.
    pub fn deliver(&mut self, now: Time, mut arrived: impl FnMut(Port)) {
        while let Some(entry) = self.on_the_way.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let datagram = entry.remove();
            if self.cut_off.contains(&datagram.from) || self.cut_off.contains(&datagram.to) {
                continue;
            }
            arrived(datagram.to);
            self.network.deliver(datagram);
        }
    }
}
