//! A driver that sees everything, and a front that dies between any two of
//! its stores.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::guest_memory::GuestMemory;
use crate::ring::{Past, Ring, RingAddresses, RingMemory};
use crate::sys::life;

const SIZE: u16 = 8;
/// Where the guest's memory is in its front-end, and the ring's parts in it.
const USER: u64 = 1 << 40;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// What a front leaves behind: the guest's memory and the in-flight area.
struct Remains {
    memory: GuestMemory,
    area: Area,
}

impl Remains {
    fn new() -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(0x4000).expect("grow");
        let spec = RegionSpec { guest: 0, len: 0x4000, user: USER, offset: 0 };
        let region = Arc::new(Region::map(spec, &file).expect("map"));
        let memory = GuestMemory::new(&[region]).expect("a table");
        let (spec, area) = make(1, SIZE, 4).expect("an area");
        let area = Area::map(spec, &area.into(), 4).expect("map");
        Self { memory, area }
    }

    fn number(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(at, &mut bytes).expect("there");
        u16::from_le_bytes(bytes)
    }

    fn put(&self, at: u64, number: u16) {
        self.memory.write(at, &number.to_le_bytes()).expect("there");
    }

    /// A front's ring on what is there.
    fn start(&self, base: u16) -> Result<(Ring, Past), Lie> {
        let size = RingSize::new(SIZE.into()).expect("a size");
        let at =
            RingAddresses { descriptors: USER, available: USER + AVAILABLE, used: USER + USED };
        let memory = RingMemory::locate(&self.memory, size, at).expect("there");
        Ring::start(memory, base, false, self.area.record(0, size))
    }
}

/// The driver's view: what it has offered, and what came back.
#[derive(Default)]
struct Driver {
    offered: u16,
    seen: u16,
    out: [bool; SIZE as usize],
    ended: u32,
}

impl Driver {
    fn offer(&mut self, remains: &Remains, head: u16) {
        if std::mem::replace(&mut self.out[usize::from(head)], true) {
            return;
        }
        remains.put(AVAILABLE + 4 + u64::from(self.offered % SIZE) * 2, head);
        self.offered = self.offered.wrapping_add(1);
        remains.put(AVAILABLE + 2, self.offered);
    }

    /// Takes what has come back: chains that are out, each once.
    fn look(&mut self, remains: &Remains) {
        let used = remains.number(USED + 2);
        while self.seen != used {
            let head = remains.number(USED + 4 + u64::from(self.seen % SIZE) * 8);
            let out = &mut self.out[usize::from(head)];
            assert!(std::mem::replace(out, false), "{head} came back twice");
            self.seen = self.seen.wrapping_add(1);
            self.ended += 1;
        }
    }
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    Offer(u16),
    Take,
    /// The front has served one of what it took.
    End(usize),
    Publish,
    Look,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..SIZE).prop_map(Step::Offer),
        3 => Just(Step::Take),
        3 => any::<usize>().prop_map(Step::End),
        2 => Just(Step::Publish),
        2 => Just(Step::Look),
    ]
}

/// A front and what it serves.
struct Front {
    ring: Ring,
    serving: Vec<u16>,
    /// When the last chain was first taken that an earlier front left.
    last_left: Option<u32>,
}

/// A driver and the fronts that serve it, one after the other.
struct Story {
    remains: Remains,
    driver: Driver,
    front: Option<Front>,
    lives: VecDeque<u64>,
    /// How many stores the front makes before it dies.
    stores: u64,
    /// When each chain was taken from the available ring.
    taken: [u32; SIZE as usize],
    takes: u32,
}

impl Story {
    /// Each front makes as many stores as `lives` says; the last one goes on.
    fn new(lives: &[u64]) -> Self {
        let mut story = Self {
            remains: Remains::new(),
            driver: Driver::default(),
            front: None,
            lives: lives.iter().copied().collect(),
            stores: u64::MAX,
            taken: [0; SIZE as usize],
            takes: 0,
        };
        story.start();
        story
    }

    /// Starts fronts until one lives long enough to serve. QEMU tells it to
    /// begin where the used ring ends.
    fn start(&mut self) {
        loop {
            let base = self.remains.number(USED + 2);
            life::end_after(self.lives.pop_front().unwrap_or(u64::MAX));
            let started = self.remains.start(base);
            self.stores = life::left();
            life::end_after(u64::MAX);
            // What a dead front reads misses its own stores.
            if self.stores > 0 {
                let (ring, _) = started.expect("what fronts leave can be believed");
                self.front = Some(Front { ring, serving: Vec::new(), last_left: None });
                return;
            }
        }
    }

