//! How one input becomes another.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Numbers at which code is often wrong.
pub(crate) const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX / 2,
    u64::MAX,
];

/// One in so many inputs is noise from its first to its last byte.
const NOISE: u32 = 16;

/// An input that is made of those in the corpus, at most `most` bytes long.
pub(crate) fn another(corpus: &[Vec<u8>], most: usize, random: &mut StdRng) -> Vec<u8> {
    if random.random_ratio(1, NOISE) {
        let len = random.random_range(0..=most);
        return noise(len, random);
    }
    let mut input = corpus.choose(random).cloned().unwrap_or_default();
    for _ in 0..random.random_range(1..=4) {
        change(&mut input, corpus, most, random);
    }
    input.truncate(most);
    input
}

fn noise(len: usize, random: &mut StdRng) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes[..]);
    bytes
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], most: usize, random: &mut StdRng) {
    let len = input.len();
    if len == 0 {
        let len = random.random_range(0..=most.min(64));
        *input = noise(len, random);
        return;
    }
    let at = random.random_range(0..len);
    let count = random.random_range(1..=(len - at).min(32));
    match random.random_range(0..12) {
        0 | 1 => input[at] ^= 1 << random.random_range(0..8),
        2 | 3 => input[at] = random.random(),
        4 | 5 => put_edge(input, at, random),
        6 => input[at] = input[at].wrapping_add(random.random_range(0..=16)).wrapping_sub(8),
        7 => drop(input.drain(at..at + count)),
        8 => {
            let bytes = noise(count, random);
            input.splice(at..at, bytes);
        }
        9 => {
            let bytes = input[at..at + count].to_vec();
            let to = random.random_range(0..=len);
            input.splice(to..to, bytes);
        }
        10 => random.fill(&mut input[at..at + count]),
        _ => {
            let other = corpus.choose(random).map_or(&[][..], Vec::as_slice);
            input.truncate(at);
            input.extend_from_slice(&other[at.min(other.len())..]);
        }
    }
}

/// Puts a number of the edges there, in 2, 4 or 8 bytes.
fn put_edge(input: &mut [u8], at: usize, random: &mut StdRng) {
    let bytes = EDGES[random.random_range(0..EDGES.len())].to_le_bytes();
    let width = [2, 4, 8][random.random_range(0..3)];
    let at = if random.random() { at - at % width } else { at };
    for (to, from) in input[at..].iter_mut().zip(&bytes[..width]) {
        *to = *from;
    }
}
