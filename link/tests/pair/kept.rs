//! What the front keeps, and what it does when that fails.

use std::time::Duration;

use block_core::{BlockError, Op, SectorRange};
use link::frame::Kind;
use link::{Part, Path, Refusal, Token, VolumeHandle, VolumeState};

use crate::rig::Pair;

/// A write that is answered before the next step.
fn write(pair: &mut Pair, volume: VolumeHandle, start: u64) {
    pair.submit_at(volume, Op::Write, start, 8);
    pair.run(Duration::from_millis(2), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}

fn offer(pair: &mut Pair, volume: VolumeHandle, op: Op, start: u64) -> Result<(), Refusal> {
    let part = Part { token: Token(1), volume, op, range: SectorRange::new(start, 8) };
    pair.client.submit(pair.now, part, &mut pair.guest)
}

/// A write ran and its answer was lost; one that overlaps it was answered, and
/// read. Then the session was lost, and the first write, sent again, came back
/// over the second. Now the second waits for the first's answer.
#[test]
fn a_change_waits_for_the_answer_of_one_that_it_overlaps() {
    let (mut pair, volume) = Pair::attached();
    pair.submit_at(volume, Op::Write, 8, 8);
    pair.run(Duration::from_millis(2), |frame| frame.kind == Kind::Answer);
    for op in [Op::Write, Op::WriteThrough, Op::Discard, Op::WriteZeroes] {
        assert_eq!(offer(&mut pair, volume, op, 15), Err(Refusal::Busy), "{op:?}");
    }
    pair.run(Duration::from_millis(500), |_| false);
    assert_eq!(pair.guest.outcome.take(), Some(Ok(())));
    assert_eq!(offer(&mut pair, volume, Op::Write, 15), Ok(()));
    assert_eq!(offer(&mut pair, volume, Op::Write, 23), Ok(()), "it touches and does not overlap");
}

/// A guest wrote a block, then wrote it through. The server died; the front sent
/// the first write again, and died before it sent the second: what had been
/// durable was gone. Nothing older is kept when a block is written through.
#[test]
fn a_block_is_written_through_when_what_is_kept_of_it_is_durable() {
    let (mut pair, volume) = Pair::attached();
    write(&mut pair, volume, 8);
    pair.guest.outcome = None;
    pair.host.flushes = 0;
    assert_eq!(offer(&mut pair, volume, Op::WriteThrough, 100), Ok(()), "it lies elsewhere");
    pair.run(Duration::from_millis(2), |_| false);
    assert_eq!((pair.guest.outcome.take(), pair.host.flushes), (Some(Ok(())), 0));
    assert_eq!(offer(&mut pair, volume, Op::WriteZeroesThrough, 15), Err(Refusal::Busy));
    pair.run(Duration::from_millis(2), |_| false);
    assert_eq!(pair.host.flushes, 1);
    assert_eq!(offer(&mut pair, volume, Op::WriteZeroesThrough, 15), Ok(()));
    pair.run(Duration::from_millis(2), |_| false);
    assert_eq!((pair.guest.outcome, pair.host.flushes), (Some(Ok(())), 1));
}

/// A restarted server gets what it may have lost, in order where it matters,
/// and only then what is new.
#[test]
fn a_server_with_another_verifier_gets_what_was_not_flushed() {
    let (mut pair, volume) = Pair::attached();
    write(&mut pair, volume, 100);
    pair.submit(volume, Op::Flush, 8);
    pair.run(Duration::from_millis(2), |_| false);
    for start in [8, 16, 12, 40, 8] {
        write(&mut pair, volume, start);
    }
    pair.host.changed.clear();
    pair.restart_server();
    pair.submit_at(volume, Op::Write, 200, 8);
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.host.changed, [200], "the same verifier: nothing was lost");
    pair.host.changed.clear();
    pair.restart_server();
    pair.host.verifier = 2;
    pair.submit_at(volume, Op::Write, 300, 8);
    pair.run(Duration::from_secs(1), |_| false);
    let order = |start: u64| pair.host.changed.iter().position(|&at| at == start);
    assert_eq!(pair.host.changed.len(), 7, "{:?}", pair.host.changed);
    assert!(order(12) > order(8) && order(12) > order(16), "{:?}", pair.host.changed);
    assert_eq!(order(300), Some(6), "it is new");
    assert_eq!(order(100), None, "it was flushed");
}

