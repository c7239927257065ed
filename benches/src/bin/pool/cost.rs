//! What a block costs, beside its floor: for a write one copy, one keyed
//! BLAKE3 and one seal; for a read what the device does, and one opening.

use std::hint::black_box;
use std::time::{Duration, Instant};

use block_core::BLOCK_SIZE;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use benches::pool::row::{Row, Subject};

/// Blocks that each round writes: several checkpoints' worth.
const ROUND: u64 = 128 * 1024;

/// Blocks that the floors go through: as many as a volume that is read has.
const FLOOR_BLOCKS: usize = 4096;

/// Prints the table.
pub(crate) fn run(rounds: usize) -> anyhow::Result<()> {
    let mut floors = [Vec::new(), Vec::new()];
    let mut rows = Vec::new();
    for row in Row::ALL {
        let mut subject = Subject::new(row, ROUND)?;
        let (mut times, mut ratios) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let floor = if row == Row::Read { opening() } else { sealing() };
            floors[usize::from(row == Row::Read)].push(per_block(floor));
            let start = Instant::now();
            subject.measure(ROUND)?;
            let spent = start.elapsed();
            times.push(per_block(spent));
            ratios.push(spent.as_secs_f64() / floor.as_secs_f64());
        }
        rows.push((row, median(times), median(ratios)));
    }
    println!("{:<36} {:>10} {:>9}", "4 KiB block, medians", "ns", "x floor");
    let [sealing, opening] = floors.map(median);
    println!("{:<36} {sealing:>10.0}", "floor of writes: copy, hash, seal");
    println!("{:<36} {opening:>10.0}", "floor of reads: copy, open");
    for (row, nanos, ratio) in rows {
        println!("{:<36} {nanos:>10.0} {ratio:>9.2}", row.name());
    }
    Ok(())
}

fn per_block(time: Duration) -> f64 {
    time.as_nanos() as f64 / ROUND as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One copy, one keyed hash and one seal of each block.
fn sealing() -> Duration {
    let key = key();
    let (source, mut block) = (vec![1u8; BLOCK_SIZE], vec![0u8; BLOCK_SIZE]);
    let hash_key = [5; 32];
    let start = Instant::now();
    for number in 0..ROUND {
        block.copy_from_slice(black_box(&source));
        black_box(blake3::keyed_hash(&hash_key, &block));
        let nonce = nonce(number);
        let _ = black_box(key.seal_in_place_separate_tag(nonce, Aad::from([0; 32]), &mut block));
    }
    start.elapsed()
}

/// One copy and one opening of each block.
fn opening() -> Duration {
    let key = key();
    let mut sealed = vec![1u8; FLOOR_BLOCKS * BLOCK_SIZE];
    let mut tags = Vec::new();
    for (number, block) in (0..).zip(sealed.chunks_exact_mut(BLOCK_SIZE)) {
        let tag = key.seal_in_place_separate_tag(nonce(number), Aad::from([0; 32]), block);
        tags.push(tag.expect("a block is not too long"));
    }
    let mut block = vec![0; BLOCK_SIZE];
    let start = Instant::now();
    for number in 0..ROUND {
        let at = number as usize % FLOOR_BLOCKS;
        block.copy_from_slice(&sealed[at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE]);
        let (nonce, tag) = (nonce(at as u64), tags[at]);
        let opened =
            key.open_in_place_separate_tag(nonce, Aad::from([0; 32]), tag, &mut block, 0..);
        assert!(black_box(opened).is_ok());
    }
    start.elapsed()
}

fn key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[9; 32]).expect("32 bytes"))
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
