//! Doing again what the journal says.

use std::cell::RefCell;

use block_core::{BLOCK_SIZE, Device, Lba, Pool as Buffers};

use super::OpenError;
use crate::catalog::{self, Contradiction};
use crate::core::State;
use crate::index::Index;
use crate::journal::{Chain, Position, Reader, ReplayError, Ring, Start};
use crate::layout::control::Malformed;
use crate::layout::{Binding, LineId, Pointer, Record};
use crate::pages::Pages;
use crate::space::Space;
use crate::space::window::Window;
use crate::vault::Vault;

/// Blocks of guests that are looked for at once.
const READS: usize = 32;

/// Pointers that are put in order before they go into the overlay, 64 bytes
/// each.
const MOST_LATER: usize = 128 << 10;

/// Pointers that go into the overlay before other tasks get their turn.
const POINTERS_IN_A_TURN: usize = 1024;

/// What replaying the journal needs, and what it makes.
pub(super) struct Replay<'a, D> {
    pub(super) pages: &'a Pages<D>,
    pub(super) vault: &'a Vault,
    pub(super) buffers: &'a Buffers,
    pub(super) ring: &'a Ring,
    pub(super) state: &'a RefCell<State>,
    pub(super) space: &'a Space<D>,
    pub(super) index: &'a Index,
}

impl<D: Device> Replay<'_, D> {
    /// Does again what the journal says, and returns where it goes on.
    ///
    /// Past the mark a block may name data that never reached the device: the
    /// journal is cut off before the first one that does.
    pub(super) async fn run(self, start: Start, chain: Chain) -> Result<Position, OpenError> {
        let mut later = Later::new(self.state);
        let durable = (chain.mark + 1).clamp(start.position.next, chain.end.next);
        let mut journal = self.reader(start.position, durable);
        loop {
            let mut contradiction = None;
            let apply = |record| {
                self.apply(record, &mut later).map_err(|why| {
                    contradiction = Some(why);
                    Malformed
                })
            };
            if !journal.next(apply).await.map_err(|why| failed(why, contradiction))? {
                break;
            }
            if later.is_full() {
                later.settle().await;
            }
        }
        let unsure = self.past_the_mark(journal.position(), chain.end.next).await?;
        for (before, records) in &unsure.blocks {
            if self.pages.device().has_volatile_cache() && !self.are_there(records).await {
                later.settle().await;
                return Ok(*before);
            }
            for record in records {
                self.apply(record.clone(), &mut later)
                    .map_err(|why| impossible(before.next, why))?;
            }
        }
        later.settle().await;
        Ok(unsure.end)
    }

    fn reader(&self, from: Position, end: u64) -> Reader<'_, D> {
        Reader::new(self.pages.device(), self.vault, self.buffers, self.ring, from, end)
    }

    /// All that follows the mark, before any of it is looked for: looking
    /// needs the buffers that reading ahead holds.
    async fn past_the_mark(&self, from: Position, end: u64) -> Result<Unsure, OpenError> {
        let mut journal = self.reader(from, end);
        let mut blocks = Vec::new();
        loop {
            let (before, mut records) = (journal.position(), Vec::new());
            let keep = |record| {
                records.push(record);
                Ok(())
            };
            if !journal.next(keep).await.map_err(|why| failed(why, None))? {
                return Ok(Unsure { blocks, end: before });
            }
            blocks.push((before, records));
        }
    }

    /// Whether the data that a block of the journal names is on the device.
    async fn are_there(&self, records: &[Record]) -> bool {
        let mut stored = records.iter().filter_map(|record| match record {
            Record::New { line, pointer, .. } => Some((*line, pointer)),
            _ => None,
        });
        let mut window = Window::new(READS);
        loop {
            while window.has_room()
                && let Some((line, pointer)) = stored.next()
            {
                window.push(self.is_there(line, pointer));
            }
            match window.next().await {
                Some(true) => {}
                Some(false) => return false,
                None => return true,
            }
        }
    }

    async fn is_there(&self, line: LineId, pointer: &Pointer) -> bool {
        let domain = {
            let state = self.state.borrow();
            state.catalog.node(catalog::head_of(line)).map(|head| head.facts.domain)
        };
        let device = self.pages.device();
        let Some(domain) = domain.filter(|_| pointer.pba.0 < device.blocks().0) else {
            return false;
        };
        let buffer = self.pages.lend().await;
        let (mut buffer, outcome) = device.read(pointer.pba, buffer, 0..1).await;
        let aad = Binding::data(domain, pointer.pba).encode(&self.vault.pool_id());
        let bytes = &mut buffer[..BLOCK_SIZE];
        outcome.is_ok() && self.vault.open(domain, &pointer.seal, &aad, bytes).is_ok()
    }

    fn apply(&self, record: Record, later: &mut Later<'_>) -> Result<(), Contradiction> {
        match record {
            Record::New { line, lba, pointer, hash } => {
                if !self.space.claim(pointer.pba) {
                    return Err(Contradiction("a block was handed out twice"));
                }
                self.index.insert(&hash, pointer.pba);
                self.state.borrow_mut().active.stored(&pointer, hash);
                later.push(line, lba, pointer);
            }
            Record::Share { line, lba, pointer } => {
                self.state.borrow_mut().active.shared(&pointer);
                later.push(line, lba, pointer);
            }
            // They change what pointers before them mean, or take them out.
            Record::Hole { .. } | Record::Control(_) => {
                later.settle_now();
                self.state.borrow_mut().apply(&record)?;
            }
        }
        Ok(())
    }
}

