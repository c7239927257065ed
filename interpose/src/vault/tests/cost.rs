//! What sealing, opening and hashing cost beside the libraries alone, in one
//! run: `cargo test --release -p interpose -- --ignored --nocapture cost`.

use std::hint::black_box;
use std::time::Instant;

use ring::aead::Tag;

use super::*;
use crate::hash::{hash_many, is_zero};
use crate::layout::record::Hash;
use crate::layout::{Binding, Class};
use block_core::Pba;

const BLOCKS: usize = 32;
const ROUNDS: usize = 31;
const LOOPS: usize = 40;

/// Nanoseconds a block, best and median of the rounds. `work` does
/// [`BLOCKS`] blocks.
fn measure(name: &str, mut work: impl FnMut()) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..LOOPS).for_each(|_| work());
            start.elapsed().as_nanos() as f64 / (LOOPS * BLOCKS) as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name:44} {:6.0} {:6.0}", rounds[0], rounds[ROUNDS / 2]);
}

#[test]
#[ignore = "prints figures"]
fn cost_of_a_block_beside_the_libraries() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    let era = vault.era().expect("begun");
    let mut blocks = vec![[0; BLOCK_SIZE]; BLOCKS];
    let mut random = StdRng::seed_from_u64(1);
    blocks.iter_mut().for_each(|block| random.fill_bytes(block));
    let aad = Binding::data(domain, Pba(77)).encode(&POOL);
    println!("{:44} {:>6} {:>6}  ns a block", "", "best", "median");

    let schedule = Key::from_bytes(&[1; 32]).schedule();
    let mut seq = 0;
    measure("seal: ring alone", || {
        for block in &mut blocks {
            seq += 1;
            let sealed = schedule.seal_in_place_separate_tag(nonce(seq), Aad::from(&aad), block);
            black_box(&sealed);
        }
    });
    measure("seal: the vault, with the binding encoded", || {
        for (at, block) in (0..).zip(&mut blocks) {
            let aad = Binding::data(domain, Pba(at)).encode(&vault.pool_id());
            black_box(&vault.seal(domain, &aad, block));
        }
    });
    let page = Binding::page(Class::Map, 0, Pba(5)).encode(&POOL);
    measure("seal: the vault, data and pages in turn", || {
        for (at, block) in blocks.iter_mut().enumerate() {
            let (domain, aad) =
                if at % 2 == 0 { (domain, &aad) } else { (DomainId::METADATA, &page) };
            black_box(&vault.seal(domain, aad, block));
        }
    });

    // A block that opens must be sealed again each time, so both are timed.
    measure("seal and open: ring alone", || {
        for block in &mut blocks {
            seq += 1;
            let sealed = schedule.seal_in_place_separate_tag(nonce(seq), Aad::from(&aad), block);
            let tag: Tag = sealed.expect("sealed");
            let aad = Aad::from(&aad);
            let opened = schedule.open_in_place_separate_tag(nonce(seq), aad, tag, block, 0..);
            black_box(opened.expect("opened"));
        }
    });
    measure("seal and open: the vault", || {
        for block in &mut blocks {
            let seal = vault.seal(domain, &aad, block).expect("sealed");
            vault.open(domain, &seal, &aad, block).expect("opened");
        }
    });
    measure("a key that is not in the table", || {
        for _ in 0..BLOCKS {
            vault.schedules.borrow_mut().purge(domain);
            let mut schedules = vault.schedules.borrow_mut();
            black_box(vault.schedule(&mut schedules, domain, era).expect("made"));
        }
    });

    measure("hash: blake3 alone", || {
        for block in &blocks {
            black_box(blake3::keyed_hash(&[1; 32], block));
        }
    });
    let key = vault.hash_key(domain).expect("there");
    measure("hash", || {
        for block in &blocks {
            black_box(hash(&key, block));
        }
    });
    let batch: Vec<&[u8]> = blocks.iter().map(<[u8; _]>::as_slice).collect();
    let mut hashes = vec![Hash::default(); BLOCKS];
    for size in [2, 4, 8, BLOCKS] {
        measure(&format!("hash_many, {size} at a time"), || {
            for (blocks, hashes) in batch.chunks(size).zip(hashes.chunks_mut(size)) {
                hash_many(&key, blocks, hashes);
            }
            black_box(&hashes);
        });
    }
    let zeroes = vec![[0; BLOCK_SIZE]; BLOCKS];
    measure("is_zero, of zeros", || {
        for block in &zeroes {
            black_box(is_zero(black_box(block)));
        }
    });
    measure("is_zero, of others", || {
        for block in &blocks {
            black_box(is_zero(black_box(block)));
        }
    });
}
