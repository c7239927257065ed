use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::pages::disk::run;
use crate::space::layout::PAGE_COUNT;

const BLOCKS: u64 = 5000;

#[derive(Clone, Debug)]
enum Step {
    Take {
        pages: bool,
        most: u32,
    },
    /// What was taken is put to use.
    Use {
        which: usize,
        many: usize,
    },
    GiveBack {
        which: usize,
    },
    Share {
        which: usize,
    },
    Kill {
        which: usize,
        many: usize,
    },
    /// A checkpoint, with other steps while it is swept.
    Checkpoint {
        runs: bool,
        meanwhile: Vec<Step>,
    },
    Grow {
        by: u64,
    },
    /// A sweep that is given up after so many turns, or ends and is not used.
    Abandon {
        turns: usize,
    },
    /// Nothing is left but the device; recovery knows what was used, or the
    /// journal had lost it.
    Crash {
        recorded: bool,
    },
}

fn simple() -> impl Strategy<Value = Step> {
    let which = any::<usize>;
    prop_oneof![
        6 => (any::<bool>(), 1u32..700).prop_map(|(pages, most)| Step::Take { pages, most }),
        6 => (which(), 1usize..500).prop_map(|(which, many)| Step::Use { which, many }),
        1 => which().prop_map(|which| Step::GiveBack { which }),
        2 => which().prop_map(|which| Step::Share { which }),
        5 => (which(), 1usize..600).prop_map(|(which, many)| Step::Kill { which, many }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => simple(),
        3 => (any::<bool>(), prop::collection::vec(simple(), 0..6))
            .prop_map(|(runs, meanwhile)| Step::Checkpoint { runs, meanwhile }),
        1 => (1u64..2500).prop_map(|by| Step::Grow { by }),
        1 => (0usize..40).prop_map(|turns| Step::Abandon { turns }),
        1 => any::<bool>().prop_map(|recorded| Step::Crash { recorded }),
    ]
}

/// What is so, known by other means.
struct World {
    pages: Rc<Pages<Disk>>,
    space: Space<Disk>,
    /// Counts that are not 0.
    durable: BTreeMap<u64, u16>,
    /// Since the last checkpoint that was begun.
    filling: BTreeMap<u64, Change>,
    /// Handed out, not named by a published checkpoint.
    taken: BTreeSet<u64>,
    /// Of those: what nothing was done with.
    unused: BTreeSet<u64>,
    total: u64,
}

impl World {
    async fn new() -> Self {
        let (_, pages) = store(60);
        let space = fresh(&pages, BLOCKS).await;
        let fixed = FIXED + space.roots()[0].segment.homes().count.0;
        let durable = (0..fixed).map(|pba| (pba, PAGE_COUNT)).collect();
        let (filling, taken, unused) = Default::default();
        Self { pages, space, durable, filling, taken, unused, total: BLOCKS }
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Checkpoint { runs, meanwhile } => self.checkpoint(*runs, meanwhile).await,
            Step::Grow { by } => self.grow(*by).await,
            Step::Abandon { turns } => self.abandon(*turns).await,
            Step::Crash { recorded } => self.crash(*recorded).await,
            simple => self.simple().step(simple).await,
        }
        self.numbers_agree();
    }

    async fn checkpoint(&mut self, runs: bool, meanwhile: &[Step]) {
        let merging = std::mem::take(&mut self.filling);
        let changes = merging.iter().map(|(&pba, &change)| (Pba(pba), change));
        let least = runs.then_some(BlockCount(8));
        let (during, between) = meanwhile.split_at(meanwhile.len() / 2);
        let mut simple = Simple {
            space: &self.space,
            durable: &self.durable,
            merging: &merging,
            filling: &mut self.filling,
            taken: &mut self.taken,
            unused: &mut self.unused,
        };
        let (swept, ()) =
            both(self.space.sweep(changes, least, &|_| false), simple.steps(during)).await;
        let published = self.space.publish(swept.expect("swept"));
        for (&pba, &change) in &merging {
            let count = after(self.durable.get(&pba).copied().unwrap_or(0), change);
            self.durable.insert(pba, count);
            self.taken.remove(&pba);
        }
        self.durable.retain(|_, count| *count > 0);
        for extent in &published.freed {
            let all = extent.start.0..extent.end().0;
            assert!(all.clone().all(|pba| merging.contains_key(&pba)));
            assert!(all.clone().all(|pba| !self.durable.contains_key(&pba)));
            self.taken.extend(all.clone());
            self.unused.extend(all);
        }
        self.simple().steps(between).await;
        let freed = published.freed.clone();
        assert_eq!(self.space.release(published).await, freed);
    }

    fn simple(&mut self) -> Simple<'_> {
        Simple {
            space: &self.space,
            durable: &self.durable,
            merging: &NOTHING,
            filling: &mut self.filling,
            taken: &mut self.taken,
            unused: &mut self.unused,
        }
    }

    async fn grow(&mut self, by: u64) {
        let grown = match self.space.grow(BlockCount(self.total + by)).await {
            Ok(grown) => grown,
            Err(GrowError::Size { by }) => return assert!(by.0 <= 4, "{by:?}"),
            Err(error) => panic!("{error}"),
        };
        let mut swept = self.space.sweep([], None, &|_| false).await.expect("swept");
        swept.grow(grown);
        let roots = swept.roots();
        assert_eq!(published(&self.space, swept).await, []);
        let homes = roots.last().expect("grown").segment.homes();
        assert_eq!(homes.start.0, self.total);
        self.durable.extend((homes.start.0..homes.end().0).map(|pba| (pba, PAGE_COUNT)));
        self.total += by;
    }

    async fn abandon(&mut self, turns: usize) {
        let changes = self.filling.iter().map(|(&pba, &change)| (Pba(pba), change));
        let mut sweep = pin!(self.space.sweep(changes, None, &|_| false));
        for _ in 0..turns {
            let turn = poll_fn(|context| Poll::Ready(sweep.as_mut().poll(context)));
            if let Poll::Ready(swept) = turn.await {
                assert!(swept.is_ok());
                return;
            }
            turn::yield_now().await;
        }
    }

    async fn crash(&mut self, recorded: bool) {
        let roots = self.space.roots();
        self.pages.purge();
        self.space = opened(&self.pages, roots).await;
        self.unused.clear();
        self.taken.clear();
        if recorded {
            let durable = &self.durable;
            self.taken =
                self.filling.keys().copied().filter(|p| !durable.contains_key(p)).collect();
            assert!(self.taken.iter().all(|&pba| self.space.claim(Pba(pba))));
        } else {
            self.filling.clear();
        }
    }

    fn numbers_agree(&self) {
        let free = self.total - self.durable.len() as u64 - self.taken.len() as u64;
        assert_eq!(self.space.allocatable().0, free);
        assert_eq!(self.space.taken().0, self.taken.len() as u64);
        assert_eq!(self.space.total().0, self.total);
    }

    async fn counts_agree(&self) {
        self.space.verify_directory(|fault| panic!("{fault}")).await;
        let mut at = 0;
        for region in 0..self.space.regions() {
            for (pba, count) in self.space.counts(region).await.expect("whole").iter() {
                assert_eq!(pba.0, at);
                assert_eq!(count, self.durable.get(&at).copied().unwrap_or(0), "{at}");
                at += 1;
            }
        }
        assert_eq!(at, self.total);
    }
}

