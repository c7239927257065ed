//! Looking for a pool on a device, opening it, and making one.

use std::cell::Cell;
use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, BlockCount};
use block_core::{BlockError, Device};
use interpose::vault::{Cost, NewWay, Secret};
use interpose::{CreateOptions, Pool, Probe, Settings, WhenFull};

use super::Pooled;
use crate::config::{Full, PoolConfig};
use crate::layout::{Copy, Found, Superblock};
use crate::size::Size;
use crate::store::Means;

/// What the first way to unlock a new pool is called.
const FIRST_WAY: &str = "first";

/// What came of looking for a pool.
pub enum Opening<D> {
    /// It is open.
    Open(Pooled<D>),
    /// It is there, and why it is not open.
    Locked(String),
    /// There is none.
    NoPool,
}

/// The buffers that a pool with this configuration works with.
#[must_use]
pub fn page_buffers(config: &PoolConfig) -> usize {
    (config.page_cache.bytes() as usize / BLOCK_SIZE).max(Settings::LEAST_PAGES)
}

impl<D: Device + 'static> Pooled<D> {
    /// Opens the pool of a device, if there is one.
    pub async fn open(means: &Means<D>) -> Opening<D> {
        // Of a device that does not read, whoever opens it for raw volumes
        // says more.
        if !matches!(holds_raw_volumes(means).await, Ok(false)) {
            return Opening::NoPool;
        }
        let probed = Pool::probe(&*means.device(), &means.pages).await;
        if !matches!(probed, Ok(Probe::Pool(_))) {
            return Opening::NoPool;
        }
        let Some(unlock) = &means.unlock else {
            return Opening::Locked(format!(
                "device '{}' is a pool, and nothing is said about what unlocks it; add `unlock = \
                 \"key-file:PATH\"` or `unlock = \"passphrase-file:PATH\"` to it in the configuration \
                 and restart the server",
                means.name
            ));
        };
        let secret = match unlock.read() {
            Ok(secret) => secret,
            Err(error) => return Opening::Locked(format!("device '{}': {error}", means.name)),
        };
        match Self::unlock(means, &secret).await {
            Ok(pool) => Opening::Open(pool),
            Err(why) => Opening::Locked(format!("device '{}': {why}", means.name)),
        }
    }

    /// Makes a pool of a device, over whatever is there, and opens it.
    ///
    /// # Errors
    /// A sentence about what is in the way.
    pub async fn make(
        means: &Means<D>,
        journal: Option<BlockCount>,
        secret: &Secret,
    ) -> Result<Self, String> {
        let first = NewWay::new(FIRST_WAY, secret, Cost::USUAL, &means.chance);
        let first = first.map_err(|error| error.to_string())?;
        let options = CreateOptions { first, journal };
        let (device, pages) = (means.device(), means.pages.clone());
        let made = Pool::create(device, pages, means.chance.clone(), options).await;
        made.map_err(|error| error.to_string())?;
        Self::unlock(means, secret).await
    }

    async fn unlock(means: &Means<D>, secret: &Secret) -> Result<Self, String> {
        let parts = interpose::Means {
            device: means.device(),
            buffers: means.pages.clone(),
            chance: means.chance.clone(),
            wall: Box::new(means.wall),
        };
        let settings = settings(&means.pool, means.device().blocks());
        let pool = Pool::open(parts, secret, settings, means.rollback.newest()).await;
        let pool = pool.map_err(|error| error.to_string())?;
        let (check, rollback) = (Rc::default(), means.rollback.clone());
        Ok(Self { pool, check, rollback, remembered: Cell::new(0), abandoned: Rc::default() })
    }
}

fn settings(config: &PoolConfig, device: BlockCount) -> Settings {
    let bytes = |size: Size| usize::try_from(size.bytes()).unwrap_or(usize::MAX);
    Settings {
        page_cache: bytes(config.page_cache),
        overlay: bytes(config.overlay),
        index: bytes(config.index_for(device)),
        read_cache: bytes(config.read_cache),
        full: match config.full {
            Full::Wait => WhenFull::Wait,
            Full::Fail => WhenFull::Fail,
        },
        read_only: false,
    }
}

/// Whether the device says so. It is asked before a pool is looked for: where
/// a pool has its second copies a guest of a raw volume can write what it
/// likes.
///
/// A damaged first block says so only together with a second copy: alone it is
/// what a power cut leaves that tore a new pool's last write.
async fn holds_raw_volumes<D: Device>(means: &Means<D>) -> Result<bool, BlockError> {
    let first = superblock(means, Copy::A).await?;
    let second = superblock(means, Copy::B).await?;
    let is_none = |found: &Found| matches!(found, Found::Blank | Found::Foreign);
    Ok(!is_none(&second) || !(is_none(&first) || first == Found::Damaged))
}

async fn superblock<D: Device>(means: &Means<D>, copy: Copy) -> Result<Found, BlockError> {
    let (device, at) = (means.device(), copy.superblock());
    if at.0 >= device.blocks().0 {
        return Ok(Found::Blank);
    }
    let buffer = means.pages.take().ok_or(BlockError::Medium)?;
    let (buffer, outcome) = device.read(at, buffer, 0..1).await;
    // What cannot be read is not known to be a superblock.
    Ok(outcome.map_or(Found::Foreign, |()| {
        Superblock::parse(buffer.first_chunk().expect("a buffer has a block"))
    }))
}
