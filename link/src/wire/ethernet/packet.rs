//! What stands before a frame on an Ethernet.
//!
//! ```text
//!  0               6               12          14
//!  +---------------+---------------+-----------+
//!  | to, MAC       | from, MAC     | 0x88 0xB5 |
//!  +-------+-------+--------+------+------+----+
//!  |to u16 |from u16| length u16 | what u8 | 0 | 22
//!  +-------+-------+--------+------+------+----+
//!  | a frame of `length` bytes, then what pads the packet
//! ```
//!
//! Little-endian, except for Ethernet's own EtherType. The network header begins
//! at 14, which the kernel puts at a multiple of 16 bytes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::frame::{HEADER_BYTES, MAX_FRAME};

/// IEEE 802's "local experimental" EtherType 1: free for whoever owns the
/// network, and for nobody else's protocol. A registered one costs money and
/// changes nothing.
pub const ETHER_TYPE: u16 = 0x88b5;

/// Bytes before a frame.
pub const PREAMBLE_BYTES: usize = 22;

/// Bytes of Ethernet's own header.
const ETHERNET_BYTES: usize = 14;

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Everybody on the network.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// An address of one interface. Not a group's: nobody listens for those.
    #[must_use]
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }
}

/// A text that is no hardware address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a hardware address is written as six bytes, as in 02:00:5e:10:00:01")]
pub struct NoMac;

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Self, NoMac> {
        let mut bytes = [0; 6];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let hexadecimal = |word: &&str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
            let word = words.next().filter(|word| word.len() == 2);
            let word = word.filter(hexadecimal).ok_or(NoMac)?;
            *byte = u8::from_str_radix(word, 16).map_err(|_| NoMac)?;
        }
        match words.next() {
            None => Self::new(bytes).ok_or(NoMac),
            Some(_) => Err(NoMac),
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One end: an interface, and who there. Ports tell workers and fronts of one
/// interface apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The interface.
    pub mac: Mac,
    /// Who on it.
    pub port: u16,
}

/// What a packet brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A frame of the link, of so many bytes behind the preamble.
    Frame(usize),
    /// Who listens on this port?
    Seek,
    /// I do.
    Here,
}

impl Content {
    const FRAME: u8 = 0;
    const SEEK: u8 = 1;
    const HERE: u8 = 2;
}

/// Why a packet is not for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotOurs {
    /// Another protocol, or one that looks like this one and is not.
    #[error("not a packet of this protocol")]
    Foreign,
    /// To another end, or in another virtual network.
    #[error("to somebody else")]
    Elsewhere,
    /// Shorter than it says.
    #[error("a part of a packet")]
    Short,
}

/// Who a packet is from, and what it brings to `me`.
///
/// # Errors
/// [`NotOurs`].
pub fn parse(
    bytes: &[u8],
    vlan: Option<u16>,
    me: Endpoint,
) -> Result<(Endpoint, Content), NotOurs> {
    let (head, rest) = bytes.split_first_chunk::<PREAMBLE_BYTES>().ok_or(NotOurs::Short)?;
    let &[t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5, k0, k1, rest_of_head @ ..] = head;
    let [to0, to1, from0, from1, length0, length1, what, zero] = rest_of_head;
    if u16::from_be_bytes([k0, k1]) != ETHER_TYPE || zero != 0 {
        return Err(NotOurs::Foreign);
    }
    let (to, from) = (Mac([t0, t1, t2, t3, t4, t5]), Mac::new([f0, f1, f2, f3, f4, f5]));
    // Priority tags alone name no virtual network.
    let in_vlan = vlan.is_some_and(|tag| tag & 0x0fff != 0);
    let to_me = to == me.mac || to == Mac::BROADCAST && what == Content::SEEK;
    if in_vlan || !to_me || u16::from_le_bytes([to0, to1]) != me.port {
        return Err(NotOurs::Elsewhere);
    }
    let from = from.filter(|&from| from != me.mac).ok_or(NotOurs::Foreign)?;
    let length = usize::from(u16::from_le_bytes([length0, length1]));
    if length > rest.len() {
        return Err(NotOurs::Short);
    }
    let content = match what {
        Content::FRAME if (HEADER_BYTES..=MAX_FRAME).contains(&length) => Content::Frame(length),
        Content::SEEK if length == 0 => Content::Seek,
        Content::HERE if length == 0 => Content::Here,
        _ => return Err(NotOurs::Foreign),
    };
    Ok((Endpoint { mac: from, port: u16::from_le_bytes([from0, from1]) }, content))
}

/// What stands before a frame of `length` bytes.
#[must_use]
pub fn preamble_of_frame(from: Endpoint, to: Endpoint, length: usize) -> [u8; PREAMBLE_BYTES] {
    debug_assert!(length <= MAX_FRAME);
    preamble(from, to, length as u16, Content::FRAME)
}

/// A packet that asks who listens on a port.
#[must_use]
pub fn seek(from: Endpoint, port: u16) -> [u8; PREAMBLE_BYTES] {
    preamble(from, Endpoint { mac: Mac::BROADCAST, port }, 0, Content::SEEK)
}

/// The answer.
#[must_use]
pub fn here(from: Endpoint, to: Endpoint) -> [u8; PREAMBLE_BYTES] {
    preamble(from, to, 0, Content::HERE)
}

