//! A client and a server, frame by frame: bugs that the lossy link found, each
//! told as the shortest exchange that shows it, and the sentences of the
//! handshake.

mod attacked;
mod kept;
mod narrow;
mod overtaken;
mod rig;
mod sealed;

use std::time::Duration;

use block_core::{BlockError, Op, SECTOR_SIZE, SectorRange};
use link::frame::{Frame, Header, Kind};
use link::hello::SessionRefused;
use link::wire::Wire;
use link::wire::memory::{Datagram, End, Network, Port};
use link::{Access, AttachReply, Client, Part, Path, Refused, Token, VolumeName, VolumeState};
use rig::{CLIENT, OneRequest, Pair, SERVER, Sevens, settings, turn_server};

/// The second half of a read was lost, and so was the front's wish to have it
/// read again. The server then said "finished" of the old attempt; the front
/// took that for an old answer, and waited for ever.
#[test]
fn a_lost_wish_to_read_again_is_repeated() {
    let (mut pair, volume) = Pair::attached();
    pair.submit(volume, Op::Read, 32);
    let (mut answers, mut wishes) = (0, 0);
    pair.run(Duration::from_secs(2), |frame| match frame.kind {
        Kind::Answer => {
            answers += 1;
            answers == 2
        }
        Kind::Request if frame.header().attempt > 0 => {
            wishes += 1;
            wishes == 1
        }
        _ => false,
    });
    assert_eq!(pair.guest.outcome, Some(Ok(())));
    assert!(pair.guest.placed.iter().all(|&byte| byte == 7));
    assert!(wishes >= 2, "the wish was lost once and said again");
}

/// A front opened a session for large segments. A stray "unknown session" made
/// it forget the offer, a late welcome made it open the same session for small
/// ones. The server kept the large, the front cut small, and no write ever had
/// all its segments.
#[test]
fn the_server_has_the_last_word_on_the_segment_size() {
    let mut pair = Pair::new();
    let volume = pair.attach("disk");
    pair.client_turn();
    pair.network.deliver_all();
    pair.server_turn();
    let welcomes = pair.sent();
    let smallest = welcomes.iter().min_by_key(|datagram| datagram.bytes.len()).expect("some");
    let smallest = smallest.clone();
    welcomes.into_iter().for_each(|datagram| pair.network.deliver(datagram));
    // Once to hear the welcomes, once to open.
    pair.client_turn();
    pair.client_turn();
    let open = pair.sent();
    assert!(open.iter().any(|datagram| datagram.bytes[3] == Kind::Open as u8));
    let session = Frame::parse(&smallest.bytes).expect("a welcome").header().session;
    let stray = Header { session, ..Header::default() }.encode(Kind::UnknownSession, &[]);
    pair.network.deliver(Datagram { from: SERVER, to: CLIENT, bytes: stray.to_vec() });
    pair.network.deliver(smallest);
    open.into_iter().for_each(|datagram| pair.network.deliver(datagram));
    pair.run(Duration::from_millis(100), |_| false);
    pair.submit(volume, Op::Write, 7);
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}

/// Disks that ask for something once a second woke their front twice for it: for the
/// answer, and when the answer would have been late, had it not come.
#[test]
fn an_answer_leaves_nothing_to_wake_up_for() {
    let (mut pair, volume) = Pair::attached();
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.client.deadline(), None);
    pair.submit(volume, Op::Read, 8);
    pair.client_turn();
    assert!(pair.client.deadline().is_some(), "its answer may be lost");
    pair.network.deliver_all();
    pair.server_turn();
    pair.network.deliver_all();
    pair.client_turn();
    assert_eq!(pair.guest.outcome, Some(Ok(())));
    assert_eq!(pair.client.deadline(), None);
}

