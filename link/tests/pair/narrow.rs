//! The path becomes narrower while a session lives: frames that passed vanish.

use std::time::Duration;

use block_core::Op;
use link::frame::{Frame, HEADER_BYTES, Kind};

use crate::rig::Pair;

/// What a path of 1500 bytes carries of a frame.
const NARROW: usize = 1472;

fn is_lost(frame: &Frame<'_>) -> bool {
    HEADER_BYTES + frame.payload.len() > NARROW
}

/// A router's MTU shrank under a session with 8 KiB segments. A write's frames
/// vanished, the server asked for them, they were sent again and vanished.
#[test]
fn a_write_goes_on_when_its_segments_do_not_pass_any_more() {
    for sectors in [8, 24, 256] {
        let (mut pair, volume) = Pair::attached();
        pair.submit(volume, Op::Write, sectors);
        pair.run(Duration::from_secs(2), is_lost);
        assert_eq!(pair.guest.outcome, Some(Ok(())), "{sectors} sectors");
        assert_eq!(pair.host.writes, 1);
    }
}

/// Requests for reads are small and pass; what is read does not. Part of it may:
/// a read that does not begin with a block ends with a short segment.
#[test]
fn a_read_goes_on_when_what_is_read_does_not_pass_any_more() {
    for (start, sectors) in [(8, 8), (8, 256), (3, 17)] {
        let (mut pair, volume) = Pair::attached();
        pair.submit_at(volume, Op::Read, start, sectors);
        pair.run(Duration::from_secs(2), |frame| {
            matches!(frame.kind, Kind::Answer | Kind::Welcome) && is_lost(frame)
        });
        assert_eq!(pair.guest.outcome, Some(Ok(())), "{sectors} sectors");
        assert!(pair.guest.placed.iter().all(|&byte| byte == 7));
    }
}

/// Loss alone is no reason to connect again: the session is not narrower for it.
#[test]
fn a_path_that_loses_each_second_frame_stays_as_wide_as_it_is() {
    let (mut pair, volume) = Pair::attached();
    let (mut frames, mut hellos) = (0_usize, 0);
    for _ in 0..20 {
        pair.submit(volume, Op::Write, 64);
        pair.run(Duration::from_millis(500), |frame| {
            hellos += usize::from(frame.kind == Kind::Hello);
            frames += usize::from(frame.payload.len() > 1024);
            frame.payload.len() > 1024 && frames.is_multiple_of(2)
        });
        assert_eq!(pair.guest.outcome, Some(Ok(())));
    }
    assert_eq!(hellos, 0);
}
