//! One session as the front sees it.
//!
//! A slot's request goes out, and its answer comes back; a timer asks how far
//! it is, never sends data again by itself. Slot 0 is kept for attach and
//! detach, one at a time.

mod answers;
mod overtaken;
mod recovery;
mod ring;
mod room;
mod sending;

use std::time::Duration;

use block_core::unit::MAX_REQUEST_SECTORS;
use block_core::{BlockError, Buffer, Op, Time};

use crate::attach::{AttachRequest, BODY_BYTES};
use crate::client::greeting::{Greeting, Offer};
use crate::client::slot::{NEVER, Slot, Use};
use crate::client::voice::Voice;
use crate::client::{Volume, VolumeState};
use crate::code::UNSCHEDULED_BYTES;
use crate::frame::{Arrived, Frame, Header, Kind, MAX_PAYLOAD};
use crate::hello::SessionRefused;
use crate::path::{Guest, Part, Refusal, Source};
use crate::rtt::RoundTrip;
use crate::seal::Guard;
use crate::segment::Segmentation;
use crate::wire::{Peer, Wire};
use overtaken::Overtaken;
pub(in crate::client) use ring::Ring;
use room::Room;

/// The control slot.
const CONTROL: u16 = 0;

/// How long a server must have answered nothing behind its seal before a hint,
/// which anybody can give, is believed that it has forgotten the session. It takes
/// longer than that to be started anew.
const HINT_SILENCE: Duration = Duration::from_millis(20);

/// Slots at most, whatever a server offers: the set of partly read slots is a
/// 128-bit word.
pub(in crate::client) const MAX_SLOTS: u16 = 128;
const _: () = assert!(MAX_SLOTS as u32 <= u128::BITS);

#[derive(Debug)]
enum Phase {
    Greeting(Greeting),
    Live,
}

#[derive(Debug)]
pub(in crate::client) struct Session<P> {
    /// This session's place in its client's list.
    index: usize,
    peer: P,
    phase: Phase,
    id: u32,
    voice: Voice,
    guard: Guard,
    /// When something was first sent since the server was heard.
    unheard: Option<Time>,
    cut: Segmentation,
    slots: Vec<Slot>,
    room: Room,
    /// Slots with frames to send, each once.
    queue: Ring<u16, { MAX_SLOTS as usize }>,
    /// Reads of which some segments have come.
    partly_read: u128,
    next_number: u64,
    next_cookie: u64,
    trip: RoundTrip,
    /// No slot's deadline is earlier than this, and nothing else is due.
    next_deadline: Time,
    /// Which requests others have overtaken.
    overtaken: Overtaken,
    /// The volume whose attach was answered with another worker's port.
    redirect: Option<(usize, u16)>,
    /// A volume was found to have another size.
    resized: bool,
    /// Segments of this session's size do not pass any more.
    too_wide: bool,
}

impl<P: Peer> Session<P> {
    pub(in crate::client) fn new(
        index: usize,
        now: Time,
        peer: P,
        voice: Voice,
        cookie: u64,
        window: u32,
        least_timeout: Duration,
    ) -> Self {
        Self {
            index,
            peer,
            phase: Phase::Greeting(Greeting::new(now, index as u16, cookie)),
            id: 0,
            voice,
            guard: Guard::CLEAR,
            unheard: None,
            cut: Segmentation::SMALLEST,
            slots: Vec::new(),
            room: Room::new(window),
            queue: Ring::new(),
            partly_read: 0,
            next_number: 1,
            next_cookie: cookie.wrapping_add(1),
            trip: RoundTrip::new(least_timeout),
            next_deadline: NEVER,
            overtaken: Overtaken::new(),
            redirect: None,
            resized: false,
            too_wide: false,
        }
    }

    pub(in crate::client) const fn voice(&self) -> &Voice {
        &self.voice
    }

    pub(in crate::client) fn peer(&self) -> P {
        self.peer
    }

    /// Whether it is the session with that server.
    pub(in crate::client) fn is_with(&self, peer: &P) -> bool {
        self.peer == *peer
    }

    pub(in crate::client) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    pub(in crate::client) fn refused(&self) -> Option<SessionRefused> {
        match &self.phase {
            Phase::Greeting(greeting) => greeting.refused(),
            Phase::Live => None,
        }
    }

    /// When something is due. Asked before a sleep, so it is looked at closely: a
    /// deadline of requests that were answered would end that sleep for nothing.
    pub(in crate::client) fn deadline(&self, volumes: &[Volume]) -> Option<Time> {
        if let Phase::Greeting(greeting) = &self.phase {
            return Some(greeting.deadline());
        }
        let bound = self.next_deadline;
        if self.slots.iter().any(|slot| slot.deadline != NEVER) {
            return Some(bound);
        }
        let mine = volumes.iter().filter(|volume| volume.session == self.index);
        let retries = mine.flat_map(|volume| [volume.retry_at, volume.flush_at]).flatten();
        // What is earlier was due in a turn that has been.
        retries.filter(|&at| at >= bound).min()
    }

