//! Guests' blocks: do they open, is their content what their hash says, and
//! would a duplicate of them be opened rightly?

use std::collections::BTreeMap;
use std::rc::Rc;

use block_core::{BLOCK_SIZE, Device, Pba};

use super::Check;
use super::report::{Fault, Phase, Wrong};
use super::view::{self, Map};
use crate::core::Core;
use crate::hash::{self, HashKey};
use crate::layout::control::SnapshotKey;
use crate::layout::{Binding, Class, DomainId, EraId, Pointer, Seal, seals};
use crate::pages::What;
use crate::radix::{self, Item, Tree, Walk};
use crate::space::window::Window;
use crate::vault::OpenError;

/// Blocks that are read at once.
const READS: usize = 16;

/// Blocks that are looked at before checkpoints may free what is being looked
/// at.
const AT_A_TIME: usize = 64;

/// Blocks that are remembered to be good: those that several volumes share are
/// mostly not read again.
const REMEMBERED: usize = 32 * 1024;

/// What is known of blocks that were looked at.
pub(super) struct Memory {
    good: Vec<Option<Seal>>,
    bad: BTreeMap<(Pba, u64), usize>,
}

/// A block to look at.
#[derive(Clone, Copy)]
struct Found {
    index: u64,
    pointer: Pointer,
}

/// What became of looking at a block.
enum Outcome {
    Good,
    Erased,
    Bad(Wrong),
}

impl Memory {
    pub(super) fn new() -> Self {
        Self { good: vec![None; REMEMBERED], bad: BTreeMap::new() }
    }

    fn is_good(&self, pointer: &Pointer) -> bool {
        self.good[pointer.pba.0 as usize % REMEMBERED] == Some(pointer.seal)
    }

    fn set_good(&mut self, pointer: &Pointer) {
        self.good[pointer.pba.0 as usize % REMEMBERED] = Some(pointer.seal);
    }
}

impl<D: Device + 'static> Check<'_, D> {
    /// Looks at all blocks of all volumes and snapshots, as the newest
    /// checkpoint has them when it comes by.
    pub(super) async fn look_at_data(&mut self) {
        let total = self.core.state.borrow().usage.references;
        self.begin(Phase::Data, total);
        let mut memory = Memory::new();
        for key in view::current(self.core).keys() {
            let mut from = Some(0);
            while let Some(index) = from {
                let looked;
                (from, looked) = self.look_at_some(key, index, &mut memory).await;
                self.step(looked).await;
            }
        }
    }

    /// Returns where to go on, and how many blocks were looked at.
    async fn look_at_some(
        &mut self,
        key: SnapshotKey,
        from: u64,
        memory: &mut Memory,
    ) -> (Option<u64>, u64) {
        let core = self.core;
        let _reading = core.readers.enter();
        let (map, seals) = {
            let state = core.state.borrow();
            (view::map_of(&state.catalog, key), state.seals)
        };
        let Some(map) = map else { return (None, 0) };
        let (found, next) = some_of(core, &map, from).await;
        let hashing = hashing(core, map.domain);
        let (mut window, mut looked, mut todo) = (Window::new(READS), 0, found.iter());
        let mut under_way = std::collections::VecDeque::new();
        loop {
            while window.has_room()
                && let Some(found) = todo.next()
            {
                if memory.is_good(&found.pointer) {
                    continue;
                }
                window.push(look_at(core, map.domain, hashing.as_ref(), &seals, found.pointer));
                under_way.push_back(*found);
            }
            let Some(outcome) = window.next().await else { break };
            let Some(Found { index, pointer }) = under_way.pop_front() else { break };
            looked += 1;
            match outcome {
                Outcome::Good => {
                    self.report.data += 1;
                    memory.set_good(&pointer);
                }
                Outcome::Erased => self.report.erased += 1,
                Outcome::Bad(wrong) => {
                    let at = (0, pointer.pba);
                    let view = view::current(core);
                    let touches = view.touched(core, key, index..index + 1, at).await;
                    self.bad(memory, &pointer, wrong, touches);
                }
            }
        }
        (next, looked)
    }

