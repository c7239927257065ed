//! Whatever a peer says: each parser with frames and bodies that somebody bent.

use block_core::crc32c;
use fuzz::{Metered, Target};

use crate::attach::{Access, AttachReply, AttachRequest, Attached, FrontId, Refused, VolumeName};
use crate::frame::{Frame, HEADER_BYTES, Header, Kind, MAX_PAYLOAD};
use crate::hello::{Hello, Open, SessionRefused, Welcome};
use crate::path::VolumeHandle;
use crate::segment::{SEGMENT_SIZES, Segmentation};

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
    bytes_of(&frame.header, frame.kind, frame.payload)
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
        .most_bytes(200)
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
    target.run(|input| {
        let Some((&parser, body)) = input.split_first() else { return (0, false, 0) };
        (parser % 6, seen(parser, body), body.len())
    });
}

/// Whether a parser believes a body; then it is said and heard again.
fn seen(parser: u8, body: &[u8]) -> bool {
    let mut bytes = [0; 80];
    match parser % 6 {
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
        _ => AttachReply::parse(body).map(|reply| {
            assert_eq!(AttachReply::parse(&reply.encode()), Some(reply));
        }),
    }
    .is_some()
}
