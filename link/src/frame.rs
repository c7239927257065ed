//! The frame: 64 bytes of header, then at most one segment of data.
//!
//! ```text
//!  0        2       3      4            8                16
//!  +--------+-------+------+------------+-----------------+
//!  | "vR"   |version| kind | session u32| counter u64     |
//!  +--------+-------+------+------------+-----------------+
//!  | number u64            | slot u16   | attempt u16     | offset u32 at 28
//!  +-----------------------+------------+-----------------+
//!  | count u32 | volume u16 | op u8 | flags u8 | word u64  |
//!  +-----------------------+------------------------------+ 48
//!  | tag: 16 bytes                                        |
//!  +------------------------------------------------------+ 64
//!  | payload: 0 to 8192 bytes                             |
//! ```
//!
//! Everything is little-endian. What the fields mean for each kind is said at
//! [`Header`]. In the clear the tag is a CRC32C of header (without tag) and
//! payload, then twelve zero bytes. A sealed frame has the AES-256-GCM tag
//! there; its payload is encrypted, and the header before the tag is the
//! associated data.

use block_core::crc32c;
use thiserror::Error;

/// The version of the protocol that this code speaks.
pub const VERSION: u8 = 1;

/// The lowest version that this code speaks too.
pub const OLDEST_VERSION: u8 = 1;

/// Bytes of a header with its tag.
pub const HEADER_BYTES: usize = 64;

/// Most bytes of payload in a frame.
pub const MAX_PAYLOAD: usize = crate::segment::SEGMENT_SIZES[0];

/// Most bytes of a frame.
pub const MAX_FRAME: usize = HEADER_BYTES + MAX_PAYLOAD;

const MAGIC: [u8; 2] = *b"vR";

/// Where the flags are.
const FLAGS: usize = 39;

/// Where the tag begins.
pub(crate) const TAG: usize = 48;

/// Bytes of a header that a seal covers: those before the tag.
pub(crate) const SEALED_HEADER: usize = TAG;

const CRC_BYTES: usize = 4;
const _: () = assert!(TAG + 16 == HEADER_BYTES);

/// The flag of a frame that is not sealed but has a CRC32C.
pub const IN_THE_CLEAR: u8 = 0b10;

/// The flag of a sealed frame whose keys are of an odd phase; always zero in
/// the clear.
pub const KEY_PHASE: u8 = 0b01;

/// The flag of an answer whose volume is not what it was when the front
/// attached it: attaching it again tells what it is now.
pub const NEWS: u8 = 0b100;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Front: who I am, what I speak. Padded to a segment size to find the
    /// largest that passes.
    Hello = 1,
    /// Server: a session is ready; padded as the hello was.
    Welcome = 2,
    /// Server: no session, and why.
    Refuse = 3,
    /// Front: I heard you. Ends the old session, begins the new one.
    Open = 4,
    /// Server: the new session runs.
    Opened = 5,
    /// Either: the session is over.
    Bye = 6,
    /// Server: I know no such session. Only a hint.
    UnknownSession = 7,
    /// Server: say hello once more, with this token, which shows that you hear
    /// what is sent to your address.
    Retry = 8,
    /// Front: a request, or one segment of its data.
    Request = 16,
    /// Server: send me these segments; the request has its buffer.
    Missing = 17,
    /// Server: the outcome, or one segment of the data read.
    Answer = 18,
    /// Front: how far is this request?
    Probe = 19,
    /// Server: how far it is, when there is neither outcome nor gap.
    State = 20,
}

impl Kind {
    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refuse,
            4 => Self::Open,
            5 => Self::Opened,
            6 => Self::Bye,
            7 => Self::UnknownSession,
            8 => Self::Retry,
            16 => Self::Request,
            17 => Self::Missing,
            18 => Self::Answer,
            19 => Self::Probe,
            20 => Self::State,
            _ => return None,
        })
    }
}

/// A header's fields, except for magic, version and tag.
///
/// | field | in a request | in an answer |
/// |---|---|---|
/// | `number` | the request's number; rises in a session | the same |
/// | `slot` | where it runs | the same |
/// | `attempt` | which reading of a read this asks for | which one this is |
/// | `offset` | of the payload in the data; of a read: mask of wanted blocks | of the payload in the data |
/// | `count` | sectors; of attach and detach: bytes | microseconds that the server held it |
/// | `volume` | the handle | unscheduled writes that may be under way |
/// | `op` | the operation | the outcome |
/// | `word` | the first sector | order number of a change, verifier of a flush |
///
/// A `Missing` carries the set of segments as 16 bytes of payload, a `State`
/// its code in `op`, an `Opened` the segment size in `count`. Other handshake frames
/// use only `session`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The session's id at the server; zero before there is one.
    pub session: u32,
    /// This frame's number in its direction; never used twice.
    pub counter: u64,
    /// The request's number.
    pub number: u64,
    /// The request's slot.
    pub slot: u16,
    /// Tells readings of one read apart.
    pub attempt: u16,
    /// See the table.
    pub offset: u32,
    /// See the table.
    pub count: u32,
    /// See the table.
    pub volume: u16,
    /// See the table.
    pub op: u8,
    /// See the table.
    pub word: u64,
    /// Whether [`NEWS`] is set.
    pub news: bool,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Shorter than a header, longer than a frame, or not ours.
    #[error("not a frame of this protocol")]
    Foreign,
    /// A version that this code does not speak.
    #[error("version {0} of the protocol")]
    Version(u8),
    /// Neither end asks for that.
    #[error("an unknown kind of frame")]
    Kind,
    /// Damaged on its way.
    #[error("the checksum is wrong")]
    Checksum,
}

