//! Runs, one seed each.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use tempfile::TempDir;

use crate::dice::Dice;
use crate::iohost::Furniture;
use crate::scenario::Scenario;
use crate::story::Listener;
use crate::world::{Summary, World};

/// What runs begin with: among it a key file for pools, in a folder that goes
/// when this does.
#[derive(Debug)]
pub struct Stage {
    _folder: TempDir,
    furniture: Furniture,
}

/// A run that went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose.
    pub seed: u64,
    /// What was wrong.
    pub what: String,
}

impl Stage {
    /// A stage for any number of runs.
    ///
    /// # Errors
    /// A sentence about what does not work.
    pub fn new() -> Result<Self> {
        // A large page is cleared as a whole, and a world touches little of its
        // memory.
        rustix::thread::disable_transparent_huge_pages(true)?;
        let folder = tempfile::tempdir()?;
        let key = folder.path().join("key");
        fs::write(&key, [7; 32])?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        Ok(Self { furniture: Furniture::make(key)?, _folder: folder })
    }

    /// Runs a seed's scenario. The listener hears what happens; a run to which
    /// nobody listens is faster.
    ///
    /// # Errors
    /// What went wrong.
    pub fn run(&self, seed: u64, listener: Option<Listener>) -> Result<Summary, Failure> {
        let mut dice = Dice::new(seed);
        let scenario = Scenario::of(&mut dice);
        self.run_scenario(seed, scenario, dice, listener)
    }

    /// Runs a scenario. All else that is left to chance follows from the dice.
    ///
    /// # Errors
    /// What went wrong.
    pub fn run_scenario(
        &self,
        seed: u64,
        scenario: Scenario,
        dice: Dice,
        listener: Option<Listener>,
    ) -> Result<Summary, Failure> {
        let failure = |what: String| Failure { seed, what };
        let mut world = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let made = World::new(scenario, dice, &self.furniture, listener);
            let world = world.insert(made.map_err(|error| failure(format!("{error:#}")))?);
            let now = |world: &World| world.now().nanos() as f64 / 1e6;
            world.run().map_err(|wrong| failure(format!("at {:.3} ms: {}", now(world), wrong.0)))
        }));
        outcome.unwrap_or_else(|panic| {
            // What panicked may panic again when it is dropped.
            std::mem::forget(world);
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(failure(format!("panic: {}", words.unwrap_or("without words"))))
        })
    }
}
