//! What a front says to get a volume, and what it hears: the bodies of attach
//! requests and answers, little-endian, drawn in ARCHITECTURE.md.

use std::fmt;

use thiserror::Error;

use crate::path::VolumeHandle;

/// Who a front is: a UUID that it keeps in its state directory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrontId(pub [u8; 16]);

impl fmt::Display for FrontId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for FrontId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrontId({self})")
    }
}

/// Most bytes of a volume's name.
pub const MAX_NAME_BYTES: usize = 63;

/// A volume's name: 1 to 63 of `a-z A-Z 0-9 . _ -`, the first one a letter or
/// digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeName(String);

/// Why a text is no volume name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is not a volume name: use 1 to 63 letters, digits, '.', '_' or '-', \
     beginning with a letter or digit"
)]
pub struct BadName(String);

impl VolumeName {
    /// The name, when `text` is one.
    ///
    /// # Errors
    /// [`BadName`], a sentence that says what a name may be.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let bytes = text.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let valid = (1..=MAX_NAME_BYTES).contains(&bytes.len())
            && bytes[0].is_ascii_alphanumeric()
            && bytes.iter().all(plain);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName(text.escape_debug().to_string()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What a front may do with a volume, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Access {
    /// Read it; others may read too.
    Read = 1,
    /// Read and change it; nobody else has it.
    Write = 2,
}

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// Which volume.
    pub name: VolumeName,
    /// What for.
    pub access: Access,
    /// The verifier under which every change that the front had answered is
    /// there: it has sent again what may have been lost before. Zero when it
    /// cannot say so.
    pub settled: u64,
    /// Whether this start of the front has had the volume since it started. If
    /// so it may hold changes for it, and the server gives it to nobody who is
    /// not the last that had it.
    pub had: bool,
}

/// What the front learns about a volume that it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Names the volume in requests of this session.
    pub handle: VolumeHandle,
    /// The volume's identity, also after it was renamed.
    pub volume_id: [u8; 16],
    /// Raised by restore, import and forced detach.
    pub generation: u64,
    /// Changes when answered, unflushed writes may have been lost. Never zero.
    pub verifier: u64,
    /// The verifier under which this front's answered changes were all there,
    /// as it was stored before this attach. If it is another than `verifier`,
    /// what the front had answered and not flushed may have been lost since.
    pub stored_verifier: u64,
    /// The size.
    pub sectors: u64,
    /// Whether changes are refused.
    pub read_only: bool,
}

/// Why the front did not get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// No volume has that name.
    #[error("the server has no such volume; `vrio volume list` shows what it has")]
    Unknown,
    /// Another front writes to it.
    #[error(
        "it is attached for writing by front {0}; stop that front, or run \
         `vrio volume detach` on the server if it will not come back"
    )]
    HasWriter(FrontId),
    /// Others read it, and a writer must be alone.
    #[error("{0} other fronts have it attached for reading, and a writer must be alone")]
    HasReaders(u32),
    /// The volume is marked read-only.
    #[error("the volume is read-only; attach it with `read_only = true`")]
    ReadOnly,
    /// The server is at a limit.
    #[error("the server has no room for another attachment")]
    Full,
    /// The server could not store the attachment.
    #[error("the server could not store the attachment; its log says why")]
    Failed,
    /// The volume has come in part only.
    #[error(
        "the volume is being imported; attach it when `vrio snapshot import` has come to its end"
    )]
    Importing,
    /// A later start of the same front has had it.
    #[error(
        "a later start of this front has had the volume: its state directory is a copy or was \
         set back; give each front a state directory of its own"
    )]
    Stale,
    /// The front has had it, and it was given back or taken away since.
    #[error(
        "a later start of this front has given the volume back, or it was restored or detached by \
         force, since this front had it; start the guest anew to use it"
    )]
    NotYours,
    /// The front's key is not authorized for it.
    #[error(
        "this front's key is not authorized for the volume; allow it with \
         `vrio server authorize` on the server"
    )]
    NotAuthorized,
    /// The front's key is authorized to read it only.
    #[error(
        "this front's key is authorized to read the volume only; attach it with \
         `read_only = true`, or allow more with `vrio server authorize` on the server"
    )]
    OnlyToRead,
}

