//! Volumes and snapshots that come and go while guests are at work.

use std::time::Duration;

use block_core::BlockError;
use block_core::unit::BlockCount;
use interpose::pool::PoolError;

use super::content::{Content, ZERO};
use super::model::{Key, Pending, Snapshot, Volume, name};
use super::observe::{check_snapshot, encode, read_snapshot};
use super::world::World;

const MOST_VOLUMES: usize = 4;
const MOST_SNAPSHOTS: usize = 4;
const DOMAINS: [&str; 2] = ["blue", "green"];

impl World {
    /// One change of what there is.
    pub async fn control(&self) {
        self.clock.sleep(Duration::from_micros(self.draw(2000))).await;
        let keys: Vec<Key> = self.model.borrow().volumes.keys().copied().collect();
        let Some(key) = self.pick(&keys) else { return self.create().await };
        match self.draw(25) {
            0..2 if keys.len() < MOST_VOLUMES => self.create().await,
            2..6 => self.take_snapshot(key, &keys).await,
            6..9 if keys.len() < MOST_VOLUMES => self.clone_some(key).await,
            9..12 => self.restore(key).await,
            12..16 => drop(self.delete_snapshot(key).await),
            16 if keys.len() > 1 => self.delete(key).await,
            17..19 => self.resize(key).await,
            19 | 24 => {
                let rotated = self.pool.rotate(DOMAINS[self.draw(2) as usize]).await;
                // A domain is made with its first volume.
                let unknown = matches!(rotated, Err(PoolError::Unknown { .. }));
                assert!(unknown || self.is_done(rotated));
            }
            20..23 => self.checkpoint().await,
            23 if self.draw(8) == 0 => self.grow().await,
            _ => {}
        }
    }

    /// Whether it worked; only where the device may fail it need not.
    fn is_done<T: std::fmt::Debug>(&self, outcome: Result<T, PoolError>) -> bool {
        match outcome {
            Ok(_) => true,
            Err(why) => {
                let full = why == PoolError::Failed(BlockError::NoSpace) && self.can_be_full();
                assert!(self.habits.faulty || full, "{why}");
                false
            }
        }
    }

    /// Everything that was answered before is durable.
    pub async fn checkpoint(&self) {
        self.log(|| "checkpoint".to_owned());
        let begun = self.model.borrow_mut().tick();
        if self.is_done(self.pool.checkpoint().await) {
            self.model.borrow_mut().keep(begun);
        }
    }

    async fn grow(&self) {
        let now = block_core::Device::blocks(&self.disk);
        self.disk.grow(BlockCount(now.0 + 2048 + self.draw(4096)));
        self.is_done(self.pool.grow().await);
    }

    fn begin(&self, pending: Pending) -> u64 {
        let mut model = self.model.borrow_mut();
        assert_eq!(model.pending, None, "one change of what there is at a time");
        self.log(|| format!("{pending:?}"));
        model.pending = Some(pending);
        model.tick()
    }

    /// A change was answered. One that failed was done or not: the oracle
    /// stays as it is, and the run must end.
    fn end(&self, begun: u64, worked: bool) -> bool {
        self.log(|| format!("ends: {worked}"));
        if worked {
            let mut model = self.model.borrow_mut();
            model.keep(begun);
            model.pending = None;
        }
        worked
    }

    pub async fn create(&self) {
        let size = 1 + self.draw(self.habits.most_blocks as u64) as usize;
        let domain = DOMAINS[self.draw(2) as usize].to_owned();
        let key = self.model.borrow_mut().number();
        let begun = self.begin(Pending::Create { key, domain: domain.clone(), size });
        let blocks = BlockCount(size as u64);
        let made = self.pool.create_volume(&name(key), blocks, &domain, encode(0)).await;
        let id = made.as_ref().ok().copied();
        if self.end(begun, self.is_done(made))
            && let Some(id) = id
        {
            let volume = Volume::empty(id, domain, 0, size);
            self.model.borrow_mut().volumes.insert(key, volume);
        }
    }

    async fn take_snapshot(&self, key: Key, keys: &[Key]) {
        let mut group = vec![key];
        if self.draw(3) == 0 {
            group.extend(keys.iter().filter(|other| **other != key && self.draw(2) == 0));
        }
        let (name, ids) = {
            let mut model = self.model.borrow_mut();
            group.retain(|key| model.volumes[key].snapshots.len() < MOST_SNAPSHOTS);
            let ids: Vec<_> = group.iter().map(|key| model.volumes[key].id).collect();
            (format!("s{}", model.number()), ids)
        };
        if group.is_empty() {
            return;
        }
        let begun = self.model.borrow_mut().tick();
        let keys = group.clone();
        self.begin(Pending::Snapshot { keys, name: name.clone(), begun });
        group.iter().for_each(|key| self.reading(*key, 1));
        let taken = self.is_done(self.pool.snapshot(&ids, &name, false).await);
        {
            let mut model = self.model.borrow_mut();
            let contents: Vec<Snapshot> =
                group.iter().map(|key| model.snapshot_of(*key, begun)).collect();
            for (key, snapshot) in group.iter().zip(contents) {
                if let Some(volume) = model.volumes.get_mut(key).filter(|_| taken) {
                    volume.snapshots.insert(name.clone(), snapshot);
                }
            }
        }
        group.iter().for_each(|key| self.reading(*key, -1));
        if self.end(begun, taken) {
            for key in group {
                self.look_at(key, &name).await;
            }
        }
    }

