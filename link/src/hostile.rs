//! Whatever a peer says: each parser with frames and bodies that somebody bent.

use block_core::{Buffer, Time, crc32c};
use fuzz::{Metered, Target};

use crate::attach::{Access, AttachReply, AttachRequest, Attached, FrontId, Refused, VolumeName};
use crate::frame::{Arrived, Frame, HEADER_BYTES, Header, Kind, MAX_PAYLOAD};
use crate::hello::{Hello, Open, SessionRefused, Welcome};
use crate::host::{Host, SessionIndex, SlotRef, Work};
use crate::introduction::{
    Card, Introduction, MARK_BYTES, Marker, Reception, Retry, preface, prologue,
};
use crate::keys::{PublicKey, SecretKey};
use crate::noise::{FIRST_BYTES, Initiator, SECOND_BYTES, Secrets};
use crate::path::VolumeHandle;
use crate::seal::Guard;
use crate::security::{Caller, ServerSecurity};
use crate::segment::{SEGMENT_SIZES, Segmentation};
use crate::server::{Server, ServerSettings};
use crate::wire::memory::{Network, Port};

#[global_allocator]
static ALLOCATOR: Metered = Metered;

/// Parsing takes nothing from the heap; what is taken is the check's own.
const CHECK_BYTES: usize = 64 << 10;

fn bytes_of(header: &Header, kind: Kind, payload: &[u8]) -> Vec<u8> {
    [&header.encode(kind, payload)[..], payload].concat()
}

/// Puts the checksum right, as a peer that lies does.
fn seal(frame: &mut [u8]) {
    frame[39] = frame[39] & 0b100 | 0b10;
    frame[48..HEADER_BYTES].fill(0);
    let crc = crc32c(&[&frame[..48], &frame[HEADER_BYTES..]]);
    frame[48..52].copy_from_slice(&crc.to_le_bytes());
}

/// A frame that is believed is one that we could have sent, to the bit; its
/// checksum is made right for it, or it would be refused for that alone.
#[test]
fn frames_are_refused_or_are_what_they_say() {
    let header = Header { session: 7, counter: 9, number: 5, slot: 3, ..Header::default() };
    let request = Header { count: 8, volume: 2, op: 2, word: 64, ..header };
    Target::new("frames_are_refused_or_are_what_they_say")
        .with(bytes_of(&header, Kind::Hello, &[0; SEGMENT_SIZES[3]]))
        .with(bytes_of(&request, Kind::Request, &[5; 4096]))
        .with(bytes_of(&Header { news: true, ..header }, Kind::Answer, &[]))
        .with(bytes_of(&header, Kind::Missing, &[0xff; 16]))
        .cases(60_000)
        .most_bytes(HEADER_BYTES + MAX_PAYLOAD + 16)
        .may_allocate(CHECK_BYTES)
        .run(|input| {
            assert!(Frame::parse(input).is_err() || again(input) == input);
            let mut sealed = input.to_vec();
            if input.len() >= HEADER_BYTES {
                seal(&mut sealed);
            }
            Frame::parse(&sealed)
                .map(|frame| {
                    assert_eq!(again(&sealed), sealed);
                    assert!(frame.payload.len() <= MAX_PAYLOAD);
                    frame.kind
                })
                .map_err(|error| error.to_string())
        });
}

/// What we make of a frame that was believed.
fn again(frame: &[u8]) -> Vec<u8> {
    let frame = Frame::parse(frame).expect("it was believed");
    bytes_of(&frame.header(), frame.kind, frame.payload)
}