/// The answer to a write is lost: the front asks, and hears the outcome that
/// was kept. The write has run once.
#[test]
fn a_write_whose_answer_is_lost_does_not_run_again() {
    let (mut pair, volume) = Pair::attached();
    pair.submit(volume, Op::Write, 64);
    let mut answers = 0;
    pair.run(Duration::from_secs(1), |frame| {
        answers += usize::from(frame.kind == Kind::Answer);
        frame.kind == Kind::Answer && answers <= 3
    });
    assert_eq!(pair.guest.outcome, Some(Ok(())));
    assert_eq!(pair.host.writes, 1);
    assert_eq!(answers, 4);
}

/// A time-out asks how far the request is; it does not send the data again.
#[test]
fn a_slow_device_costs_probes_not_data() {
    let (mut pair, volume) = Pair::attached();
    pair.submit(volume, Op::Write, 16);
    let mut data = 0;
    let mut probes = 0;
    pair.run(Duration::from_millis(400), |frame| {
        data += frame.payload.len();
        probes += usize::from(frame.kind == Kind::Probe);
        frame.kind == Kind::Answer
    });
    assert_eq!(data, 16 * SECTOR_SIZE);
    assert!(probes > 1);
}

#[test]
fn an_unknown_volume_is_refused_and_its_neighbour_served() {
    let mut pair = Pair::new();
    let missing = pair.attach("missing");
    let disk = pair.attach("disk");
    pair.run(Duration::from_millis(50), |_| false);
    assert_eq!(pair.client.state(missing), VolumeState::Refused(Refused::Unknown));
    assert!(matches!(pair.client.state(disk), VolumeState::Attached(_)));
}

#[test]
fn a_front_of_another_version_is_told_so() {
    let mut pair = Pair::new();
    let mut old = pair.network.end(Port(9));
    let mut hello = Header::default().encode(Kind::Hello, &[0; 1024]);
    hello[2] = 77;
    old.send(&SERVER, &hello, &[0; 1024]);
    pair.network.deliver_all();
    pair.server_turn();
    let answers = pair.sent();
    let answer = Frame::parse(&answers[0].bytes).expect("an answer");
    assert_eq!((answers.len(), answer.kind), (1, Kind::Refuse));

    // And the other way round: a server of another version answers us.
    let volume = pair.attach("disk");
    pair.client_turn();
    pair.sent();
    let mut refuse = Header::default().encode(Kind::Refuse, &[]);
    refuse[2] = 77;
    pair.network.deliver(Datagram { from: SERVER, to: CLIENT, bytes: refuse.to_vec() });
    pair.client_turn();
    let expected = SessionRefused::Version { oldest: 77, newest: 77 };
    assert_eq!(pair.client.session_refused(volume), Some(expected));
}

/// The state directory of a front was copied: the copy that started earlier
/// must not take the volumes from the one that runs.
#[test]
fn an_older_start_of_a_front_is_refused() {
    let (mut pair, _) = Pair::attached();
    let mut copy = Client::new(pair.network.end(Port(8)), settings(1, 4));
    let name = VolumeName::new("disk").expect("a name");
    let volume = copy.attach(pair.now, SERVER, name, Access::Write).expect("memory");
    for _ in 0..4 {
        copy.turn(pair.now, &mut OneRequest::default());
        pair.run(Duration::from_millis(1), |_| false);
    }
    assert_eq!(copy.session_refused(volume), Some(SessionRefused::Stale));
}

/// A front was killed while a request of its ran, and started again. It asked
/// whether its session was open before that request had ended, heard nothing,
/// and asked again only after up to a quarter of a second.
#[test]
fn a_new_session_is_open_as_soon_as_the_old_ones_last_request_has_ended() {
    let (mut pair, volume) = Pair::attached();
    pair.host.stalls = true;
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_millis(1), |_| false);
    pair.client = Client::new(pair.network.end(CLIENT), settings(1, 6));
    pair.attach("disk");
    let (mut opens, mut opened) = (0, 0);
    pair.run(Duration::from_millis(5), |frame| {
        opens += usize::from(frame.kind == Kind::Open);
        opened += usize::from(frame.kind == Kind::Opened);
        false
    });
    assert_eq!((opens, opened), (1, 0), "the old session's write still runs");
    pair.host.stalls = false;
    pair.server_turn();
    let opened = |datagram: &Datagram| datagram.bytes[3] == Kind::Opened as u8;
    assert!(pair.sent().iter().any(opened), "the front need not ask again");
}