fn preamble(from: Endpoint, to: Endpoint, length: u16, what: u8) -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[0..6].copy_from_slice(&to.mac.0);
    bytes[6..12].copy_from_slice(&from.mac.0);
    bytes[12..ETHERNET_BYTES].copy_from_slice(&ETHER_TYPE.to_be_bytes());
    bytes[14..16].copy_from_slice(&to.port.to_le_bytes());
    bytes[16..18].copy_from_slice(&from.port.to_le_bytes());
    bytes[18..20].copy_from_slice(&length.to_le_bytes());
    bytes[20] = what;
    bytes
}

#[cfg(test)]
mod tests {
    use fuzz::Target;

    use super::*;

    const ME: Endpoint = Endpoint { mac: Mac([2, 0, 0, 0, 0, 1]), port: 7700 };
    const OTHER: Endpoint = Endpoint { mac: Mac([2, 0, 0, 0, 0, 2]), port: 49152 };

    fn packet(frame: &[u8]) -> Vec<u8> {
        [&preamble_of_frame(OTHER, ME, frame.len())[..], frame].concat()
    }

    /// Other versions and other implementations read these bytes.
    #[test]
    fn the_layout_is_what_is_drawn() {
        let drawn =
            [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5, 0x14, 0x1e, 0, 0xc0, 64, 0, 0, 0];
        assert_eq!(preamble_of_frame(OTHER, ME, 64), drawn);
        assert_eq!(seek(OTHER, 7700)[..6], [0xff; 6]);
        assert_eq!((seek(OTHER, 7700)[20], here(ME, OTHER)[20]), (1, 2));
    }

    /// Ethernet makes short packets 60 bytes long; what was added is no part of
    /// the frame.
    #[test]
    fn what_pads_a_packet_is_cut() {
        let mut bytes = packet(&[7; HEADER_BYTES]);
        bytes.extend([0xee; 30]);
        assert_eq!(parse(&bytes, None, ME), Ok((OTHER, Content::Frame(HEADER_BYTES))));
        let mut sought = seek(OTHER, ME.port).to_vec();
        sought.resize(60, 0xee);
        assert_eq!(parse(&sought, None, ME), Ok((OTHER, Content::Seek)));
    }

    #[test]
    fn what_is_for_others_is_not_taken() {
        let bytes = packet(&[7; HEADER_BYTES]);
        let elsewhere = Err(NotOurs::Elsewhere);
        assert_eq!(parse(&bytes, None, Endpoint { port: 7701, ..ME }), elsewhere);
        assert_eq!(parse(&bytes, None, OTHER), elsewhere);
        assert_eq!(parse(&bytes, Some(5), ME), elsewhere);
        assert!(parse(&bytes, Some(0xe000), ME).is_ok(), "a priority is no network");
        let mut to_all = bytes.clone();
        to_all[..6].fill(0xff);
        assert_eq!(parse(&to_all, None, ME), elsewhere, "frames are to somebody");
        assert_eq!(parse(&bytes[..bytes.len() - 1], None, ME), Err(NotOurs::Short));
        let mut from_group = bytes.clone();
        from_group[6] |= 1;
        assert_eq!(parse(&from_group, None, ME), Err(NotOurs::Foreign));
    }

    #[test]
    fn hardware_addresses_are_read_as_they_are_written() {
        assert_eq!("02:00:00:00:00:01".parse(), Ok(ME.mac));
        assert_eq!(
            "02:00:5E:10:aB:01".parse::<Mac>().expect("valid").to_string(),
            "02:00:5e:10:ab:01"
        );
        for wrong in [
            "",
            "2:0:0:0:0:1",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00:+1",
        ] {
            assert_eq!(wrong.parse::<Mac>(), Err(NoMac), "{wrong}");
        }
    }

    /// Whatever comes from the cable: what is believed is what we could have sent,
    /// and its frame lies in the packet.
    #[test]
    fn packets_are_refused_or_are_what_they_say() {
        Target::new("packets_are_refused_or_are_what_they_say")
            .with(packet(&[7; HEADER_BYTES]))
            .with(packet(&[7; HEADER_BYTES + 1368]))
            .with(seek(OTHER, ME.port))
            .with([&here(OTHER, ME)[..], &[0; 38]].concat())
            .cases(60_000)
            .most_bytes(PREAMBLE_BYTES + MAX_FRAME + 16)
            .run(|input| {
                let parsed = parse(input, None, ME);
                let again = parsed.map(|(from, content)| match content {
                    Content::Frame(length) => {
                        assert!((HEADER_BYTES..=MAX_FRAME).contains(&length));
                        let frame = &input[PREAMBLE_BYTES..PREAMBLE_BYTES + length];
                        [&preamble_of_frame(from, ME, length)[..], frame].concat()
                    }
                    Content::Seek => {
                        let to = Mac(*input.first_chunk().expect("an address"));
                        preamble(from, Endpoint { mac: to, ..ME }, 0, Content::SEEK).to_vec()
                    }
                    Content::Here => here(from, ME).to_vec(),
                });
                if let Ok(again) = &again {
                    assert_eq!(again[..], input[..again.len()]);
                }
                let kind = parsed.map(|(_, content)| match content {
                    Content::Frame(_) => Content::FRAME,
                    Content::Seek => Content::SEEK,
                    Content::Here => Content::HERE,
                });
                kind.map_err(|error| error.to_string())
            });
    }
}
