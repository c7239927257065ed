//! The way of one peer that lies: what becomes of its frames.

use block_core::crc32c;
use fuzz::Script;
use link::frame::{HEADER_BYTES, MAX_PAYLOAD};
use link::wire::memory::{Datagram, Network};

/// How many of its old frames a peer can say again.
const OLD_FRAMES: usize = 32;

/// Where the fields of a header are, and their bytes.
const FIELDS: [(usize, usize); 12] = [
    (2, 1),
    (3, 1),
    (4, 4),
    (8, 8),
    (16, 8),
    (24, 2),
    (26, 2),
    (28, 4),
    (32, 4),
    (36, 2),
    (38, 1),
    (40, 8),
];

/// A peer's old frames.
#[derive(Default)]
pub(crate) struct Liar {
    old: Vec<Datagram>,
}

impl Liar {
    /// Sends what becomes of a frame. A decision of zero lets it pass.
    pub(crate) fn send(&mut self, network: &Network, frame: Datagram, script: &mut Script<'_>) {
        if self.old.len() < OLD_FRAMES {
            self.old.push(frame.clone());
        } else {
            let place = script.below(OLD_FRAMES);
            self.old[place] = frame.clone();
        }
        match script.byte() {
            0..80 => network.deliver(frame),
            80..96 => {}
            96..112 => {
                network.deliver(frame.clone());
                network.deliver(frame);
            }
            112..120 => {
                let mut noise = frame;
                let at = script.below(noise.bytes.len());
                noise.bytes[at] ^= script.byte();
                network.deliver(noise);
            }
            120..136 => {
                let which = script.below(self.old.len());
                let old = self.old[which].clone();
                network.deliver(lie(old, script));
                network.deliver(frame);
            }
            136..144 => {
                // Nothing but noise that looks like a frame.
                let mut made_up = frame;
                let count = script.below(MAX_PAYLOAD);
                made_up.bytes.truncate(HEADER_BYTES);
                let body = script.bytes(count).to_vec();
                made_up.bytes.extend(body);
                network.deliver(lie(made_up, script));
            }
            _ => network.deliver(lie(frame, script)),
        }
    }
}

/// A frame with other fields, another end or another payload, and the checksum
/// that belongs to it.
fn lie(mut frame: Datagram, script: &mut Script<'_>) -> Datagram {
    for _ in 0..=script.below(3) {
        match script.below(8) {
            0 => {
                let len = HEADER_BYTES + script.below(MAX_PAYLOAD + 1);
                frame.bytes.resize(len, 0xee);
            }
            1 if frame.bytes.len() > HEADER_BYTES => {
                let at = HEADER_BYTES + script.below(frame.bytes.len() - HEADER_BYTES);
                let number = script.number().to_le_bytes();
                frame.bytes[at..].iter_mut().zip(number).for_each(|(to, from)| *to = from);
            }
            _ => {
                let (at, bytes) = FIELDS[script.below(FIELDS.len())];
                let old = &mut frame.bytes[at..at + bytes];
                let number = script.number();
                // Near what it was, or another one.
                let number = if script.below(2) == 0 {
                    let mut wide = [0; 8];
                    wide[..bytes].copy_from_slice(old);
                    u64::from_le_bytes(wide).wrapping_add(number)
                } else {
                    number
                };
                old.copy_from_slice(&number.to_le_bytes()[..bytes]);
            }
        }
    }
    seal(&mut frame.bytes);
    frame
}

fn seal(frame: &mut [u8]) {
    frame[39] = frame[39] & 0b100 | 0b10;
    frame[48..HEADER_BYTES].fill(0);
    let crc = crc32c(&[&frame[..48], &frame[HEADER_BYTES..]]);
    frame[48..52].copy_from_slice(&crc.to_le_bytes());
}
