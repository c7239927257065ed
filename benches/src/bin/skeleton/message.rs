//! What crosses the network: a header, and behind it a block where there is one to carry.

use crate::ring::Request;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// Bytes of a header: a cache line, of which ten are used.
pub(crate) const HEADER: usize = 64;

/// A message with a block.
pub(crate) const FULL: usize = HEADER + BLOCK;

/// Writes a header: `slot u32 | block u32 | write u8`, little-endian.
pub(crate) fn write(request: Request, header: &mut [u8; HEADER]) {
    header[..4].copy_from_slice(&request.slot.to_le_bytes());
    header[4..8].copy_from_slice(&request.block.to_le_bytes());
    header[8] = u8::from(request.write);
}

/// Reads a header; `None` when it is none.
pub(crate) fn read(message: &[u8]) -> Option<Request> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| header[at + byte]));
    Some(Request { slot: word(0), block: word(4), write: header[8] == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_out_as_it_went_in() {
        for write in [false, true] {
            let request = Request { slot: 255, block: 0x0102_0304, write };
            let mut header = [0; HEADER];
            super::write(request, &mut header);
            assert_eq!(read(&header), Some(request));
        }
        assert_eq!(read(&[0; HEADER - 1]), None);
    }
}
