//! One front-end's conversation with one disk (the vhost-user specification):
//! from its connection to the last ring's end.
//!
//! It runs on the disk's own thread. What the worker must know goes to it as
//! mail, finished; memory is mapped, and unmapped, here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use rustix::net::{SendFlags, Shutdown, send};
use thiserror::Error;
use vhost::vhost_user::message::BackendReq;

use crate::config_space::{
    self, CONFIG_LIMIT, EVENT_INDEX, FLUSH, INDIRECT, PROTOCOL_FEATURES, WRITEBACK_AT,
};
use crate::disk::DiskSpec;
use crate::front::{unwatch, watch};
use crate::guest_memory::{GuestMemory, MAX_MAPPED, MAX_REGIONS, Region, RegionError, RegionSpec};
use crate::inbox::Frame;
use crate::mail::{Closed, Mail, Mailbox};
use crate::message::{Message, MessageError};
use crate::peer::{self, Peer};
use crate::queue::Queue;
use crate::ring::{Ring, RingAddresses, RingError, RingMemory, RingSize};

/// Flags of an answer: version 1, reply.
const ANSWER_FLAGS: u32 = 0b101;

/// Flags of a message on the back channel that wants no answer.
const NOTICE_FLAGS: u32 = 0b001;

/// Most memory tables that requests under way may keep alive.
const MAX_RETIRED: usize = 64;

/// Why a message was not done. The sentence continues "the front-end ...".
#[derive(Debug, Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Region(#[from] RegionError),
    #[error("queue {queue}: {why}")]
    Ring { queue: usize, why: RingError },
    #[error("queue {0} does not exist; give the device at most {1} queues (num-queues=)")]
    NoQueue(u32, u16),
    #[error("queue {0} was started before its size, its addresses or the memory was set")]
    NotReady(usize),
    #[error("queue {0} runs and cannot be changed")]
    Running(usize),
    #[error("queue {0} has no kick descriptor: polling without one is not supported")]
    NoKick(usize),
    #[error("queue {0}: the descriptor is no eventfd")]
    NoEventfd(usize),
    #[error("features {0:#x} were not offered")]
    Features(u64),
    #[error("only the write cache setting can be changed, to 0 or 1")]
    Config,
    #[error(
        "the guest's memory is private to QEMU; give its memory backend share=on \
         (-object memory-backend-memfd,id=mem,size=...,share=on -machine memory-backend=mem)"
    )]
    Private,
    #[error(
        "the guest's memory changed {MAX_RETIRED} times while requests were under way; change it \
         when the server has answered them"
    )]
    TooManyTables,
    #[error("the descriptor cannot be used: {0}")]
    Descriptor(#[source] io::Error),
    #[error("the worker has gone")]
    Closed,
}

impl From<Closed> for Refused {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

/// Where a conversation's disk has its place in the front.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) spec: Arc<DiskSpec>,
    pub(crate) disk: usize,
    pub(crate) first_queue: usize,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) epoll: Arc<OwnedFd>,
    /// Whether the guest may have a write cache. QEMU does not repeat the
    /// setting when it connects again.
    pub(crate) writeback: AtomicBool,
}

/// A ring as far as the front-end has described it.
#[derive(Debug, Default)]
struct Setup {
    size: Option<RingSize>,
    addresses: Option<RingAddresses>,
    base: u16,
    enabled: bool,
    /// Registered with the worker's epoll while the ring runs.
    kick: Option<OwnedFd>,
    /// Until the ring runs; then the worker has it.
    call: Option<OwnedFd>,
    runs: bool,
    /// Where the running ring is; not the last table, if that has lost it.
    memory: Option<Arc<GuestMemory>>,
}

/// The state of a conversation.
#[derive(Debug)]
pub(crate) struct Conversation<'a> {
    place: &'a Place,
    socket: UnixStream,
    peer: Option<Peer>,
    features: u64,
    regions: Vec<Arc<Region>>,
    /// Removed while a ring runs, and nothing has come in their place. QEMU
    /// removes before it adds when it cuts memory anew; requests must not fall
    /// into the gap.
    leaving: Vec<Arc<Region>>,
    memory: Arc<GuestMemory>,
    /// Tables that requests may still use: dropped here, never by the worker.
    retired: Vec<Arc<GuestMemory>>,
    rings: Vec<Setup>,
    back_channel: Option<UnixStream>,
}

