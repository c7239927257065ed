//! Domains: volumes that share a data key, and the keys that they had.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::area::{self, DomainKey, Section};
use super::error::KeyError;
use super::key::{Key, Purpose, SALT_BYTES, Wrapped, fresh_salt};
use super::secret::{self, SecretError};
use super::{NoKey, Vault};
use crate::hash::HashKey;
use crate::layout::{DomainId, EraId, PoolId};

/// A domain, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its number.
    pub id: DomainId,
    /// Its name.
    pub name: String,
    /// The first era of each of its keys, the current one last; none when the
    /// domain is erased.
    pub keys: Vec<EraId>,
}

impl Domain {
    /// Whether its keys are gone.
    #[must_use]
    pub const fn is_erased(&self) -> bool {
        self.keys.is_empty()
    }
}

/// The keys of all domains.
pub(super) struct Domains {
    pub(super) places: Vec<Option<DomainKey>>,
    pub(super) keys: BTreeMap<(DomainId, EraId), Key>,
    /// With the era of the key that each is derived from.
    hash_keys: BTreeMap<DomainId, (EraId, Rc<HashKey>)>,
}

impl Domains {
    pub(super) fn new(pool_key: &Key) -> Self {
        let metadata = pool_key.derive(Purpose::Metadata, &[0; SALT_BYTES]);
        let keys = BTreeMap::from([((DomainId::METADATA, EraId(0)), metadata)]);
        Self { places: Vec::new(), keys, hash_keys: BTreeMap::new() }
    }

    /// Takes in the places of the next block. Whether each key could be
    /// unwrapped.
    pub(super) fn extend(
        &mut self,
        block: Vec<Option<DomainKey>>,
        pool: &PoolId,
        pool_key: &Key,
    ) -> bool {
        for entry in block.iter().flatten() {
            let Some(wrapped) = &entry.wrapped else { continue };
            let binding = entry.binding(pool);
            let Some(key) = pool_key.unwrap(Purpose::WrapDomain, &binding, wrapped) else {
                return false;
            };
            self.keys.insert((entry.domain, entry.from), key);
        }
        self.places.extend(block);
        true
    }

    /// The key that a domain has in an era.
    pub(super) fn key(&self, domain: DomainId, era: EraId) -> Result<&Key, NoKey> {
        let before = self.keys.range((domain, EraId(0))..=(domain, era)).next_back();
        before.map(|(_, key)| key).ok_or_else(|| self.why_no_key(domain))
    }

    /// The first era of the newest key of a domain that is not erased.
    fn newest(&self, domain: DomainId) -> Option<EraId> {
        let of_domain = self.keys.range((domain, EraId(0))..=(domain, EraId::MAX));
        of_domain.map(|(&(_, from), _)| from).next_back()
    }

    pub(super) fn hash_key(&self, domain: DomainId) -> Result<Rc<HashKey>, NoKey> {
        let known = self.hash_keys.get(&domain);
        known.map(|(_, key)| Rc::clone(key)).ok_or_else(|| self.why_no_key(domain))
    }

    fn why_no_key(&self, domain: DomainId) -> NoKey {
        if self.entries(domain).next().is_some() { NoKey::Erased } else { NoKey::UnknownDomain }
    }

    /// From the era on, blocks are hashed under the keys that it has.
    pub(super) fn hash_since(&mut self, era: EraId) {
        // The last key of each domain that is not younger stands.
        for (&(domain, from), key) in self.keys.iter().filter(|((_, from), _)| *from <= era) {
            if self.hash_keys.get(&domain).is_none_or(|(known, _)| *known < from) {
                let key = HashKey::new(key.derive(Purpose::Hash, &[0; SALT_BYTES]));
                self.hash_keys.insert(domain, (from, Rc::new(key)));
            }
        }
    }

    pub(super) fn entries(&self, domain: DomainId) -> impl Iterator<Item = &DomainKey> {
        self.places.iter().flatten().filter(move |entry| entry.domain == domain)
    }

    fn named(&self, name: &str) -> bool {
        self.places.iter().flatten().any(|entry| entry.name == name)
    }