    pub(in crate::client) fn take_redirect(&mut self, volume: usize) -> Option<u16> {
        let (_, port) = self.redirect.take_if(|(redirected, _)| *redirected == volume)?;
        Some(port)
    }

    /// Since when the server has not given a session.
    pub(in crate::client) fn greeting_since(&self) -> Option<Time> {
        match &self.phase {
            Phase::Greeting(greeting) => Some(greeting.begun()),
            Phase::Live => None,
        }
    }

    pub(in crate::client) fn take_resized(&mut self) -> bool {
        std::mem::take(&mut self.resized)
    }

    /// Takes a part of an attached volume into a slot.
    pub(in crate::client) fn submit(
        &mut self,
        part: Part,
        volumes: &mut [Volume],
        source: &mut impl Source,
    ) -> Result<(), Refusal> {
        let bytes = data_bytes(&part).map_err(Refusal::Failed)?;
        let index = usize::from(part.volume.0);
        let ready = self.is_live() && self.room.has_slot_for(index, volumes);
        if !ready || !self.room.has_credit_for(part.op, bytes) {
            return Err(Refusal::Busy);
        }
        let mut data = None;
        if let Some(range) = part.range.filter(|_| part.op.changes()) {
            data = volumes[index].begin_change(part.op, range, bytes)?;
            if let Some(copy) = &mut data
                && let Err(error) = source.fetch(part.token, &mut copy[..bytes])
            {
                volumes[index].end_change(part.op, range, data, Err(error));
                return Err(Refusal::Failed(error));
            }
        }
        self.occupy(Use::Part(part), data, bytes, &mut volumes[index]);
        Ok(())
    }

    /// Uses a free slot, which there is, for a volume's request.
    #[inline(always)] // Called twice: where a request's time counts, and when volumes recover.
    fn occupy(&mut self, purpose: Use, data: Option<Buffer>, bytes: usize, volume: &mut Volume) {
        let Some(index) = self.room.take_slot() else { return };
        volume.in_use += 1;
        let slot = &mut self.slots[usize::from(index)];
        slot.purpose = purpose;
        slot.bytes = bytes;
        if slot.is_read() {
            self.room.add_read(slot);
        } else {
            slot.covers = volume.kept.mark();
        }
        slot.begin(self.next_number);
        self.next_number += 1;
        if let Some(data) = data {
            slot.data = Some(data);
            self.room.add_unscheduled(slot, self.cut);
        }
        slot.enter(index, &mut self.queue);
    }

    fn enqueue(&mut self, index: usize) {
        self.slots[index].enter(index as u16, &mut self.queue);
    }

    /// Starts the next attach or detach of this session, if slot 0 is free.
    pub(in crate::client) fn attach_next(&mut self, now: Time, volumes: &mut [Volume]) {
        if !self.is_live() || self.slots[usize::from(CONTROL)].purpose != Use::Free {
            return;
        }
        let waits = |volume: &Volume| {
            volume.session == self.index
                && volume.retry_at.is_none_or(|at| now >= at)
                && match volume.state {
                    VolumeState::Waiting => true,
                    VolumeState::Attached(_) => {
                        volume.has_news || volume.may_leave() || volume.unsaid().is_some()
                    }
                    _ => false,
                }
        };
        let Some(index) = volumes.iter().position(waits) else { return };
        let slot = &mut self.slots[usize::from(CONTROL)];
        let volume = &mut volumes[index];
        volume.retry_at = None;
        // What is whole is said to be whole before it is given back.
        if volume.may_leave() && volume.unsaid().is_none() {
            slot.purpose = Use::Detach(index);
            slot.body = None;
            slot.bytes = 0;
        } else {
            volume.has_news = false;
            volume.asked = true;
            let settled = volume.unsaid().unwrap_or(0);
            volume.told = settled;
            let (name, access) = (volume.name.clone(), volume.access);
            let request = AttachRequest { name, access, settled, had: volume.known.is_some() };
            slot.body = Some(request.encode());
            slot.purpose = Use::Attach(index);
            slot.bytes = BODY_BYTES;
        }
        slot.begin(self.next_number);
        self.next_number += 1;
        if slot.body.is_some() {
            self.room.add_unscheduled(slot, self.cut);
        }
        slot.enter(CONTROL, &mut self.queue);
    }

    pub(in crate::client) fn handle_version(&mut self, now: Time, version: u8) {
        if let Phase::Greeting(greeting) = &mut self.phase {
            greeting.handle_version(now, version);
        }
    }

