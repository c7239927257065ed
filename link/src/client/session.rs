//! One session as the front sees it.
//!
//! A slot's request goes out, and its answer comes back; a timer asks how far
//! it is, never sends data again by itself. Slot 0 is kept for attach and
//! detach, one at a time.

use std::collections::VecDeque;
use std::time::Duration;

use block_core::unit::{MAX_REQUEST_BYTES, MAX_REQUEST_SECTORS};
use block_core::{BlockError, Op, Pool, Time};

use super::greeting::{Caller, Greeting, Offer};
use super::slot::{Slot, Use};
use super::{Volume, VolumeState, bye, judge};
use crate::attach::{AttachReply, AttachRequest, BODY_BYTES};
use crate::code::{self, Progress, UNSCHEDULED_BYTES};
use crate::frame::{Frame, Header, Kind, MAX_PAYLOAD};
use crate::hello::SessionRefused;
use crate::path::{Guest, Part, Refusal};
use crate::rtt::RoundTrip;
use crate::segment::{SegmentSet, Segmentation};
use crate::wire::{Peer, Wire};

/// Frames that one session sends in a turn, so that a turn is bounded.
const BURST: usize = 256;

/// The control slot.
const CONTROL: u16 = 0;

/// Slots at most, whatever a server offers: the set of partly read slots is a
/// 128-bit word.
const MAX_SLOTS: u16 = 128;

#[derive(Debug)]
enum Phase {
    Greeting(Greeting),
    Live,
}

#[derive(Debug)]
pub(super) struct Session<P> {
    /// This session's place in its client's list.
    index: usize,
    peer: P,
    phase: Phase,
    id: u32,
    cut: Segmentation,
    slots: Vec<Slot>,
    /// Free slots but the control slot, the last used on top.
    free: Vec<u16>,
    /// Slots with frames to send.
    queue: VecDeque<u16>,
    /// Reads of which some segments have come.
    partly_read: u128,
    next_number: u64,
    next_counter: u64,
    next_cookie: u64,
    trip: RoundTrip,
    /// No slot's deadline is earlier than this.
    next_deadline: Option<Time>,
    credit: u16,
    unscheduled: u16,
    /// Bytes that may be asked for at once, and that have been.
    read_window: usize,
    reading: usize,
    /// The volume whose attach was answered with another worker's port.
    redirect: Option<(usize, u16)>,
}

impl<P: Peer> Session<P> {
    pub(super) fn new(
        index: usize,
        now: Time,
        peer: P,
        cookie: u64,
        window: u32,
        least_timeout: Duration,
    ) -> Self {
        Self {
            index,
            peer,
            phase: Phase::Greeting(Greeting::new(now, cookie)),
            id: 0,
            cut: Segmentation::SMALLEST,
            slots: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            partly_read: 0,
            next_number: 1,
            next_counter: 1,
            next_cookie: cookie.wrapping_add(1),
            trip: RoundTrip::new(least_timeout),
            next_deadline: None,
            credit: 0,
            unscheduled: 0,
            read_window: (window as usize).max(MAX_REQUEST_BYTES),
            reading: 0,
            redirect: None,
        }
    }