    fn list(&self) -> Vec<Domain> {
        let mut domains: BTreeMap<DomainId, Domain> = BTreeMap::new();
        for entry in self.places.iter().flatten() {
            let id = entry.domain;
            let new = || Domain { id, name: entry.name.clone(), keys: Vec::new() };
            let domain = domains.entry(id).or_insert_with(new);
            domain.keys.extend(self.keys.contains_key(&(id, entry.from)).then_some(entry.from));
        }
        domains.values_mut().for_each(|domain| domain.keys.sort_unstable());
        domains.into_values().collect()
    }

    /// Domains of which an erasure has begun and not ended.
    pub(super) fn half_erased(&self) -> Vec<DomainId> {
        let erased = self.places.iter().flatten().filter(|entry| entry.wrapped.is_none());
        let mut domains: Vec<DomainId> = erased
            .map(|entry| entry.domain)
            .filter(|domain| self.entries(*domain).any(|entry| entry.wrapped.is_some()))
            .collect();
        domains.dedup();
        domains
    }

    fn free_place(&self) -> Option<usize> {
        let free = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        (free < area::DOMAIN_KEYS).then_some(free)
    }

    fn put(&mut self, place: usize, entry: Option<DomainKey>) {
        if self.places.len() <= place {
            self.places.resize(place + 1, None);
        }
        self.places[place] = entry;
    }

    /// The block of a place, if another entry stood there.
    fn encode_with(&self, place: usize, entry: Option<&DomainKey>) -> (u16, Box<area::Block>) {
        let (index, places) = Section::DOMAINS.block_of(place);
        let entries = places.map(|at| {
            if at == place { entry } else { self.places.get(at).and_then(Option::as_ref) }
        });
        (index, area::encode(entries))
    }

    /// The blocks with entries of a domain.
    fn encode_all(&self, domain: DomainId) -> Vec<(u16, Box<area::Block>)> {
        let of_domain = |place: &usize| {
            self.places[*place].as_ref().is_some_and(|entry| entry.domain == domain)
        };
        let mut blocks: Vec<_> = (0..self.places.len())
            .filter(of_domain)
            .map(|place| self.encode_with(place, self.places[place].as_ref()))
            .collect();
        blocks.dedup_by_key(|(index, _)| *index);
        blocks
    }
}

impl Vault {
    /// The domains, erased ones among them.
    #[must_use]
    pub fn domains(&self) -> Vec<Domain> {
        self.domains.borrow().list()
    }

    /// The domains that have old keys, and the first era of the newest one, if
    /// it has begun.
    #[must_use]
    pub fn rotated(&self) -> Vec<(DomainId, EraId)> {
        let Some(current) = self.era() else { return Vec::new() };
        let rotated = self.domains().into_iter().filter(|domain| domain.keys.len() > 1);
        let newest = rotated.filter_map(|domain| Some((domain.id, *domain.keys.last()?)));
        newest.filter(|(_, from)| *from <= current).collect()
    }

    /// Whether what a domain has sealed in an era is not under the key that it
    /// seals with now.
    #[must_use]
    pub fn is_old(&self, domain: DomainId, era: EraId) -> bool {
        let Some(current) = self.era() else { return false };
        let domains = self.domains.borrow();
        let keys = domains.keys.range((domain, EraId(0))..=(domain, current));
        keys.map(|(&(_, from), _)| from).next_back().is_some_and(|from| era < from)
    }

    /// Makes a domain with a key of its own.
    ///
    /// # Errors
    /// A name that is taken or does not fit, no room, or the device's.
    pub async fn add_domain(&self, name: &str) -> Result<DomainId, KeyError> {
        let _changing = self.changing.lock().await;
        if !secret::fits(name) {
            return Err(SecretError::Name.into());
        }
        let domain = {
            let domains = self.domains.borrow();
            if domains.named(name) {
                return Err(KeyError::NameTaken);
            }
            let highest = domains.places.iter().flatten().map(|entry| entry.domain.0).max();
            DomainId(highest.unwrap_or(0).checked_add(1).ok_or(KeyError::NoRoomForKeys)?)
        };
        self.add_key(domain, EraId(0), name).await?;
        self.domains.borrow_mut().hash_since(EraId(0));
        Ok(domain)
    }