/// A body that is believed means the same when it is said again.
#[test]
fn bodies_are_refused_or_mean_the_same_again() {
    let hello =
        Hello { versions: (1, 1), channel: 2, front: FrontId([3; 16]), incarnation: 4, cookie: 5 };
    let welcome = Welcome { cookie: 5, nonce: 6, window: 1 << 20, slots: 32, credit: 32 };
    let open = Open { nonce: 6, segments: Segmentation::SMALLEST };
    let name = VolumeName::new("disk-1").expect("a name");
    let attach = AttachRequest { name, access: Access::Write, settled: 8, had: true };
    let attached = Attached {
        handle: VolumeHandle(1),
        volume_id: [2; 16],
        generation: 3,
        verifier: 4,
        stored_verifier: 4,
        sectors: 2048,
        read_only: false,
    };
    let mut padded = [0; 64];
    let mut target = Target::new("bodies_are_refused_or_mean_the_same_again")
        .cases(60_000)
        .most_bytes(240)
        .may_allocate(CHECK_BYTES);
    let mut valid = |parser: u8, body: &[u8]| {
        assert!(seen(parser, body), "{parser}: valid bodies are believed");
        let target_now = std::mem::replace(&mut target, Target::new(""));
        target = target_now.with([&[parser], body].concat());
    };
    hello.encode(&mut padded);
    valid(0, &padded);
    welcome.encode(&mut padded);
    valid(1, &padded);
    valid(2, &open.encode());
    valid(3, &SessionRefused::Version { oldest: 1, newest: 2 }.encode(0));
    valid(3, &SessionRefused::OtherKey.encode(7));
    valid(4, &attach.encode());
    valid(5, &AttachReply::Attached(attached).encode());
    valid(5, &AttachReply::Refused(Refused::NotYours).encode());
    valid(5, &AttachReply::Elsewhere { port: 7701 }.encode());
    valid(5, &AttachReply::Refused(Refused::HasWriter(FrontId([9; 16]))).encode());
    let mut room = [0; Introduction::BYTES];
    introduction(&Marker::new(&PublicKey([1; 32])), [8; FIRST_BYTES]).encode(&mut room);
    valid(6, &room);
    Reception { cookie: 5, message: [6; SECOND_BYTES] }.encode(&mut room);
    valid(7, &room[..Reception::BYTES]);
    valid(8, &Retry { cookie: 5, token: [6; MARK_BYTES] }.encode());
    target.run(|input| {
        let Some((&parser, body)) = input.split_first() else { return (0, false, 0) };
        (parser % 9, seen(parser, body), body.len())
    });
}

/// Whether a parser believes a body; then it is said and heard again.
fn seen(parser: u8, body: &[u8]) -> bool {
    let mut bytes = [0; Introduction::BYTES];
    match parser % 9 {
        0 => Hello::parse(body).map(|hello| {
            hello.encode(&mut bytes);
            assert_eq!(Hello::parse(&bytes), Some(hello));
        }),
        1 => Welcome::parse(body).map(|welcome| {
            welcome.encode(&mut bytes);
            assert_eq!(Welcome::parse(&bytes), Some(welcome));
        }),
        2 => Open::parse(body).map(|open| {
            assert_eq!(Open::parse(&open.encode()), Some(open));
        }),
        3 => SessionRefused::parse(body).map(|(refused, cookie)| {
            let again = SessionRefused::parse(&refused.encode(cookie.unwrap_or(0)));
            assert_eq!(again, Some((refused, cookie)));
        }),
        4 => AttachRequest::parse(body).map(|request| {
            assert_eq!(AttachRequest::parse(&request.encode()), Some(request));
        }),
        6 => Introduction::parse(body).map(|said| {
            said.encode(&mut bytes);
            assert_eq!(Introduction::parse(&bytes), Some(said));
        }),
        7 => Reception::parse(body).map(|reception| {
            reception.encode(&mut bytes);
            assert_eq!(Reception::parse(&bytes), Some(reception));
        }),
        8 => Retry::parse(body).map(|retry| {
            assert_eq!(Retry::parse(&retry.encode()), Some(retry));
        }),
        _ => AttachReply::parse(body).map(|reply| {
            assert_eq!(AttachReply::parse(&reply.encode()), Some(reply));
        }),
    }
    .is_some()
}

/// A sealed hello with that message.
fn introduction(marker: &Marker, message: [u8; FIRST_BYTES]) -> Introduction {
    let mark = [0; MARK_BYTES];
    let said = Introduction { versions: (1, 1), channel: 2, cookie: 5, message, mark, token: mark };
    said.marked(marker)
}

