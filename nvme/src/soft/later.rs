//! Commands that end later: what a disk has begun, until it says how that went.

use std::os::fd::OwnedFd;

use super::direct::{DirectDisk, Ended, Kind};
use super::engine::{Engine, Power, Stuck};
use super::namespace::{Disk, SoftNamespace};
use super::registers::Registers;
use crate::completion::Status;

impl Engine {
    /// What rings for every command that stays open; none if nothing rings for some.
    pub(super) fn bells(&self) -> Vec<OwnedFd> {
        let rings = self.namespaces.iter().all(SoftNamespace::is_direct);
        if !rings || self.options.disorder.is_some() {
            return Vec::new();
        }
        // Without descriptors to spare the thread looks for itself.
        let bells = self.disks().map(|disk| disk.bell().try_clone());
        bells.collect::<Result<_, _>>().unwrap_or_default()
    }

    fn disks(&self) -> impl Iterator<Item = &DirectDisk> {
        self.namespaces.iter().filter_map(|namespace| match &namespace.disk {
            Disk::InPlace(_) => None,
            Disk::Direct(disk) => Some(&**disk),
        })
    }

    fn disks_mut(&mut self) -> impl Iterator<Item = &mut DirectDisk> {
        self.namespaces.iter_mut().filter_map(|namespace| namespace.direct())
    }

    /// Posts what has ended. Returns how many there were.
    pub(super) fn collect(&mut self, registers: &Registers) -> usize {
        // A controller that has failed says nothing until it is reset.
        if self.power == Power::Failed {
            return 0;
        }
        self.tell();
        let count = self.take_ended();
        if self.power == Power::Stopping && !self.is_under_way() {
            self.end_stop(registers);
            return count + 1;
        }
        count
    }

    fn take_ended(&mut self) -> usize {
        let mut count = 0;
        for index in 0..self.namespaces.len() {
            while let Some(ended) = self.namespaces[index].direct().and_then(DirectDisk::next_ended)
            {
                self.end(&ended);
                count += 1;
            }
        }
        count
    }

    /// Tells the kernel what was begun.
    pub(super) fn tell(&mut self) {
        self.disks_mut().for_each(DirectDisk::tell);
    }

    fn end(&mut self, ended: &Ended) {
        if ended.status.is_success() {
            match ended.kind {
                Kind::Read => {
                    self.served.reads += 1;
                    self.served.bytes_read += ended.bytes;
                }
                Kind::Write => {
                    self.served.writes += 1;
                    self.served.bytes_written += ended.bytes;
                }
                Kind::Zero | Kind::Deallocate | Kind::Flush => {}
            }
        }
        let Some(owner) = ended.owner else { return };
        self.pay(owner.queue);
        self.post(owner.queue, owner.id, ended.status, 0);
        let source = self.submission[usize::from(owner.queue)].as_ref();
        if let Some(deletion) = source.and_then(|source| source.deletion)
            && !self.is_used(owner.queue)
        {
            self.submission[usize::from(owner.queue)] = None;
            self.pay(0);
            self.post(0, deletion, Status::SUCCESS, 0);
        }
    }

    /// A submission queue goes, now or when the last of its commands has ended: then the
    /// admin command that deletes it has, too. Whether it is gone.
    pub(super) fn close(&mut self, queue: u16, deletion: u16) -> bool {
        if self.is_used(queue) {
            if let Some(source) = &mut self.submission[usize::from(queue)] {
                source.deletion = Some(deletion);
            }
            self.owe(0);
            return false;
        }
        self.submission[usize::from(queue)] = None;
        true
    }

    fn is_used(&self, queue: u16) -> bool {
        self.has_direct && self.disks().any(|disk| disk.has_any_of(queue))
    }

    /// A command of this submission queue stays open, and its entry is kept for it.
    pub(super) fn owe(&mut self, queue: u16) {
        if let Some(source) = &self.submission[usize::from(queue)]
            && let Some(completion) = &mut self.completion[usize::from(source.completion)]
        {
            completion.owe();
        }
    }

    /// It is about to be written, or owed no more.
    pub(super) fn pay(&mut self, queue: u16) {
        if let Some(source) = &self.submission[usize::from(queue)]
            && let Some(completion) = &mut self.completion[usize::from(source.completion)]
        {
            completion.pay();
        }
    }

    /// Whether a command of this queue can be begun, whichever disk it is for.
    pub(super) fn has_place(&self, queue: u16) -> bool {
        !self.has_direct || queue == 0 || self.disks().all(|disk| disk.has_place())
    }

    /// Whether the kernel has commands.
    pub(super) fn is_under_way(&self) -> bool {
        self.has_direct && self.disks().any(|disk| disk.busy() > 0)
    }

    /// Nobody is told any more how what is under way ends.
    pub(super) fn forsake(&mut self) {
        self.disks_mut().for_each(DirectDisk::forsake);
    }

    /// Waits until the kernel has no command.
    pub(super) fn finish(&mut self) {
        while self.is_under_way() {
            self.disks_mut().for_each(DirectDisk::wait);
            self.take_ended();
        }
    }

    /// Whether there is something to do for which nothing rings.
    pub(super) fn has_work(&mut self, registers: &Registers) -> bool {
        if self.disks_mut().any(|disk| disk.has_news()) || self.shadow.is_some() {
            return true;
        }
        if self.held.iter().any(|held| held.stuck == Stuck::No) {
            return true;
        }
        (0..self.submission.len() as u16).any(|queue| {
            let source = self.submission[usize::from(queue)].as_ref();
            let waits = source.is_some_and(|source| {
                source.deletion.is_none() && registers.tail(queue) != u32::from(source.head())
            });
            waits && self.has_place(queue) && self.has_room(queue, registers)
        })
    }
}
