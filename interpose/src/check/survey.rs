//! Every page of the pool, once, and every pointer on it: do they open, and
//! are they counted?

use std::collections::BTreeMap;
use std::rc::Rc;

use block_core::{BlockCount, Device, Extent, Pba};

use super::Check;
use super::report::{Fault, Incomplete, Phase, Wrong};
use super::tally::Tally;
use super::view::{self, View};
use crate::checkpoint::{Pin, pop_list, verify_superblock};
use crate::core::Core;
use crate::layout::control::{Malformed, SnapshotKey};
use crate::layout::fixed::{self, COPY_BLOCKS, COPY_DISTANCE, Copy};
use crate::layout::node::{DeadList, NODE_BYTES, NodeRecord, Stage, VolumeRecord};
use crate::layout::superblock::Usage;
use crate::layout::{Binding, Class, Pointer};
use crate::pages::{Damage, What};
use crate::radix::{Item, Tree, Walk};
use crate::space::window::Window;

/// Pages of counts that are read at once.
const READS: usize = 8;

/// Pages that are dropped in one go.
const FORGOTTEN: usize = 128;

/// Freed blocks may be something else by now, so what is found says nothing.
pub(super) struct Overtaken;

/// One pass over all pages, with the counts of as many blocks as fit.
pub(super) struct Survey<'c, 'a, D: Device + 'static> {
    check: &'c mut Check<'a, D>,
    pin: Pin<D>,
    view: View,
    seals: Tree,
    shelves: [Tree; 2],
    tally: Tally,
    /// Not the first pass: what is damaged was said.
    again: bool,
    /// Pages are damaged, so not all references are seen.
    blind: bool,
}

