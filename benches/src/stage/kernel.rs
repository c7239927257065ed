//! What is done to the bytes of a frame.

use std::hint::black_box;

use anyhow::{anyhow, ensure};
use block_core::crc32c;
use link::frame::{Frame, HEADER_BYTES, Header, Kind};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};

use super::{OPERATIONS, Round};
use crate::meter::Meter;

/// Bytes of a header that its checksum or seal covers.
const COVERED: usize = 48;

const BLOCK: usize = 4096;

fn header(number: u64) -> Header {
    Header {
        session: 7,
        counter: number,
        number,
        slot: number as u16 % 128,
        count: 8,
        op: 2,
        word: number * 8,
        ..Header::default()
    }
}

/// A frame of so many bytes becomes a header.
pub(super) fn encode(bytes: usize) -> anyhow::Result<Round> {
    let payload = vec![5; bytes];
    Ok(Box::new(move |meter: &mut Meter| {
        meter.measure(|| {
            for number in 0..OPERATIONS as u64 {
                black_box(header(black_box(number)).encode(Kind::Request, &payload));
            }
        });
        Ok(())
    }))
}

/// A frame that came becomes a header and its payload.
pub(super) fn decode(bytes: usize) -> anyhow::Result<Round> {
    let payload = vec![5; bytes];
    let mut frame = header(1).encode(Kind::Request, &payload).to_vec();
    frame.extend(payload);
    Ok(Box::new(move |meter: &mut Meter| {
        let whole = meter.measure(|| {
            let parse = |_: &usize| black_box(Frame::parse(black_box(&frame))).is_ok();
            (0..OPERATIONS).filter(parse).count()
        });
        ensure!(whole == OPERATIONS, "a frame is damaged");
        Ok(())
    }))
}

/// A header's bytes and a block.
pub(super) fn checksum() -> anyhow::Result<Round> {
    let (head, block) = ([3; COVERED], vec![5; BLOCK]);
    Ok(Box::new(move |meter: &mut Meter| {
        meter.measure(|| {
            for _ in 0..OPERATIONS {
                black_box(crc32c(&[black_box(&head), black_box(&block)]));
            }
        });
        Ok(())
    }))
}

/// Blocks that are sealed where they are, by the call that `link` makes.
struct Blocks {
    key: LessSafeKey,
    blocks: Vec<[u8; BLOCK]>,
    tags: Vec<Tag>,
}

impl Blocks {
    fn new() -> anyhow::Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &[9; 32]);
        let key = LessSafeKey::new(key.map_err(|_| anyhow!("a key has 32 bytes"))?);
        let blocks = vec![[1; BLOCK]; OPERATIONS];
        Ok(Self { key, blocks, tags: Vec::with_capacity(OPERATIONS) })
    }

    /// The same numbers in each round: nothing that matters is under this key.
    fn seal(&mut self) -> anyhow::Result<()> {
        self.tags.clear();
        for (number, block) in (0..).zip(&mut self.blocks) {
            let tag = self.key.seal_in_place_separate_tag(nonce(number), covered(), block);
            self.tags.push(tag.map_err(|_| anyhow!("a block is too long"))?);
        }
        Ok(())
    }

    fn open(&mut self) -> anyhow::Result<()> {
        for ((number, block), tag) in (0..).zip(&mut self.blocks).zip(&self.tags) {
            let key = &self.key;
            let opened = key.open_in_place_separate_tag(nonce(number), covered(), *tag, block, 0..);
            opened.map_err(|_| anyhow!("a block was not sealed by this key"))?;
        }
        Ok(())
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn covered() -> Aad<[u8; COVERED]> {
    Aad::from([3; COVERED])
}

/// Seals blocks.
pub(super) fn seal() -> anyhow::Result<Round> {
    let mut blocks = Blocks::new()?;
    Ok(Box::new(move |meter: &mut Meter| meter.measure(|| blocks.seal())))
}

/// Opens blocks.
pub(super) fn open() -> anyhow::Result<Round> {
    let mut blocks = Blocks::new()?;
    Ok(Box::new(move |meter: &mut Meter| {
        blocks.seal()?;
        meter.measure(|| blocks.open())
    }))
}

const _: () = assert!(COVERED < HEADER_BYTES);
