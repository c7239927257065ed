//! What a volume may read as.
//!
//! For each sector the oracle keeps every version that a read may still bring.
//! A write that began after another one had ended supersedes it; of writes that
//! were under way together either may have been the last. What a read has
//! brought supersedes whatever had ended before that read began: a sector does
//! not go back. So a write that takes effect twice, too late or in pieces is
//! seen as soon as a read can tell.

use std::collections::BTreeMap;
use std::fmt;

use block_core::SECTOR_SIZE;
use block_core::SectorRange;

/// What a sector holds: a word, repeated. Zero is a sector of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content(pub u64);

impl Content {
    /// What a new volume and what was discarded reads as.
    pub const ZERO: Self = Self(0);

    /// Fills a sector.
    pub fn fill(self, sector: &mut [u8]) {
        for word in sector.chunks_exact_mut(8) {
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }

    /// What a sector holds; `None` when it is not one word throughout: then it
    /// is a mixture of several writes, or of nobody's.
    #[must_use]
    pub fn of(sector: &[u8]) -> Option<Self> {
        let (first, rest) = sector.split_first_chunk::<8>()?;
        let same = rest.chunks_exact(8).all(|word| word == first);
        same.then(|| Self(u64::from_le_bytes(*first)))
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("zeroes"),
            word => write!(f, "{word:#x}"),
        }
    }
}

/// A moment in the order in which a guest saw things begin and end.
type Moment = u64;

const NEVER: Moment = Moment::MAX;

/// Names a request to the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug)]
struct Version {
    by: RequestId,
    content: Content,
    begun: Moment,
    ended: Moment,
    /// No read that begins later brings it.
    dead: Moment,
    /// No crash brings it back after this.
    buried: Moment,
    /// It was answered with success.
    certain: bool,
}

/// Requests under way, as the oracle knows them.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Moment,
    range: Option<SectorRange>,
}

/// Why what a guest saw is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong(pub String);

/// What one volume may read as.
#[derive(Debug)]
pub struct Oracle {
    now: Moment,
    sectors: Vec<Vec<Version>>,
    running: BTreeMap<RequestId, Begun>,
    /// What had ended before and was not durable may be lost.
    lost: Moment,
}

