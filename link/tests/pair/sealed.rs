//! Sealed sessions: who gets one, who does not, and what each is told.

use std::rc::Rc;
use std::time::Duration;

use block_core::Op;
use link::frame::{Frame, Header, Kind};
use link::hello::SessionRefused;
use link::wire::memory::{Datagram, Port};
use link::{
    Access, Client, Contact, Sealed, SecretKey, Security, Server, ServerSecurity, ServerSettings,
    VolumeHandle, VolumeName, VolumeState,
};

use crate::rig::{CLIENT, Pair, SERVER, settings};

pub(crate) const FRONT_KEY: u8 = 11;
pub(crate) const SERVER_KEY: u8 = 22;

pub(crate) fn secret(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32])
}

/// How a front with one key asks the server that it believes to have another.
pub(crate) fn contact(front: u8, server: u8, frames_per_key: u64) -> Contact<Port> {
    let mut sealed = Sealed::new(Rc::new(secret(front)), secret(server).public(), [front; 32]);
    sealed.frames_per_key = frames_per_key;
    Contact { peer: SERVER, security: Security::Sealed(sealed) }
}

pub(crate) fn server(keys: &[u8], clear_allowed: bool, start: u8) -> Server<Port> {
    let secrets = keys.iter().map(|number| secret(*number)).collect();
    let settings = ServerSettings { sessions: 4, slots: 8, window: 1 << 20, seed: start.into() };
    Server::secured(settings, ServerSecurity { secrets, clear_allowed, entropy: [start; 32] })
}

/// What is between the ends: it is shown each frame, and says what arrives.
pub(crate) fn carry(
    pair: &mut Pair,
    time: Duration,
    mut between: impl FnMut(Datagram) -> Vec<Datagram>,
) {
    let end = pair.now + time;
    while pair.now < end {
        pair.client_turn();
        pair.server_turn();
        for datagram in pair.sent() {
            between(datagram).into_iter().for_each(|datagram| pair.network.deliver(datagram));
        }
        pair.now = pair.now + Duration::from_micros(50);
    }
}

pub(crate) const A_WHILE: Duration = Duration::from_millis(50);

pub(crate) fn ask(pair: &mut Pair, contact: Contact<Port>) -> VolumeHandle {
    let name = VolumeName::new("disk").expect("a name");
    pair.client.attach(pair.now, contact, name, Access::Write).expect("memory")
}

/// A front with a volume, in a sealed session whose keys change now and then.
pub(crate) fn sealed_pair(frames_per_key: u64) -> (Pair, VolumeHandle) {
    let mut pair = Pair::new();
    pair.server = server(&[SERVER_KEY], false, 1);
    pair.host.known = vec![secret(FRONT_KEY).public()];
    let volume = ask(&mut pair, contact(FRONT_KEY, SERVER_KEY, frames_per_key));
    carry(&mut pair, A_WHILE, |frame| vec![frame]);
    assert!(matches!(pair.client.state(volume), VolumeState::Attached(_)));
    (pair, volume)
}

/// What a front is told that asks this server so.
fn refused(server: Server<Port>, known: &[u8], contact: Contact<Port>) -> Option<SessionRefused> {
    let mut pair = Pair::new();
    pair.server = server;
    pair.host.known = known.iter().map(|number| secret(*number).public()).collect();
    let volume = ask(&mut pair, contact);
    carry(&mut pair, A_WHILE, |frame| vec![frame]);
    assert_eq!(pair.client.state(volume), VolumeState::Waiting);
    assert_eq!(pair.server.sessions(), 0);
    pair.client.session_refused(volume)
}

#[test]
fn a_sealed_session_serves_and_shows_nothing() {
    let mut pair = Pair::new();
    pair.server = server(&[SERVER_KEY], false, 1);
    pair.host.known = vec![secret(FRONT_KEY).public()];
    let volume = ask(&mut pair, contact(FRONT_KEY, SERVER_KEY, 1000));
    let (front, mut shown) = (secret(FRONT_KEY).public().0, Vec::new());
    let mut watch = |frame: Datagram| {
        shown.push(frame.bytes.clone());
        vec![frame]
    };
    carry(&mut pair, A_WHILE, &mut watch);
    for op in [Op::Write, Op::Read] {
        pair.submit(volume, op, 64);
        carry(&mut pair, A_WHILE, &mut watch);
        assert_eq!(pair.guest.outcome, Some(Ok(())), "{op:?}");
    }
    assert!(pair.guest.placed.iter().all(|&byte| byte == 7));
    let shows = |what: &[u8]| {
        shown.iter().any(|frame| frame.windows(what.len()).any(|bytes| bytes == what))
    };
    assert!(!shows(&[9; 16]) && !shows(&[7; 16]), "data");
    assert!(!shows(b"disk"), "the volume's name");
    assert!(!shows(&front[..8]) && !shows(&[1; 16]), "who the front is");
}

#[test]
fn a_front_that_asks_for_another_server_is_told() {
    let why = refused(server(&[33], false, 1), &[FRONT_KEY], contact(FRONT_KEY, SERVER_KEY, 9));
    assert_eq!(why, Some(SessionRefused::OtherKey));
}

