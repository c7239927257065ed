//! A front-end's rings: described, started, stopped.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};

use crate::config_space::{EVENT_INDEX, INDIRECT};
use crate::disk::Breach;
use crate::front::{Bell, unwatch, watch};
use crate::guest_memory::GuestMemory;
use crate::in_flight::Record;
use crate::mail::Mail;
use crate::message::MessageError;
use crate::peer;
use crate::queue::Queue;
use crate::ring::{Past, Ring, RingAddresses, RingError, RingMemory, RingSize};

use super::{Answer, Conversation, Refused, words};

/// A ring as far as the front-end has described it.
#[derive(Debug, Default)]
pub(super) struct Setup {
    pub(super) size: Option<RingSize>,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) base: u16,
    pub(super) enabled: bool,
    /// Registered with the worker's epoll while the ring runs.
    pub(super) kick: Option<OwnedFd>,
    /// Until the ring runs; then the worker has it.
    pub(super) call: Option<OwnedFd>,
    pub(super) runs: bool,
    /// Where the running ring is; not the last table, if that has lost it.
    pub(super) memory: Option<Arc<GuestMemory>>,
}

impl Conversation<'_> {
    pub(super) fn set_addresses(
        &mut self,
        index: u32,
        addresses: RingAddresses,
    ) -> Result<(), Refused> {
        let queue = self.queue(index)?;
        let setup = &mut self.rings[queue];
        // QEMU repeats the addresses of running rings.
        if setup.runs && setup.addresses != Some(addresses) {
            return Err(Refused::Running(queue));
        }
        setup.addresses = Some(addresses);
        Ok(())
    }

    pub(super) fn enable(&mut self, index: u32, on: bool) -> Result<(), Refused> {
        let queue = self.queue(index)?;
        self.rings[queue].enabled = on;
        let queue = self.place.first_queue + queue;
        Ok(self.place.mailbox.post(Mail::Enable { queue, on })?)
    }

    /// A ring starts when it gets its kick descriptor; a running one gets
    /// another.
    pub(super) fn start_ring(&mut self, index: u32, kick: Option<OwnedFd>) -> Result<(), Refused> {
        let queue = self.queue(index)?;
        let kick = kick.ok_or(Refused::NoKick(queue))?;
        if !peer::is_eventfd(&kick) {
            return Err(Refused::NoEventfd(queue));
        }
        let setup = &self.rings[queue];
        let running = if setup.runs {
            None
        } else {
            // A front-end without shared memory offers no region at all.
            if self.regions.is_empty() {
                return Err(MessageError::NotShared.into());
            }
            let memory = locate(queue, setup, &self.memory)?;
            let record = self.record(queue, setup)?;
            let events = self.features & EVENT_INDEX != 0;
            let (ring, past) = Ring::start(memory, setup.base, events, record)
                .map_err(|lie| Refused::Ring { queue, why: lie.into() })?;
            self.check_past(queue, past)?;
            let indirect = self.features & INDIRECT != 0;
            Some(Queue::new(ring, Arc::clone(&self.memory), None, indirect, setup.enabled))
        };
        let number = self.place.first_queue + queue;
        watch(&self.place.epoll, kick.as_fd(), Bell::Kick(number)).map_err(Refused::Descriptor)?;
        let setup = &mut self.rings[queue];
        if let Some(old) = setup.kick.replace(kick) {
            unwatch(&self.place.epoll, old.as_fd());
        }
        let Some(mut running) = running else {
            return Ok(self.place.mailbox.post(Mail::Kick)?);
        };
        running.set_call(setup.call.take());
        setup.runs = true;
        setup.memory = Some(Arc::clone(&self.memory));
        Ok(self.place.mailbox.post(Mail::Start { queue: number, running })?)
    }

    /// A guest that goes on believes in answers that it got before; one that
    /// starts anew reads what is there.
    fn check_past(&self, queue: usize, past: Past) -> Result<(), Refused> {
        let spec = &self.place.spec;
        let own = self.place.served[queue].load(Ordering::Relaxed);
        if let Some(breach) = spec.breach().filter(|_| past == Past::Served && !own) {
            let name = spec.name().to_owned();
            return Err(match breach {
                Breach::LostWrites => Refused::LostWrites(name),
                Breach::OtherVolume => Refused::OtherVolume(name),
            });
        }
        self.place.served[queue].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Where the ring of a queue writes down what is in flight, if it shall.
    fn record(&self, queue: usize, setup: &Setup) -> Result<Option<Record>, Refused> {
        let (Some(area), Some(size)) = (&self.in_flight, setup.size) else { return Ok(None) };
        let why = RingError::NoRecord(size.get());
        area.record(queue, size).map(Some).ok_or(Refused::Ring { queue, why })
    }

    pub(super) fn set_call(&mut self, index: u32, call: Option<OwnedFd>) -> Result<(), Refused> {
        let queue = self.queue(index)?;
        if call.as_ref().is_some_and(|call| !peer::is_eventfd(call)) {
            return Err(Refused::NoEventfd(queue));
        }
        let setup = &mut self.rings[queue];
        if !setup.runs {
            setup.call = call;
            return Ok(());
        }
        let queue = self.place.first_queue + queue;
        Ok(self.place.mailbox.post(Mail::Call { queue, call })?)
    }

    /// `GET_VRING_BASE`: stops the ring, waits until its requests have ended,
    /// answers how far it has come.
    pub(super) fn stop_ring(&mut self, index: u32) -> Result<Answer, Refused> {
        let queue = self.queue(index)?;
        if let Some((queue, answer)) = self.begin_stop(queue) {
            self.end_stop(queue, &answer);
        }
        self.purge()?;
        let base = u32::from(self.rings[queue].base);
        Ok(Answer::Bytes(words([index, base]).to_vec()))
    }

    pub(super) fn begin_stop(
        &mut self,
        queue: usize,
    ) -> Option<(usize, Receiver<Option<Box<Queue>>>)> {
        let setup = &mut self.rings[queue];
        if !std::mem::take(&mut setup.runs) {
            return None;
        }
        if let Some(kick) = setup.kick.take() {
            unwatch(&self.place.epoll, kick.as_fd());
        }
        let (answer, answered) = sync_channel(1);
        let number = self.place.first_queue + queue;
        self.place.mailbox.post(Mail::Stop { queue: number, answer }).ok()?;
        Some((queue, answered))
    }

    pub(super) fn end_stop(&mut self, queue: usize, answer: &Receiver<Option<Box<Queue>>>) {
        if let Ok(Some(mut stopped)) = answer.recv() {
            self.rings[queue].base = stopped.base();
            self.rings[queue].call = stopped.set_call(None);
        }
        self.rings[queue].memory = None;
    }

    pub(super) fn queue(&self, index: u32) -> Result<usize, Refused> {
        let queue = usize::try_from(index).ok().filter(|&queue| queue < self.rings.len());
        queue.ok_or(Refused::NoQueue(index, self.place.spec.queues()))
    }

    pub(super) fn stopped(&self, index: u32) -> Result<usize, Refused> {
        let queue = self.queue(index)?;
        if self.rings[queue].runs { Err(Refused::Running(queue)) } else { Ok(queue) }
    }
}

pub(super) fn locate(
    queue: usize,
    setup: &Setup,
    memory: &GuestMemory,
) -> Result<RingMemory, Refused> {
    let (Some(size), Some(addresses)) = (setup.size, setup.addresses) else {
        return Err(Refused::NotReady(queue));
    };
    RingMemory::locate(memory, size, addresses).map_err(|why| Refused::Ring { queue, why })
}