impl Oracle {
    /// A volume of so many sectors, all of them zeroes.
    #[must_use]
    pub fn new(sectors: u64) -> Self {
        let version = Version {
            by: RequestId(0),
            content: Content::ZERO,
            begun: 0,
            ended: 0,
            dead: NEVER,
            buried: NEVER,
            certain: true,
        };
        let sectors = (0..sectors).map(|_| vec![version.clone()]).collect();
        Self { now: 0, sectors, running: BTreeMap::new(), lost: 0 }
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// A request that changes nothing has begun.
    pub fn begin(&mut self, id: RequestId, range: Option<SectorRange>) {
        let at = self.tick();
        self.running.insert(id, Begun { at, range });
    }

    /// A change has begun, which makes each sector what `content` says.
    pub fn begin_change(
        &mut self,
        id: RequestId,
        range: SectorRange,
        content: impl Fn(u64) -> Content,
    ) {
        self.begin(id, Some(range));
        let begun = self.now;
        for at in range.start()..range.end() {
            let content = content(at);
            self.sectors[at as usize].push(Version {
                by: id,
                content,
                begun,
                ended: NEVER,
                dead: NEVER,
                buried: NEVER,
                certain: false,
            });
        }
    }

    fn take(&mut self, id: RequestId) -> Begun {
        self.running.remove(&id).expect("what ends has begun")
    }

    /// A change was answered with success: it has taken effect. `durable` says
    /// that no crash may lose it.
    pub fn end_change(&mut self, id: RequestId, durable: bool) {
        // Its answer may be from before the crash, and what it did lost.
        if self.running[&id].at < self.lost {
            return self.end_in_doubt(id);
        }
        let Begun { at: begun, range } = self.take(id);
        let now = self.tick();
        let range = range.expect("a change has a range");
        for at in range.start()..range.end() {
            for version in &mut self.sectors[at as usize] {
                if version.by == id {
                    (version.ended, version.certain) = (now, true);
                } else if version.ended < begun {
                    version.dead = version.dead.min(now);
                    if durable {
                        version.buried = version.buried.min(now);
                    }
                }
            }
            self.forget(at);
        }
    }

    /// A change has ended, and nobody says whether it took effect: it failed,
    /// or was one that may do nothing, or the guest died with it. If it did,
    /// then before now.
    pub fn end_in_doubt(&mut self, id: RequestId) {
        let Begun { range, .. } = self.take(id);
        let now = self.tick();
        let Some(range) = range else { return };
        for at in range.start()..range.end() {
            for version in self.sectors[at as usize].iter_mut().filter(|version| version.by == id) {
                version.ended = now;
            }
        }
    }

    /// A read or flush has ended without effect, or nobody knows.
    pub fn give_up(&mut self, id: RequestId) {
        self.take(id);
    }

    /// A flush was answered with success: what had ended when it began is
    /// durable.
    pub fn end_flush(&mut self, id: RequestId) {
        let Begun { at: begun, .. } = self.take(id);
        self.make_durable(begun);
    }

    /// All that has ended is durable.
    pub fn settle(&mut self) {
        let now = self.tick();
        self.make_durable(now);
    }

    fn make_durable(&mut self, until: Moment) {
        let now = self.tick();
        for sector in &mut self.sectors {
            let covered = sector
                .iter()
                .filter(|one| one.certain && self.lost <= one.ended && one.ended < until);
            let Some(newest) = covered.map(|version| version.begun).max() else { continue };
            for version in sector.iter_mut().filter(|version| version.ended < newest) {
                version.buried = version.buried.min(now);
            }
        }
    }

    /// A read was answered with this data.
    ///
    /// # Errors
    /// When no allowed order of writes gives it.
    pub fn end_read(&mut self, id: RequestId, data: &[u8]) -> Result<(), Wrong> {
        let Begun { at: begun, range } = self.take(id);
        let now = self.tick();
        let range = range.expect("a read has a range");
        for (at, bytes) in (range.start()..range.end()).zip(data.chunks_exact(SECTOR_SIZE)) {
            let Some(content) = Content::of(bytes) else {
                return Err(Wrong(format!("sector {at} is a mixture: {:x?}...", &bytes[..24])));
            };
            self.observe(at, content, begun, now)?;
            self.forget(at);
        }
        Ok(())
    }

    fn observe(
        &mut self,
        at: u64,
        content: Content,
        begun: Moment,
        now: Moment,
    ) -> Result<(), Wrong> {
        let sector = &mut self.sectors[at as usize];
        let allowed = |version: &Version| version.content == content && version.dead > begun;
        let mut fitting = sector.iter().filter(|version| allowed(version));
        let Some(seen) = fitting.next() else {
            let versions: Vec<String> = sector.iter().map(ToString::to_string).collect();
            return Err(Wrong(format!(
                "sector {at} read as {content} from {begun} to {now}; allowed: {}",
                versions.join(", ")
            )));
        };
        // Of two that look alike nobody can say which one it was.
        if fitting.next().is_some() {
            return Ok(());
        }
        let (by, since) = (seen.by, seen.begun);
        for version in sector.iter_mut().filter(|version| version.by != by) {
            if version.ended < begun || version.ended < since {
                version.dead = version.dead.min(now);
            }
        }
        Ok(())
    }

    /// What was not durable may have been lost, and nobody sends it again.
    pub fn lose_what_was_not_flushed(&mut self) {
        self.lost = self.tick();
        for version in self.sectors.iter_mut().flatten() {
            version.dead = version.buried;
        }
    }

    /// Drops versions that neither a running read nor a crash can bring back.
    fn forget(&mut self, at: u64) {
        let oldest = self.running.values().map(|begun| begun.at).min().unwrap_or(self.now);
        self.sectors[at as usize].retain(|version| version.buried >= oldest);
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} from {}", self.content, self.by.0, self.begun)?;
        if self.ended != NEVER {
            write!(f, " to {}", self.ended)?;
        }
        if self.dead != NEVER {
            write!(f, ", superseded at {}", self.dead)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one() -> SectorRange {
        SectorRange::new(0, 1).expect("a sector")
    }

    fn write(oracle: &mut Oracle, id: u64) {
        oracle.begin_change(RequestId(id), one(), |_| Content(id));
    }

    fn read(oracle: &mut Oracle, id: u64, content: u64) -> Result<(), Wrong> {
        oracle.begin(RequestId(id), Some(one()));
        brings(oracle, id, content)
    }

    fn brings(oracle: &mut Oracle, id: u64, content: u64) -> Result<(), Wrong> {
        let mut data = [0; SECTOR_SIZE];
        Content(content).fill(&mut data);
        oracle.end_read(RequestId(id), &data)
    }

    #[test]
    fn a_read_brings_the_last_write_and_no_other() {
        let mut oracle = Oracle::new(1);
        assert!(read(&mut oracle, 9, 0).is_ok());
        write(&mut oracle, 1);
        oracle.end_change(RequestId(1), false);
        assert!(read(&mut oracle, 9, 1).is_ok());
        assert!(read(&mut oracle, 9, 0).is_err(), "the write has ended");
        assert!(read(&mut oracle, 9, 2).is_err(), "nobody wrote that");
    }

    #[test]
    fn writes_at_once_may_end_in_any_order_but_in_one() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle, 1);
        write(&mut oracle, 2);
        oracle.end_change(RequestId(1), false);
        oracle.end_change(RequestId(2), false);
        assert!(read(&mut oracle, 9, 1).is_ok(), "the first may have been the last");
        assert!(read(&mut oracle, 9, 2).is_err(), "then it is not the second any more");
    }

