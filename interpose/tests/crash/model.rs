//! The oracle: what a pool must hold, whenever it is asked.

use std::collections::BTreeMap;

use interpose::layout::control::VolumeId;

use super::block::{Change, History, Tick};
use super::content::{Content, ZERO};

/// Names a volume in the oracle; its name in the pool is made of it.
pub type Key = u64;

/// What a volume must hold.
#[derive(Clone, Debug)]
pub struct Volume {
    pub id: VolumeId,
    pub domain: String,
    /// What the pool keeps with it: rises with each change of the whole
    /// volume, so that the pool itself says what was done.
    pub version: u64,
    pub blocks: Vec<History>,
    pub snapshots: BTreeMap<String, Snapshot>,
    /// Reads and snapshots under way: what they may see is not pruned.
    pub reading: usize,
}

/// What a snapshot must hold: of each block one of these, always the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub blocks: Vec<Vec<Content>>,
}

/// A change of what there is that was begun and not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    Create {
        key: Key,
        domain: String,
        size: usize,
    },
    Clone {
        key: Key,
        domain: String,
        of: Snapshot,
    },
    Delete {
        key: Key,
    },
    Snapshot {
        keys: Vec<Key>,
        name: String,
        begun: Tick,
    },
    DeleteSnapshot {
        key: Key,
        name: String,
    },
    /// The change that it is to each block, and what the pool keeps then.
    Restore {
        key: Key,
        change: u64,
        version: u64,
        size: usize,
    },
    Resize {
        key: Key,
        size: usize,
        version: u64,
    },
}

/// What must be.
#[derive(Clone, Debug, Default)]
pub struct Model {
    now: Tick,
    numbers: u64,
    pub volumes: BTreeMap<Key, Volume>,
    /// One at a time.
    pub pending: Option<Pending>,
    /// Contents that were written lately, to be written again.
    pub lately: Vec<Content>,
}

/// How many contents are remembered to be written again.
const LATELY: usize = 24;

impl Model {
    /// The next moment.
    pub fn tick(&mut self) -> Tick {
        self.now += 1;
        self.now
    }

    /// A number that nothing else has.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn remember(&mut self, content: Content) {
        if self.lately.len() >= LATELY {
            self.lately.remove(0);
        }
        self.lately.push(content);
    }

    /// A change of blocks from `first` on begins: of each block a mask of
    /// sectors and their values. Returns its number.
    pub fn begin(&mut self, key: Key, first: usize, edits: &[(u8, Content)], floats: bool) -> u64 {
        let (begun, id) = (self.tick(), self.number());
        let Some(volume) = self.volumes.get_mut(&key) else { return id };
        for (block, &(mask, values)) in volume.blocks.iter_mut().skip(first).zip(edits) {
            if mask == 0 {
                continue;
            }
            let (ended, kept, failed) = (None, false, false);
            block.changes.push(Change { id, mask, values, begun, ended, kept, floats, failed });
        }
        id
    }

    /// A change was answered; `kept`: and is durable.
    pub fn end(&mut self, key: Key, id: u64, worked: bool, kept: bool) {
        let now = self.tick();
        let Some(volume) = self.volumes.get_mut(&key) else { return };
        for block in &mut volume.blocks {
            let Some(change) = block.changes.iter_mut().find(|change| change.id == id) else {
                continue;
            };
            change.ended = Some(now);
            change.failed = !worked;
            change.kept |= kept && worked;
        }
        self.prune();
    }

    /// Everything that was answered before `moment` is durable.
    pub fn keep(&mut self, moment: Tick) {
        for change in self.volumes.values_mut().flat_map(Volume::changes) {
            change.kept |= !change.failed && change.ended.is_some_and(|ended| ended < moment);
        }
        self.prune();
    }

    pub fn prune(&mut self) {
        for volume in self.volumes.values_mut().filter(|volume| volume.reading == 0) {
            volume.blocks.iter_mut().for_each(History::prune);
        }
    }

    /// What a snapshot holds that was asked for at `begun` and is taken by
    /// now. Nothing was pruned meanwhile.
    pub fn snapshot_of(&self, key: Key, begun: Tick) -> Snapshot {
        let must =
            |change: &Change| !change.failed && change.ended.is_some_and(|ended| ended < begun);
        let blocks = &self.volumes[&key].blocks;
        let blocks = blocks.iter().map(|block| block.candidates(must, |_| false)).collect();
        Snapshot { blocks }
    }
}

impl Volume {
    pub fn new(id: VolumeId, domain: String, version: u64, blocks: Vec<Content>) -> Self {
        let blocks = blocks.into_iter().map(History::new).collect();
        let (snapshots, reading) = (BTreeMap::new(), 0);
        Self { id, domain, version, blocks, snapshots, reading }
    }

    pub fn empty(id: VolumeId, domain: String, version: u64, size: usize) -> Self {
        Self::new(id, domain, version, vec![ZERO; size])
    }

    pub fn size(&self) -> usize {
        self.blocks.len()
    }

    /// Makes it larger by zeroes, or smaller.
    pub fn resize(&mut self, size: usize) {
        self.blocks.resize_with(size, || History::new(ZERO));
    }

    fn changes(&mut self) -> impl Iterator<Item = &mut Change> {
        self.blocks.iter_mut().flat_map(|block| &mut block.changes)
    }
}

pub fn name(key: Key) -> String {
    format!("v{key}")
}
