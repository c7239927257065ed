//! Making a pool's key area, and unlocking it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::{Chance, Device, Pool};
use tokio::sync::Mutex;
use tracing::warn;

use super::Vault;
use super::area::{self, Block, DomainKey, Entry, Era, HEADER, Head, Section, Way};
use super::copies::{Area, Copies, Found, OnDevice, choose, read_both};
use super::domains::Domains;
use super::eras::Eras;
use super::error::UnlockError;
use super::key::{Key, Purpose, SALT_BYTES};
use super::schedules::Schedules;
use super::secret::{NewWay, Secret};
use super::ways;
use crate::layout::fixed::{Copy, MIN_DEVICE_BLOCKS};
use crate::layout::{EraId, PoolId};

impl Vault {
    /// Makes a key area with new keys on a device, over whatever is there.
    /// `buffers` gives buffers of a block or more.
    ///
    /// The header comes last: until both its copies are durable there is no
    /// pool. No era has begun and there is no domain.
    ///
    /// # Errors
    /// A device that is too small, or that fails.
    pub async fn create<D: Device + 'static>(
        device: Rc<D>,
        buffers: Pool,
        pool: PoolId,
        first: NewWay,
        chance: Chance,
    ) -> Result<Self, UnlockError> {
        check_size(&*device)?;
        let copies = OnDevice::new(device, buffers);
        for copy in Copy::BOTH {
            copies.clear(copy).await?;
        }
        copies.flush().await?;
        let pool_key = Key::random(&chance);
        let mut places = vec![None; area::WAYS];
        places[0] = Some(ways::wrap(first, &pool, &pool_key));
        let vault = Self::assemble(Box::new(copies), pool, 0, pool_key, places, chance);
        let block = area::encode(vault.ways.borrow().iter().map(Option::as_ref));
        vault.area.update(HEADER, block).await?;
        vault.domains.borrow_mut().hash_since(EraId::MAX);
        Ok(vault)
    }

    /// Unlocks the pool on a device, and repairs what one of two copies lost.
    /// A passphrase takes as long as its ways cost to try.
    ///
    /// # Errors
    /// No pool, another version's, a secret that is not of the pool, damage,
    /// or a device that fails.
    pub async fn unlock<D: Device + 'static>(
        device: Rc<D>,
        buffers: Pool,
        secret: &Secret,
        chance: Chance,
    ) -> Result<Self, UnlockError> {
        check_size(&*device)?;
        let copies = OnDevice::new(device, buffers);
        let Unlocked { head, pool_key, ways, block, repair } = open_header(&copies, secret).await?;
        let copies = Box::new(copies);
        let vault = Self::assemble(copies, head.pool, head.sequence, pool_key, ways, chance);
        if let Some(copy) = repair {
            vault.area.repair(HEADER, copy, &block).await;
        }
        vault.load_domains().await?;
        vault.load_eras().await?;
        vault.domains.borrow_mut().hash_since(EraId::MAX);
        vault.finish_erasures().await;
        Ok(vault)
    }

    fn assemble(
        copies: Box<dyn Copies>,
        pool: PoolId,
        sequence: u64,
        pool_key: Key,
        ways: Vec<Option<Way>>,
        chance: Chance,
    ) -> Self {
        let domains = RefCell::new(Domains::new(&pool_key));
        Self {
            area: Area::new(copies, pool, mac_key(&pool_key), sequence),
            chance,
            pool_key,
            ways: RefCell::new(ways),
            domains,
            eras: RefCell::default(),
            schedules: RefCell::new(Schedules::new()),
            current: Cell::new(None),
            changing: Mutex::new(()),
        }
    }

    async fn load_domains(&self) -> Result<(), UnlockError> {
        let take = |entries: Vec<Option<DomainKey>>| {
            self.domains.borrow_mut().extend(entries, &self.pool_id(), &self.pool_key)
        };
        self.load(Section::DOMAINS, "keys of domains", take).await
    }

    async fn load_eras(&self) -> Result<(), UnlockError> {
        let mut eras = Eras::default();
        self.load(Section::ERAS, "salts of eras", |entries: Vec<Option<Era>>| eras.extend(entries))
            .await?;
        *self.eras.borrow_mut() = eras;
        Ok(())
    }

    /// Gives `take` the entries of each block of a section that was written.
    async fn load<E: Entry>(
        &self,
        section: Section,
        what: &'static str,
        mut take: impl FnMut(Vec<Option<E>>) -> bool,
    ) -> Result<(), UnlockError> {
        let mut missing = None;
        for index in section.first..section.first + section.blocks {
            let block = match self.area.load(index).await {
                Found::Block(block, ..) => block,
                Found::Newer(found) => return Err(UnlockError::Newer { found }),
                Found::Damaged => return Err(UnlockError::KeysDamaged { index, what }),
                // Blocks are used one after the other. Two empty ones are the
                // end; a single one before others was lost.
                Found::Nothing if missing.is_some() => break,
                Found::Nothing => {
                    missing = Some(index);
                    continue;
                }
            };
            if let Some(index) = missing {
                return Err(UnlockError::KeysDamaged { index, what });
            }
            let entries = area::decode(&block, section.per_block).ok();
            if !entries.is_some_and(&mut take) {
                return Err(UnlockError::KeysDamaged { index, what });
            }
        }
        Ok(())
    }

    /// Goes on where a crash left an erasure. A failure leaves keys on the
    /// device, but none in memory: the domain is erased for whoever asks.
    async fn finish_erasures(&self) {
        let domains = self.domains.borrow().half_erased();
        for domain in domains {
            if let Err(error) = self.erase(domain).await {
                warn!(domain = domain.0, %error, "an erased domain still has keys on the device");
            }
        }
    }
}

