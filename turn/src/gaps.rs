//! Whether it pays to wait for work awake: only if it has been coming soon.

use std::time::Duration;

use block_core::Time;

/// How long an adaptive loop stays awake without work: about what a wake-up across
/// cores costs (40 to 100 us on a shared virtual machine), so that waiting costs at
/// most twice the better choice.
pub(crate) const AWAKE: Duration = Duration::from_micros(100);

/// A gap that would have been about as short for somebody awake: with a wake-up in it,
/// and the 100 us for which a controller may gather completions before it interrupts.
const SHORT: Duration = Duration::from_micros(300);
const _: () = assert!(SHORT.as_micros() >= 2 * AWAKE.as_micros() + 100);

/// So many gaps in a row have to be short before work is waited for awake. The answer
/// to a request that came after a long silence is one of them.
const SOON: u32 = 4;

/// How long a loop was without work, lately.
#[derive(Debug)]
pub(crate) struct Gaps {
    last_moved: Time,
    /// Short gaps since the last long one.
    short: u32,
}

impl Gaps {
    pub(crate) const fn new(now: Time) -> Self {
        Self { last_moved: now, short: 0 }
    }

    /// A turn at `now` moved something.
    pub(crate) fn moved(&mut self, now: Time) {
        let short = now - self.last_moved < SHORT;
        self.short = if short { self.short.saturating_add(1) } else { 0 };
        self.last_moved = now;
    }

    /// Whether to stay awake at `now`, when nothing moves.
    pub(crate) fn pays(&self, now: Time) -> bool {
        self.short >= SOON && now - self.last_moved < AWAKE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Duration = Duration::from_micros(60);
    const LONG: Duration = Duration::from_millis(15);

    /// Moments at which something moves, each so long after the one before; how
    /// often the loop stayed awake for what came next.
    fn awake(gaps: impl IntoIterator<Item = Duration>) -> usize {
        let mut now = Time::ZERO;
        let mut lately = Gaps::new(now);
        let mut awake = 0;
        for gap in gaps {
            now = now + gap;
            lately.moved(now);
            awake += usize::from(lately.pays(now));
        }
        awake
    }

    /// Disks that hardly do anything: each request is two pieces of work soon after
    /// each other and then a long silence. Waiting awake for the next one cost more
    /// than all of its work.
    #[test]
    fn rare_requests_are_not_waited_for_awake() {
        assert_eq!(awake([LONG, SOME].into_iter().cycle().take(1000)), 0);
    }

    #[test]
    fn work_that_keeps_coming_is() {
        assert_eq!(awake([SOME; 1000]), 997);
        let hiccups = (0..1000).map(|number| if number % 100 == 50 { LONG } else { SOME });
        assert!(awake(hiccups) > 940);
    }

    /// Also after long work, sleep comes within a moment.
    #[test]
    fn nobody_stays_awake_for_long() {
        let mut gaps = Gaps::new(Time::ZERO);
        (0..100).for_each(|_| gaps.moved(Time::ZERO));
        assert!(gaps.pays(Time::ZERO));
        assert!(!gaps.pays(Time::ZERO + AWAKE));
    }
}