impl Refused {
    /// Whether a front that had the volume should ask again rather than stop
    /// its disk: the server or its device may only be in trouble for a while.
    #[must_use]
    pub const fn may_pass(self) -> bool {
        matches!(self, Self::Unknown | Self::Full | Self::Failed)
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachReply {
    /// It is yours.
    Attached(Attached),
    /// Another worker of this server owns the volume: attach it there.
    Elsewhere {
        /// The UDP port that the worker listens on, at the same address.
        port: u16,
    },
    /// You cannot have it.
    Refused(Refused),
}

/// Bytes of every attach body.
pub const BODY_BYTES: usize = 80;

/// Where a request says that its front has had the volume.
const HAD_AT: usize = 2 + MAX_NAME_BYTES;

impl AttachRequest {
    /// A first request for a volume.
    #[must_use]
    pub const fn new(name: VolumeName, access: Access) -> Self {
        Self { name, access, settled: 0, had: false }
    }

    /// `access u8 | name length u8 | name 63 | had u8 | zero 6 | settled u64`
    /// in 80 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        let name = self.name.as_str().as_bytes();
        body[0] = self.access as u8;
        body[1] = name.len() as u8;
        body[2..2 + name.len()].copy_from_slice(name);
        body[HAD_AT] = u8::from(self.had);
        body[72..80].copy_from_slice(&self.settled.to_le_bytes());
        body
    }

    /// The request in a body that a peer sent, if it is one.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; BODY_BYTES] = body.first_chunk()?;
        let access = match body[0] {
            1 => Access::Read,
            2 => Access::Write,
            _ => return None,
        };
        let name = body.get(2..2 + usize::from(body[1]))?;
        let name = VolumeName::new(std::str::from_utf8(name).ok()?).ok()?;
        let had = match body[HAD_AT] {
            0 => false,
            1 => true,
            _ => return None,
        };
        let settled = u64::from_le_bytes(*body[72..].first_chunk()?);
        Some(Self { name, access, settled, had })
    }
}

const ATTACHED: u8 = 1;
const ELSEWHERE: u8 = 2;
const REFUSED: u8 = 3;

