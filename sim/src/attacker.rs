//! Somebody in the middle of the network, who hears every frame and sends what
//! they like under any address. They have no key.

use block_core::crc32c;
use link::frame::{HEADER_BYTES, Header, IN_THE_CLEAR, Kind};
use link::wire::memory::{Datagram, Port};

use crate::dice::Dice;

/// How many old frames they remember.
const OLD_FRAMES: usize = 64;

/// Hellos that they say again at a time, from so many addresses.
const FLOOD: u16 = 6;

/// The first of these addresses; nobody is there.
const NOWHERE: u16 = 5000;

/// The attacker.
#[derive(Debug)]
pub struct Attacker {
    old: Vec<Datagram>,
    dice: Dice,
}

impl Attacker {
    /// One that has heard nothing.
    #[must_use]
    pub fn new(dice: Dice) -> Self {
        Self { old: Vec::with_capacity(OLD_FRAMES), dice }
    }

    /// Hears a frame.
    pub fn hear(&mut self, frame: &Datagram) {
        if self.old.len() < OLD_FRAMES {
            self.old.push(frame.clone());
        } else if self.dice.happens(100) || is_hello(frame) {
            let at = self.dice.below(OLD_FRAMES);
            self.old[at] = frame.clone();
        }
    }

    /// What they send when a frame passes, which they have heard.
    pub fn act(&mut self, frame: &Datagram) -> Vec<Datagram> {
        let old = self.old[self.dice.below(self.old.len())].clone();
        let mut made = if self.dice.happens(500) { frame.clone() } else { old.clone() };
        match self.dice.below(9) {
            // Replayed.
            0 => vec![old],
            // Reflected.
            1 => vec![Datagram { from: made.to, to: made.from, ..made }],
            // Spliced: an old frame, as one of the session of the other.
            2 => {
                made.bytes[4..8].copy_from_slice(&frame.bytes[4..8]);
                vec![Datagram { from: frame.from, to: frame.to, ..made }]
            }
            // Under a counter, and perhaps of a phase, that is still to come.
            3 => {
                let at = 8 + self.dice.below(3);
                made.bytes[at] = made.bytes[at].wrapping_add(1 + self.dice.below(255) as u8);
                made.bytes[39] ^= self.dice.below(2) as u8;
                vec![made]
            }
            4 => {
                made.bytes.truncate(self.dice.below(made.bytes.len()));
                vec![made]
            }
            5 => {
                for _ in 0..=self.dice.below(4) {
                    let at = self.dice.below(made.bytes.len());
                    made.bytes[at] ^= 1 << self.dice.below(8);
                }
                vec![made]
            }
            // Bent, and the checksum put right where there is one.
            6 => {
                let at = 3 + self.dice.below(made.bytes.len().min(240) - 3);
                made.bytes[at] ^= 1 << self.dice.below(8);
                put_right(&mut made.bytes);
                vec![made]
            }
            7 => vec![self.say_in_the_open(frame)],
            _ => self.flood(),
        }
    }

    /// What ends say to each other without a seal, about the frame's session.
    fn say_in_the_open(&mut self, frame: &Datagram) -> Datagram {
        let kinds = [Kind::UnknownSession, Kind::Bye, Kind::Refuse, Kind::Opened, Kind::Open];
        let more = [Kind::Request, Kind::Answer, Kind::Missing, Kind::Retry, Kind::Probe];
        let kind = self.dice.pick(&[kinds, more].concat());
        let session = u32::from_le_bytes([0, 1, 2, 3].map(|at| frame.bytes[4 + at]));
        let header = Header { session, counter: 1 << 40, number: 3, op: 2, ..Header::default() };
        let payload = [self.dice.below(8) as u8; 24];
        let bytes = [&header.encode(kind, &payload)[..], &payload].concat();
        let (from, to) = (frame.from, frame.to);
        if self.dice.happens(500) {
            Datagram { from, to, bytes }
        } else {
            Datagram { from: to, to: from, bytes }
        }
    }

    fn flood(&mut self) -> Vec<Datagram> {
        let Some(hello) = self.old.iter().find(|frame| is_hello(frame)) else { return vec![] };
        let from = |number| Port(NOWHERE + number);
        (0..FLOOD).map(|number| Datagram { from: from(number), ..hello.clone() }).collect()
    }
}

fn is_hello(frame: &Datagram) -> bool {
    frame.bytes.len() > HEADER_BYTES && frame.bytes[3] == Kind::Hello as u8
}

fn put_right(frame: &mut [u8]) {
    if frame.len() >= HEADER_BYTES && frame[39] & IN_THE_CLEAR != 0 {
        frame[48..HEADER_BYTES].fill(0);
        let crc = crc32c(&[&frame[..48], &frame[HEADER_BYTES..]]);
        frame[48..52].copy_from_slice(&crc.to_le_bytes());
    }
}
