//! A page of a dead list: pointers that a snapshot has and what came after it
//! has not.
//!
//! ```text
//! 0    the next older page, a pointer of 32 bytes; a hole in the oldest
//! 32   count u16 | zero 14
//! 48   449 entries of 9 bytes: pba u40 | (birth << 2 | kind) u32
//! ```

use block_core::Pba;
use block_core::unit::BLOCK_SIZE;

use super::control::Malformed;
use super::identity::Epoch;
use super::pointer::{Kind, MAX_BLOCKS, POINTER_BYTES, Pointer};

const HEAD_BYTES: usize = 48;
const ENTRY_BYTES: usize = 9;

/// Entries in a page.
pub const ENTRIES: usize = (BLOCK_SIZE - HEAD_BYTES) / ENTRY_BYTES;

const _: () = assert!(ENTRIES == 449);

/// A reference that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead {
    /// To which block.
    pub pba: Pba,
    /// Since when it was there.
    pub birth: Epoch,
    /// To a page, or to a guest's block.
    pub is_page: bool,
}

/// Writes a page: at most [`ENTRIES`] entries and what is older.
pub fn encode(to: &mut [u8], older: &Pointer, entries: &[Dead]) {
    to.fill(0);
    to[..POINTER_BYTES].copy_from_slice(&older.encode());
    to[32..34].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    for (entry, to) in entries.iter().zip(to[HEAD_BYTES..].chunks_exact_mut(ENTRY_BYTES)) {
        let kind = if entry.is_page { 2 } else { 1 };
        to[..5].copy_from_slice(&entry.pba.0.to_le_bytes()[..5]);
        to[5..].copy_from_slice(&(entry.birth.0 << 2 | kind).to_le_bytes());
    }
}

/// Reads a page: appends its entries, says what is older.
///
/// # Errors
/// When it is malformed.
pub fn decode(page: &[u8], entries: &mut Vec<Dead>) -> Result<Pointer, Malformed> {
    let older: [u8; POINTER_BYTES] = page[..POINTER_BYTES].try_into().map_err(|_| Malformed)?;
    let older = Pointer::decode(&older).ok_or(Malformed)?;
    let count = usize::from(u16::from_le_bytes([page[32], page[33]]));
    if count == 0 || count > ENTRIES || matches!(older.kind, Kind::Data | Kind::Lost) {
        return Err(Malformed);
    }
    for bytes in page[HEAD_BYTES..].chunks_exact(ENTRY_BYTES).take(count) {
        let mut pba = [0; 8];
        pba[..5].copy_from_slice(&bytes[..5]);
        let word = u32::from_le_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
        let pba = Pba(u64::from_le_bytes(pba));
        if pba.0 >= MAX_BLOCKS || !matches!(word & 3, 1 | 2) {
            return Err(Malformed);
        }
        entries.push(Dead { pba, birth: Epoch(word >> 2), is_page: word & 3 == 2 });
    }
    Ok(older)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_these_bytes() {
        let entries = [
            Dead { pba: Pba(0x05_0403_0201), birth: Epoch(2), is_page: false },
            Dead { pba: Pba(9), birth: Epoch(3), is_page: true },
        ];
        let mut page = vec![0xff; BLOCK_SIZE];
        encode(&mut page, &Pointer::HOLE, &entries);
        assert_eq!(page[..34], [&[0; 32][..], &[2, 0]].concat());
        assert_eq!(page[48..66], [1, 2, 3, 4, 5, 9, 0, 0, 0, 9, 0, 0, 0, 0, 14, 0, 0, 0]);
        let mut decoded = Vec::new();
        assert_eq!(decode(&page, &mut decoded), Ok(Pointer::HOLE));
        assert_eq!(decoded, entries);
    }

    /// An entry that is a hole, or a page that says it is empty, would be
    /// walked for nothing or for ever.
    #[test]
    fn what_cannot_be_is_refused() {
        let entry = Dead { pba: Pba(1), birth: Epoch(1), is_page: true };
        let mut page = vec![0; BLOCK_SIZE];
        encode(&mut page, &Pointer::HOLE, &[entry]);
        for (at, byte) in [(32, 0), (33, 2), (48 + 5, 4), (48 + 5, 7)] {
            let mut broken = page.clone();
            broken[at] = byte;
            assert_eq!(decode(&broken, &mut Vec::new()), Err(Malformed), "byte {at}");
        }
    }
}
