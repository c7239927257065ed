//! Inputs that nobody means well with, for whatever parses or serves them.
//!
//! A [`Target`] runs a check with inputs that are made of valid ones. An input
//! that the check has seen something new with is made more of. A check fails by
//! a panic, by allocating more than the target may, or by not coming back. What
//! failed is made small, printed, and can be run again.
//!
//! | variable | meaning |
//! |---|---|
//! | `VRIO_FUZZ_SECONDS=N` | each target runs N seconds, from a seed that nobody has chosen |
//! | `VRIO_FUZZ_SEED=N` | the seed, instead of 0 |
//! | `VRIO_FUZZ_INPUT=HEX` | each target runs this input and no other |

mod mutation;
mod script;
mod shrink;
mod sys;
mod watch;

use std::any::Any;
use std::cell::Cell;
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use script::Script;
pub use sys::Metered;

/// Inputs that are kept to make others of.
const MOST_KEPT: usize = 4096;

/// What is run with hostile inputs.
#[derive(Debug)]
pub struct Target {
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    cases: u64,
    most_bytes: usize,
    may_allocate: usize,
}

impl Target {
    /// A target of that name: the test's, so that it can be found again.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, corpus: Vec::new(), cases: 1000, most_bytes: 512, may_allocate: usize::MAX }
    }

    /// Adds a valid input, of which others are made.
    #[must_use]
    pub fn with(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.corpus.push(input.into());
        self
    }

    /// How many inputs are run when no time was asked for.
    #[must_use]
    pub const fn cases(mut self, cases: u64) -> Self {
        self.cases = cases;
        self
    }

    /// Inputs are not longer than this, in bytes.
    #[must_use]
    pub const fn most_bytes(mut self, most: usize) -> Self {
        self.most_bytes = most;
        self
    }

    /// The check's thread never has more bytes on the heap than this, above
    /// what it had before. Only with [`Metered`] as the program's allocator.
    #[must_use]
    pub const fn may_allocate(mut self, bytes: usize) -> Self {
        self.may_allocate = bytes;
        self
    }

    /// Runs the check. It answers with what it saw: inputs with which it sees
    /// what it never saw before are made more of.
    ///
    /// # Panics
    /// When an input fails, which is printed.
    pub fn run<S: Hash>(self, check: impl Fn(&[u8]) -> S) {
        if let Ok(hex) = std::env::var("VRIO_FUZZ_INPUT") {
            let input = from_hex(&hex).expect("VRIO_FUZZ_INPUT is a hexadecimal number");
            check(&input);
            return;
        }
        let time = number("VRIO_FUZZ_SECONDS").map(Duration::from_secs);
        let chosen = number("VRIO_FUZZ_SEED");
        let seed = chosen.unwrap_or_else(|| time.map_or(0, |_| RandomState::new().hash_one(0)));
        let ran = self.run_from(seed, time, &check);
        if time.is_some() {
            println!("{}: {ran} inputs from seed {seed}", self.name);
        }
    }

    fn run_from<S: Hash>(
        &self,
        seed: u64,
        time: Option<Duration>,
        check: &impl Fn(&[u8]) -> S,
    ) -> u64 {
        let mut random = StdRng::seed_from_u64(seed);
        let watch = watch::Watch::start(self.name);
        let begun = Instant::now();
        let mut known = HashSet::new();
        let mut corpus = self.corpus.clone();
        corpus.push(Vec::new());
        let valid = corpus.len() as u64;
        for case in 0.. {
            match time {
                Some(time) if begun.elapsed() > time => return case,
                None if case == self.cases.max(valid) => return case,
                _ => {}
            }
            let input = match corpus.get(case as usize) {
                Some(valid_input) if case < valid => valid_input.clone(),
                _ => mutation::another(&corpus, self.most_bytes, &mut random),
            };
            watch.begins(&input);
            match self.attempt(&input, check) {
                Ok(seen) => {
                    if known.insert(seen) {
                        keep(&mut corpus, valid as usize, input, &mut random);
                    }
                }
                Err(why) => self.fail(&input, &why, check, &watch),
            }
        }
        unreachable!("the loop has no end of its own")
    }

    fn attempt<S: Hash>(&self, input: &[u8], check: &impl Fn(&[u8]) -> S) -> Result<u64, String> {
        let meter = sys::Meter::start();
        let outcome = quietly(|| check(input));
        let most = meter.most();
        let seen = outcome.map_err(|panic| words(&*panic))?;
        if most > self.may_allocate {
            return Err(format!("{most} bytes on the heap, {} are allowed", self.may_allocate));
        }
        let mut hasher = DefaultHasher::new();
        seen.hash(&mut hasher);
        Ok(hasher.finish())
    }

    fn fail<S: Hash>(
        &self,
        input: &[u8],
        why: &str,
        check: &impl Fn(&[u8]) -> S,
        watch: &watch::Watch,
    ) -> ! {
        let (small, why) = shrink::smallest(input, why, |smaller| {
            watch.begins(smaller);
            self.attempt(smaller, check).err()
        });
        panic!(
            "{}: {why}\nan input of {} bytes; run it again with\nVRIO_FUZZ_INPUT={} cargo test {}",
            self.name,
            small.len(),
            to_hex(&small),
            self.name
        )
    }
}