/// The server was killed a second time, while the front greeted it. The front's
/// pauses had doubled meanwhile, and when the server was there again it was not
/// greeted for a quarter of a second.
#[test]
fn a_server_that_dies_while_it_is_greeted_is_greeted_soon_after() {
    let (mut pair, volume) = Pair::attached();
    pair.restart_server();
    pair.submit(volume, Op::Write, 8);
    let mut hellos = 0;
    pair.run(Duration::from_millis(700), |frame| {
        hellos += usize::from(frame.kind == Kind::Hello);
        hellos > 0
    });
    assert_eq!(pair.guest.outcome, None, "it is gone again");
    pair.restart_server();
    pair.run(Duration::from_millis(50), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}

/// While the front was away the volume was restored: the guest's memory and
/// the disk no longer belong together, and the disk stops.
#[test]
fn a_volume_of_another_generation_is_not_served_after_a_reconnect() {
    let (mut pair, volume) = Pair::attached();
    pair.restart_server();
    pair.host.generation = 2;
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.client.state(volume), VolumeState::Changed);
    assert_eq!(pair.guest.outcome, Some(Err(BlockError::NotAttached)));
    assert_eq!(pair.host.writes, 0);
}

/// A front is thought dead, and a later start of it gives the volume back. When
/// the server is started anew, nobody remembers either: the front says itself
/// that it has had the volume. If it is not the last one that had it, its disk
/// stops, and nothing of what it kept is sent.
#[test]
fn a_front_says_that_it_has_had_a_volume_and_hears_that_it_is_not_its_any_more() {
    let (mut pair, volume) = Pair::attached();
    assert!(!pair.host.had, "it had not had it");
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_millis(20), |_| false);
    assert_eq!((pair.guest.outcome, pair.host.writes), (Some(Ok(())), 1));
    pair.restart_server();
    (pair.host.verifier, pair.host.refuses) = (8, Some(AttachReply::Refused(Refused::NotYours)));
    pair.submit(volume, Op::Read, 8);
    pair.run(Duration::from_secs(1), |_| false);
    assert!(pair.host.had, "it says so");
    assert_eq!(pair.client.state(volume), VolumeState::Changed);
    assert_eq!(pair.guest.outcome, Some(Err(BlockError::NotAttached)));
    assert_eq!(pair.host.writes, 1, "what was kept is not sent");
}

/// The server had given a volume back when it was killed, and the front did not
/// hear of it. It asks for the volume once more, to give it back: there is
/// nothing left to give.
#[test]
fn a_volume_that_was_given_back_is_not_the_fronts_any_more() {
    let (mut pair, volume) = Pair::attached();
    pair.client.detach(volume);
    pair.restart_server();
    pair.host.refuses = Some(AttachReply::Refused(Refused::NotYours));
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.client.state(volume), VolumeState::Detached);
}

/// A volume that was resized while it was in use: the next answer says that
/// there is news, and the front asks.
#[test]
fn a_resized_volume_is_noticed_with_the_next_answer() {
    let (mut pair, volume) = Pair::attached();
    assert!(!pair.client.take_resized());
    (pair.host.sectors, pair.host.news) = (2000, true);
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_millis(20), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
    let VolumeState::Attached(attached) = pair.client.state(volume) else { panic!("served") };
    assert_eq!(attached.sectors, 2000);
    assert!(pair.client.take_resized());
    assert!(!pair.client.take_resized(), "said once");
}

/// A request that was given up leaves its slot usable, and its late answer
/// changes nothing.
#[test]
fn an_abandoned_request_ends_once_and_its_answer_is_dropped() {
    let (mut pair, volume) = Pair::attached();
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_millis(5), |frame| frame.kind == Kind::Answer);
    pair.client.abandon(volume, &mut pair.guest);
    assert_eq!(pair.guest.outcome, Some(Err(BlockError::Unreachable)));
    pair.submit(volume, Op::Read, 8);
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}