impl<'c, 'a, D: Device + 'static> Survey<'c, 'a, D> {
    /// Makes a pass with the counts of the regions from `region` on. Returns
    /// the first region that did not fit.
    pub(super) async fn run(
        check: &'c mut Check<'a, D>,
        region: u32,
    ) -> Result<Option<u32>, Overtaken> {
        let core = check.core;
        let pin = core.pin();
        // What that one frees is held. A pool that takes no changes has none.
        let _ = core.wait_for_checkpoint().await;
        while core.checkpoints.publishing.get() {
            core.checkpoints.done.notified().await;
        }
        let reading = core.readers.enter();
        let (said, generation, seals) = {
            let state = core.state.borrow();
            (state.usage, state.generation, state.seals)
        };
        let (view, shelves) = (view::current(core), core.checkpoints.shelves.borrow().trees());
        let (tally, again) = (Tally::new(check.memory), region > 0);
        check.begin(Phase::Pages, said.pages);
        forget_pages(core).await;
        let mut this = Self { check, pin, view, seals, shelves, tally, again, blind: false };
        let next = this.load_counts(region).await;
        if !again {
            this.check.report.generation = generation;
            this.look_at_superblocks(generation).await;
        }
        // From here on the next checkpoint may publish its counts.
        drop(reading);
        this.look_at_fixed_places(said);
        this.look_at_catalog().await?;
        this.look_at_seals().await?;
        for key in this.view.keys() {
            this.look_at_map(key).await?;
        }
        this.look_at_lists().await?;
        if !again {
            this.look_at_directory().await;
        }
        this.compare().await?;
        Ok(next)
    }

    async fn load_counts(&mut self, from: u32) -> Option<u32> {
        let core = self.check.core;
        let mut window = Window::new(READS);
        let (mut next, mut region, mut full) = (from, from, None);
        loop {
            while window.has_room() && next < core.space.regions() {
                window.push(core.space.counts(next));
                next += 1;
            }
            let Some(counts) = window.next().await else { return full };
            let fits = match counts {
                Ok(counts) => self.tally.put(&counts, full.is_none()),
                Err(fault) => {
                    self.fault(fault.damage, Vec::new());
                    self.tally.put_unknown(fault.blocks, full.is_none())
                }
            };
            if !fits && full.is_none() {
                full = Some(region);
            }
            if full.is_some() && self.again {
                return full;
            }
            region += 1;
            turn::yield_now().await;
        }
    }

    async fn look_at_superblocks(&mut self, generation: u64) {
        for copy in Copy::BOTH {
            if let Some(what) = verify_superblock(self.check.core, generation, copy).await {
                let pba = fixed::superblock(generation, copy);
                self.fault(Damage { pba, class: Class::Superblock, what }, Vec::new());
            }
        }
    }

    fn look_at_fixed_places(&mut self, said: Usage) {
        let core = self.check.core;
        let count = BlockCount(COPY_BLOCKS);
        let mut places =
            vec![Extent { start: Pba(0), count }, Extent { start: Pba(COPY_DISTANCE), count }];
        places.push(core.journal_extent);
        places.extend(core.space.roots().iter().map(|root| root.segment.homes()));
        for place in &places {
            let blocks = (place.start.0..place.end().0).map(Pba);
            blocks.for_each(|pba| self.tally.refer(pba, Class::Superblock));
        }
        let fixed: u64 = places.iter().map(|place| place.count.0).sum();
        let counted = self.tally.usage;
        let found = Usage { pages: counted.pages.saturating_sub(fixed), ..counted };
        if !self.again && !self.tally.has_unknown() && found != said {
            self.check.report.usage = Some((said, found));
        }
    }

    async fn look_at_catalog(&mut self) -> Result<(), Overtaken> {
        let [volumes, nodes] = self.shelves;
        self.look_at_values(Class::Catalog, volumes, |page| VolumeRecord::decode(page).map(drop))
            .await?;
        let nodes_of = |page: &[u8]| {
            let mut records = page.as_chunks::<NODE_BYTES>().0.iter();
            records.try_for_each(|bytes| NodeRecord::decode(bytes).map(drop))
        };
        self.look_at_values(Class::Catalog, nodes, nodes_of).await
    }

    async fn look_at_seals(&mut self) -> Result<(), Overtaken> {
        self.look_at_values(Class::Seals, self.seals, |_| Ok(())).await
    }

    /// A tree whose values are pages themselves.
    async fn look_at_values(
        &mut self,
        class: Class,
        tree: Tree,
        parse: impl Fn(&[u8]) -> Result<(), Malformed>,
    ) -> Result<(), Overtaken> {
        let pages = Rc::clone(&self.check.core.pages);
        let mut walk = Walk::new(Rc::clone(&pages), class, tree, 0, None);
        while let Some(item) = walk.next().await {
            match item {
                Item::Value { pointer, .. } => {
                    self.tally.refer(pointer.pba, class);
                    let binding = Binding::page(class, 0, pointer.pba);
                    let loaded = pages.load_once(&pointer.seal, binding).await;
                    let read = loaded.and_then(|page| {
                        let what = What::Malformed;
                        parse(&page).map_err(|_| Damage { pba: pointer.pba, class, what })
                    });
                    self.page().await?;
                    if let Err(damage) = read {
                        self.fault(damage, Vec::new());
                    }
                }
                Item::Page { pointer, .. } => {
                    self.tally.refer(pointer.pba, class);
                    self.page().await?;
                }
                Item::Damaged { pointer, damage, .. } => {
                    self.check_pin()?;
                    self.damaged(&pointer, class, damage, Vec::new());
                }
            }
        }
        Ok(())
    }

    async fn look_at_map(&mut self, key: SnapshotKey) -> Result<(), Overtaken> {
        let Some(mut walk) = self.walk(key) else { return Ok(()) };
        while let Some(item) = walk.next().await {
            match item {
                Item::Value { pointer, .. } => self.tally.refer(pointer.pba, Class::Data),
                Item::Page { pointer, .. } => {
                    self.tally.refer(pointer.pba, Class::Map);
                    self.page().await?;
                }
                Item::Damaged { indices, pointer, level, damage } => {
                    let at = (level, pointer.pba);
                    let touches = self.view.touched(self.check.core, key, indices, at).await;
                    self.check_pin()?;
                    self.damaged(&pointer, Class::Map, damage, touches);
                }
            }
        }
        Ok(())
    }

    /// The part of a map that is not its parent's; of one that is being freed,
    /// what is left.
    fn walk(&self, key: SnapshotKey) -> Option<Walk<D>> {
        let map = self.view.map(key)?;
        let from = match self.view.catalog().node(key)?.stored.stage {
            Stage::Walking { cursor } => cursor.0,
            // Its successor has it.
            Stage::Merging { .. } => return None,
            Stage::There | Stage::Deleted => 0,
        };
        let pages = Rc::clone(&self.check.core.pages);
        Some(Walk::new(pages, Class::Map, map.tree, from, Some(map.bound)))
    }

    async fn look_at_lists(&mut self) -> Result<(), Overtaken> {
        let lists: Vec<(DeadList, Option<SnapshotKey>)> = {
            let nodes = self.view.catalog().nodes();
            let lists = nodes.flat_map(|(_, node)| match node.stored.stage {
                Stage::Merging { work, target } => [(node.stored.dead, None), (work, target)],
                _ => [(node.stored.dead, None), (DeadList::default(), None)],
            });
            lists.collect()
        };
        for (list, freed_for) in lists {
            self.look_at_list(list, freed_for).await?;
        }
        Ok(())
    }

    /// What is on the list of a deletion and not needed is counted until the
    /// deletion comes by it.
    async fn look_at_list(
        &mut self,
        mut list: DeadList,
        freed_for: Option<SnapshotKey>,
    ) -> Result<(), Overtaken> {
        let bound = freed_for.map(|target| self.view.bound(target));
        while !list.newest.is_hole() {
            self.tally.refer(list.newest.pba, Class::Dead);
            let popped = pop_list(&self.check.core.pages, &list).await;
            self.page().await?;
            let (entries, rest) = match popped {
                Ok(Some(popped)) => popped,
                Ok(None) => break,
                Err(damage) => {
                    self.blind = true;
                    self.fault(damage, Vec::new());
                    break;
                }
            };
            for entry in entries.iter().filter(|entry| bound.is_some_and(|b| entry.birth > b)) {
                self.tally.refer(entry.pba, if entry.is_page { Class::Map } else { Class::Data });
            }
            list = rest;
        }
        Ok(())
    }

    async fn look_at_directory(&mut self) {
        let core = self.check.core;
        let mut faults = Vec::new();
        let looked = core.space.verify_directory(|fault| faults.push(fault.damage)).await;
        self.check.report.pages += looked;
        for damage in faults {
            let known = self.check.report.faults.iter().any(|fault| fault.pba == damage.pba);
            if !known {
                self.fault(damage, Vec::new());
            }
        }
    }

    /// What is left of the counts should be nothing.
    async fn compare(&mut self) -> Result<(), Overtaken> {
        self.check_pin()?;
        let report = &mut self.check.report;
        report.references += self.tally.references;
        report.omitted += self.tally.omitted;
        let fault = |pba, class, wrong| Fault { pba, class, wrong, touches: Vec::new() };
        let over = self.tally.uncounted();
        let mut wrong: Vec<Fault> =
            over.map(|(pba, class, times)| fault(pba, class, Wrong::Uncounted(times))).collect();
        if self.blind {
            report.incomplete = Some(Incomplete::Damaged);
        } else {
            let unnamed = self.tally.unnamed();
            wrong.extend(
                unnamed.map(|(pba, class, times)| fault(pba, class, Wrong::Unnamed(times))),
            );
        }
        self.locate(&mut wrong).await?;
        wrong.into_iter().for_each(|fault| self.check.report.add(fault));
        Ok(())
    }

    /// Finds out what names the blocks with wrong counts.
    async fn locate(&mut self, faults: &mut [Fault]) -> Result<(), Overtaken> {
        if faults.is_empty() {
            return Ok(());
        }
        let places: BTreeMap<Pba, usize> =
            faults.iter().enumerate().map(|(place, fault)| (fault.pba, place)).collect();
        for key in self.view.keys() {
            let Some(mut walk) = self.walk(key) else { continue };
            while let Some(item) = walk.next().await {
                let (indices, level, pba) = match item {
                    Item::Value { index, pointer } => (index..index + 1, 0, pointer.pba),
                    Item::Page { pointer, level, first } => {
                        let span = 1u64 << (7 * u32::from(level));
                        (first..first + span, level, pointer.pba)
                    }
                    Item::Damaged { .. } => continue,
                };
                let Some(&place) = places.get(&pba) else { continue };
                let at = (level, pba);
                let touches = self.view.touched(self.check.core, key, indices, at).await;
                self.check_pin()?;
                faults[place].touch(touches);
            }
        }
        Ok(())
    }

    /// A page of a tree cannot be had, or says what cannot be.
    fn damaged(
        &mut self,
        pointer: &Pointer,
        class: Class,
        damage: Damage,
        touches: Vec<super::report::Touched>,
    ) {
        // What was given up names nothing any more.
        self.blind |= damage.what != What::GivenUp;
        // One that is malformed comes by itself.
        if !matches!(damage.what, What::Malformed | What::GivenUp) {
            self.tally.refer(pointer.pba, class);
        }
        self.fault(damage, touches);
    }

    fn fault(&mut self, damage: Damage, touches: Vec<super::report::Touched>) {
        if self.again {
            return;
        }
        let wrong = Wrong::Lost(damage.what);
        let mut fault = Fault { pba: damage.pba, class: damage.class, wrong, touches: Vec::new() };
        fault.touch(touches);
        let known = self.check.report.faults.iter_mut();
        let same = |known: &&mut Fault| known.pba == fault.pba && known.wrong == wrong;
        match known.into_iter().find(same) {
            Some(known) => known.touch(fault.touches),
            None => self.check.report.add(fault),
        }
    }

    /// A page was opened.
    async fn page(&mut self) -> Result<(), Overtaken> {
        if !self.again {
            self.check.report.pages += 1;
        }
        self.check.step(1).await;
        self.check_pin()
    }

    fn check_pin(&self) -> Result<(), Overtaken> {
        if self.pin.is_broken() { Err(Overtaken) } else { Ok(()) }
    }
}

/// What is on the device counts, not what was read or written before.
async fn forget_pages<D: Device>(core: &Core<D>) {
    let mut left = core.pages.kept();
    while left > 0 {
        let some = left.min(FORGOTTEN);
        core.pages.shrink(some);
        left -= some;
        turn::yield_now().await;
    }
}