impl Header {
    /// The header as bytes, with the tag of a frame in the clear.
    #[must_use]
    pub fn encode(&self, kind: Kind, payload: &[u8]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        self.write(kind, payload, &mut bytes);
        bytes
    }

    /// [`Header::encode`] to where it is sent from: what is returned would be copied
    /// there.
    #[inline]
    pub(crate) fn write(&self, kind: Kind, payload: &[u8], to: &mut [u8; HEADER_BYTES]) {
        debug_assert!(payload.len() <= MAX_PAYLOAD);
        self.write_fields(kind, IN_THE_CLEAR, to);
        let crc = crc32c(&[&to[..TAG], payload]);
        to[TAG..TAG + CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    /// The header of a frame that is being sealed, still without a tag.
    #[inline]
    pub(crate) fn write_sealed(&self, kind: Kind, odd_phase: bool, to: &mut [u8; HEADER_BYTES]) {
        self.write_fields(kind, if odd_phase { KEY_PHASE } else { 0 }, to);
    }

    #[inline]
    fn write_fields(&self, kind: Kind, flags: u8, to: &mut [u8; HEADER_BYTES]) {
        to[0..2].copy_from_slice(&MAGIC);
        to[2] = VERSION;
        to[3] = kind as u8;
        to[4..8].copy_from_slice(&self.session.to_le_bytes());
        to[8..16].copy_from_slice(&self.counter.to_le_bytes());
        to[16..24].copy_from_slice(&self.number.to_le_bytes());
        to[24..26].copy_from_slice(&self.slot.to_le_bytes());
        to[26..28].copy_from_slice(&self.attempt.to_le_bytes());
        to[28..32].copy_from_slice(&self.offset.to_le_bytes());
        to[32..36].copy_from_slice(&self.count.to_le_bytes());
        to[36..38].copy_from_slice(&self.volume.to_le_bytes());
        to[38] = self.op;
        to[FLAGS] = if self.news { flags | NEWS } else { flags };
        to[40..48].copy_from_slice(&self.word.to_le_bytes());
        to[TAG..].fill(0);
    }

    #[inline]
    fn parse(head: &[u8; HEADER_BYTES]) -> Self {
        Self {
            session: u32_at(head, 4),
            counter: u64_at(head, 8),
            number: u64_at(head, 16),
            slot: u16_at(head, 24),
            attempt: u16_at(head, 26),
            offset: u32_at(head, 28),
            count: u32_at(head, 32),
            volume: u16_at(head, 36),
            op: head[38],
            word: u64_at(head, 40),
            news: head[FLAGS] & NEWS != 0,
        }
    }
}

/// What came, before anybody knows who sent it: in the clear, and whole, as anybody
/// may make it, or what says that it is sealed. Of that nothing is to be believed
/// before a session has opened it.
#[derive(Debug)]
pub(crate) struct Arrived<'a> {
    kind: Kind,
    pub(crate) head: &'a [u8; HEADER_BYTES],
    /// Still encrypted if it is sealed.
    pub(crate) payload: &'a mut [u8],
}

impl<'a> Arrived<'a> {
    /// The frame in `bytes`, as they came from the wire.
    #[inline]
    pub(crate) fn parse(bytes: &'a mut [u8]) -> Result<Self, FrameError> {
        let (head, payload) =
            bytes.split_first_chunk_mut::<HEADER_BYTES>().ok_or(FrameError::Foreign)?;
        let kind = check(head, payload)?;
        Ok(Self { kind, head, payload })
    }

    /// What it says that it is for.
    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The session that it names.
    pub(crate) fn session(&self) -> u32 {
        u32_at(self.head, 4)
    }

    /// Whether it says that it is sealed.
    pub(crate) const fn is_sealed(&self) -> bool {
        self.head[FLAGS] & IN_THE_CLEAR == 0
    }

    /// Whether it says that its keys are of an odd phase.
    pub(crate) const fn is_of_odd_phase(&self) -> bool {
        self.head[FLAGS] & KEY_PHASE != 0
    }

    /// The seal.
    pub(crate) fn tag(&self) -> [u8; 16] {
        array_at(self.head, TAG)
    }