/// What is sealed opens as it was said, or not at all: no input that is not one
/// of the frames of the other end does, however near it is to one.
#[test]
fn sealed_frames_open_only_as_they_were_made() {
    let secrets = || Secrets { to_server: [1; 32].into(), to_front: [2; 32].into() };
    let network = Network::new();
    let mut wire = network.end(Port(1));
    let (mut front, mut server) = (Guard::front(secrets(), 3), Guard::server(secrets()));
    let mut said = Vec::new();
    for size in [0, 16, 512, 4096] {
        for (guard, kind) in [(&mut front, Kind::Request), (&mut server, Kind::Answer)] {
            let header = Header { session: 7, number: size as u64, ..Header::default() };
            guard.send(&mut wire, &Port(2), &header, kind, &vec![5; size]);
            said.push(network.take().expect("it was sent").bytes);
        }
    }
    let target = Target::new("sealed_frames_open_only_as_they_were_made")
        .cases(20_000)
        .most_bytes(HEADER_BYTES + 4096 + 16)
        .may_allocate(CHECK_BYTES);
    let target = said.iter().fold(target, |target, frame| target.with(frame.clone()));
    target.run(|input| {
        let mut opened = 0;
        for (mut guard, mine) in [(Guard::server(secrets()), 0), (Guard::front(secrets(), 9), 1)] {
            let mut bytes = input.to_vec();
            let Ok(arrived) = Arrived::parse(&mut bytes) else { return 3 };
            let is_one = said.iter().skip(mine).step_by(2).any(|frame| frame == input);
            assert_eq!(guard.open(Time::ZERO, arrived).is_some(), is_one);
            opened += u8::from(is_one);
        }
        opened
    });
}

/// Nobody has a volume here, and only one key a session.
struct Nothing(PublicKey);

impl Host for Nothing {
    fn buffer(&mut self, _: usize, _: usize) -> Option<Buffer> {
        None
    }

    fn admits(&mut self, caller: &Caller) -> bool {
        caller.key == Some(self.0)
    }

    fn opened(&mut self, _: SessionIndex, _: Caller, _: u64, _: u16) {
        panic!("nobody has opened a session");
    }

    fn start(&mut self, _: SlotRef, _: Work) {
        panic!("nobody has asked for anything");
    }

    fn closing(&mut self, _: SessionIndex) {}

    fn closed(&mut self, _: SessionIndex) {}
}

/// Hellos of a front that has a right to a session, bent, with the mark put
/// right for the server: none begins a session, and each is answered with less
/// than it was.
#[test]
fn bent_hellos_begin_nothing_and_are_answered_with_less() {
    let (front, server) = (SecretKey::from_bytes(&[3; 32]), SecretKey::from_bytes(&[4; 32]));
    let marker = Marker::new(&server.public());
    let opening = prologue(&preface((1, 1), 2, 5));
    let card = Card { front: FrontId([9; 16]), incarnation: 1 }.encode();
    let (_, message) =
        Initiator::begin(&front, &server.public(), [5; 32], &opening, &card).expect("valid");
    let mut body = [0; SEGMENT_SIZES[3]];
    introduction(&marker, message).encode(&mut body);
    let settings = ServerSettings { sessions: 2, slots: 2, window: 1 << 20, seed: 1 };
    let secured =
        || ServerSecurity { secrets: vec![server.clone()], clear_allowed: false, entropy: [6; 32] };
    Target::new("bent_hellos_begin_nothing_and_are_answered_with_less")
        .with(bytes_of(&Header::default(), Kind::Hello, &body))
        .cases(2_000)
        .most_bytes(HEADER_BYTES + SEGMENT_SIZES[2])
        .may_allocate(1 << 20)
        .run(|input| {
            let mut bytes = input.to_vec();
            if let Some(said) = bytes.get(HEADER_BYTES..).and_then(Introduction::parse) {
                let mut right = [0; Introduction::BYTES];
                said.marked(&marker).encode(&mut right);
                bytes[HEADER_BYTES..HEADER_BYTES + right.len()].copy_from_slice(&right);
            }
            if bytes.len() >= HEADER_BYTES {
                bytes[39] |= 0b10;
                seal(&mut bytes);
            }
            let network = Network::new();
            let mut wire = network.end(Port(1));
            let mut host = Nothing(front.public());
            let mut server = Server::secured(settings, secured());
            server.handle_frame(Time::ZERO, &Port(2), &mut bytes, &mut host);
            server.transmit(&mut wire);
            let answer = network.take().map_or(0, |answer| answer.bytes.len());
            assert!(answer <= bytes.len() && network.take().is_none());
            assert_eq!(server.sessions(), 0);
            answer
        });
}