/// What follows the mark.
struct Unsure {
    /// Where each block begins, and what it says.
    blocks: Vec<(Position, Vec<Record>)>,
    end: Position,
}

/// Pointers on their way into the overlay. In the order of their writing each
/// goes to another page of it; in order of their places they go fast.
struct Later<'a> {
    state: &'a RefCell<State>,
    pointers: Vec<Pointer>,
    /// Where they go, and which one it is: those of one block stay in the order
    /// of their writing.
    places: Vec<(LineId, Lba, u32)>,
}

impl<'a> Later<'a> {
    fn new(state: &'a RefCell<State>) -> Self {
        Self { state, pointers: Vec::new(), places: Vec::new() }
    }

    fn push(&mut self, line: LineId, lba: Lba, pointer: Pointer) {
        self.places.push((line, lba, self.pointers.len() as u32));
        self.pointers.push(pointer);
    }

    fn is_full(&self) -> bool {
        self.pointers.len() >= MOST_LATER
    }

    /// Puts all that there are into the overlay.
    async fn settle(&mut self) {
        self.places.sort_unstable();
        for places in self.places.chunks(POINTERS_IN_A_TURN) {
            self.put(places);
            turn::yield_now().await;
        }
        self.clear();
    }

    /// The same, at once.
    fn settle_now(&mut self) {
        self.places.sort_unstable();
        self.put(&self.places);
        self.clear();
    }

    fn put(&self, places: &[(LineId, Lba, u32)]) {
        let mut state = self.state.borrow_mut();
        for &(line, lba, which) in places {
            let since = state.catalog.since(line);
            state.active.put((line, since), lba, self.pointers[which as usize]);
        }
    }

    fn clear(&mut self) {
        self.places.clear();
        self.pointers.clear();
    }
}

fn failed(error: ReplayError, why: Option<Contradiction>) -> OpenError {
    match error {
        ReplayError::Changed(number) => {
            OpenError::Journal { number, why: "it changes while it is read".to_owned() }
        }
        ReplayError::Malformed(number) => match why {
            Some(why) => impossible(number, why),
            None => OpenError::Journal { number, why: "a record is malformed".to_owned() },
        },
    }
}

fn impossible(number: u64, why: Contradiction) -> OpenError {
    OpenError::Journal { number, why: why.to_string() }
}