/// What a message is answered with.
enum Answer {
    /// Nothing but the acknowledgement that may have been asked for.
    Done,
    /// A number.
    Number(u64),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl<'a> Conversation<'a> {
    /// Begins with a front-end that has just connected.
    pub(crate) fn open(place: &'a Place, socket: UnixStream) -> Result<Self, Refused> {
        let for_worker = socket.try_clone().map_err(Refused::Descriptor)?;
        place.mailbox.post(Mail::Open { disk: place.disk, socket: for_worker })?;
        let conversation = Self {
            place,
            peer: Peer::of(&socket),
            socket,
            features: 0,
            regions: Vec::new(),
            leaving: Vec::new(),
            memory: Arc::default(),
            retired: Vec::new(),
            rings: (0..place.spec.queues()).map(|_| Setup::default()).collect(),
            back_channel: None,
        };
        conversation.tell_write_cache()?;
        Ok(conversation)
    }

    pub(crate) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Does what a message says and answers it.
    ///
    /// # Errors
    /// The conversation cannot go on: the socket broke, or a message that the
    /// front-end does not want acknowledged was refused.
    pub(crate) fn hear(&mut self, frame: Frame, sectors: u64) -> Result<(), Refused> {
        self.unmap_unused();
        let (request, need_reply) = (frame.request, frame.need_reply);
        let outcome = Message::parse(frame)
            .map_err(Refused::from)
            .and_then(|message| self.act(message, sectors));
        match outcome {
            Ok(Answer::Number(number)) => self.answer(request, &number.to_ne_bytes()),
            Ok(Answer::Bytes(bytes)) => self.answer(request, &bytes),
            Ok(Answer::Done) if need_reply => self.answer(request, &0u64.to_ne_bytes()),
            Ok(Answer::Done) => Ok(()),
            Err(Refused::Closed) => Err(Refused::Closed),
            Err(refused) if need_reply => {
                tracing::warn!(
                    disk = self.place.spec.name(),
                    "refused to the front-end: {refused}"
                );
                self.answer(request, &1u64.to_ne_bytes())
            }
            Err(refused) => Err(refused),
        }
    }

    /// Tells the front-end to read the configuration again, if it listens. A
    /// back channel that takes nothing is given up: nobody waits for it.
    pub(crate) fn announce_change(&mut self) {
        let Some(channel) = &self.back_channel else { return };
        let header = [BackendReq::CONFIG_CHANGE_MSG.into(), NOTICE_FLAGS, 0u32];
        if write(channel, &words(header), SendFlags::DONTWAIT).is_err() {
            self.back_channel = None;
        }
    }

    /// Stops all rings, waits until their requests have ended, and hangs up.
    pub(crate) fn close(mut self) {
        let stops: Vec<_> =
            (0..self.rings.len()).filter_map(|queue| self.begin_stop(queue)).collect();
        for (queue, answer) in stops {
            self.end_stop(queue, &answer);
        }
        // The worker's copy would keep the connection open, and QEMU waiting
        // for an answer. Without a worker there is no copy.
        let _ = self.place.mailbox.post(Mail::Close { disk: self.place.disk });
        // It may have closed by itself.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    fn act(&mut self, message: Message, sectors: u64) -> Result<Answer, Refused> {
        match message {
            Message::GetFeatures => {
                return Ok(Answer::Number(config_space::features(&self.place.spec)));
            }
            Message::GetProtocolFeatures => {
                return Ok(Answer::Number(config_space::protocol_features().bits()));
            }
            Message::GetQueueNum => {
                return Ok(Answer::Number(self.place.spec.queues().into()));
            }
            Message::GetMaxMemSlots => return Ok(Answer::Number(MAX_REGIONS as u64)),
            Message::GetConfig { offset, size, flags } => {
                return Ok(Answer::Bytes(self.config(offset, size, flags, sectors)));
            }
            Message::GetVringBase { index } => return self.stop_ring(index),
            // RESET_OWNER is old and may be ignored, says the specification.
            Message::SetOwner | Message::ResetOwner | Message::SetVringErr => {}
            Message::SetFeatures(features) => self.set_features(features)?,
            Message::SetProtocolFeatures(features) => {
                if features & !config_space::protocol_features().bits() != 0 {
                    return Err(Refused::Features(features));
                }
            }
            Message::SetConfig { offset, bytes } => self.set_config(offset, &bytes)?,
            Message::SetMemTable(table) => self.set_memory_table(table)?,
            Message::AddMemReg(spec, file) => self.add_region(spec, file)?,
            Message::RemMemReg(spec) => self.remove_region(spec)?,
            Message::SetVringNum { index, entries } => {
                let queue = self.stopped(index)?;
                let size = RingSize::new(entries).map_err(|why| Refused::Ring { queue, why })?;
                self.rings[queue].size = Some(size);
            }
            Message::SetVringBase { index, base } => {
                let queue = self.stopped(index)?;
                // The upper half is for packed rings, which are not offered.
                self.rings[queue].base = base as u16;
            }
            Message::SetVringAddr { index, addresses } => self.set_addresses(index, addresses)?,
            Message::SetVringEnable { index, on } => self.enable(index, on)?,
            Message::SetVringKick { index, fd } => self.start_ring(index, fd)?,
            Message::SetVringCall { index, fd } => self.set_call(index, fd)?,
            Message::SetBackendReqFd(fd) => self.back_channel = Some(UnixStream::from(fd)),
        }
        Ok(Answer::Done)
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refused> {
        if features & !config_space::features(&self.place.spec) != 0 {
            return Err(Refused::Features(features));
        }
        self.features = features;
        if features & PROTOCOL_FEATURES == 0 {
            // Rings start disabled only if bit 30 was negotiated.
            for queue in 0..self.rings.len() {
                self.enable(queue as u32, true)?;
            }
        }
        self.tell_write_cache()
    }

    fn config(&self, offset: u32, size: u32, flags: u32, sectors: u64) -> Vec<u8> {
        let writeback = self.place.writeback.load(Ordering::Relaxed);
        let space = config_space::config_space(&self.place.spec, sectors, writeback);
        let end = offset.checked_add(size).map_or(usize::MAX, |end| end as usize);
        let Some(bytes) = space.get(offset as usize..end) else {
            // An answer without a body says that it could not be done.
            return Vec::new();
        };
        let mut answer = words([offset, size, flags]).to_vec();
        answer.extend_from_slice(bytes);
        answer
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
        match (offset, bytes) {
            (WRITEBACK_AT, &[on @ (0 | 1)]) => {
                self.place.writeback.store(on == 1, Ordering::Relaxed);
                self.tell_write_cache()
            }
            _ => Err(Refused::Config),
        }
    }

    /// Without a cache, or a driver that flushes it, writes go through.
    fn tell_write_cache(&self) -> Result<(), Refused> {
        let writeback = self.place.writeback.load(Ordering::Relaxed);
        let on = !writeback || self.features & FLUSH == 0;
        Ok(self.place.mailbox.post(Mail::WriteThrough { disk: self.place.disk, on })?)
    }

    /// Maps a region; `mapped` bytes are mapped already.
    fn map(&self, spec: RegionSpec, file: &File, mapped: u64) -> Result<Arc<Region>, Refused> {
        if mapped.saturating_add(spec.len) > MAX_MAPPED {
            return Err(RegionError::Budget(spec.len).into());
        }
        if self.peer.as_ref().is_some_and(|peer| peer.maps_privately(spec.user, file)) {
            return Err(Refused::Private);
        }
        Ok(Arc::new(Region::map(spec, file)?))
    }

    fn set_memory_table(&mut self, table: Vec<(RegionSpec, File)>) -> Result<(), Refused> {
        let mut mapped = self.mapped();
        let mut regions = Vec::with_capacity(table.len());
        for (spec, file) in table {
            regions.push(self.map(spec, &file, mapped)?);
            mapped += spec.len;
        }
        self.set_regions(regions, Vec::new())
    }

    /// How many bytes of guest memory are mapped, also for requests under way.
    fn mapped(&self) -> u64 {
        let tables = self.retired.iter().chain([&self.memory]);
        let mut regions: Vec<_> = tables.flat_map(|table| table.regions()).collect();
        regions.sort_unstable_by_key(|region| Arc::as_ptr(region));
        regions.dedup_by_key(|region| Arc::as_ptr(region));
        regions.iter().map(|region| region.spec().len).sum()
    }

    /// Unmaps what no request and no ring uses any more.
    fn unmap_unused(&mut self) {
        self.retired.retain(|memory| Arc::strong_count(memory) > 1);
    }

    fn add_region(&mut self, spec: RegionSpec, file: File) -> Result<(), Refused> {
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

    fn remove_region(&mut self, spec: RegionSpec) -> Result<(), Refused> {
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
    fn set_regions(
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
    fn purge(&mut self) -> Result<(), Refused> {
        if self.leaving.is_empty() || self.rings.iter().any(|ring| ring.runs) {
            return Ok(());
        }
        self.set_regions(self.regions.clone(), Vec::new())
    }

    fn set_addresses(&mut self, index: u32, addresses: RingAddresses) -> Result<(), Refused> {
        let queue = self.queue(index)?;
        let setup = &mut self.rings[queue];
        // QEMU repeats the addresses of running rings.
        if setup.runs && setup.addresses != Some(addresses) {
            return Err(Refused::Running(queue));
        }
        setup.addresses = Some(addresses);
        Ok(())
    }

    fn enable(&mut self, index: u32, on: bool) -> Result<(), Refused> {
        let queue = self.queue(index)?;
        self.rings[queue].enabled = on;
        let queue = self.place.first_queue + queue;
        Ok(self.place.mailbox.post(Mail::Enable { queue, on })?)
    }

    /// A ring starts when it gets its kick descriptor; a running one gets
    /// another.
    fn start_ring(&mut self, index: u32, kick: Option<OwnedFd>) -> Result<(), Refused> {
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
            let ring = Ring::start(memory, setup.base, self.features & EVENT_INDEX != 0);
            let indirect = self.features & INDIRECT != 0;
            Some(Queue::new(ring, Arc::clone(&self.memory), None, indirect, setup.enabled))
        };
        watch(&self.place.epoll, kick.as_fd()).map_err(Refused::Descriptor)?;
        let setup = &mut self.rings[queue];
        if let Some(old) = setup.kick.replace(kick) {
            unwatch(&self.place.epoll, old.as_fd());
        }
        if let Some(mut running) = running {
            running.set_call(setup.call.take());
            setup.runs = true;
            setup.memory = Some(Arc::clone(&self.memory));
            let queue = self.place.first_queue + queue;
            self.place.mailbox.post(Mail::Start { queue, running })?;
        }
        Ok(())
    }

    fn set_call(&mut self, index: u32, call: Option<OwnedFd>) -> Result<(), Refused> {
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
    fn stop_ring(&mut self, index: u32) -> Result<Answer, Refused> {
        let queue = self.queue(index)?;
        if let Some((queue, answer)) = self.begin_stop(queue) {
            self.end_stop(queue, &answer);
        }
        self.purge()?;
        let base = u32::from(self.rings[queue].base);
        Ok(Answer::Bytes(words([index, base]).to_vec()))
    }

    fn begin_stop(&mut self, queue: usize) -> Option<(usize, Receiver<Option<Box<Queue>>>)> {
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

    fn end_stop(&mut self, queue: usize, answer: &Receiver<Option<Box<Queue>>>) {
        if let Ok(Some(mut stopped)) = answer.recv() {
            self.rings[queue].base = stopped.base();
            self.rings[queue].call = stopped.set_call(None);
        }
        self.rings[queue].memory = None;
    }

    fn queue(&self, index: u32) -> Result<usize, Refused> {
        let queue = usize::try_from(index).ok().filter(|&queue| queue < self.rings.len());
        queue.ok_or(Refused::NoQueue(index, self.place.spec.queues()))
    }

    fn stopped(&self, index: u32) -> Result<usize, Refused> {
        let queue = self.queue(index)?;
        if self.rings[queue].runs { Err(Refused::Running(queue)) } else { Ok(queue) }
    }

    fn answer(&self, request: u32, body: &[u8]) -> Result<(), Refused> {
        let mut bytes = words([request, ANSWER_FLAGS, body.len() as u32]).to_vec();
        bytes.extend_from_slice(body);
        write(&self.socket, &bytes, SendFlags::empty()).map_err(Refused::Descriptor)
    }
}

fn locate(queue: usize, setup: &Setup, memory: &GuestMemory) -> Result<RingMemory, Refused> {
    let (Some(size), Some(addresses)) = (setup.size, setup.addresses) else {
        return Err(Refused::NotReady(queue));
    };
    RingMemory::locate(memory, size, addresses).map_err(|why| Refused::Ring { queue, why })
}

/// Numbers in the machine's order, as vhost-user wants them.
fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Sends all of `bytes`; a peer that has gone is an error, not a signal.
fn write(socket: &UnixStream, mut bytes: &[u8], flags: SendFlags) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(socket, bytes, flags | SendFlags::NOSIGNAL) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => bytes = &bytes[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

const _: () = assert!(CONFIG_LIMIT <= u32::MAX as usize);