    pub(super) fn peer(&self) -> P {
        self.peer
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    pub(super) fn refused(&self) -> Option<SessionRefused> {
        match &self.phase {
            Phase::Greeting(greeting) => greeting.refused(),
            Phase::Live => None,
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.slots.iter().filter(|slot| slot.purpose != Use::Free).count()
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Greeting(greeting) => Some(greeting.deadline()),
            Phase::Live => self.next_deadline,
        }
    }

    pub(super) fn take_redirect(&mut self, volume: usize) -> Option<u16> {
        let (_, port) = self.redirect.take_if(|(redirected, _)| *redirected == volume)?;
        Some(port)
    }

    /// Takes a part of an attached volume into a slot.
    pub(super) fn submit(
        &mut self,
        part: Part,
        volumes: &mut [Volume],
        copies: &Pool,
        guest: &mut impl Guest,
    ) -> Result<(), Refusal> {
        let bytes = data_bytes(&part).map_err(Refusal::Failed)?;
        if !self.is_live() || !self.has_slot_for(usize::from(part.volume.0), volumes) {
            return Err(Refusal::Busy);
        }
        let mut data = None;
        if part.op == Op::Read {
            if self.reading > 0 && self.reading + bytes > self.read_window {
                return Err(Refusal::Busy);
            }
            self.reading += bytes;
        } else if part.op.carries_data() {
            if self.unscheduled >= self.credit {
                return Err(Refusal::Busy);
            }
            let mut copy = copies.take().ok_or(Refusal::Busy)?;
            guest.fetch(part.token, &mut copy[..bytes]).map_err(Refusal::Failed)?;
            data = Some(copy);
        }
        let Some(index) = self.free.pop() else { return Err(Refusal::Busy) };
        volumes[usize::from(part.volume.0)].in_use += 1;
        let slot = &mut self.slots[usize::from(index)];
        slot.purpose = Use::Part(part);
        slot.data = data;
        slot.bytes = bytes;
        self.begin(index);
        Ok(())
    }

    /// Each volume can always get a slot: the last free ones are kept for
    /// those that have none.
    fn has_slot_for(&self, volume: usize, volumes: &[Volume]) -> bool {
        let kept = if self.free.len() > volumes.len() || volumes[volume].in_use == 0 {
            0
        } else {
            volumes.iter().filter(|other| other.in_use == 0).count()
        };
        self.free.len() > kept
    }

    /// Gives the slot's purpose a number and lets its first frames go.
    fn begin(&mut self, index: u16) {
        let number = self.next_number;
        self.next_number += 1;
        let slot = &mut self.slots[usize::from(index)];
        slot.begin(number);
        slot.request_due = true;
        if slot.data.is_some() {
            slot.unsent = self.cut.within(slot.bytes, UNSCHEDULED_BYTES);
            slot.unscheduled = true;
            self.unscheduled += 1;
        }
        self.enqueue(index);
    }

    fn enqueue(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        if !slot.queued {
            slot.queued = true;
            self.queue.push_back(index);
        }
    }

    /// Starts the next attach or detach of this session, if slot 0 is free.
    pub(super) fn attach_next(&mut self, volumes: &mut [Volume], copies: &Pool) {
        if !self.is_live() || self.slots[usize::from(CONTROL)].purpose != Use::Free {
            return;
        }
        let waits = |volume: &Volume| {
            volume.session == self.index
                && matches!(volume.state, VolumeState::Waiting | VolumeState::Detaching)
        };
        let Some(index) = volumes.iter().position(waits) else { return };
        let slot = &mut self.slots[usize::from(CONTROL)];
        if volumes[index].state == VolumeState::Detaching {
            slot.purpose = Use::Detach(index);
            slot.bytes = 0;
        } else {
            let Some(mut copy) = copies.take() else { return };
            let volume = &volumes[index];
            let request = AttachRequest { name: volume.name.clone(), access: volume.access };
            copy[..BODY_BYTES].copy_from_slice(&request.encode());
            slot.data = Some(copy);
            slot.purpose = Use::Attach(index);
            slot.bytes = BODY_BYTES;
        }
        self.begin(CONTROL);
    }

    pub(super) fn handle_version(&mut self, now: Time, version: u8) {
        if let Phase::Greeting(greeting) = &mut self.phase {
            greeting.handle_version(now, version);
        }
    }

    pub(super) fn handle_frame(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        if let Phase::Greeting(greeting) = &mut self.phase {
            if let Some(offer) = greeting.handle_frame(now, frame) {
                self.open(offer, volumes);
            }
            return;
        }
        if frame.header.session != self.id {
            return;
        }
        match frame.kind {
            Kind::UnknownSession | Kind::Bye => self.greet_again(now, volumes),
            Kind::Answer => self.handle_answer(now, frame, volumes, guest),
            Kind::Missing => self.handle_missing(now, frame),
            Kind::State => self.handle_state(now, frame),
            _ => {}
        }
    }

    /// A new session begins: everything that was outstanding starts over in
    /// it, volumes first.
    fn open(&mut self, offer: Offer, volumes: &mut [Volume]) {
        self.id = offer.session;
        self.cut = offer.segments;
        self.credit = offer.welcome.credit.max(1);
        self.phase = Phase::Live;
        self.next_number = 1;
        self.next_counter = 1;
        self.unscheduled = 0;
        self.partly_read = 0;
        self.next_deadline = None;
        self.queue.clear();
        let offered = usize::from(offer.welcome.slots.clamp(2, MAX_SLOTS));
        if self.slots.is_empty() {
            self.slots = (0..offered).map(|_| Slot::free()).collect();
            self.free = (1..offered as u16).rev().collect();
            self.queue.reserve(offered);
        }
        for slot in &mut self.slots {
            slot.queued = false;
            slot.begin(0);
        }
        self.slots[usize::from(CONTROL)] = Slot::free();
        let segment = self.cut.size();
        tracing::info!(server = ?self.peer, segment, volumes = volumes.len(), "connected");
    }

    fn greet_again(&mut self, now: Time, volumes: &mut [Volume]) {
        tracing::warn!(server = ?self.peer, "the server has no session for us: connecting again");
        self.next_cookie = self.next_cookie.wrapping_add(1);
        self.phase = Phase::Greeting(Greeting::new(now, self.next_cookie));
        let mine = volumes.iter_mut().filter(|volume| volume.session == self.index);
        mine.for_each(Volume::lose_session);
    }

    /// The slot that a frame speaks of, if it speaks of what the slot does now.
    fn slot_of(&self, header: &Header) -> Option<usize> {
        let index = usize::from(header.slot);
        let slot = self.slots.get(index)?;
        (slot.purpose != Use::Free && slot.number == header.number && header.number != 0)
            .then_some(index)
    }

    fn handle_answer(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        let header = &frame.header;
        self.credit = header.volume.max(1);
        let Some(index) = self.slot_of(header) else { return };
        let slot = &mut self.slots[index];
        if slot.is_read() && slot.attempt != header.attempt {
            return;
        }
        if let Some(sent) = slot.timed_from.take() {
            let held = Duration::from_micros(u64::from(header.count));
            self.trip.sample((now - sent).saturating_sub(held));
        }
        let outcome = BlockError::from_code(header.op);
        if outcome.is_ok() && slot.is_read() {
            self.place(index, frame, guest);
            self.read_gaps_again(header.counter);
            let slot = &self.slots[index];
            if slot.received != self.cut.all(slot.bytes) {
                return;
            }
        }
        self.finish(index, outcome, frame.payload, volumes, guest);
    }

    /// Puts one verified segment of a read where it belongs.
    fn place(&mut self, index: usize, frame: &Frame<'_>, guest: &mut impl Guest) {
        let slot = &mut self.slots[index];
        let (offset, len) = (frame.header.offset as usize, frame.payload.len());
        let Use::Part(part) = slot.purpose else { return };
        let Some(segment) = self.cut.index(offset, len, slot.bytes) else { return };
        if slot.received.contains(segment) {
            return;
        }
        guest.place(part.token, offset, frame.payload);
        slot.received.insert(segment);
        slot.last_counter = frame.header.counter;
        slot.doublings = 0;
        if slot.is_partly_read(self.cut) {
            self.partly_read |= 1 << index;
        } else {
            self.partly_read &= !(1 << index);
        }
    }

    /// Reads again what a gap shows to be lost: frames sent well after it have
    /// come.
    fn read_gaps_again(&mut self, counter: u64) {
        let mut partly = self.partly_read;
        while partly != 0 {
            let index = partly.trailing_zeros() as usize;
            partly &= partly - 1;
            let slot = &mut self.slots[index];
            if counter > slot.last_counter + code::REORDER_FRAMES {
                slot.read_again(self.cut);
                slot.last_counter = counter;
                self.partly_read &= !(1 << index);
                self.enqueue(index as u16);
            }
        }
    }

    /// Ends what the slot does.
    fn finish(
        &mut self,
        index: usize,
        outcome: Result<(), BlockError>,
        payload: &[u8],
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        match self.slots[index].purpose {
            Use::Free => {}
            Use::Part(part) => {
                self.release(index, volumes);
                guest.complete(part.token, outcome);
            }
            Use::Attach(volume) => {
                self.release(index, volumes);
                self.attached(volume, outcome, payload, volumes, guest);
            }
            Use::Detach(volume) => {
                self.release(index, volumes);
                volumes[volume].state = VolumeState::Detached;
            }
        }
    }

    fn attached(
        &mut self,
        index: usize,
        outcome: Result<(), BlockError>,
        payload: &[u8],
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        // An answer that cannot be read, or a server that could not decide, is
        // asked again.
        let Some(reply) = outcome.ok().and_then(|()| AttachReply::parse(payload)) else { return };
        let volume = &mut volumes[index];
        if volume.state != VolumeState::Waiting {
            return;
        }
        volume.state = judge(volume.known, &reply);
        match (volume.state, reply) {
            (VolumeState::Attached(attached), _) => {
                volume.known = Some(attached);
                tracing::info!(volume = %volume.name, sectors = attached.sectors, "attached");
                self.resume_parts(index);
            }
            (_, AttachReply::Elsewhere { port }) => self.redirect = Some((index, port)),
            (VolumeState::Changed, _) => {
                tracing::error!(
                    volume = %volume.name,
                    "the volume was restored, imported or detached by force while this front was \
                     away: its disk stops; start the guest anew to use it"
                );
                self.fail_parts(index, BlockError::NotAttached, volumes, guest);
            }
            (VolumeState::Refused(refused), _) => {
                tracing::error!(volume = %volume.name, "not attached: {refused}");
                self.fail_parts(index, BlockError::NotAttached, volumes, guest);
            }
            _ => {}
        }
    }

    /// Sends again what waited for the volume to be attached anew.
    fn resume_parts(&mut self, volume: usize) {
        for index in 0..self.slots.len() {
            if self.slots[index].is_part_of(volume) && self.slots[index].number == 0 {
                self.begin(index as u16);
            }
        }
    }

    /// Ends all parts of a volume.
    pub(super) fn fail_parts(
        &mut self,
        volume: usize,
        error: BlockError,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        for index in 0..self.slots.len() {
            if self.slots[index].is_part_of(volume) {
                self.finish(index, Err(error), &[], volumes, guest);
            }
        }
    }

    fn release(&mut self, index: usize, volumes: &mut [Volume]) {
        let slot = &mut self.slots[index];
        if slot.unscheduled {
            self.unscheduled -= 1;
        }
        if let Use::Part(part) = slot.purpose {
            volumes[usize::from(part.volume.0)].in_use -= 1;
            self.free.push(index as u16);
        }
        if slot.is_read() {
            self.reading -= slot.bytes;
        }
        self.partly_read &= !(1 << index);
        slot.purpose = Use::Free;
        slot.data = None;
        slot.begin(0);
    }

    fn handle_missing(&mut self, now: Time, frame: &Frame<'_>) {
        let Some(index) = self.slot_of(&frame.header) else { return };
        let Some(set) = frame.payload.first_chunk() else { return };
        let slot = &mut self.slots[index];
        if slot.data.is_none() {
            return;
        }
        if std::mem::take(&mut slot.unscheduled) {
            self.unscheduled -= 1;
        }
        slot.unsent = SegmentSet(u128::from_le_bytes(*set)).and(self.cut.all(slot.bytes));
        slot.request_due = !slot.unsent.is_empty();
        slot.timed_from = None;
        slot.doublings = 0;
        self.await_answer(now, index);
        self.enqueue(index as u16);
    }

    fn handle_state(&mut self, now: Time, frame: &Frame<'_>) {
        let Some(index) = self.slot_of(&frame.header) else { return };
        let slot = &mut self.slots[index];
        match Progress::from_code(frame.header.op) {
            Some(Progress::Unknown) => {
                slot.request_due = true;
                slot.timed_from = None;
                if slot.data.is_some() {
                    slot.unsent = self.cut.within(slot.bytes, UNSCHEDULED_BYTES);
                }
            }
            Some(Progress::Finished) if slot.is_read() => {
                if frame.header.attempt == slot.attempt {
                    slot.read_again(self.cut);
                    self.partly_read &= !(1 << index);
                }
                // Else our wish to have it read again was lost: repeat that.
                slot.request_due = true;
            }
            _ => return,
        }
        self.await_answer(now, index);
        self.enqueue(index as u16);
    }

    /// Asks how far the requests are whose answers are late.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        if !self.is_live() || self.next_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.next_deadline = None;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            let Some(deadline) = slot.deadline else { continue };
            if now < deadline {
                self.next_deadline = earlier(self.next_deadline, deadline);
                continue;
            }
            slot.doublings = slot.doublings.saturating_add(1);
            slot.probe_due = true;
            slot.timed_from = None;
            self.await_answer(now, index);
            self.enqueue(index as u16);
        }
    }

    fn await_answer(&mut self, now: Time, index: usize) {
        let slot = &mut self.slots[index];
        let deadline = now + self.trip.timeout(slot.doublings);
        slot.deadline = Some(deadline);
        self.next_deadline = earlier(self.next_deadline, deadline);
    }

    /// Sends what is due; whether anything was.
    pub(super) fn transmit<W: Wire<Peer = P>>(
        &mut self,
        now: Time,
        caller: Caller,
        volumes: &[Volume],
        wire: &mut W,
    ) -> bool {
        if let Phase::Greeting(greeting) = &mut self.phase {
            return greeting.transmit(now, caller, wire, self.peer);
        }
        let mut frames = 0;
        while frames < BURST {
            let Some(index) = self.queue.pop_front() else { break };
            frames += self.transmit_slot(now, index, volumes, wire);
        }
        frames > 0
    }

    fn transmit_slot<W: Wire<Peer = P>>(
        &mut self,
        now: Time,
        index: u16,
        volumes: &[Volume],
        wire: &mut W,
    ) -> usize {
        let slot = &mut self.slots[usize::from(index)];
        slot.queued = false;
        if slot.purpose == Use::Free || slot.number == 0 {
            return 0;
        }
        let mut header = request_header(slot, volumes);
        header.session = self.id;
        header.slot = index;
        let mut frames = 0;
        let mut send = |header: &mut Header, kind, payload: &[u8]| {
            header.counter = self.next_counter;
            self.next_counter += 1;
            wire.send(self.peer, &header.encode(kind, payload), payload);
            frames += 1;
        };
        if std::mem::take(&mut slot.probe_due) && !slot.request_due {
            send(&mut header, Kind::Probe, &[]);
        }
        if std::mem::take(&mut slot.request_due) {
            match &slot.data {
                Some(data) => {
                    while let Some(segment) = slot.unsent.pop() {
                        let range = self.cut.range(segment, slot.bytes);
                        header.offset = range.start as u32;
                        send(&mut header, Kind::Request, &data[range]);
                    }
                }
                None => {
                    header.offset = slot.wanted(self.cut);
                    send(&mut header, Kind::Request, &[]);
                }
            }
            let first = slot.attempt == 0 && slot.deadline.is_none();
            slot.timed_from = first.then_some(now);
            self.await_answer(now, usize::from(index));
        }
        frames
    }

    pub(super) fn close<W: Wire<Peer = P>>(&mut self, wire: &mut W) {
        if self.is_live() {
            wire.send(self.peer, &bye(self.id, self.next_counter), &[]);
        }
    }
}

