//! What a server spends on frames that are nobody's.

use std::time::Duration;

use anyhow::Context;
use link::wire::memory::{Datagram, Port};

use crate::pair::Pair;

/// Frames that arrive in one turn, and turns.
const FRAMES: usize = 200;
const TURNS: usize = 200;

/// Someone else than the front.
const STRANGER: Port = Port(77);

/// A frame's place of its session, and of its tag.
const SESSION: usize = 4;
const TAG: usize = 48;

/// Times of one frame, the server's turn around it included.
pub(crate) fn print() -> anyhow::Result<()> {
    let mut pair = Pair::new()?;
    pair.connect(1, link::security::FRAMES_PER_KEY)?;
    let said = pair.overhear(false)?.pop().context("a read was sent")?;
    let mut bent = said.clone();
    bent.bytes[TAG] ^= 1;
    let mut nobodys = Datagram { from: STRANGER, ..bent.clone() };
    nobodys.bytes[SESSION] ^= 0x55;
    let noise = Datagram { from: STRANGER, bytes: vec![0x5a; said.bytes.len()], ..said.clone() };

    println!("a frame that is nobody's, with its part of the server's turn:");
    show("noise", span(&mut pair, &noise));
    show("of a session that there is not", span(&mut pair, &nobodys));
    show("of a live session, bent", span(&mut pair, &bent));
    show("of a live session, said again", span(&mut pair, &said));

    let mut pair = Pair::new()?;
    for hello in pair.overhear(true)? {
        let bytes = hello.bytes.len();
        let hello = Datagram { from: STRANGER, ..hello };
        // More than are served without a token.
        let _ = span(&mut pair, &hello);
        show(&format!("a hello of {bytes} bytes, while many ask"), span(&mut pair, &hello));
    }
    Ok(())
}

fn show(what: &str, span: Duration) {
    println!("    {what:42} {span:?}");
}

/// The median turn's share of each of its frames.
fn span(pair: &mut Pair, frame: &Datagram) -> Duration {
    let mut spans: Vec<Duration> =
        (0..TURNS).map(|_| pair.deliver(vec![frame.clone(); FRAMES])).collect();
    spans.sort();
    spans[TURNS / 2] / FRAMES as u32
}
