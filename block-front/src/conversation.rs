//! One front-end's conversation with one disk (the vhost-user specification):
//! from its connection to the last ring's end.
//!
//! It runs on the disk's own thread. What the worker must know goes to it as
//! mail, finished; memory is mapped, and unmapped, here.

mod memory;
mod refused;
mod rings;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, send, sendmsg};
use vhost::vhost_user::message::BackendReq;

use crate::config_space::{self, CONFIG_LIMIT, FLUSH, PROTOCOL_FEATURES, WRITEBACK_AT};
use crate::disk::DiskSpec;
use crate::guest_memory::{GuestMemory, MAX_REGIONS, Region};
use crate::in_flight::{self, Area};
use crate::inbox::Frame;
use crate::mail::{Mail, Mailbox};
use crate::message::{Message, area_answer};
use crate::peer::Peer;
use crate::ring::RingSize;

pub(crate) use refused::Refused;
use rings::Setup;

/// Flags of an answer: version 1, reply.
const ANSWER_FLAGS: u32 = 0b101;

/// Flags of a message on the back channel that wants no answer.
const NOTICE_FLAGS: u32 = 0b001;

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
    /// Which queues this process has served: what they go on with are its own
    /// answers.
    pub(crate) served: Box<[AtomicBool]>,
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
    /// Where rings that start write down what is in flight.
    in_flight: Option<Area>,
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
    /// These bytes, and a descriptor with them.
    Described(Vec<u8>, OwnedFd),
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
            in_flight: None,
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
            Ok(Answer::Described(bytes, fd)) => self.answer_with(request, &bytes, &fd),
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
            Message::GetInflightFd { queues, entries } => {
                let (spec, file) = in_flight::make(queues, entries, self.place.spec.queues())?;
                return Ok(Answer::Described(area_answer(spec), file));
            }
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
            Message::SetInflightFd(spec, file) => {
                if let Some(queue) = self.rings.iter().position(|ring| ring.runs) {
                    return Err(Refused::Running(queue));
                }
                self.in_flight = Some(Area::map(spec, &file, self.place.spec.queues())?);
            }
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

    fn answer(&self, request: u32, body: &[u8]) -> Result<(), Refused> {
        write(&self.socket, &answer(request, body), SendFlags::empty()).map_err(Refused::Descriptor)
    }

    /// Answers with a descriptor, which travels with the first byte.
    fn answer_with(&self, request: u32, body: &[u8], fd: &OwnedFd) -> Result<(), Refused> {
        let bytes = answer(request, body);
        let sent = write_with(&self.socket, &bytes, fd).map_err(Refused::Descriptor)?;
        write(&self.socket, &bytes[sent..], SendFlags::empty()).map_err(Refused::Descriptor)
    }
}

/// An answer's bytes.
fn answer(request: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = words([request, ANSWER_FLAGS, body.len() as u32]).to_vec();
    bytes.extend_from_slice(body);
    bytes
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

/// Sends the beginning of `bytes`, and a descriptor; returns how many bytes
/// that were.
fn write_with(socket: &UnixStream, bytes: &[u8], fd: &OwnedFd) -> io::Result<usize> {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    // There is room for one.
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return Ok(outcome?),
        }
    }
}

const _: () = assert!(CONFIG_LIMIT <= u32::MAX as usize);