impl Slot {
    fn is_part_of(&self, volume: usize) -> bool {
        matches!(self.purpose, Use::Part(part) if usize::from(part.volume.0) == volume)
    }
}

impl Volume {
    fn lose_session(&mut self) {
        if matches!(self.state, VolumeState::Attached(_)) {
            self.state = VolumeState::Waiting;
        }
    }
}

fn earlier(one: Option<Time>, other: Time) -> Option<Time> {
    Some(one.map_or(other, |one| one.min(other)))
}

/// How many bytes of data a part carries or asks for.
fn data_bytes(part: &Part) -> Result<usize, BlockError> {
    match (part.op, part.range) {
        (Op::Read | Op::Write | Op::WriteThrough, Some(range))
            if range.count() <= MAX_REQUEST_SECTORS =>
        {
            Ok(range.bytes() as usize)
        }
        (Op::Flush, _) | (Op::Discard | Op::WriteZeroes | Op::WriteZeroesUnmap, Some(_)) => Ok(0),
        _ => Err(BlockError::Malformed),
    }
}

/// The fields that say what the slot asks for.
fn request_header(slot: &Slot, volumes: &[Volume]) -> Header {
    let mut header = Header { number: slot.number, attempt: slot.attempt, ..Header::default() };
    let handle = |volume: usize| volumes[volume].known.map_or(0, |known| known.handle.0);
    match slot.purpose {
        Use::Free => {}
        Use::Part(part) => {
            header.op = part.op.code();
            header.volume = handle(usize::from(part.volume.0));
            if let Some(range) = part.range {
                header.word = range.start();
                header.count = range.count();
            }
        }
        Use::Attach(_) => {
            header.op = code::ATTACH;
            header.count = slot.bytes as u32;
        }
        Use::Detach(volume) => {
            header.op = code::DETACH;
            header.volume = handle(volume);
        }
    }
    header
}

const _: () = assert!(BODY_BYTES <= UNSCHEDULED_BYTES && UNSCHEDULED_BYTES <= MAX_PAYLOAD);
