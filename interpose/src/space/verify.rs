//! Looking at all counts, for a check of the pool.

use block_core::{BlockCount, Device, Extent, Pba};
use thiserror::Error;

use super::Space;
use super::directory::{count_at, entries, free_in, locate, malformed};
use super::layout::{Entry, SegmentRoot};
use super::window::Window;
use crate::pages::{Damage, Page, Pages};

/// Pages that are read at once.
const READS: usize = 16;

/// A page of counts, or of their directory, that is damaged or does not add
/// up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{damage}: the counts of {} from block {} are not known", blocks.count, blocks.start.0)]
pub struct Fault {
    /// What is wrong.
    pub damage: Damage,
    /// The blocks below it.
    pub blocks: Extent,
}

/// The durable counts of a region at one moment.
pub struct Counts {
    blocks: Extent,
    page: Option<Page>,
}

impl Counts {
    /// Whose counts they are.
    #[must_use]
    pub const fn blocks(&self) -> Extent {
        self.blocks
    }

    /// Each block and its count.
    pub fn iter(&self) -> impl Iterator<Item = (Pba, u16)> + '_ {
        let count = |place| self.page.as_ref().map_or(0, |page| count_at(page, place));
        let places = 0..self.blocks.count.0 as u16;
        places.map(move |place| (Pba(self.blocks.start.0 + u64::from(place)), count(place)))
    }
}

impl<D: Device> Space<D> {
    /// How many regions the pool has.
    #[must_use]
    pub fn regions(&self) -> u32 {
        self.ledger.borrow().regions()
    }

    /// How often counts were published since the pool was opened: two looks at
    /// them belong together when this is the same.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published.get()
    }

    /// The durable counts of a region below [`Space::regions`], which agree
    /// with the directory.
    ///
    /// # Errors
    /// When they cannot be had or do not agree.
    pub async fn counts(&self, region: u32) -> Result<Counts, Fault> {
        let (root, page) = self.region(region);
        let blocks = blocks(&root, 0, page);
        let load = async || self.sound(0, region, page).await;
        let page = self.while_current(load).await.map_err(|damage| Fault { damage, blocks })?;
        Ok(Counts { blocks, page })
    }

    async fn sound(&self, level: u8, region: u32, page: u64) -> Result<Option<Page>, Damage> {
        let (root, _) = self.region(region);
        sound(&self.pages, &root, level, page).await
    }

    /// Looks at every page of the directory: that it opens and that its free
    /// blocks add up. Returns how many pages there are.
    pub async fn verify_directory(&self, mut found: impl FnMut(Fault)) -> u64 {
        let firsts: Vec<u32> = self.places.borrow().iter().map(|at| at.first_region).collect();
        let mut window = Window::new(READS);
        let mut looked = 0;
        for first in firsts {
            let segment = self.region(first).0.segment;
            let levels = (1..=segment.levels()).rev();
            for (level, page) in levels.flat_map(|l| (0..segment.pages(l)).map(move |p| (l, p))) {
                if !window.has_room()
                    && let Some(Some(fault)) = window.next().await
                {
                    found(fault);
                }
                window.push(self.fault(first, level, page));
                looked += 1;
            }
        }
        while let Some(fault) = window.next().await {
            fault.into_iter().for_each(&mut found);
        }
        looked
    }

    async fn fault(&self, first_region: u32, level: u8, page: u64) -> Option<Fault> {
        let load = async || self.sound(level, first_region, page).await;
        let damage = self.while_current(load).await.err()?;
        let (root, _) = self.region(first_region);
        Some(Fault { damage, blocks: blocks(&root, level, page) })
    }
}

fn blocks(root: &SegmentRoot, level: u8, page: u64) -> Extent {
    let span = root.segment.below(level, 0);
    let start = Pba(root.segment.extent().start.0 + page * span);
    Extent { start, count: BlockCount(root.segment.below(level, page)) }
}

/// A page that agrees with its entry; nothing if it was never written.
async fn sound<D: Device>(
    pages: &Pages<D>,
    root: &SegmentRoot,
    level: u8,
    page: u64,
) -> Result<Option<Page>, Damage> {
    let entry = locate(pages, root, level, page).await?;
    let Entry::Written { seal, home, free } = entry else { return Ok(None) };
    let binding = root.segment.binding(level, page, home);
    let bytes = pages.load_once(&seal, binding).await?;
    let adds_up = if level == 0 {
        free_in(&bytes, root.segment.below(0, page)) == Some(free)
    } else {
        entries(root, level, page, &bytes, free).is_some()
    };
    if adds_up { Ok(Some(bytes)) } else { Err(malformed(&binding)) }
}