impl AttachReply {
    /// `tag u8 | code u8 | handle or port u16 | count u32 | generation u64 |
    /// verifier u64 | sectors u64 | id 16 | stored verifier u64 | zero` in 80
    /// bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        match self {
            Self::Attached(attached) => {
                body[0] = ATTACHED;
                body[1] = u8::from(attached.read_only);
                body[2..4].copy_from_slice(&attached.handle.0.to_le_bytes());
                body[8..16].copy_from_slice(&attached.generation.to_le_bytes());
                body[16..24].copy_from_slice(&attached.verifier.to_le_bytes());
                body[24..32].copy_from_slice(&attached.sectors.to_le_bytes());
                body[32..48].copy_from_slice(&attached.volume_id);
                body[48..56].copy_from_slice(&attached.stored_verifier.to_le_bytes());
            }
            Self::Elsewhere { port } => {
                body[0] = ELSEWHERE;
                body[2..4].copy_from_slice(&port.to_le_bytes());
            }
            Self::Refused(refused) => {
                body[0] = REFUSED;
                body[1] = match refused {
                    Refused::Unknown => 1,
                    Refused::HasWriter(front) => {
                        body[32..48].copy_from_slice(&front.0);
                        2
                    }
                    Refused::HasReaders(count) => {
                        body[4..8].copy_from_slice(&count.to_le_bytes());
                        3
                    }
                    Refused::ReadOnly => 4,
                    Refused::Full => 5,
                    Refused::Failed => 6,
                    Refused::Importing => 7,
                    Refused::Stale => 8,
                    Refused::NotYours => 9,
                    Refused::NotAuthorized => 10,
                    Refused::OnlyToRead => 11,
                };
            }
        }
        body
    }

    /// The answer in a body that a peer sent, if it is one.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; BODY_BYTES] = body.first_chunk()?;
        let word = |at: usize| body[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let short = u16::from_le_bytes([body[2], body[3]]);
        let id: [u8; 16] = *body[32..].first_chunk()?;
        Some(match (body[0], body[1]) {
            (ATTACHED, read_only @ (0 | 1)) => Self::Attached(Attached {
                handle: VolumeHandle(short),
                volume_id: id,
                generation: word(8)?,
                verifier: word(16)?,
                stored_verifier: word(48)?,
                sectors: word(24)?,
                read_only: read_only == 1,
            }),
            (ELSEWHERE, 0) => Self::Elsewhere { port: short },
            (REFUSED, 1) => Self::Refused(Refused::Unknown),
            (REFUSED, 2) => Self::Refused(Refused::HasWriter(FrontId(id))),
            (REFUSED, 3) => Self::Refused(Refused::HasReaders(u32::from_le_bytes([
                body[4], body[5], body[6], body[7],
            ]))),
            (REFUSED, 4) => Self::Refused(Refused::ReadOnly),
            (REFUSED, 5) => Self::Refused(Refused::Full),
            (REFUSED, 6) => Self::Refused(Refused::Failed),
            (REFUSED, 7) => Self::Refused(Refused::Importing),
            (REFUSED, 8) => Self::Refused(Refused::Stale),
            (REFUSED, 9) => Self::Refused(Refused::NotYours),
            (REFUSED, 10) => Self::Refused(Refused::NotAuthorized),
            (REFUSED, 11) => Self::Refused(Refused::OnlyToRead),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VolumeName {
        VolumeName::new(text).expect("a name")
    }

    #[test]
    fn names_are_checked_where_they_are_made() {
        for good in ["a", "vm-1.disk_0", "0", &"x".repeat(63)] {
            assert!(VolumeName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "-a", "a/b", "a b", "ä", "a\n", &"x".repeat(64)] {
            assert!(VolumeName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests_and_answers_survive_the_wire() {
        for (access, had) in [(Access::Read, false), (Access::Write, true)] {
            let settled = u64::MAX - 1;
            let request = AttachRequest { name: name(&"x".repeat(63)), access, settled, had };
            assert_eq!(AttachRequest::parse(&request.encode()), Some(request));
        }
        let attached = Attached {
            handle: VolumeHandle(513),
            volume_id: [9; 16],
            generation: 3,
            verifier: u64::MAX,
            stored_verifier: 77,
            sectors: 1 << 40,
            read_only: true,
        };
        for reply in [
            AttachReply::Attached(attached),
            AttachReply::Elsewhere { port: 65_535 },
            AttachReply::Refused(Refused::Unknown),
            AttachReply::Refused(Refused::HasWriter(FrontId([7; 16]))),
            AttachReply::Refused(Refused::HasReaders(70_000)),
            AttachReply::Refused(Refused::ReadOnly),
            AttachReply::Refused(Refused::Full),
            AttachReply::Refused(Refused::Failed),
            AttachReply::Refused(Refused::Importing),
            AttachReply::Refused(Refused::Stale),
            AttachReply::Refused(Refused::NotYours),
            AttachReply::Refused(Refused::NotAuthorized),
            AttachReply::Refused(Refused::OnlyToRead),
        ] {
            assert_eq!(AttachReply::parse(&reply.encode()), Some(reply));
        }
    }

    #[test]
    fn a_body_that_lies_about_its_name_is_refused() {
        let mut body = AttachRequest::new(name("a"), Access::Read).encode();
        body[1] = 200;
        assert_eq!(AttachRequest::parse(&body), None);
        assert_eq!(AttachRequest::parse(&body[..79]), None);
    }

    #[test]
    fn whether_a_front_has_had_the_volume_is_yes_or_no() {
        let mut body = AttachRequest::new(name("a"), Access::Write).encode();
        body[HAD_AT] = 2;
        assert_eq!(AttachRequest::parse(&body), None);
    }
}
