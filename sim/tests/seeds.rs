//! Many short worlds, each from its own seed. `VRIO_SEEDS=N` runs N of them in
//! each part; a seed that fails is run again by
//! `cargo run -p sim -- --seed SEED --trace`.

use std::cell::RefCell;
use std::rc::Rc;

use sim::run::Stage;

/// Worlds of each part; each takes about 15 ms.
const SEEDS: u64 = 5000;

fn part(number: u64) {
    let seeds = std::env::var("VRIO_SEEDS").ok().and_then(|text| text.parse().ok());
    let stage = Stage::new().expect("a key file");
    let mut requests = 0;
    for seed in 0..seeds.unwrap_or(SEEDS) {
        match stage.run(number * 1_000_000 + seed, None) {
            Ok(summary) => requests += summary.requests,
            Err(failure) => panic!("seed {}: {}", failure.seed, failure.what),
        }
    }
    assert!(requests > 10 * seeds.unwrap_or(SEEDS), "{requests} requests are too few");
}

#[test]
fn guests_see_nothing_wrong_whatever_fails_1() {
    part(1);
}

#[test]
fn guests_see_nothing_wrong_whatever_fails_2() {
    part(2);
}

/// What fails once can be looked at: a seed does the same again.
#[test]
fn a_seed_tells_the_same_story_twice() {
    let stage = Stage::new().expect("a key file");
    for seed in 0..20 {
        let told = || {
            let story: Rc<RefCell<String>> = Rc::default();
            let heard = Rc::clone(&story);
            let listener = Box::new(move |line: &str| heard.borrow_mut().push_str(line));
            let outcome = stage.run(seed, Some(listener));
            (outcome, story.take())
        };
        let (first, again) = (told(), told());
        assert_eq!(first.0, again.0, "seed {seed}");
        assert!(first.1 == again.1 && !first.1.is_empty(), "seed {seed}");
    }
}