    /// Reads a snapshot: from then on it is known what it holds.
    async fn look_at(&self, key: Key, name: &str) -> Option<Vec<Content>> {
        let (id, snapshot) = {
            let model = self.model.borrow();
            let volume = &model.volumes[&key];
            (volume.id, volume.snapshots[name].clone())
        };
        let found = self.pool.find_snapshot(id, name).expect("it is there");
        let contents = read_snapshot(&self.pool, found, snapshot.blocks.len(), name).await;
        check_snapshot(&format!("snapshot {name} of v{key}"), &snapshot, &contents);
        let known = Snapshot { blocks: contents.iter().map(|content| vec![*content]).collect() };
        let mut model = self.model.borrow_mut();
        model.volumes.get_mut(&key)?.snapshots.insert(name.to_owned(), known);
        Some(contents)
    }

    fn a_snapshot(&self, key: Key) -> Option<String> {
        let names: Vec<String> =
            self.model.borrow().volumes[&key].snapshots.keys().cloned().collect();
        self.pick(&names)
    }

    async fn clone_some(&self, of: Key) {
        let Some(snapshot) = self.a_snapshot(of) else { return };
        let Some(contents) = self.look_at(of, &snapshot).await else { return };
        let (key, domain, source) = {
            let mut model = self.model.borrow_mut();
            let key = model.number();
            let volume = &model.volumes[&of];
            (key, volume.domain.clone(), (volume.id, volume.snapshots[&snapshot].clone()))
        };
        let begun = self.begin(Pending::Clone { key, domain: domain.clone(), of: source.1 });
        let found = self.pool.find_snapshot(source.0, &snapshot).expect("it is there");
        let made = self.pool.clone_snapshot(found, &name(key), encode(0)).await;
        let id = made.as_ref().ok().copied();
        if self.end(begun, self.is_done(made))
            && let Some(id) = id
        {
            let volume = Volume::new(id, domain, 0, contents);
            self.model.borrow_mut().volumes.insert(key, volume);
        }
    }

    async fn restore(&self, key: Key) {
        let Some(snapshot) = self.a_snapshot(key) else { return };
        let Some(contents) = self.look_at(key, &snapshot).await else { return };
        let (id, version) = self.next_version(key);
        let found = self.pool.find_snapshot(id, &snapshot).expect("it is there");
        let edits: Vec<(u8, Content)> = contents.iter().map(|it| (u8::MAX, *it)).collect();
        let change = self.model.borrow_mut().begin(key, 0, &edits, true);
        let size = contents.len();
        let begun = self.begin(Pending::Restore { key, change, version, size });
        let restored = self.pool.restore(id, found, encode(version)).await;
        let worked = self.is_done(restored);
        if self.end(begun, worked) {
            let mut model = self.model.borrow_mut();
            if let Some(volume) = model.volumes.get_mut(&key) {
                volume.version = version;
                let old = volume.size();
                volume.resize(size);
                for (block, content) in volume.blocks.iter_mut().zip(&contents).skip(old) {
                    block.collapse(*content);
                }
            }
            model.end(key, change, true, true);
        }
    }

    fn next_version(&self, key: Key) -> (interpose::layout::control::VolumeId, u64) {
        let mut model = self.model.borrow_mut();
        (model.volumes[&key].id, model.number())
    }

    /// Deletes one of a volume's snapshots, if it has one.
    pub async fn delete_snapshot(&self, key: Key) -> bool {
        let Some(snapshot) = self.a_snapshot(key) else { return false };
        let id = self.model.borrow().volumes[&key].id;
        let found = self.pool.find_snapshot(id, &snapshot).expect("it is there");
        let begun = self.begin(Pending::DeleteSnapshot { key, name: snapshot.clone() });
        let gone = self.is_done(self.pool.delete_snapshot(found).await);
        if self.end(begun, gone)
            && let Some(volume) = self.model.borrow_mut().volumes.get_mut(&key)
        {
            volume.snapshots.remove(&snapshot);
        }
        gone
    }

    pub async fn delete(&self, key: Key) {
        let id = {
            let model = self.model.borrow();
            let volume = &model.volumes[&key];
            if !volume.snapshots.is_empty() {
                return;
            }
            volume.id
        };
        let begun = self.begin(Pending::Delete { key });
        let gone = self.is_done(self.pool.delete_volume(id).await);
        if self.end(begun, gone) {
            self.model.borrow_mut().volumes.remove(&key);
            self.forget(key);
        }
    }

    async fn resize(&self, key: Key) {
        let size = 1 + self.draw(self.habits.most_blocks as u64) as usize;
        let (id, version) = self.next_version(key);
        let old = self.model.borrow().volumes[&key].size();
        let gone = vec![(u8::MAX, ZERO); old.saturating_sub(size)];
        let change = self.model.borrow_mut().begin(key, size, &gone, true);
        let begun = self.begin(Pending::Resize { key, size, version });
        let blocks = BlockCount(size as u64);
        let resized = self.pool.resize_volume(id, blocks, encode(version)).await;
        let worked = self.is_done(resized);
        if !worked {
            // Some of what it would have lost may be lost.
            let mut model = self.model.borrow_mut();
            model.pending = None;
            model.end(key, change, false, false);
        } else if self.end(begun, worked) {
            let mut model = self.model.borrow_mut();
            model.end(key, change, true, true);
            if let Some(volume) = model.volumes.get_mut(&key) {
                volume.version = version;
                volume.resize(size);
            }
        }
    }
}
