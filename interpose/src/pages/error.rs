//! Why a page cannot be had, or not be written.

use block_core::{BlockError, Pba};
use thiserror::Error;

use crate::layout::Class;
use crate::vault::VaultError;

/// A page that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the {class:?} page at block {} {what}", pba.0)]
pub struct Damage {
    /// Where it lies.
    pub pba: Pba,
    /// What it should be.
    pub class: Class,
    /// What is wrong with it.
    pub what: What,
}

/// What is wrong with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum What {
    /// The device does not give it: it may do so later.
    #[error("cannot be read: {0}")]
    Unreadable(BlockError),
    /// Its bytes are not those that were sealed for this place.
    #[error("is not what was written there")]
    Unopened,
    /// Its seal is good and what it says cannot be.
    #[error("is malformed")]
    Malformed,
    /// It was damaged when something below it was changed.
    #[error(
        "was damaged, and what it had is lost: write it anew, restore the volume, or delete it"
    )]
    GivenUp,
}

/// Why a page could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PagesError {
    /// The device's error.
    #[error("a page could not be written at block {}: {error}", pba.0)]
    Unwritten {
        /// Where it should lie.
        pba: Pba,
        /// What the device says.
        error: BlockError,
    },
    /// There is no key to seal it with.
    #[error("a page could not be sealed: {0}")]
    Unsealed(VaultError),
}
