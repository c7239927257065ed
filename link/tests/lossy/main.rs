//! A client and a server over a link that loses, doubles, reorders, delays
//! and damages frames, in virtual time, from a seed.
//!
//! The oracle: each write runs once, or as if once; each read returns what
//! some allowed order of the writes gives; what was flushed is on the medium;
//! and once the faults end everything ends.

mod disk;
mod world;

use std::cell::RefCell;
use std::rc::Rc;

use link::wire::Wire;
use link::wire::memory::Port;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use world::{CLIENT, Faults, Narrowing, SERVER, World};

const CLEAN: Faults = Faults {
    loss: 0,
    double: 0,
    damage: 0,
    delay: 0,
    mtu: 9000,
    kills: 0,
    resets: 0,
    narrows: None,
};

fn seeds() -> u64 {
    std::env::var("VRIO_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(600)
}

fn faults_of(seed: u64) -> Faults {
    let mut random = StdRng::seed_from_u64(!seed);
    let mut up_to = |most: u32| random.random_range(0..=most);
    let (loss, double, damage, delay) = (up_to(120), up_to(60), up_to(40), up_to(300));
    let mtu = [9000, 4200, 1500, 1280][seed as usize % 4];
    Faults { loss, double, damage, delay, mtu, ..CLEAN }
}

#[test]
fn hundreds_of_bad_links_lose_nothing_and_repeat_nothing() {
    for seed in 0..seeds() {
        World::new(seed, faults_of(seed)).run(120);
    }
}

/// The path becomes narrower under a session: requests, answers or both that
/// passed do not any more. That is a pause.
#[test]
fn a_path_that_becomes_narrower_is_a_pause() {
    for seed in 0..seeds() / 2 {
        let mtu = [4200, 1500, 1280][seed as usize % 3];
        let to = [None, Some(CLIENT), Some(SERVER)][seed as usize / 3 % 3];
        let narrows = Some(Narrowing { at: 10 + seed % 70, mtu, to });
        let faults = if seed % 2 == 0 { CLEAN } else { faults_of(seed) };
        World::new(seed, Faults { mtu: 9000, narrows, ..faults }).run(120);
    }
}

/// The host of the server dies, again and again, also while the front sends
/// again what was lost: the guest notices nothing but the time.
#[test]
fn a_server_that_loses_what_it_had_not_flushed_is_a_pause() {
    for seed in 0..seeds() / 2 {
        let faults = Faults { kills: 1 + seed as usize % 4, ..faults_of(seed) };
        World::new(seed, faults).run(150 + 150 * (seed % 4));
    }
}

/// The device loses its cache and the server lives: the front hears of it by
/// an error or by the verifier of a flush, and sends again what was lost.
#[test]
fn a_device_that_loses_its_cache_is_a_pause() {
    for seed in 0..seeds() / 2 {
        let faults = Faults { resets: 1 + seed as usize % 3, ..faults_of(seed) };
        let faults = Faults { kills: seed as usize % 2, ..faults };
        World::new(seed, faults).run(200);
    }
}

/// A front was killed and started again; then the server died. What the first
/// front had answered was in the server's memory only, and nobody had a copy.
#[test]
fn what_a_killed_front_had_answered_is_flushed_before_the_next_one_serves() {
    World::new(7, CLEAN).restart_front();
}

#[test]
fn a_clean_link_needs_no_repeats() {
    let mut world = World::new(1, CLEAN);
    world.run(500);
}

/// Frames that no honest front sends: the server drops them, and the session
/// next door goes on.
#[test]
fn random_frames_disturb_nobody() {
    let mut world = World::new(3, CLEAN);
    let noise = Rc::new(RefCell::new(StdRng::seed_from_u64(4)));
    let mut stranger = world.network.end(Port(3));
    let kinds = [1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20];
    for _ in 0..5000 {
        let mut random = noise.borrow_mut();
        let mut payload = vec![0; *[0, 16, 40, 80, 1024, 4096].choose(&mut *random).expect("one")];
        random.fill(&mut payload[..]);
        let header = link::frame::Header {
            session: random.random_range(0..4),
            counter: random.random(),
            number: random.random_range(0..3),
            slot: random.random_range(0..200),
            attempt: random.random(),
            offset: random.random(),
            count: random.random(),
            volume: random.random(),
            op: random.random_range(0..70),
            word: random.random(),
            news: random.random(),
        };
        let mut bytes = header.encode(link::frame::Kind::Request, &payload);
        bytes[3] = *kinds.choose(&mut *random).expect("one");
        let crc = block_core::crc32c(&[&bytes[..48], &payload]);
        bytes[48..52].copy_from_slice(&crc.to_le_bytes());
        let to = if random.random() { SERVER } else { CLIENT };
        stranger.send(&to, &bytes, &payload);
    }
    world.run(200);
}
