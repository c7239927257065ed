//! What a block costs, beside the floor: one copy, one keyed BLAKE3, one seal.

use std::hint::black_box;
use std::time::{Duration, Instant};

use block_core::{BLOCK_SIZE, BlockCount, Blocks, Lba, LbaRange};
use interpose::Settings;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::device::Forgetful;
use crate::machine::{Machine, make};

/// Blocks of the volume: 1 GiB.
const BLOCKS: u64 = 256 * 1024;

/// Blocks that each round writes: more than a checkpoint's worth.
const ROUND: u64 = 128 * 1024;

/// Prints the table.
pub(crate) fn run(rounds: usize) -> anyhow::Result<()> {
    let device = Forgetful::new(BlockCount(4 * BLOCKS));
    make(&device, None)?;
    let settings = Settings { overlay: 32 << 20, read_cache: 0, ..Settings::default() };
    let mut machine = Machine::open(&device, settings, true)?;
    let (_, volume) = machine.volume("cost", BLOCKS)?;
    let mut rows: Vec<(&str, Vec<f64>, Vec<f64>)> = Vec::new();
    let mut add = |name: &'static str, time: Duration, floor: Duration| {
        let nanos = time.as_nanos() as f64 / ROUND as f64;
        let ratio = time.as_secs_f64() / floor.as_secs_f64();
        match rows.iter_mut().find(|(row, ..)| *row == name) {
            Some((_, all, ratios)) => {
                all.push(nanos);
                ratios.push(ratio);
            }
            None => rows.push((name, vec![nanos], vec![ratio])),
        }
    };
    for _ in 0..rounds {
        let floor = floor();
        add("floor: copy, hash, seal", floor, floor);
        for (name, size) in [("unique, 4 KiB requests", 1), ("unique, 128 KiB requests", 32)] {
            let mut buffer = machine.buffer()?;
            let start = Instant::now();
            for number in 0..ROUND / size {
                machine.make_unique(&mut buffer, size as usize);
                buffer = machine.write(&volume, number * size % BLOCKS, size, buffer)?;
                if number * size % 32 == 0 {
                    machine.run(volume.flush())??;
                }
            }
            add(name, start.elapsed(), floor);
        }
        for (name, byte) in [("duplicate, 4 KiB requests", 1), ("zero, 4 KiB requests", 0)] {
            let mut buffer = machine.buffer()?;
            let start = Instant::now();
            for number in 0..ROUND {
                buffer[..BLOCK_SIZE].fill(byte);
                buffer = machine.write(&volume, number % BLOCKS, 1, buffer)?;
                if number % 32 == 0 {
                    machine.run(volume.flush())??;
                }
            }
            add(name, start.elapsed(), floor);
        }
        let open = opening();
        let mut buffer = machine.buffer()?;
        let start = Instant::now();
        for number in 0..ROUND {
            let range = LbaRange { start: Lba(number % BLOCKS), count: BlockCount(1) };
            let outcome;
            (buffer, outcome) = machine.run(volume.read(range, buffer, 0))?;
            outcome?;
            black_box(&buffer);
        }
        add("read of a hole, 4 KiB requests", start.elapsed(), open);
    }
    println!("{:<34} {:>10} {:>14}", "4 KiB block", "ns median", "x floor median");
    for (name, mut nanos, mut ratios) in rows {
        nanos.sort_by(f64::total_cmp);
        ratios.sort_by(f64::total_cmp);
        let middle = nanos.len() / 2;
        println!("{name:<34} {:>10.0} {:>14.2}", nanos[middle], ratios[middle]);
    }
    println!("{:?}", machine.pool.figures().since);
    Ok(())
}

/// One copy, one keyed hash and one seal of each block.
fn floor() -> Duration {
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

/// One opening of each block.
fn opening() -> Duration {
    let key = key();
    let mut block = vec![1u8; BLOCK_SIZE];
    let sealed = key.seal_in_place_separate_tag(nonce(1), Aad::from([0; 32]), &mut block);
    let Ok(tag) = sealed else { return Duration::ZERO };
    let kept = block.clone();
    let mut spent = Duration::ZERO;
    for _ in 0..ROUND {
        block.copy_from_slice(&kept);
        let start = Instant::now();
        let opened =
            key.open_in_place_separate_tag(nonce(1), Aad::from([0; 32]), tag, &mut block, 0..);
        black_box(opened.is_ok());
        spent += start.elapsed();
    }
    spent
}

fn key() -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[9; 32]).expect("32 bytes"))
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}
