//! Eras: salts, each used from when it was drawn until the pool is closed.

use std::collections::BTreeSet;
use std::ops::Range;

use super::area::{self, Era, Section};
use super::error::KeyError;
use super::key::{Salt, fresh_salt};
use super::{Current, Vault};
use crate::layout::EraId;

/// Every era that has a place, by place: no more memory than there are eras.
#[derive(Default)]
pub(super) struct Eras {
    pub(super) places: Vec<Option<Era>>,
    highest: EraId,
}

impl Eras {
    /// Takes in the places of the next block. Whether each era is in the
    /// place that it must have.
    pub(super) fn extend(&mut self, block: Vec<Option<Era>>) -> bool {
        for era in &block {
            if let Some(era) = era {
                if place(era.id) != self.places.len() {
                    return false;
                }
                self.highest = self.highest.max(era.id);
            }
            self.places.push(*era);
        }
        self.places.len() <= Section::ERAS.blocks as usize * Section::ERAS.per_block
    }

    pub(super) fn salt(&self, era: EraId) -> Option<&Salt> {
        let known = self.places.get(place(era))?.as_ref()?;
        (known.id == era).then_some(&known.salt)
    }

    /// The number of the next era: higher than all, so that an era's number
    /// says when it was, and with a free place.
    pub(super) fn next(&self) -> Option<EraId> {
        let first = self.highest.0 + 1;
        (first..first + area::ERAS as u32)
            .map(EraId)
            .take_while(|era| *era <= EraId::MAX)
            .find(|era| !matches!(self.places.get(place(*era)), Some(Some(_))))
    }

    pub(super) fn put(&mut self, era: Era) {
        let place = place(era.id);
        if self.places.len() <= place {
            self.places.resize(place + 1, None);
        }
        self.places[place] = Some(era);
        self.highest = self.highest.max(era.id);
    }

    fn replace(&mut self, places: Range<usize>, with: impl Fn(usize, Option<Era>) -> Option<Era>) {
        for (place, era) in self.places.iter_mut().enumerate().take(places.end).skip(places.start) {
            *era = with(place, *era);
        }
    }

    /// The entries of a block, with some of them replaced.
    fn encode(
        &self,
        places: Range<usize>,
        with: impl Fn(usize, Option<Era>) -> Option<Era>,
    ) -> Box<area::Block> {
        let entries: Vec<Option<Era>> =
            places.map(|place| with(place, self.places.get(place).copied().flatten())).collect();
        area::encode(entries.iter().map(Option::as_ref))
    }
}

fn place(era: EraId) -> usize {
    era.0 as usize % area::ERAS
}

impl Vault {
    /// Draws a new salt, writes it to both copies, and from then on seals
    /// under it: at every open that writes, and when [`Vault::needs_era`].
    ///
    /// # Errors
    /// The device's, or no room. The era that was goes on.
    pub async fn begin_era(&self) -> Result<EraId, KeyError> {
        let _changing = self.changing.lock().await;
        self.next_era().await
    }

    /// [`Vault::begin_era`] for whoever is changing the key area.
    pub(super) async fn next_era(&self) -> Result<EraId, KeyError> {
        let id = self.eras.borrow().next().ok_or(KeyError::NoRoomForEras)?;
        let era = Era { id, salt: fresh_salt(&self.chance) };
        let (index, places) = Section::ERAS.block_of(place(id));
        let with = |at, old| if at == place(id) { Some(era) } else { old };
        let block = self.eras.borrow().encode(places, with);
        self.area.update(index, block).await?;
        self.eras.borrow_mut().put(era);
        self.domains.borrow_mut().hash_since(id);
        self.current.set(Some(Current { era: id, next: 0 }));
        Ok(id)
    }

    /// Gives the places of eras back that no pointer, page or record names any
    /// more. The last era stays, so that numbers go on rising.
    ///
    /// # Errors
    /// The device's; some of the eras are forgotten then.
    pub async fn forget_eras(&self, unused: &[EraId]) -> Result<(), KeyError> {
        let _changing = self.changing.lock().await;
        let highest = self.eras.borrow().highest;
        let unused: BTreeSet<EraId> = {
            let eras = self.eras.borrow();
            unused
                .iter()
                .copied()
                .filter(|era| *era < highest && eras.salt(*era).is_some())
                .collect()
        };
        let kept = |_, era: Option<Era>| era.filter(|era| !unused.contains(&era.id));
        let blocks: BTreeSet<usize> =
            unused.iter().map(|era| place(*era) / Section::ERAS.per_block).collect();
        for block in blocks {
            let (index, places) = Section::ERAS.block_of(block * Section::ERAS.per_block);
            let block = self.eras.borrow().encode(places.clone(), kept);
            self.area.update(index, block).await?;
            self.eras.borrow_mut().replace(places, kept);
        }
        Ok(())
    }

    /// How many eras have a place.
    #[must_use]
    pub fn eras(&self) -> usize {
        self.eras.borrow().places.iter().flatten().count()
    }
}