    pub(in crate::client) fn handle_frame(
        &mut self,
        now: Time,
        arrived: Arrived<'_>,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        if let Phase::Greeting(greeting) = &mut self.phase {
            if let Some(offer) = greeting.handle_frame(now, arrived) {
                self.unheard = None;
                self.open(offer, volumes);
            }
            return;
        }
        if arrived.session() != self.id {
            return;
        }
        let Some(frame) = self.verified(now, arrived) else { return };
        if frame.kind == Kind::Answer {
            self.handle_answer(now, &frame, volumes, guest);
        } else {
            self.handle_notice(now, frame, volumes);
        }
        if self.too_wide {
            self.give_up_width(now, volumes);
        }
    }

    /// Takes what is not an answer.
    #[inline(never)]
    fn handle_notice(&mut self, now: Time, frame: Frame<'_>, volumes: &mut [Volume]) {
        match frame.kind {
            Kind::Missing => self.handle_missing(now, frame),
            Kind::State => self.handle_state(now, frame),
            Kind::UnknownSession | Kind::Bye => {
                tracing::warn!(server = ?self.peer, "the server has no session for us: connecting again");
                self.greet_again(now, volumes);
            }
            _ => {}
        }
    }

    /// The frame, if the server has made it; or its hint that it knows no such
    /// session, which is never sealed.
    #[inline]
    fn verified<'a>(&mut self, now: Time, arrived: Arrived<'a>) -> Option<Frame<'a>> {
        if self.guard.is_sealed() && !arrived.is_sealed() {
            // Anybody can say that. Who hears the server knows better.
            let is_hint = arrived.kind() == Kind::UnknownSession;
            let is_silent = self.unheard.is_some_and(|since| now - since >= HINT_SILENCE);
            return if is_hint && is_silent { arrived.in_the_clear() } else { None };
        }
        let frame = self.guard.open(now, arrived)?;
        self.unheard = None;
        Some(frame)
    }

    /// Asks for a session with smaller segments.
    #[cold]
    fn give_up_width(&mut self, now: Time, volumes: &mut [Volume]) {
        self.too_wide = false;
        let segment = self.cut.size();
        tracing::warn!(
            server = ?self.peer,
            segment,
            "large frames do not arrive any more, small ones do (the path's MTU has changed?): \
             connecting again"
        );
        self.greet_again(now, volumes);
    }

    /// A new session begins: everything that was outstanding starts over in
    /// it, volumes first.
    #[cold]
    fn open(&mut self, offer: Offer, volumes: &mut [Volume]) {
        self.id = offer.session;
        self.cut = offer.segments;
        self.guard = offer.guard;
        self.room.begin_anew(offer.welcome.credit);
        self.phase = Phase::Live;
        self.next_number = 1;
        self.partly_read = 0;
        self.next_deadline = NEVER;
        self.queue.clear();
        self.overtaken.clear();
        let offered = offer.welcome.slots.clamp(2, MAX_SLOTS);
        if self.slots.is_empty() {
            self.slots = (0..offered).map(|_| Slot::free()).collect();
            self.room.add_slots(offered);
        }
        for slot in &mut self.slots {
            slot.queued = false;
        }
        self.slots[usize::from(CONTROL)] = Slot::free();
        let segment = self.cut.size();
        tracing::info!(server = ?self.peer, segment, volumes = volumes.len(), "connected");
    }

    fn greet_again(&mut self, now: Time, volumes: &mut [Volume]) {
        self.next_cookie = self.next_cookie.wrapping_add(1);
        self.phase = Phase::Greeting(Greeting::new(now, self.index as u16, self.next_cookie));
        for volume in 0..volumes.len() {
            if volumes[volume].session == self.index {
                self.park(volume, volumes);
                // Another server is asked at once.
                (volumes[volume].retry_at, volumes[volume].flush_at) = (None, None);
            }
        }
    }

    pub(in crate::client) fn close<W: Wire<Peer = P>>(&mut self, wire: &mut W) {
        if self.is_live() {
            let header = Header { session: self.id, ..Header::default() };
            self.guard.send(wire, &self.peer, &header, Kind::Bye, &[]);
        }
    }
}

/// How many bytes of data a part carries or asks for.
fn data_bytes(part: &Part) -> Result<usize, BlockError> {
    match (part.op, part.range) {
        (Op::Read | Op::Write | Op::WriteThrough, Some(range))
            if range.count() <= MAX_REQUEST_SECTORS =>
        {
            Ok(range.bytes() as usize)
        }
        (Op::Read | Op::Write | Op::WriteThrough, _) => Err(BlockError::Malformed),
        (Op::Flush, _) | (_, Some(_)) => Ok(0),
        (_, None) => Err(BlockError::Malformed),
    }
}

const _: () = assert!(BODY_BYTES <= UNSCHEDULED_BYTES && UNSCHEDULED_BYTES <= MAX_PAYLOAD);