    fn go(&mut self, step: Step) {
        match step {
            Step::Offer(head) => return self.driver.offer(&self.remains, head),
            Step::Look => return self.driver.look(&self.remains),
            _ => {}
        }
        let front = self.front.as_mut().expect("a front");
        life::end_after(self.stores);
        match step {
            Step::Take => {
                if let Some(head) = front.ring.take_left() {
                    let when = self.taken[usize::from(head)];
                    assert!(front.last_left < Some(when), "{head} comes too late");
                    front.last_left = Some(when);
                    front.serving.push(head);
                } else if front.ring.look() == Ok(true) {
                    let head = front.ring.take().expect("an honest driver");
                    self.takes += 1;
                    self.taken[usize::from(head)] = self.takes;
                    front.serving.push(head);
                }
            }
            Step::End(which) if !front.serving.is_empty() => {
                let head = front.serving.swap_remove(which % front.serving.len());
                front.ring.give_back(head, 0);
            }
            Step::Publish => {
                front.ring.publish();
            }
            _ => {}
        }
        self.stores = life::left();
        life::end_after(u64::MAX);
        if self.stores == 0 {
            self.start();
        }
    }

    /// All fronts are dead but one, which serves what there is.
    fn end(mut self) {
        self.lives.clear();
        if self.stores != u64::MAX {
            self.start();
        }
        for _ in 0..SIZE {
            self.go(Step::Take);
        }
        for _ in 0..SIZE {
            self.go(Step::End(0));
        }
        self.go(Step::Publish);
        self.go(Step::Look);
        assert_eq!(self.driver.out, [false; SIZE as usize], "a chain never came back");
        assert_eq!(self.driver.ended, u32::from(self.driver.offered));
        let (ring, past) = self.remains.start(0).expect("believed");
        assert_eq!((ring.base(), ring.has_left()), (self.driver.offered, false));
        assert_eq!(past, Past::Served);
    }
}

/// Steps in which chains overtake each other and come back in batches.
const BUSY: [Step; 26] = {
    use Step::{End, Look, Offer, Publish, Take};
    [
        Offer(3),
        Offer(0),
        Offer(5),
        Take,
        Take,
        Take,
        End(1),
        End(1),
        Publish,
        Take,
        Look,
        Offer(0),
        Offer(7),
        Take,
        End(2),
        Publish,
        Take,
        Look,
        Offer(3),
        Take,
        End(0),
        End(0),
        End(0),
        Publish,
        Look,
        Offer(5),
    ]
};