/// A header that a secret has opened.
struct Unlocked {
    head: Head,
    pool_key: Key,
    ways: Vec<Option<Way>>,
    block: Box<Block>,
    repair: Option<Copy>,
}

/// Finds the header and opens it. The crc32c alone says which copy is whole;
/// once the pool key is there, so does the mac, and a copy that fails it makes
/// room for the other.
async fn open_header(
    copies: &OnDevice<impl Device>,
    secret: &Secret,
) -> Result<Unlocked, UnlockError> {
    let blocks = read_both(copies, HEADER).await;
    let is_empty = |block: &Option<Box<Block>>| {
        block.as_ref().is_some_and(|block| crate::hash::is_zero(&block[..]))
    };
    let nothing =
        if blocks.iter().all(|block| block.as_ref().is_some_and(|block| !area::is_ours(block))) {
            UnlockError::NotAPool
        } else if blocks.iter().any(is_empty) {
            UnlockError::Unfinished
        } else {
            UnlockError::HeaderDamaged
        };
    match choose(HEADER, blocks.clone(), None) {
        Found::Nothing | Found::Damaged => Err(nothing),
        Found::Newer(found) => Err(UnlockError::Newer { found }),
        Found::Block(block, head, repair) => match try_ways(&block, head, secret) {
            Ok((pool_key, ways)) => Ok(Unlocked { head, pool_key, ways, block, repair }),
            // Whole, and not by somebody with the pool key: the other copy gets
            // its chance. Not after a wrong secret, which the other copy might
            // take, because the way was removed and a crash came between.
            Err(error) if error == UnlockError::HeaderDamaged => {
                let [a, b] = blocks;
                let (other, repair) =
                    if a.as_ref() == Some(&block) { (b, Copy::A) } else { (a, Copy::B) };
                let other = other.filter(|other| *other != block).ok_or(error)?;
                let area::Reading::Whole(head) = area::read(&other, HEADER) else {
                    return Err(error);
                };
                let (pool_key, ways) = try_ways(&other, head, secret).map_err(|_| error)?;
                Ok(Unlocked { head, pool_key, ways, block: other, repair: Some(repair) })
            }
            Err(error) => Err(error),
        },
    }
}

/// Tries a secret on each way of its kind.
fn try_ways(
    block: &Block,
    head: Head,
    secret: &Secret,
) -> Result<(Key, Vec<Option<Way>>), UnlockError> {
    let ways: Vec<Option<Way>> =
        area::decode(block, area::WAYS).map_err(|_| UnlockError::HeaderDamaged)?;
    let kind = secret.kind();
    let of_kind = || ways.iter().flatten().filter(|way| way.kind == kind);
    let tried = of_kind().count();
    if tried == 0 {
        return Err(UnlockError::NoSuchWay { kind });
    }
    let pool_key = of_kind()
        .find_map(|way| {
            let key = secret.key(way.cost.unwrap_or_default(), &way.wrapped.salt);
            key.unwrap(Purpose::WrapPool, &way.binding(&head.pool), &way.wrapped)
        })
        .ok_or(UnlockError::WrongSecret { kind, ways: tried })?;
    if area::is_authentic(block, &mac_key(&pool_key)) {
        Ok((pool_key, ways))
    } else {
        Err(UnlockError::HeaderDamaged)
    }
}

fn mac_key(pool_key: &Key) -> Key {
    pool_key.derive(Purpose::Area, &[0; SALT_BYTES])
}

fn check_size(device: &impl Device) -> Result<(), UnlockError> {
    let blocks = device.blocks();
    if blocks < MIN_DEVICE_BLOCKS {
        return Err(UnlockError::TooSmall { blocks: blocks.0 });
    }
    Ok(())
}
