//! Requests that a device has and no task waits for, by their tags.

use block_core::device::Tag;
use link::SlotRef;

use crate::session::Straight;

/// A place for each, which the tag names.
pub struct Straights<D> {
    places: Vec<Place<D>>,
    /// The first free place; behind the last one when all are taken.
    first: u32,
}

enum Place<D> {
    /// And the free place after it.
    Free(u32),
    Taken(SlotRef, Straight<D>),
}

impl<D> Straights<D> {
    /// No requests; so many at a time allocate nothing.
    #[must_use]
    pub fn with_room_for(count: usize) -> Self {
        Self { places: Vec::with_capacity(count), first: 0 }
    }

    /// What the next one will be called.
    #[must_use]
    #[inline]
    pub fn next(&self) -> Tag {
        Tag(self.first)
    }

    /// Keeps a request, which is called as [`Straights::next`] has said.
    #[inline]
    pub fn put(&mut self, at: SlotRef, straight: Straight<D>) {
        let taken = Place::Taken(at, straight);
        match self.places.get_mut(self.first as usize) {
            Some(place) => {
                if let Place::Free(next) = std::mem::replace(place, taken) {
                    self.first = next;
                }
            }
            None => {
                self.places.push(taken);
                self.first = self.places.len() as u32;
            }
        }
    }

    /// The request of that name, if there is one.
    #[inline]
    pub fn take(&mut self, tag: Tag) -> Option<(SlotRef, Straight<D>)> {
        let place = self.places.get_mut(tag.0 as usize)?;
        if let Place::Free(_) = place {
            return None;
        }
        let Place::Taken(at, straight) = std::mem::replace(place, Place::Free(self.first)) else {
            return None;
        };
        self.first = tag.0;
        Some((at, straight))
    }
}