/// The front is killed between any two of its stores, and the one that comes
/// after it too: while it reads what was left, or a little later.
#[test]
fn a_front_that_dies_anywhere_loses_and_doubles_no_chain() {
    for first in 0..64 {
        for second in 0..40 {
            let mut story = Story::new(&[first, second]);
            BUSY.into_iter().for_each(|step| story.go(step));
            story.end();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The same for any order of steps and any number of deaths.
    #[test]
    fn fronts_that_die_again_and_again_lose_and_double_no_chain(
        steps in vec(step(), 0..120),
        lives in vec(0u64..60, 0..12),
    ) {
        let mut story = Story::new(&lives);
        steps.into_iter().for_each(|step| story.go(step));
        story.end();
    }

    /// The front-end can write anything into the area. A ring that starts
    /// anyway names chains that it has, each once.
    #[test]
    fn a_record_of_lies_is_refused_or_harmless(
        lies in vec((0usize..HEADER + ENTRY * SIZE as usize, 0u8..10), 0..40),
        used in 0u16..12,
        offered in 0u16..12,
        version in 0u16..3,
    ) {
        let remains = Remains::new();
        let record = remains.area.record(0, RingSize::new(SIZE.into()).expect("a size"));
        let span = record.expect("there").span;
        span.store16(VERSION_AT, version, Ordering::Release);
        span.store16(ENTRIES_AT, SIZE, Ordering::Release);
        for (at, byte) in lies {
            span.store8(at, byte, Ordering::Release);
        }
        remains.put(USED + 2, used);
        remains.put(AVAILABLE + 2, offered);
        if let Ok((mut ring, _)) = remains.start(used) {
            let mut seen = [false; SIZE as usize];
            while let Some(head) = ring.take_left() {
                prop_assert!(!std::mem::replace(&mut seen[usize::from(head)], true));
                ring.give_back(head, 0);
            }
            ring.publish();
            prop_assert!(remains.number(USED + 2).wrapping_sub(used) <= SIZE);
        }
    }
}

/// The record is the specification's, byte by byte: other fronts may read it.
#[test]
fn a_record_is_laid_out_as_specified() {
    let remains = Remains::new();
    let (mut ring, past) = remains.start(0).expect("fresh");
    assert_eq!(past, Past::New);
    let mut driver = Driver::default();
    [4, 2].into_iter().for_each(|head| driver.offer(&remains, head));
    for _ in 0..2 {
        assert_eq!(ring.look(), Ok(true));
        ring.take().expect("a head");
    }
    ring.give_back(4, 0);
    let mut bytes = [0; HEADER + ENTRY * 5];
    remains.area.region.span().read(0, &mut bytes);
    assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 4, 0, 0, 0]);
    assert_eq!(bytes[16 + 32..][..16], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[16 + 64..][..16], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ring.publish();
    remains.area.region.span().read(0, &mut bytes);
    assert_eq!(bytes[8..16], [1, 0, 8, 0, 4, 0, 1, 0]);
    assert_eq!(bytes[16 + 64], 0);
}

/// A driver that offers a chain before it came back would have it served
/// twice at once, and one mark for both.
#[test]
fn a_chain_that_is_in_flight_is_not_taken_again() {
    let remains = Remains::new();
    let (mut ring, _) = remains.start(0).expect("fresh");
    remains.put(AVAILABLE + 4, 1);
    remains.put(AVAILABLE + 6, 1);
    remains.put(AVAILABLE + 2, 2);
    assert_eq!(ring.look(), Ok(true));
    assert_eq!(ring.take(), Ok(1));
    assert_eq!(ring.take(), Err(crate::ring::BadHead::Twice));
}

/// The front-end's numbers are checked before anything is mapped by them.
#[test]
fn areas_that_do_not_hold_their_queues_are_refused() {
    assert!(matches!(make(0, 8, 4), Err(AreaError::Shape { .. })));
    assert!(matches!(make(5, 8, 4), Err(AreaError::Shape { .. })));
    assert!(matches!(make(1, MAX_QUEUE_SIZE + 1, 4), Err(AreaError::Shape { .. })));
    let (spec, file) = make(2, 128, 4).expect("an area");
    let file = File::from(file);
    assert_eq!(spec.len, 2 * (16 + 128 * 16_u64).next_multiple_of(64));
    assert!(file.set_len(0).is_err(), "it is sealed");
    let map = |spec| Area::map(spec, &file, 4);
    assert!(matches!(map(AreaSpec { offset: 1, ..spec }), Err(AreaError::Size { .. })));
    assert!(matches!(map(AreaSpec { queues: 3, ..spec }), Err(AreaError::Size { .. })));
    assert!(matches!(map(AreaSpec { queues: 3, len: 1 << 60, ..spec }), Err(AreaError::Map(_))));
    assert!(matches!(map(AreaSpec { offset: 1 << 63, ..spec }), Err(AreaError::Map(_))));
    let area = map(spec).expect("well");
    let size = |entries| RingSize::new(entries).expect("a size");
    assert!(area.record(1, size(64)).is_some(), "a driver may use less than it was offered");
    assert!(area.record(2, size(64)).is_none());
    assert!(area.record(0, size(256)).is_none());
}

/// Memory that is taken away while a ring runs says nothing any more.
#[test]
fn an_area_that_was_cut_is_noticed() {
    let mut remains = Remains::new();
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(4096).expect("grow");
    let spec = AreaSpec { len: 4096, offset: 0, queues: 1, entries: SIZE };
    remains.area = Area::map(spec, &file, 1).expect("map");
    let (mut ring, _) = remains.start(0).expect("fresh");
    assert!(!ring.has_failed());
    file.set_len(0).expect("cut");
    Driver::default().offer(&remains, 0);
    assert_eq!(ring.look(), Ok(true));
    ring.take().expect("taken");
    assert!(ring.has_failed());
    assert!(matches!(remains.start(0), Err(Lie::Lost)));
}