    /// This frame's number in its direction.
    pub(crate) fn counter(&self) -> u64 {
        u64_at(self.head, 8)
    }

    /// The same, for as long as it is borrowed.
    pub(crate) fn lend(&mut self) -> Arrived<'_> {
        Arrived { kind: self.kind, head: self.head, payload: self.payload }
    }

    /// The frame, unless it is sealed.
    #[inline]
    pub(crate) fn in_the_clear(self) -> Option<Frame<'a>> {
        (!self.is_sealed()).then(|| self.opened())
    }

    /// The frame, of which whoever calls this knows that it is to be believed.
    #[inline]
    pub(crate) fn opened(self) -> Frame<'a> {
        Frame { kind: self.kind, head: self.head, payload: self.payload }
    }
}

/// What can be known of a frame by itself: that it is one of ours, its checksum if it
/// has one, and what it says that it is for.
#[inline]
fn check(head: &[u8; HEADER_BYTES], payload: &[u8]) -> Result<Kind, FrameError> {
    if head[0..2] != MAGIC || payload.len() > MAX_PAYLOAD {
        return Err(FrameError::Foreign);
    }
    if !(OLDEST_VERSION..=VERSION).contains(&head[2]) {
        return Err(FrameError::Version(head[2]));
    }
    let flags = head[FLAGS] & !NEWS;
    if flags & IN_THE_CLEAR == 0 {
        if flags & !KEY_PHASE != 0 {
            return Err(FrameError::Foreign);
        }
    } else if flags != IN_THE_CLEAR
        || head[TAG + CRC_BYTES..] != [0; HEADER_BYTES - TAG - CRC_BYTES]
        || u32_at(head, TAG) != crc32c(&[&head[..TAG], payload])
    {
        return Err(FrameError::Checksum);
    }
    Kind::from_code(head[3]).ok_or(FrameError::Kind)
}

/// A frame that arrived whole. In the clear its checksum is right, and who sent
/// it is not known by that; if a session has opened it, its other end did.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it is for.
    pub kind: Kind,
    head: &'a [u8; HEADER_BYTES],
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame in `bytes`, as they came from the wire.
    ///
    /// # Errors
    /// [`FrameError`]; a frame of another version is told apart from noise, so
    /// that a front can say why it gets no session.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let (head, payload) =
            bytes.split_first_chunk::<HEADER_BYTES>().ok_or(FrameError::Foreign)?;
        let kind = check(head, payload)?;
        if head[FLAGS] & IN_THE_CLEAR == 0 {
            return Err(FrameError::Checksum);
        }
        Ok(Self { kind, head, payload })
    }

    /// Its fields, read from where they came.
    #[must_use]
    #[inline]
    pub fn header(&self) -> Header {
        Header::parse(self.head)
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// Inlined: at a place that is known it is one load.
#[inline]
fn array_at<const BYTES: usize>(bytes: &[u8], at: usize) -> [u8; BYTES] {
    let mut array = [0; BYTES];
    array.copy_from_slice(&bytes[at..at + BYTES]);
    array
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Header {
        Header {
            session: 0x0403_0201,
            counter: 0x1122_3344_5566_7788,
            number: 7,
            slot: 0x0a09,
            attempt: 3,
            offset: 4096,
            count: 8,
            volume: 2,
            op: 2,
            word: 0x99,
            news: false,
        }
    }

    /// The wire format is a promise to other versions: these bytes may only
    /// change together with [`VERSION`].
    #[test]
    fn the_layout_is_what_is_drawn() {
        let bytes = sample().encode(Kind::Request, b"abc");
        let expected = [
            b'v', b'R', 1, 16, 1, 2, 3, 4, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 7, 0, 0,
            0, 0, 0, 0, 0, 9, 10, 3, 0, 0, 16, 0, 0, 8, 0, 0, 0, 2, 0, 2, 2, 0x99, 0, 0, 0, 0, 0,
            0, 0,
        ];
        assert_eq!(bytes[..48], expected);
        assert_eq!(u32_at(&bytes, 48), crc32c(&[&expected, b"abc"]));
        assert_eq!(bytes[52..], [0; 12]);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let payload = [0x5a; 100];
        let mut bytes = sample().encode(Kind::Answer, &payload).to_vec();
        bytes.extend(payload);
        let frame = Frame::parse(&bytes).expect("whole");
        assert_eq!((frame.kind, frame.header()), (Kind::Answer, sample()));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::parse(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(Frame::parse(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn another_version_is_told_apart_from_noise() {
        let mut bytes = sample().encode(Kind::Hello, &[]);
        bytes[2] = 9;
        assert_eq!(Frame::parse(&bytes).expect_err("refused"), FrameError::Version(9));
        assert_eq!(Frame::parse(b"GET / HTTP/1.1").expect_err("refused"), FrameError::Foreign);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Frame::parse(&bytes);
        }
    }
}