/// The server came back with more workers, and the volume is another worker's
/// now. A write that had no answer went on waiting at the old one, for ever.
#[test]
fn a_part_follows_its_volume_to_another_worker() {
    let (mut pair, volume) = Pair::attached();
    pair.submit(volume, Op::Write, 64);
    pair.run(Duration::from_millis(5), |frame| frame.kind == Kind::Answer);
    pair.restart_server();
    pair.host.refuses = Some(AttachReply::Elsewhere { port: 3 });
    let (mut server, mut wire) = (Pair::server(3), pair.network.end(Port(3)));
    let mut host = Sevens::new();
    for _ in 0..2000 {
        turn_server(pair.now, &mut server, &mut wire, &mut host);
        pair.run(Duration::from_micros(500), |_| false);
    }
    assert_eq!(pair.guest.outcome, Some(Ok(())));
    assert_eq!(host.writes, 1, "at the new worker, once");
}

/// The worker that a volume was sent to does not answer: the server that was
/// named is asked again, and has the volume itself now.
#[test]
fn a_volume_comes_home_from_a_worker_that_is_gone() {
    let (mut pair, volume) = Pair::attached();
    pair.restart_server();
    pair.host.refuses = Some(AttachReply::Elsewhere { port: 3 });
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_secs(2), |_| false);
    assert_eq!(pair.guest.outcome, None);
    pair.host.refuses = None;
    pair.run(Duration::from_secs(4), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}

/// A front died with writes half sent. Their buffers were never given back,
/// and in the end nobody else got one.
#[test]
fn a_dead_fronts_half_written_requests_give_their_buffers_back() {
    let (pair, _) = half_written();
    assert_eq!(served_beside(pair, |_| ()), Some(Ok(())));
}

/// A front sent the first segments of its writes again and again, and never the
/// rest. That counted as a sign of life, and kept the buffers from all others.
#[test]
fn the_same_segment_again_does_not_keep_a_buffer() {
    let (pair, firsts) = half_written();
    let again = |pair: &Pair| firsts.iter().for_each(|first| pair.network.deliver(first.clone()));
    assert_eq!(served_beside(pair, again), Some(Ok(())));
}

/// A front that has all buffers for writes of which only the first segments
/// came, which are returned.
fn half_written() -> (Pair, Vec<Datagram>) {
    let (mut pair, volume) = Pair::attached();
    for write in 0..7 {
        pair.submit_at(volume, Op::Write, 64 * write, 64);
    }
    let mut firsts = Vec::new();
    pair.run(Duration::from_millis(2), |frame| {
        if frame.kind == Kind::Request && frame.header().offset == 0 {
            let bytes = [&frame.header().encode(frame.kind, frame.payload)[..], frame.payload];
            firsts.push(Datagram { from: CLIENT, to: SERVER, bytes: bytes.concat() });
        }
        frame.header().offset > 0
    });
    assert_eq!(firsts.len(), 7);
    (pair, firsts)
}

/// The front dies and a neighbour of it reads: what that comes to.
fn served_beside(mut pair: Pair, beside: impl Fn(&Pair)) -> Option<Result<(), BlockError>> {
    let _drained = pair.host.pool.take();
    assert_eq!(pair.host.pool.available(), 0);
    let mut neighbour = Client::new(pair.network.end(Port(8)), settings(2, 1));
    // The dead one is cut off; its neighbour comes.
    let _cut = pair.network.end(CLIENT);
    pair.client = neighbour_of_nobody();
    let name = VolumeName::new("disk").expect("a name");
    let volume = neighbour.attach(pair.now, SERVER, name, Access::Write).expect("memory");
    let mut guest = OneRequest { placed: vec![0; 4096], outcome: None };
    let part = Part { token: Token(0), volume, op: Op::Read, range: SectorRange::new(8, 8) };
    let mut submitted = false;
    for _ in 0..8000 {
        beside(&pair);
        neighbour.turn(pair.now, &mut guest);
        submitted = submitted || neighbour.submit(pair.now, part, &mut guest).is_ok();
        pair.run(Duration::from_micros(500), |_| false);
    }
    assert!(submitted);
    guest.outcome
}