#[test]
fn a_front_that_nobody_authorized_gets_no_session() {
    let why = refused(server(&[SERVER_KEY], true, 1), &[33], contact(FRONT_KEY, SERVER_KEY, 9));
    assert_eq!(why, Some(SessionRefused::NotAuthorized));
}

/// Both ends must ask for the clear.
#[test]
fn the_clear_is_what_both_want_or_neither_gets() {
    let strict = refused(server(&[SERVER_KEY], false, 1), &[FRONT_KEY], SERVER.into());
    assert_eq!(strict, Some(SessionRefused::MustSeal));
    let keyless = refused(server(&[], true, 1), &[FRONT_KEY], contact(FRONT_KEY, SERVER_KEY, 9));
    assert_eq!(keyless, Some(SessionRefused::MustBeClear));
}

/// A server's key is changed: while it has both, fronts that know either come.
#[test]
fn a_server_that_changes_its_key_is_known_by_both_for_a_while() {
    for known in [SERVER_KEY, 33] {
        let mut pair = Pair::new();
        pair.server = server(&[33, SERVER_KEY], false, 1);
        pair.host.known = vec![secret(FRONT_KEY).public()];
        let volume = ask(&mut pair, contact(FRONT_KEY, known, 9));
        carry(&mut pair, A_WHILE, |frame| vec![frame]);
        assert!(matches!(pair.client.state(volume), VolumeState::Attached(_)));
    }
}

/// Somebody in the middle answers a front that wants a sealed session with a
/// welcome in the clear, as a server without keys would. The front goes on
/// asking for a seal.
#[test]
fn a_front_never_falls_back_to_the_clear() {
    let mut pair = Pair::new();
    pair.server = server(&[SERVER_KEY], true, 1);
    let volume = ask(&mut pair, contact(FRONT_KEY, SERVER_KEY, 9));
    let mut opens = 0;
    carry(&mut pair, Duration::from_secs(1), |hello| {
        let Ok(frame) = Frame::parse(&hello.bytes) else { return vec![] };
        opens += usize::from(frame.kind != Kind::Hello);
        // Its cookie, a nonce, a window, slots and credit.
        let mut body = vec![0; frame.payload.len()];
        body[..8].copy_from_slice(&frame.payload[8..16]);
        body[16..24].copy_from_slice(&[0, 0, 16, 0, 8, 0, 8, 0]);
        let header = Header { session: 5, ..Header::default() }.encode(Kind::Welcome, &body);
        let bytes = [&header[..], &body].concat();
        vec![Datagram { from: SERVER, to: CLIENT, bytes }]
    });
    assert_eq!((pair.client.state(volume), opens), (VolumeState::Waiting, 0));
}

/// The server's process comes back, and has forgotten the session: its hint is
/// believed, and the front goes on in another one.
#[test]
fn a_server_that_was_started_anew_is_found_again() {
    let (mut pair, volume) = sealed_pair(1000);
    pair.server = server(&[SERVER_KEY], false, 2);
    pair.submit(volume, Op::Write, 64);
    carry(&mut pair, Duration::from_millis(300), |frame| vec![frame]);
    assert_eq!(pair.guest.outcome, Some(Ok(())));
}

/// Whoever runs the server takes a front's right away: its session ends, and it
/// gets no other.
#[test]
fn a_front_whose_right_is_taken_away_is_out() {
    let (mut pair, volume) = sealed_pair(1000);
    pair.host.known.clear();
    let gone = secret(FRONT_KEY).public();
    pair.server.end_sessions(|caller| caller.key == Some(gone), &mut pair.host);
    assert_eq!(pair.server.sessions(), 0);
    pair.submit(volume, Op::Write, 8);
    carry(&mut pair, Duration::from_millis(300), |frame| vec![frame]);
    assert_eq!((pair.guest.outcome, pair.host.writes), (None, 0));
    assert_eq!(pair.client.session_refused(volume), Some(SessionRefused::NotAuthorized));
}

/// A front with a key of its own says that it is another one: the other's
/// session goes on, since a front is its key.
#[test]
fn a_front_that_calls_itself_by_anothers_name_does_not_end_its_session() {
    let (mut pair, volume) = sealed_pair(1000);
    pair.host.known.push(secret(44).public());
    let mut liar = Client::new(pair.network.end(Port(9)), settings(1, 99));
    let name = VolumeName::new("disk").expect("a name");
    let its = liar.attach(pair.now, contact(44, SERVER_KEY, 9), name, Access::Write);
    let its = its.expect("memory");
    let mut nobody = crate::rig::OneRequest::default();
    for _ in 0..1000 {
        link::Path::turn(&mut liar, pair.now, &mut nobody);
        carry(&mut pair, Duration::from_micros(50), |frame| vec![frame]);
    }
    assert!(matches!(liar.state(its), VolumeState::Attached(_)));
    assert_eq!(pair.server.sessions(), 2);
    pair.submit(volume, Op::Write, 8);
    carry(&mut pair, Duration::from_millis(1), |frame| vec![frame]);
    assert_eq!(pair.guest.outcome, Some(Ok(())), "at once, in the session that it had");
}
