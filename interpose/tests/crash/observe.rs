//! What a pool holds, read through its own front door, and whether the oracle
//! allows it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use block_core::Blocks;
use block_core::unit::{BLOCK_SIZE, BlockCount, Lba, LbaRange};
use interpose::Pool;
use interpose::layout::control::SnapshotKey;

use super::block::Change;
use super::content::{self, Content, ZERO};
use super::disk::SimDisk;
use super::machine::{CROWD, request_buffer};
use super::model::{Model, Pending, Snapshot, Volume, name};

/// Blocks that are read at a time.
const AT_A_TIME: usize = 32;

/// What a volume holds.
#[derive(Clone, Debug)]
pub struct Seen {
    pub version: u64,
    pub domain: String,
    pub id: interpose::layout::control::VolumeId,
    pub blocks: Vec<Content>,
    pub snapshots: BTreeMap<String, Vec<Content>>,
}

/// Reads everything.
pub async fn observe(pool: &Rc<Pool<SimDisk>>) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    for status in pool.volumes().into_iter().filter(|status| status.name != CROWD) {
        let volume = pool.volume(&status.name).expect("it was just there");
        let blocks = status.blocks.0 as usize;
        let mut contents = Vec::with_capacity(blocks);
        while contents.len() < blocks {
            let range = range_from(contents.len(), blocks);
            let (buffer, outcome) = volume.read(range, request_buffer(), 0).await;
            assert_eq!(outcome, Ok(()), "{} cannot be read at {range:?}", status.name);
            take(&buffer, range, &mut contents, &status.name);
        }
        let mut snapshots = BTreeMap::new();
        for snapshot in pool.snapshots(status.id) {
            let size = snapshot.blocks.0 as usize;
            let contents = read_snapshot(pool, snapshot.key, size, &snapshot.name).await;
            snapshots.insert(snapshot.name, contents);
        }
        let version = decode(&status.attributes);
        let (domain, id) = (status.domain_name, status.id);
        seen.insert(status.name, Seen { version, domain, id, blocks: contents, snapshots });
    }
    seen
}

pub async fn read_snapshot(
    pool: &Rc<Pool<SimDisk>>,
    key: SnapshotKey,
    size: usize,
    name: &str,
) -> Vec<Content> {
    let mut contents = Vec::with_capacity(size);
    while contents.len() < size {
        let range = range_from(contents.len(), size);
        let (buffer, outcome) = pool.read_snapshot(key, range, request_buffer(), 0).await;
        assert_eq!(outcome, Ok(()), "snapshot {name} cannot be read at {range:?}");
        take(&buffer, range, &mut contents, name);
    }
    contents
}

fn range_from(at: usize, end: usize) -> LbaRange {
    let count = BlockCount(AT_A_TIME.min(end - at) as u64);
    LbaRange { start: Lba(at as u64), count }
}

fn take(buffer: &[u8], range: LbaRange, contents: &mut Vec<Content>, what: &str) {
    for block in buffer.chunks_exact(BLOCK_SIZE).take(range.count.0 as usize) {
        let at = contents.len();
        let content = content::parse(block);
        contents.push(content.unwrap_or_else(|| panic!("{what}: block {at} is torn")));
    }
}

pub fn encode(version: u64) -> Vec<u8> {
    version.to_le_bytes().to_vec()
}

fn decode(attributes: &[u8]) -> u64 {
    u64::from_le_bytes(attributes.try_into().expect("what the oracle gave the volume to keep"))
}

impl Model {
    /// Checks what a pool holds after a crash, and is what it holds from then
    /// on.
    pub fn adopt(&mut self, seen: &BTreeMap<String, Seen>) {
        self.check(seen);
        let pending = self.pending.take();
        let mut keys: BTreeSet<u64> = self.volumes.keys().copied().collect();
        if let Some(Pending::Create { key, .. } | Pending::Clone { key, .. }) = pending {
            keys.insert(key);
        }
        self.volumes.clear();
        for key in keys {
            let Some(seen) = seen.get(&name(key)) else { continue };
            let domain = seen.domain.clone();
            let mut volume = Volume::new(seen.id, domain, seen.version, seen.blocks.clone());
            let known = |contents: &Vec<Content>| Snapshot {
                blocks: contents.iter().map(|content| vec![*content]).collect(),
            };
            volume.snapshots =
                seen.snapshots.iter().map(|(name, it)| (name.clone(), known(it))).collect();
            self.volumes.insert(key, volume);
        }
    }