/// The guest was told that a write is done; the server lost it and cannot do
/// it again. No read may show what was there before, so the disk stops.
#[test]
fn a_kept_write_that_fails_when_it_is_sent_again_stops_the_disk() {
    let (mut pair, volume) = Pair::attached();
    write(&mut pair, volume, 8);
    pair.restart_server();
    (pair.host.verifier, pair.host.fails) = (2, Some(BlockError::Medium));
    pair.submit_at(volume, Op::Write, 800, 8);
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.client.state(volume), VolumeState::Broken(BlockError::Medium));
    assert_eq!(pair.guest.outcome, Some(Err(BlockError::NotAttached)));
    let refused = offer(&mut pair, volume, Op::Read, 8);
    assert_eq!(refused, Err(Refusal::Failed(BlockError::NotAttached)));
}

/// A guest that never flushes does not fill the front's memory: at half the
/// bound, here 512 KiB, the front flushes.
#[test]
fn the_front_flushes_at_half_the_bound() {
    let (mut pair, volume) = Pair::attached();
    let before = pair.host.flushes;
    for at in 0..127 {
        write(&mut pair, volume, at * 8 % 900);
    }
    assert_eq!(pair.host.flushes, before);
    for at in 0..129 {
        write(&mut pair, volume, at * 8 % 900);
    }
    assert_eq!(pair.host.flushes, before + 2);
}

/// The server's device was in trouble and had lost its cache: writes ended as
/// lost until somebody started the server anew. The guest waits that long.
#[test]
fn a_lost_write_waits_for_a_new_server() {
    let (mut pair, volume) = Pair::attached();
    write(&mut pair, volume, 8);
    pair.host.fails = Some(BlockError::Lost);
    pair.submit_at(volume, Op::Write, 80, 8);
    pair.run(Duration::from_secs(4), |_| false);
    assert_eq!(pair.guest.outcome, None);
    pair.restart_server();
    (pair.host.verifier, pair.host.fails) = (2, None);
    pair.host.changed.clear();
    pair.run(Duration::from_secs(3), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
    assert_eq!(pair.host.changed, [8, 80]);
}

/// A write had run, a read had shown it, and the server lost it before the
/// write was answered. The guest read again at once, and the write was gone.
/// Reads wait until changes without an answer have been made again.
#[test]
fn a_read_waits_for_the_changes_that_are_made_again() {
    let (mut pair, volume) = Pair::attached();
    pair.submit_at(volume, Op::Write, 8, 8);
    pair.run(Duration::from_millis(2), |frame| frame.kind == Kind::Answer);
    pair.restart_server();
    pair.host.verifier = 2;
    // Only attach answers come: those of slot 0.
    pair.run(Duration::from_secs(1), |frame| {
        frame.kind == Kind::Answer && frame.header().slot != 0
    });
    assert!(matches!(pair.client.state(volume), VolumeState::Attached(_)));
    assert_eq!(offer(&mut pair, volume, Op::Read, 800), Err(Refusal::Busy));
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.guest.outcome.take(), Some(Ok(())));
    assert_eq!(offer(&mut pair, volume, Op::Read, 800), Ok(()));
}

/// A server was back after 300 ms, and the front noticed 250 ms later.
#[test]
fn a_server_that_is_back_is_noticed_soon() {
    let (mut pair, volume) = Pair::attached();
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_millis(300), |_| true);
    pair.restart_server();
    pair.run(Duration::from_millis(60), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}
