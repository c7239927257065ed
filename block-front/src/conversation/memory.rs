//! The guest's memory, as its front-end adds and removes regions of it.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use crate::guest_memory::{GuestMemory, MAX_MAPPED, MAX_REGIONS, Region, RegionError, RegionSpec};
use crate::mail::Mail;

use super::rings::locate;
use super::{Conversation, Refused};

/// Most memory tables that requests under way may keep alive.
pub(super) const MAX_RETIRED: usize = 64;

impl Conversation<'_> {
    /// Maps a region; `mapped` bytes are mapped already.
    pub(super) fn map(
        &self,
        spec: RegionSpec,
        file: &File,
        mapped: u64,
    ) -> Result<Arc<Region>, Refused> {
        if mapped.saturating_add(spec.len) > MAX_MAPPED {
            return Err(RegionError::Budget(spec.len).into());
        }
        if self.peer.as_ref().is_some_and(|peer| peer.maps_privately(spec.user, file)) {
            return Err(Refused::Private);
        }
        Ok(Arc::new(Region::map(spec, file)?))
    }

    pub(super) fn set_memory_table(
        &mut self,
        table: Vec<(RegionSpec, File)>,
    ) -> Result<(), Refused> {
        let mut mapped = self.mapped();
        let mut regions = Vec::with_capacity(table.len());
        for (spec, file) in table {
            regions.push(self.map(spec, &file, mapped)?);
            mapped += spec.len;
        }
        self.set_regions(regions, Vec::new())
    }

    /// How many bytes of guest memory are mapped, also for requests under way.
    pub(super) fn mapped(&self) -> u64 {
        let tables = self.retired.iter().chain([&self.memory]);
        let mut regions: Vec<_> = tables.flat_map(|table| table.regions()).collect();
        regions.sort_unstable_by_key(|region| Arc::as_ptr(region));
        regions.dedup_by_key(|region| Arc::as_ptr(region));
        regions.iter().map(|region| region.spec().len).sum()
    }

    /// Unmaps what no request and no ring uses any more.
    pub(super) fn unmap_unused(&mut self) {
        self.retired.retain(|memory| Arc::strong_count(memory) > 1);
    }

    pub(super) fn add_region(&mut self, spec: RegionSpec, file: File) -> Result<(), Refused> {
        if self.regions.len() == MAX_REGIONS {
            return Err(RegionError::TooMany.into());
        }
        let mut regions = self.regions.clone();
        regions.push(self.map(spec, &file, self.mapped())?);
        let mut leaving = self.leaving.clone();
        leaving.retain(|region| !region.spec().overlaps(&spec));
        // The oldest make room: nothing has come in their place for long.
        leaving.drain(..(regions.len() + leaving.len()).saturating_sub(MAX_REGIONS));
        self.set_regions(regions, leaving)
    }

    pub(super) fn remove_region(&mut self, spec: RegionSpec) -> Result<(), Refused> {
        let same = |region: &Arc<Region>| {
            let RegionSpec { guest, len, user, .. } = region.spec();
            (guest, len, user) == (spec.guest, spec.len, spec.user)
        };
        let place = self.regions.iter().position(same).ok_or(RegionError::Unknown)?;
        let mut regions = self.regions.clone();
        let removed = regions.remove(place);
        let mut leaving = self.leaving.clone();
        if self.rings.iter().any(|ring| ring.runs) {
            leaving.push(removed);
        }
        self.set_regions(regions, leaving)
    }

    /// Makes a table of the regions and waits until the worker uses it, with
    /// the running rings where they are in it. On an error nothing has changed.
    pub(super) fn set_regions(
        &mut self,
        regions: Vec<Arc<Region>>,
        leaving: Vec<Arc<Region>>,
    ) -> Result<(), Refused> {
        self.unmap_unused();
        if self.retired.len() >= MAX_RETIRED {
            return Err(Refused::TooManyTables);
        }
        let all: Vec<_> = regions.iter().chain(&leaving).map(Arc::clone).collect();
        let memory = Arc::new(GuestMemory::new(&all)?);
        let running = self.rings.iter().enumerate().filter(|(_, setup)| setup.runs);
        let mut moved = Vec::new();
        let rings: Vec<_> = running
            .map(|(queue, setup)| {
                let ring = locate(queue, setup, &memory).ok();
                moved.extend(ring.is_some().then_some(queue));
                (self.place.first_queue + queue, ring)
            })
            .collect();
        if !rings.is_empty() {
            let (memory, disk) = (Arc::clone(&memory), self.place.disk);
            let (taken, is_taken) = sync_channel(1);
            self.place.mailbox.post(Mail::Memory { disk, memory, rings, taken })?;
            // The guest may use the new memory as soon as this is answered. A
            // worker that goes drops its mail.
            is_taken.recv().map_err(|_| Refused::Closed)?;
        }
        for queue in moved {
            self.rings[queue].memory = Some(Arc::clone(&memory));
        }
        (self.regions, self.leaving) = (regions, leaving);
        self.retired.push(std::mem::replace(&mut self.memory, memory));
        self.unmap_unused();
        Ok(())
    }

    /// Forgets what was removed, as soon as no ring runs.
    pub(super) fn purge(&mut self) -> Result<(), Refused> {
        if self.leaving.is_empty() || self.rings.iter().any(|ring| ring.runs) {
            return Ok(());
        }
        self.set_regions(self.regions.clone(), Vec::new())
    }
}