    /// A write that was seen before it was answered has taken effect; what it
    /// replaced does not come back.
    #[test]
    fn a_sector_does_not_go_back() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle, 1);
        assert!(read(&mut oracle, 9, 0).is_ok(), "not yet");
        assert!(read(&mut oracle, 9, 1).is_ok());
        assert!(read(&mut oracle, 9, 0).is_err());
    }

    /// A read that was under way may bring either.
    #[test]
    fn a_read_that_began_before_may_bring_what_was() {
        let mut oracle = Oracle::new(1);
        oracle.begin(RequestId(8), Some(one()));
        oracle.begin(RequestId(7), Some(one()));
        write(&mut oracle, 1);
        oracle.end_change(RequestId(1), false);
        assert!(read(&mut oracle, 9, 1).is_ok());
        assert!(brings(&mut oracle, 8, 0).is_ok());
        assert!(brings(&mut oracle, 7, 1).is_ok());
    }

    #[test]
    fn a_crash_may_take_what_was_not_flushed_and_nothing_else() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle, 1);
        oracle.end_change(RequestId(1), false);
        oracle.begin(RequestId(5), None);
        oracle.end_flush(RequestId(5));
        write(&mut oracle, 2);
        oracle.end_change(RequestId(2), false);
        oracle.lose_what_was_not_flushed();
        assert!(read(&mut oracle, 9, 0).is_err(), "the first write was flushed");
        assert!(read(&mut oracle, 9, 1).is_ok());
    }

    #[test]
    fn what_is_in_doubt_may_be_there_and_then_stays() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle, 1);
        oracle.end_in_doubt(RequestId(1));
        assert!(read(&mut oracle, 9, 0).is_ok());
        assert!(read(&mut oracle, 9, 1).is_err(), "it had ended without effect");
    }

    /// The front hears after a crash of what was answered before it: what was
    /// done may be gone.
    #[test]
    fn an_answer_that_a_crash_overtook_promises_nothing() {
        let mut oracle = Oracle::new(1);
        write(&mut oracle, 1);
        oracle.lose_what_was_not_flushed();
        oracle.end_change(RequestId(1), true);
        oracle.begin(RequestId(5), None);
        oracle.end_flush(RequestId(5));
        assert!(read(&mut oracle, 9, 0).is_ok());
    }

    #[test]
    fn a_mixture_is_no_content() {
        let mut data = [0; SECTOR_SIZE];
        Content(3).fill(&mut data);
        assert_eq!(Content::of(&data), Some(Content(3)));
        data[100] = 7;
        assert_eq!(Content::of(&data), None);
    }
}
