//! The seam between a front and whatever serves its requests: a session over
//! a wire, or, fused, the worker in the same thread.
//!
//! Data crosses it once. A write's bytes are fetched out of guest memory into
//! the path's own buffer; a read's bytes are placed straight into guest memory
//! when they have been verified.

use block_core::{BlockError, Op, SectorRange, Time};

/// Names a part to the front that submitted it; the path only carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A volume that the path has attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VolumeHandle(pub u16);

/// One part of a guest's request: at most
/// [`MAX_REQUEST_BYTES`](block_core::unit::MAX_REQUEST_BYTES) of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Comes back with every call about this part.
    pub token: Token,
    /// The volume it is for.
    pub volume: VolumeHandle,
    /// What to do.
    pub op: Op,
    /// Where; `None` only for a flush. Reads and writes are limited in size,
    /// the other operations only by the volume.
    pub range: Option<SectorRange>,
}

/// The data of a part that is being submitted.
pub trait Source {
    /// Copies the first `into.len()` bytes of a write's data out of guest
    /// memory. Called at most once for each [`Path::submit`].
    ///
    /// # Errors
    /// When guest memory does not hold the data (any more); the part is then
    /// not submitted.
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError>;
}

/// The guest's side of the parts that were submitted, as the front shows it to
/// the path.
pub trait Guest {
    /// Copies verified bytes of a read into guest memory, `offset` bytes into
    /// the part's data. Bytes may come in any order and more than once; all
    /// of them have come before a read completes with success.
    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]);

    /// The part has ended; its token is not used again. Called once for each
    /// part that was submitted.
    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>);
}

/// Why a part was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No slot, buffer or credit: leave it in the guest's ring and offer it
    /// again after the next completion.
    Busy,
    /// It will never be taken: end it with this error.
    Failed(BlockError),
}

/// Serves parts. One thread owns it; nothing here blocks.
pub trait Path {
    /// Takes a part, or says why not. A part that was taken is completed
    /// later, from [`Path::turn`].
    ///
    /// # Errors
    /// See [`Refusal`].
    fn submit(&mut self, now: Time, part: Part, source: &mut impl Source) -> Result<(), Refusal>;

    /// Moves everything that can move: takes what has come, places data and
    /// completes parts, sends what is due. Work per call is bounded.
    /// Returns whether anything moved.
    fn turn(&mut self, now: Time, guest: &mut impl Guest) -> bool;

    /// When [`Path::turn`] must be called again even if nothing comes in.
    fn deadline(&self) -> Option<Time>;

    /// Ends every part of `volume` that is still waiting with
    /// [`BlockError::Unreachable`] and forgets it. What is on its way to the
    /// server may still run there; its answer is dropped.
    fn abandon(&mut self, volume: VolumeHandle, guest: &mut impl Guest);
}
