//! A guest with one disk: what it asks for, and what it holds against the
//! answers.

use std::collections::{BTreeMap, VecDeque};

use block_core::unit::{SECTORS_PER_BLOCK, SectorRange};
use block_core::{BlockError, Op, SECTOR_SIZE};
use link::{Attached, Guest as PathGuest, Source, Token, VolumeName};

use crate::dice::Dice;
use crate::oracle::{Content, Oracle, RequestId, Wrong};

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// How many requests it makes.
    pub requests: usize,
    /// How many at a time.
    pub depth: usize,
    /// The sectors that it works on, from the disk's beginning.
    pub sectors: u64,
    /// How many writes in a thousand write what others have written too.
    pub copies: u32,
    /// How many requests in a thousand are large.
    pub large: u32,
}

/// A request of a guest, in its memory.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Which disk of the VMhost.
    pub disk: usize,
    /// What.
    pub op: Op,
    /// Where.
    pub range: Option<SectorRange>,
    data: Vec<u8>,
}

/// The memory of a VMhost's guests: the data of all requests under way.
#[derive(Debug, Default)]
pub struct Memory {
    asked: BTreeMap<u64, Asked>,
    ended: Vec<(Token, Result<(), BlockError>)>,
    last: u64,
}

impl Memory {
    /// The request of that token.
    #[must_use]
    pub fn asked(&self, token: Token) -> &Asked {
        &self.asked[&token.0]
    }

    fn ask(&mut self, asked: Asked) -> Token {
        self.last += 1;
        self.asked.insert(self.last, asked);
        Token(self.last)
    }

    /// What has ended, and is forgotten now.
    pub fn take_ended(&mut self) -> Vec<(Token, Asked, Result<(), BlockError>)> {
        let ended = std::mem::take(&mut self.ended).into_iter();
        let known = ended.map(|(token, outcome)| {
            let asked = self.asked.remove(&token.0).expect("a request ends once");
            (token, asked, outcome)
        });
        known.collect()
    }

    /// The memory of guests that start anew: no request of theirs has the name
    /// of an earlier one.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self { last: self.last, ..Self::default() }
    }

    /// All requests that have not ended, the oldest first.
    #[must_use]
    pub fn under_way(&self) -> Vec<Token> {
        self.asked.keys().map(|&token| Token(token)).collect()
    }

    /// The front that had the requests is gone: what had come of reads is not
    /// trusted.
    pub fn poison(&mut self) {
        for asked in self.asked.values_mut().filter(|asked| asked.op == Op::Read) {
            asked.data.fill(POISON);
        }
    }

    /// All requests that have not ended, with what they ask for.
    pub fn all(&self) -> impl Iterator<Item = (Token, &Asked)> {
        self.asked.iter().map(|(&token, asked)| (Token(token), asked))
    }
}

/// What the memory of a read holds before it is answered.
const POISON: u8 = 0xa5;

impl Source for Memory {
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.copy_from_slice(&self.asked[&token.0].data);
        Ok(())
    }
}

impl PathGuest for Memory {
    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]) {
        let asked = self.asked.get_mut(&token.0).expect("data of a request under way");
        asked.data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        assert!(self.asked.contains_key(&token.0), "a request ends once");
        self.ended.push((token, outcome));
    }
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    /// Its disk's volume.
    pub volume: VolumeName,
    disk: usize,
    habits: Habits,
    oracle: Oracle,
    left: usize,
    under_way: usize,
    /// Requests in its ring that the front has not taken.
    pub ring: VecDeque<Token>,
    /// Changes of its earlier life that may still take effect.
    orphans: Vec<RequestId>,
    /// Its front has served it since that was started.
    served: bool,
    /// What fronts that are gone had answered and not flushed may be lost.
    may_miss: bool,
    /// The generation of its volume, as it was served last.
    generation: u64,
    /// The server may have lost what its front has kept. That was sent again when a
    /// request ends that is later than this one.
    owed: Option<Token>,
    last: Token,
    /// How many changes it has asked for.
    pub changes: u64,
}

impl Guest {
    /// A guest with the disk of that number, which is blank.
    #[must_use]
    pub fn new(volume: VolumeName, disk: usize, habits: Habits) -> Self {
        Self {
            volume,
            disk,
            habits,
            oracle: Oracle::new(habits.sectors),
            left: habits.requests,
            under_way: 0,
            ring: VecDeque::new(),
            orphans: Vec::new(),
            served: false,
            may_miss: false,
            generation: 1,
            owed: None,
            last: Token(0),
            changes: 0,
        }
    }