    /// Checks what a pool holds after a crash.
    pub fn check(&self, seen: &BTreeMap<String, Seen>) {
        let mut left: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
        for (&key, volume) in &self.volumes {
            let name = name(key);
            left.remove(name.as_str());
            match seen.get(&name) {
                Some(there) => self.check_volume(key, volume, there),
                None => assert_eq!(self.pending, Some(Pending::Delete { key }), "{name} is lost"),
            }
        }
        match &self.pending {
            Some(Pending::Create { key, domain, size }) => {
                if let Some(there) = seen.get(&name(*key)) {
                    left.remove(name(*key).as_str());
                    assert_eq!(&there.domain, domain, "{}", name(*key));
                    assert_eq!(there.blocks, vec![ZERO; *size], "{} begins empty", name(*key));
                }
            }
            Some(Pending::Clone { key, domain, of }) => {
                if let Some(there) = seen.get(&name(*key)) {
                    left.remove(name(*key).as_str());
                    assert_eq!(&there.domain, domain, "{}", name(*key));
                    check_snapshot(&format!("clone {}", name(*key)), of, &there.blocks);
                }
            }
            Some(Pending::Snapshot { keys, name: snapshot, .. }) => {
                let has = |key: &u64| seen[&name(*key)].snapshots.contains_key(snapshot);
                let some = keys.iter().filter(|key| has(key)).count();
                assert!(some == 0 || some == keys.len(), "half a group: {snapshot} of {keys:?}");
            }
            _ => {}
        }
        assert!(left.is_empty(), "deleted volumes are back: {left:?}");
    }

    fn check_volume(&self, key: u64, volume: &Volume, there: &Seen) {
        let name = name(key);
        let was = (volume.version, volume.size());
        let is = (there.version, there.blocks.len());
        // What the pool says of a change of the whole volume.
        let (done, undone) = match self.pending {
            Some(Pending::Restore { key: of, change, version, size }) if of == key => {
                if is == (version, size) { (Some(change), None) } else { (None, Some(change)) }
            }
            _ => (None, None),
        };
        let allowed = match self.pending {
            Some(Pending::Restore { key: of, version, size, .. })
            | Some(Pending::Resize { key: of, size, version })
                if of == key =>
            {
                is == was || is == (version, size)
            }
            _ => is == was,
        };
        assert!(allowed, "{name}: version and size are {is:?} and were {was:?}");
        let must = |change: &Change| change.kept || Some(change.id) == done;
        let never = |change: &Change| Some(change.id) == undone;
        for (at, content) in there.blocks.iter().enumerate() {
            let Some(block) = volume.blocks.get(at) else {
                let may_be = match (&self.pending, done) {
                    // A restore that makes the volume larger.
                    (Some(Pending::Restore { .. }), Some(_)) => continue,
                    _ => ZERO,
                };
                assert_eq!(*content, may_be, "{name}: block {at} of what it grew by");
                continue;
            };
            let allowed = block.candidates(must, never);
            assert!(
                allowed.contains(content),
                "{name}: block {at} is {content:?}; it may be {allowed:?}: {block:?}"
            );
        }
        self.check_snapshots(key, volume, there);
    }

    fn check_snapshots(&self, key: u64, volume: &Volume, there: &Seen) {
        let of = name(key);
        for (name, contents) in &there.snapshots {
            let what = format!("snapshot {name} of {of}");
            match (volume.snapshots.get(name), &self.pending) {
                (Some(snapshot), _) => check_snapshot(&what, snapshot, contents),
                (None, Some(Pending::Snapshot { keys, name: pending, begun }))
                    if name == pending && keys.contains(&key) =>
                {
                    check_snapshot(&what, &self.snapshot_of(key, *begun), contents);
                }
                _ => panic!("{what} is back"),
            }
        }
        for name in volume.snapshots.keys().filter(|name| !there.snapshots.contains_key(*name)) {
            let gone = Pending::DeleteSnapshot { key, name: name.clone() };
            assert_eq!(self.pending.as_ref(), Some(&gone), "snapshot {name} of {of} is lost");
        }
    }
}

pub fn check_snapshot(what: &str, snapshot: &Snapshot, contents: &[Content]) {
    assert_eq!(contents.len(), snapshot.blocks.len(), "{what}: its size");
    for (at, (content, allowed)) in contents.iter().zip(&snapshot.blocks).enumerate() {
        assert!(allowed.contains(content), "{what}: block {at} is {content:?}, not {allowed:?}");
    }
}