    fn bad(
        &mut self,
        memory: &mut Memory,
        pointer: &Pointer,
        wrong: Wrong,
        touches: Vec<super::report::Touched>,
    ) {
        let name = (pointer.pba, pointer.seal.key());
        if let Some(&place) = memory.bad.get(&name) {
            self.report.faults[place].touch(touches);
            return;
        }
        let mut fault = Fault { pba: pointer.pba, class: Class::Data, wrong, touches: Vec::new() };
        fault.touch(touches);
        let place = self.report.faults.len();
        self.report.add(fault);
        if self.report.faults.len() > place {
            memory.bad.insert(name, place);
        }
    }
}

/// Some blocks of a map that are not its parent's, and where the next ones
/// are. What is damaged was said elsewhere.
async fn some_of<D: Device + 'static>(
    core: &Rc<Core<D>>,
    map: &Map,
    from: u64,
) -> (Vec<Found>, Option<u64>) {
    let mut found = Vec::with_capacity(AT_A_TIME);
    let pages = Rc::clone(&core.pages);
    let mut walk = Walk::new(pages, Class::Map, map.tree, from, Some(map.bound));
    while let Some(item) = walk.next().await {
        let Item::Value { index, pointer } = item else { continue };
        found.push(Found { index, pointer });
        if found.len() == AT_A_TIME {
            return (found, Some(index + 1));
        }
    }
    (found, None)
}

/// The key that blocks of a domain are hashed with, and since when.
fn hashing<D: Device>(core: &Core<D>, domain: DomainId) -> Option<(Rc<HashKey>, EraId)> {
    let key = core.vault.hash_key(domain).ok()?;
    let domains = core.vault.domains();
    let since = *domains.iter().find(|known| known.id == domain)?.keys.last()?;
    Some((key, since))
}

async fn look_at<D: Device>(
    core: &Rc<Core<D>>,
    domain: DomainId,
    hashing: Option<&(Rc<HashKey>, EraId)>,
    seals: &Tree,
    pointer: Pointer,
) -> Outcome {
    let buffer = core.pages.lend().await;
    let (mut buffer, read) = core.device.read(pointer.pba, buffer, 0..1).await;
    if let Err(error) = read {
        return Outcome::Bad(Wrong::Lost(What::Unreadable(error)));
    }
    let binding = Binding::data(domain, pointer.pba).encode(&core.id);
    let block = &mut buffer[..BLOCK_SIZE];
    match core.vault.open(domain, &pointer.seal, &binding, block) {
        Ok(()) => {}
        Err(OpenError::Erased) => return Outcome::Erased,
        Err(_) => return Outcome::Bad(Wrong::Lost(What::Unopened)),
    }
    // A write that a rotation of the key comes upon is hashed with the old key
    // and sealed in the first era of the new one.
    let known_key = hashing.filter(|(_, since)| *since == EraId(0) || pointer.seal.era > *since);
    let hash = known_key.map(|(key, _)| hash::hash(key, block));
    drop(buffer);
    let (page, place) = seals::place_of(pointer.pba);
    let Ok(at) = radix::find(&core.pages, Class::Seals, seals, page).await else {
        return Outcome::Good;
    };
    if at.is_hole() {
        return Outcome::Bad(Wrong::OtherSeal);
    }
    // A page of seals that cannot be had was said elsewhere.
    let binding = Binding::page(Class::Seals, 0, at.pba);
    let Ok(page) = core.pages.load(&at.seal, binding).await else { return Outcome::Good };
    match seals::entry(&page, place) {
        Some((_, seal)) if seal != pointer.seal => Outcome::Bad(Wrong::OtherSeal),
        Some((known, _)) if hash.is_some_and(|hash| hash != known) => {
            Outcome::Bad(Wrong::OtherContent)
        }
        Some(_) => Outcome::Good,
        None => Outcome::Bad(Wrong::OtherSeal),
    }
}