    /// Whether it has asked for all it wants, and all has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left == 0 && self.under_way == 0
    }

    /// Requests that have not ended.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether it would ask for more.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.left > 0 && self.under_way < self.habits.depth
    }

    /// Asks for something.
    pub fn ask_something(&mut self, memory: &mut Memory, dice: &mut Dice) {
        self.left -= 1;
        let op = dice.pick(&[
            Op::Read,
            Op::Read,
            Op::Read,
            Op::Read,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::Write,
            Op::WriteThrough,
            Op::Flush,
            Op::WriteZeroes,
            Op::WriteZeroesUnmap,
            Op::WriteZeroesThrough,
            Op::Discard,
        ]);
        let range = (op != Op::Flush).then(|| self.some_range(dice));
        self.ask(memory, op, range, dice);
    }

    fn some_range(&self, dice: &mut Dice) -> SectorRange {
        let limit = self.habits.sectors;
        let most = if dice.happens(self.habits.large) { 256 } else { dice.pick(&[1, 8, 8, 8, 24]) };
        let mut count = dice.within(1..=most.min(limit));
        let aligned = dice.happens(700);
        if aligned {
            count = count.next_multiple_of(SECTORS_PER_BLOCK).min(limit);
        }
        let mut start = dice.within(0..=limit - count);
        if aligned {
            start -= start % SECTORS_PER_BLOCK;
        }
        SectorRange::new(start, count as u32).expect("at least one sector")
    }

    /// Asks for all that the disk holds.
    pub fn ask_for_everything(&mut self, memory: &mut Memory, dice: &mut Dice) {
        let mut start = 0;
        while start < self.habits.sectors {
            let count = (self.habits.sectors - start).min(256);
            let range = SectorRange::new(start, count as u32);
            self.ask(memory, Op::Read, range, dice);
            start += count;
        }
    }

    /// Asks for a flush.
    pub fn ask_for_flush(&mut self, memory: &mut Memory, dice: &mut Dice) {
        self.ask(memory, Op::Flush, None, dice);
    }

    fn ask(&mut self, memory: &mut Memory, op: Op, range: Option<SectorRange>, dice: &mut Dice) {
        let bytes = range.map_or(0, |range| range.bytes() as usize);
        let data = match op {
            Op::Read => vec![POISON; bytes],
            Op::Write | Op::WriteThrough => vec![0; bytes],
            _ => Vec::new(),
        };
        let token = memory.ask(Asked { disk: self.disk, op, range, data });
        let id = RequestId(token.0);
        self.under_way += 1;
        self.last = token;
        self.ring.push_back(token);
        let Some(range) = range.filter(|_| op.changes()) else {
            return self.oracle.begin(id, range);
        };
        self.changes += 1;
        let copied = dice.happens(self.habits.copies).then(|| dice.within(1..=3));
        let content = |sector: u64| match (op.carries_data(), copied) {
            (false, _) => Content::ZERO,
            (true, None) => Content((token.0 << 32) | ((self.disk as u64) << 24) | sector),
            // A block of these is the same wherever it stands.
            (true, Some(letter)) => Content((letter << 60) | (sector % SECTORS_PER_BLOCK)),
        };
        if op.carries_data() {
            let asked = memory.asked.get_mut(&token.0).expect("asked above");
            let sectors = asked.data.chunks_exact_mut(SECTOR_SIZE);
            (range.start()..range.end())
                .zip(sectors)
                .for_each(|(at, bytes)| content(at).fill(bytes));
        }
        // Of a discard only whole blocks change.
        let changed = if op == Op::Discard { whole_blocks(range) } else { Some(range) };
        match changed {
            Some(changed) => self.oracle.begin_change(id, changed, content),
            None => self.oracle.begin(id, None),
        }
    }

    /// A request has ended.
    ///
    /// # Errors
    /// When that is not what may have come of it.
    pub fn end(
        &mut self,
        token: Token,
        asked: &Asked,
        outcome: Result<(), BlockError>,
    ) -> Result<(), Wrong> {
        self.under_way -= 1;
        self.owed.take_if(|owed| token.0 > owed.0);
        let id = RequestId(token.0);
        if let Err(error) = outcome {
            return Err(Wrong(format!("{:?} of {:?} failed: {error}", asked.op, asked.range)));
        }
        match asked.op {
            Op::Read => return self.oracle.end_read(id, &asked.data),
            Op::Flush => self.oracle.end_flush(id),
            Op::Discard => self.oracle.end_in_doubt(id),
            op => {
                let durable = op.writes_through();
                self.oracle.end_change(id, durable);
            }
        }
        Ok(())
    }

    /// The guest dies with a request.
    pub fn lose(&mut self, token: Token, asked: &Asked) {
        self.under_way -= 1;
        let id = RequestId(token.0);
        if asked.op.changes() {
            self.orphans.push(id);
        } else {
            self.oracle.give_up(id);
        }
    }

    /// Its front serves it. What earlier fronts had sent has ended, and what
    /// they had answered is durable, if the server does not say that some of it
    /// may be lost.
    pub fn is_served(&mut self, attached: &Attached) {
        if self.served {
            return;
        }
        self.served = true;
        let told =
            attached.stored_verifier != attached.verifier || attached.generation != self.generation;
        self.generation = attached.generation;
        if std::mem::take(&mut self.may_miss) && told {
            self.oracle.lose_what_was_not_flushed();
        }
        for id in std::mem::take(&mut self.orphans) {
            self.oracle.end_in_doubt(id);
        }
        self.oracle.settle();
    }

    /// Its front is gone, with all that it had kept.
    pub fn is_left(&mut self) {
        self.ring.clear();
        self.served = false;
        self.may_miss |= self.owed.take().is_some();
    }

    /// Its front has given the volume back and ended: what it had answered is
    /// durable, and what it had not taken is in the ring.
    pub fn is_given_back(&mut self) {
        if std::mem::take(&mut self.served) {
            self.owed = None;
            self.oracle.settle();
        }
    }

    /// The server may have lost what was not durable, or not: it says the same. A
    /// front that serves has kept it and sends it again, the oldest first; one that is
    /// gone in the middle of that leaves earlier writes over later ones. What one that
    /// is gone had answered may be lost with it, and the next one must be told.
    pub fn server_forgot(&mut self) {
        if self.served {
            self.owed = Some(self.last);
        } else {
            self.may_miss = true;
        }
    }
}

/// The whole blocks of a range.
fn whole_blocks(range: SectorRange) -> Option<SectorRange> {
    let blocks = range.blocks_covered();
    let count = u32::try_from(blocks.count.0 * SECTORS_PER_BLOCK).ok()?;
    SectorRange::new(blocks.start.0 * SECTORS_PER_BLOCK, count)
}
