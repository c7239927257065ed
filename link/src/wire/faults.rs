//! A wire in hard weather: of the frames that are sent some are lost, doubled
//! or held back for a moment, by chance, from a seed. For tests with real
//! sockets; without faults it is the wire below.

use std::io;
use std::os::fd::BorrowedFd;
use std::str::FromStr;

use thiserror::Error;

use crate::frame::HEADER_BYTES;
use crate::wire::Wire;

/// A frame is held back for at most so many turns. Others overtake it.
const LONGEST_HOLD: u32 = 3;

/// What becomes of frames that are sent: chances in a million, which exclude
/// each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    loss: u32,
    reorder: u32,
    duplicate: u32,
    seed: u64,
}

/// Why a text does not name faults.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FaultsError {
    /// Not one of the things that can be said.
    #[error("{0:?} is none of loss=P%, reorder=P%, duplicate=P% and seed=N")]
    Word(String),
    /// More frames than there are.
    #[error("the chances add up to more than 100%")]
    TooMany,
}

impl FromStr for Faults {
    type Err = FaultsError;

    /// `loss=1%,reorder=0.5%,duplicate=1%,seed=7`, each at most once.
    fn from_str(text: &str) -> Result<Self, FaultsError> {
        let mut faults = Self::default();
        for word in text.split(',') {
            let wrong = || FaultsError::Word(word.to_owned());
            let (name, value) = word.split_once('=').ok_or_else(wrong)?;
            let chance = match name {
                "loss" => &mut faults.loss,
                "reorder" => &mut faults.reorder,
                "duplicate" => &mut faults.duplicate,
                "seed" => {
                    faults.seed = value.parse().map_err(|_| wrong())?;
                    continue;
                }
                _ => return Err(wrong()),
            };
            *chance = per_million(value).ok_or_else(wrong)?;
        }
        match faults.loss + faults.reorder + faults.duplicate {
            0..=MILLION => Ok(faults),
            _ => Err(FaultsError::TooMany),
        }
    }
}

const MILLION: u32 = 1_000_000;

fn per_million(text: &str) -> Option<u32> {
    let percent: f64 = text.strip_suffix('%')?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some((percent * 10_000.0).round() as u32)
}

/// A wire, and the weather on the way from it.
#[derive(Debug)]
pub struct Faulty<W: Wire> {
    wire: W,
    weather: Option<Weather<W::Peer>>,
}

#[derive(Debug)]
struct Weather<P> {
    faults: Faults,
    lots: Lots,
    held: Vec<Held<P>>,
    /// Frames were let go and have not left: they go with the next burst, as
    /// they would through a switch, which makes no packet train of one's own
    /// for what it delayed.
    loose: bool,
}

/// Numbers by chance (splitmix64). What is measured under loss is the loss, so
/// drawing a lot must cost next to nothing beside a frame.
#[derive(Debug)]
struct Lots(u64);

impl Lots {
    fn below(&mut self, count: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((word >> 32) * u64::from(count)) >> 32) as u32
    }
}

/// A frame that others overtake.
#[derive(Debug)]
struct Held<P> {
    turns: u32,
    to: P,
    header: [u8; HEADER_BYTES],
    payload: Vec<u8>,
}

impl<W: Wire> Faulty<W> {
    /// The wire with these faults; without any it costs a branch.
    #[must_use]
    pub fn new(wire: W, faults: Option<Faults>) -> Self {
        let weather = faults.map(|faults| Weather {
            lots: Lots(faults.seed),
            faults,
            held: Vec::new(),
            loose: false,
        });
        Self { wire, weather }
    }

    /// The wire below.
    #[must_use]
    pub fn inner(&self) -> &W {
        &self.wire
    }

    /// Lets the frames go whose time has come, with the next burst or, when
    /// there is none before this is asked again, without it.
    fn release(&mut self) {
        let Some(weather) = &mut self.weather else { return };
        if std::mem::take(&mut weather.loose) {
            self.wire.flush();
        }
        let Weather { held, loose, .. } = weather;
        held.retain_mut(|held| {
            held.turns -= 1;
            if held.turns == 0 {
                self.wire.send(&held.to, &held.header, &held.payload);
                *loose = true;
            }
            held.turns > 0
        });
    }
}

impl<W: Wire> Wire for Faulty<W> {
    type Peer = W::Peer;

    fn receive(&mut self, take: &mut dyn FnMut(&W::Peer, &mut [u8])) -> io::Result<usize> {
        self.release();
        self.wire.receive(take)
    }

    fn send(&mut self, to: &W::Peer, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        let Some(weather) = &mut self.weather else {
            return self.wire.send(to, header, payload);
        };
        let Faults { loss, reorder, duplicate, .. } = weather.faults;
        let lot = weather.lots.below(MILLION);
        if lot < loss {
            return;
        }
        if lot < loss + reorder {
            let turns = weather.lots.below(LONGEST_HOLD) + 1;
            let held = Held { turns, to: *to, header: *header, payload: payload.to_vec() };
            return weather.held.push(held);
        }
        self.wire.send(to, header, payload);
        if lot < loss + reorder + duplicate {
            self.wire.send(to, header, payload);
        }
    }

    fn flush(&mut self) {
        if let Some(weather) = &mut self.weather {
            weather.loose = false;
        }
        self.wire.flush();
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.wire.descriptor()
    }

    fn window(&self) -> u32 {
        self.wire.window()
    }

    fn announce_sleep(&mut self) {
        self.wire.announce_sleep();
    }

    fn has_frames(&mut self) -> bool {
        self.wire.has_frames()
    }

    fn retract_sleep(&mut self) {
        self.wire.retract_sleep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::memory::{Network, Port};

    #[test]
    fn faults_are_what_is_said() {
        let said: Faults = "loss=1%,reorder=0.5%,duplicate=2%,seed=7".parse().expect("faults");
        assert_eq!(said, Faults { loss: 10_000, reorder: 5_000, duplicate: 20_000, seed: 7 });
        for wrong in ["", "loss", "loss=1", "loss=-1%", "lost=1%", "seed=x", "loss=101%"] {
            assert!(wrong.parse::<Faults>().is_err(), "{wrong}");
        }
        assert_eq!("loss=60%,reorder=60%".parse::<Faults>(), Err(FaultsError::TooMany));
    }

    /// A measurement under loss that loses nothing looks very good.
    #[test]
    fn so_many_frames_are_lost_doubled_and_overtaken() {
        let network = Network::new();
        let faults = "loss=10%,reorder=5%,duplicate=20%,seed=3".parse().expect("faults");
        let mut wire = Faulty::new(network.end(Port(1)), Some(faults));
        for number in 0..10_000_u16 {
            let mut header = [0; HEADER_BYTES];
            header[..2].copy_from_slice(&number.to_be_bytes());
            wire.send(&Port(2), &header, &[]);
            wire.receive(&mut |_, _| {}).expect("a memory wire");
        }
        wire.receive(&mut |_, _| {}).expect("a memory wire");
        wire.receive(&mut |_, _| {}).expect("a memory wire");
        let sent: Vec<u16> = std::iter::from_fn(|| network.take())
            .map(|frame| u16::from_be_bytes([frame.bytes[0], frame.bytes[1]]))
            .collect();
        let all: std::collections::BTreeSet<u16> = sent.iter().copied().collect();
        let (lost, doubled) = (10_000 - all.len(), sent.len() - all.len());
        let overtaken = sent.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert!((900..1100).contains(&lost), "{lost} lost");
        assert!((1800..2200).contains(&doubled), "{doubled} doubled");
        assert!((250..500).contains(&overtaken), "{overtaken} overtaken");
    }
}
