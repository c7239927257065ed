//! What a pool keeps for the server with a volume, as bytes that the pool does
//! not look into. The pool's seal protects them.
//!
//! ```text
//! 0    version, u8 (1) | access, u8 (0 nobody, 1 readers, 2 a writer) |
//!      flags, u8 (1 read-only, 2 imported) | zero, u8
//! 4    order epoch, u32
//! 8    generation, u64
//! 16   attachments, u16 | bytes of settings, u16 | zero, u32
//! 24   attachments: front 16 bytes | incarnation u64 | verifier u64
//! ..   settings
//! ..   if imported: provenance, 144 bytes (see [`Provenance`])
//! ```

use interpose::layout::provenance::Provenance;
use link::FrontId;

use crate::attachments::{Attachment, Attachments, MAX_FRONTS};
use crate::layout::{MAX_SETTINGS, VolumeRecord};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 24;
const ATTACHMENT_BYTES: usize = 32;

const _: () = assert!(
    HEAD_BYTES + MAX_FRONTS * ATTACHMENT_BYTES + MAX_SETTINGS + Provenance::BYTES
        <= interpose::layout::control::MAX_ATTRIBUTES
);

/// The server's part of a volume's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Whether nobody may change it.
    pub read_only: bool,
    /// Raised by restore, import and forced detach.
    pub generation: u64,
    /// The high part of order numbers.
    pub order_epoch: u32,
    /// Who has it.
    pub attachments: Attachments,
    /// How its requests are treated on their way.
    pub settings: Vec<u8>,
    /// What was imported into it.
    pub provenance: Provenance,
}

impl Attributes {
    /// A new volume's.
    #[must_use]
    pub fn fresh(read_only: bool) -> Self {
        Self { read_only, generation: 1, ..Self::default() }
    }

    /// What a record says.
    #[must_use]
    pub fn of(record: &VolumeRecord) -> Self {
        Self {
            read_only: record.read_only,
            generation: record.generation,
            order_epoch: record.order_epoch,
            attachments: record.attachments.clone(),
            settings: record.settings.clone(),
            provenance: record.provenance,
        }
    }

    /// The attributes as bytes.
    ///
    /// # Panics
    /// If there are more attachments or settings than there is room for;
    /// whoever makes records keeps the limits.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.attachments.count() <= MAX_FRONTS && self.settings.len() <= MAX_SETTINGS);
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[0] = VERSION;
        bytes[1] = match self.attachments {
            Attachments::None => 0,
            Attachments::Readers(_) => 1,
            Attachments::Writer(_) => 2,
        };
        let is_imported = self.provenance != Provenance::default();
        bytes[2] = u8::from(self.read_only) | u8::from(is_imported) << 1;
        bytes[4..8].copy_from_slice(&self.order_epoch.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..18].copy_from_slice(&(self.attachments.count() as u16).to_le_bytes());
        bytes[18..20].copy_from_slice(&(self.settings.len() as u16).to_le_bytes());
        for (_, attachment) in self.attachments.iter() {
            bytes.extend_from_slice(&attachment.front.0);
            bytes.extend_from_slice(&attachment.incarnation.to_le_bytes());
            bytes.extend_from_slice(&attachment.verifier.to_le_bytes());
        }
        bytes.extend_from_slice(&self.settings);
        if is_imported {
            bytes.extend_from_slice(&self.provenance.encode());
        }
        bytes
    }

    /// The attributes that some bytes are, or `None` when they are none of
    /// this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        if head[0] != VERSION {
            return None;
        }
        let count = usize::from(u16::from_le_bytes([head[16], head[17]]));
        let settings = usize::from(u16::from_le_bytes([head[18], head[19]]));
        if count > MAX_FRONTS || settings > MAX_SETTINGS {
            return None;
        }
        let (attached, rest) = rest.split_at_checked(count * ATTACHMENT_BYTES)?;
        let (settings, rest) = rest.split_at_checked(settings)?;
        let provenance = match (head[2] & 2 != 0, rest) {
            (false, []) => Provenance::default(),
            (true, rest) => Provenance::decode(rest).ok()?,
            (false, _) => return None,
        };
        let mut attached = attached.chunks_exact(ATTACHMENT_BYTES).map(|bytes| Attachment {
            front: FrontId(array(bytes, 0)),
            incarnation: u64::from_le_bytes(array(bytes, 16)),
            verifier: u64::from_le_bytes(array(bytes, 24)),
        });
        let attachments = match (head[1], count) {
            (0, 0) => Attachments::None,
            (1, 1..) => Attachments::Readers(attached.collect()),
            (2, 1) => Attachments::Writer(attached.next()?),
            _ => return None,
        };
        Some(Self {
            read_only: head[2] & 1 != 0,
            generation: u64::from_le_bytes(array(head, 8)),
            order_epoch: u32::from_le_bytes(array(head, 4)),
            attachments,
            settings: settings.to_vec(),
            provenance,
        })
    }
}

/// The bytes at a constant place.
fn array<const N: usize>(from: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&from[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use block_core::Lba;
    use interpose::layout::control::{MAX_ATTRIBUTES, SnapshotKey};
    use interpose::layout::provenance::Coming;
    use interpose::layout::stream::Origin;
    use interpose::layout::{Epoch, LineId, PoolId};

    use super::*;

    fn full() -> Attributes {
        let attachment = |number| Attachment {
            front: FrontId([number; 16]),
            incarnation: 1 << 40,
            verifier: u64::MAX,
        };
        Attributes {
            read_only: true,
            generation: u64::MAX,
            order_epoch: u32::MAX,
            attachments: Attachments::Readers((0..MAX_FRONTS as u8).map(attachment).collect()),
            settings: vec![7; MAX_SETTINGS],
            provenance: imported(),
        }
    }

    fn imported() -> Provenance {
        let snapshot = SnapshotKey { line: LineId(1), epoch: Epoch(2) };
        let origin = |number| Origin { pool: PoolId([number; 16]), snapshot, tag: [9; 16] };
        let (source, base) = (origin(4), Some(origin(3)));
        let coming = Coming { source, base, position: Lba(5), since: Epoch(3) };
        Provenance { held: Some((origin(3), snapshot)), coming: Some(coming) }
    }

    #[test]
    fn what_is_stored_with_a_volume_comes_back() {
        let writer = Attachment { front: FrontId([1; 16]), incarnation: 2, verifier: 3 };
        let written =
            Attributes { attachments: Attachments::Writer(writer), ..Attributes::fresh(false) };
        let some = Attributes { provenance: imported(), ..Attributes::fresh(false) };
        for attributes in [Attributes::fresh(true), written, some, full()] {
            let bytes = attributes.encode();
            assert!(bytes.len() <= MAX_ATTRIBUTES);
            assert_eq!(Attributes::parse(&bytes), Some(attributes));
        }
    }

    #[test]
    fn what_contradicts_itself_is_nothing() {
        let good = full().encode();
        assert_eq!(Attributes::parse(&good[..good.len() - 1]), None, "cut off");
        assert_eq!(Attributes::parse(&[&good[..], &[0]].concat()), None, "too long");
        for (at, lie) in
            [(0, 2), (0, 0), (2, 1), (1, 0), (1, 2), (1, 9), (16, 65), (17, 1), (19, 255)]
        {
            let mut bytes = good.clone();
            bytes[at] = lie;
            assert_eq!(Attributes::parse(&bytes), None, "{lie} at {at}");
        }
        for cut in 0..HEAD_BYTES {
            assert_eq!(Attributes::parse(&good[..cut]), None);
        }
    }
}