/// What can happen also while a checkpoint is swept.
struct Simple<'a> {
    space: &'a Space<Disk>,
    durable: &'a BTreeMap<u64, u16>,
    merging: &'a BTreeMap<u64, Change>,
    filling: &'a mut BTreeMap<u64, Change>,
    taken: &'a mut BTreeSet<u64>,
    unused: &'a mut BTreeSet<u64>,
}

static NOTHING: BTreeMap<u64, Change> = BTreeMap::new();

impl Simple<'_> {
    async fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step).await;
        }
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Take { pages, most } => {
                let purpose = if pages { Purpose::Pages } else { Purpose::Data };
                match self.space.take(purpose, most).await {
                    Ok(extent) => self.is_handed_out(extent, most),
                    Err(Full) => assert_eq!(self.space.allocatable().0, 0),
                }
            }
            Step::Use { which, many } => {
                let change = if which % 3 == 0 { Change::Page } else { Change::Delta(1) };
                for pba in pick(self.unused, which, many) {
                    self.unused.remove(&pba);
                    self.filling.insert(pba, change);
                }
            }
            Step::GiveBack { which } => {
                for pba in pick(self.unused, which, 3) {
                    self.space.give_back(extent(pba, 1));
                    self.unused.remove(&pba);
                    self.taken.remove(&pba);
                }
            }
            Step::Share { which } => {
                for (pba, count) in self.named(which, 20) {
                    if count < PAGE_COUNT - 1 {
                        self.delta(pba, 1);
                    }
                }
            }
            Step::Kill { which, many } => {
                for (pba, count) in self.named(which, many) {
                    match self.filling.get(&pba) {
                        _ if pba < 50 => {}
                        None if count == PAGE_COUNT && !self.is_home(pba) => {
                            self.filling.insert(pba, Change::Gone);
                        }
                        Some(Change::Page) => {
                            self.filling.insert(pba, Change::Delta(0));
                        }
                        _ if count < PAGE_COUNT => self.delta(pba, -1),
                        _ => {}
                    }
                }
            }
            _ => unreachable!("not simple"),
        }
        if let Some(&pba) = self.durable.keys().next_back() {
            let count = self.space.load_count(Pba(pba)).await;
            assert_eq!(count, Ok(self.durable[&pba]), "old numbers until they are published");
            if let Some(at_hand) = self.space.durable_count(Pba(pba)) {
                assert_eq!(at_hand, self.durable[&pba]);
            }
        }
    }

    fn is_handed_out(&mut self, extent: Extent, most: u32) {
        assert!((1..=u64::from(most)).contains(&extent.count.0));
        for pba in extent.start.0..extent.end().0 {
            assert!(!self.durable.contains_key(&pba), "{pba} is in use");
            assert!(self.taken.insert(pba), "{pba} was handed out");
            self.unused.insert(pba);
        }
    }

    fn is_home(&self, pba: u64) -> bool {
        let roots = self.space.roots();
        roots.iter().any(|root| root.segment.homes().overlaps(extent(pba, 1)))
    }

    /// Blocks with a count, all changes seen.
    fn named(&self, which: usize, many: usize) -> Vec<(u64, u16)> {
        let all: BTreeSet<u64> = self.durable.keys().chain(self.merging.keys()).copied().collect();
        let all = all.into_iter().chain(self.filling.keys().copied()).collect();
        let picked = pick(&all, which, many).into_iter().map(|pba| {
            let mut count = self.durable.get(&pba).copied().unwrap_or(0);
            for changes in [self.merging, &*self.filling] {
                count = changes.get(&pba).map_or(count, |&change| after(count, change));
            }
            (pba, count)
        });
        picked.filter(|(_, count)| *count > 0).collect()
    }

    fn delta(&mut self, pba: u64, by: i32) {
        let before = match self.filling.get(&pba) {
            None => 0,
            Some(Change::Delta(delta)) => *delta,
            Some(_) => return,
        };
        self.filling.insert(pba, Change::Delta(before + by));
    }
}

fn after(count: u16, change: Change) -> u16 {
    match change {
        Change::Delta(delta) => u16::try_from(i32::from(count) + delta).expect("a count"),
        Change::Page => PAGE_COUNT,
        Change::Gone => 0,
    }
}

fn pick(of: &BTreeSet<u64>, which: usize, many: usize) -> Vec<u64> {
    let start = which.checked_rem(of.len()).unwrap_or(0);
    of.iter().copied().skip(start).take(many).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// No block is handed out that is in use, or that somebody has, or that
    /// was killed and whose end is not durable; and at every step the free
    /// blocks add up.
    #[test]
    fn nothing_is_handed_out_twice(steps in prop::collection::vec(step(), 1..60)) {
        run(async move {
            let mut world = World::new().await;
            for step in &steps {
                world.step(step).await;
            }
            world.counts_agree().await;
        });
    }
}