/// A client that nobody serves, in the place of one that died.
fn neighbour_of_nobody() -> Client<End> {
    Client::new(Network::new().end(Port(99)), settings(0, 1))
}

/// The server was restarted while the front was idle, and then the front was
/// stopped. It detached with the handle of the old session, heard "not
/// attached", and said that the volume was given back. It was not.
#[test]
fn a_volume_is_given_back_also_when_the_session_was_lost() {
    let (mut pair, volume) = Pair::attached();
    pair.restart_server();
    pair.client.detach(volume);
    pair.run(Duration::from_millis(5), |_| true);
    assert_eq!(pair.client.state(volume), VolumeState::Detaching, "nobody has confirmed it");
    pair.run(Duration::from_secs(2), |_| false);
    assert_eq!(pair.client.state(volume), VolumeState::Detached);
    assert_eq!((pair.host.detached, pair.host.holds), (1, false));
}

/// After a restart the server's device was in trouble for a moment: that is a
/// pause for the guest, not the end of its disk.
#[test]
fn a_refusal_that_may_pass_is_a_pause_for_a_disk_that_was_served() {
    let (mut pair, volume) = Pair::attached();
    pair.restart_server();
    pair.host.refuses = Some(AttachReply::Refused(Refused::Failed));
    pair.submit(volume, Op::Write, 8);
    pair.run(Duration::from_millis(2500), |_| false);
    assert_eq!(pair.guest.outcome, None);
    assert_eq!(pair.client.state(volume), VolumeState::Waiting);
    pair.host.refuses = None;
    pair.run(Duration::from_millis(1500), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}

/// One front that reaches a worker by two addresses has two sessions. They
/// replaced each other, again and again.
#[test]
fn two_ways_to_one_worker_are_two_sessions() {
    let (mut pair, volume) = Pair::attached();
    // What goes to the alias reaches the server, and comes back as from it.
    let (alias, seen_as) = (Port(4), Port(11));
    let name = VolumeName::new("other").expect("a name");
    let other = pair.client.attach(pair.now, alias, name, Access::Write).expect("memory");
    let mut hellos = 0;
    for _ in 0..2000 {
        pair.client_turn();
        pair.server_turn();
        for mut datagram in pair.sent() {
            hellos += usize::from(datagram.bytes[3] == Kind::Hello as u8);
            if datagram.to == alias {
                (datagram.from, datagram.to) = (seen_as, SERVER);
            } else if datagram.to == seen_as {
                (datagram.from, datagram.to) = (alias, CLIENT);
            }
            pair.network.deliver(datagram);
        }
        pair.now = pair.now + Duration::from_micros(100);
    }
    assert!(matches!(pair.client.state(volume), VolumeState::Attached(_)));
    assert!(matches!(pair.client.state(other), VolumeState::Attached(_)));
    assert_eq!(hellos, 4, "one greeting, in four sizes");
    assert_eq!(pair.server.sessions(), 2);
}

/// A peer may say any counter. The highest one overflowed the search for gaps.
#[test]
fn the_highest_counter_breaks_nothing() {
    let (mut pair, volume) = Pair::attached();
    pair.submit(volume, Op::Write, 32);
    pair.client_turn();
    for datagram in pair.sent() {
        let frame = Frame::parse(&datagram.bytes).expect("our own frame");
        let header = Header { counter: u64::MAX, ..frame.header() };
        let mut bytes = header.encode(frame.kind, frame.payload).to_vec();
        bytes.extend(frame.payload);
        pair.network.deliver(Datagram { bytes, ..datagram });
        pair.server_turn();
    }
    pair.run(Duration::from_secs(1), |_| false);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}