/// Valid inputs stay; of the others any one makes room.
fn keep(corpus: &mut Vec<Vec<u8>>, valid: usize, input: Vec<u8>, random: &mut StdRng) {
    if corpus.len() < valid + MOST_KEPT {
        corpus.push(input);
    } else {
        let place = random.random_range(valid..corpus.len());
        corpus[place] = input;
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs it; what it panics with is told once, at the end, with the input.
fn quietly<T>(run: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            } else if let Some(at) = info.location() {
                PLACE.set(Some((at.file().to_owned(), at.line())));
            }
        }));
    });
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    QUIET.set(false);
    outcome
}

thread_local! {
    static PLACE: Cell<Option<(String, u32)>> = const { Cell::new(None) };
}

fn words(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
    let (file, line) = PLACE.take().unwrap_or_default();
    format!("{file}:{line}: {}", words.unwrap_or("a panic without words"))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not '{text}'")))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |&[high, low]: &[u8; 2]| Some((digit(high)? << 4 | digit(low)?) as u8);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Metered = Metered;

    fn failure(target: Target, check: impl Fn(&[u8]) -> u8) -> Option<String> {
        let outcome = catch_unwind(AssertUnwindSafe(|| target.run_from(0, None, &check)));
        outcome.err().map(|panic| words(&*panic))
    }

    /// A parser that trusts the third byte, behind two that must be right: it is
    /// found step by step, because each right byte is something new.
    #[test]
    fn what_is_behind_several_checks_is_found_and_made_small() {
        let target = Target::new("deep").with([1; 8]).cases(200_000);
        let found = failure(target, |input| match input {
            [b'v', b'R', at, ..] => input[usize::from(*at)..][0].min(1) + 2,
            [b'v', ..] => 1,
            _ => 0,
        });
        let found = found.expect("the bug is found");
        let hex = found.split("VRIO_FUZZ_INPUT=").nth(1).expect("an input").split(' ').next();
        let input = from_hex(hex.expect("hex")).expect("hex");
        assert_eq!(input[..2], *b"vR");
        assert!(input.len() < 8, "{found}");
    }

    #[test]
    fn more_memory_than_is_allowed_is_a_failure() {
        let target = || Target::new("memory").with([0]).cases(300).may_allocate(1 << 16);
        let takes = |bytes: usize| {
            failure(target(), move |_| {
                std::hint::black_box(vec![1u8; bytes]);
                0
            })
        };
        assert_eq!(takes(1 << 12), None);
        assert!(takes(1 << 17).is_some_and(|why| why.contains("on the heap")));
    }

    #[test]
    fn bytes_survive_being_printed() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex("abc"), None);
        assert_eq!(from_hex("xy"), None);
    }
}
