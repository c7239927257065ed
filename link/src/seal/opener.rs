//! What comes: a frame is believed once, and only if the other end made it.

use std::time::Duration;

use block_core::Time;
use ring::aead::{Aad, LessSafeKey};

use super::chain::Chain;
use super::sealer::nonce;
use super::window::Window;
use crate::frame::{Arrived, SEALED_HEADER};
use crate::rtt::MAX_TIMEOUT;

/// How long frames of the phase before are believed: three of the longest round
/// trips that the link waits for.
pub(super) const OLD_PHASE: Duration = Duration::from_millis(3 * MAX_TIMEOUT.as_millis() as u64);

/// Opens one direction of one session.
pub(super) struct Opener {
    phase: u64,
    key: LessSafeKey,
    /// The key of the phase before, and until when it is good.
    old: Option<(LessSafeKey, Time)>,
    /// Made beforehand: a frame that only looks like one of the next phase must
    /// not cost more than any other.
    next: LessSafeKey,
    next_chain: Chain,
    /// The least counter that was verified under `key`: what is below it, and
    /// of another phase, is of the one before.
    lowest: u64,
    window: Window,
}

impl Opener {
    pub(super) fn new(chain: &Chain) -> Self {
        let next_chain = chain.next();
        Self {
            phase: 0,
            key: chain.key(),
            old: None,
            next: next_chain.key(),
            next_chain,
            lowest: 0,
            window: Window::new(),
        }
    }

    pub(super) const fn phase(&self) -> u64 {
        self.phase
    }

    /// About how many frames the other end's present key has sealed.
    pub(super) fn passed(&self) -> u64 {
        self.window.newest().saturating_sub(self.lowest)
    }

    /// Opens a frame where it is; `None` if it came before, or too late, or the
    /// other end did not make it.
    pub(super) fn open(&mut self, now: Time, arrived: Arrived<'_>) -> Option<()> {
        let counter = arrived.counter();
        if !arrived.is_sealed() || !self.window.admits(counter) {
            return None;
        }
        let is_current = arrived.is_of_odd_phase() == (self.phase % 2 == 1);
        let is_old = !is_current && counter < self.lowest;
        if is_old {
            self.old.take_if(|(_, until)| now > *until);
        }
        let key = match (is_current, is_old) {
            (true, _) => &self.key,
            (false, true) => &self.old.as_ref()?.0,
            (false, false) => &self.next,
        };
        let (aad, tag) = (Aad::from(&arrived.head[..SEALED_HEADER]), arrived.tag().into());
        key.open_in_place_separate_tag(nonce(counter), aad, tag, arrived.payload, 0..).ok()?;
        self.window.note(counter);
        if !is_current && !is_old {
            self.advance(now, counter);
        } else if is_current {
            self.lowest = self.lowest.min(counter);
        }
        Some(())
    }

    fn advance(&mut self, now: Time, counter: u64) {
        self.phase += 1;
        self.next_chain = self.next_chain.next();
        let key = std::mem::replace(&mut self.next, self.next_chain.key());
        self.old = Some((std::mem::replace(&mut self.key, key), now + OLD_PHASE));
        self.lowest = counter;
    }
}