    /// Gives a domain a new key, and begins an era, from which on it holds.
    /// What is there keeps the old key until it is written again.
    ///
    /// # Errors
    /// No such domain, an erased one, no room, or the device's.
    pub async fn rotate(&self, domain: DomainId) -> Result<EraId, KeyError> {
        let _changing = self.changing.lock().await;
        let from = self.eras.borrow().next().ok_or(KeyError::NoRoomForEras)?;
        let name = {
            let domains = self.domains.borrow();
            let entry = domains.entries(domain).next().ok_or(KeyError::NotThere)?;
            domains.newest(domain).ok_or(KeyError::Erased)?;
            entry.name.clone()
        };
        // The key first: the era it holds from has not begun yet. If it is
        // there already, an earlier rotation failed between the two.
        if !self.domains.borrow().keys.contains_key(&(domain, from)) {
            self.add_key(domain, from, &name).await?;
        }
        self.next_era().await
    }

    async fn add_key(&self, domain: DomainId, from: EraId, name: &str) -> Result<(), KeyError> {
        let place = self.domains.borrow().free_place().ok_or(KeyError::NoRoomForKeys)?;
        let key = Key::random(&self.chance);
        let mut entry = DomainKey { domain, from, name: name.to_owned(), wrapped: None };
        entry.wrapped = Some(Wrapped::NOTHING);
        let binding = entry.binding(&self.pool_id());
        let salt = fresh_salt(&self.chance);
        entry.wrapped = Some(self.pool_key.wrap(Purpose::WrapDomain, salt, &binding, &key));
        let (index, block) = self.domains.borrow().encode_with(place, Some(&entry));
        self.area.update(index, block).await?;
        let mut domains = self.domains.borrow_mut();
        domains.put(place, Some(entry));
        domains.keys.insert((domain, from), key);
        Ok(())
    }

    /// Forgets an old key of a domain that nothing needs any more: what is
    /// still sealed under it can never be opened again.
    ///
    /// # Errors
    /// No such key, the one that seals, or the device's.
    pub async fn forget_key(&self, domain: DomainId, from: EraId) -> Result<(), KeyError> {
        let _changing = self.changing.lock().await;
        let (place, index, block) = {
            let domains = self.domains.borrow();
            if domains.newest(domain) == Some(from) {
                return Err(KeyError::InUse);
            }
            let is_it = |entry: &DomainKey| {
                entry.domain == domain && entry.from == from && entry.wrapped.is_some()
            };
            let place = domains.places.iter().position(|place| place.as_ref().is_some_and(is_it));
            let place = place.ok_or(KeyError::NotThere)?;
            let (index, block) = domains.encode_with(place, None);
            (place, index, block)
        };
        self.area.update(index, block).await?;
        let mut domains = self.domains.borrow_mut();
        domains.keys.remove(&(domain, from));
        domains.put(place, None);
        self.schedules.borrow_mut().purge(domain);
        Ok(())
    }

    /// Destroys a domain's keys: in memory at once, then in both copies on the
    /// device. The caller has closed its volumes and purges what it cached.
    /// After an error the keys are gone from memory but may still be on the
    /// device: call again.
    ///
    /// # Errors
    /// No such domain, or the device's.
    pub async fn erase(&self, domain: DomainId) -> Result<(), KeyError> {
        let _changing = self.changing.lock().await;
        let blocks = {
            let mut domains = self.domains.borrow_mut();
            if domains.entries(domain).next().is_none() {
                return Err(KeyError::NotThere);
            }
            domains.keys.retain(|(other, _), _| *other != domain);
            domains.hash_keys.remove(&domain);
            let entries = domains.places.iter_mut().flatten();
            for entry in entries.filter(|entry| entry.domain == domain) {
                entry.wrapped = None;
            }
            domains.encode_all(domain)
        };
        self.schedules.borrow_mut().purge(domain);
        for (index, block) in blocks {
            self.area.update(index, block).await?;
        }
        Ok(())
    }
}
