//! A volume gets on its feet again in a new session: what it may have lost is
//! sent again, then what had no answer; and the flushes that keep this short.

use block_core::{BlockError, Buffer, Op, Time};

use super::answers::RETRY_PAUSE;
use super::{Session, data_bytes};
use crate::client::slot::Use;
use crate::client::volume::{Recovery, overlap};
use crate::client::{Volume, VolumeState};
use crate::path::Guest;
use crate::wire::Peer;

impl<P: Peer> Session<P> {
    /// Takes what a volume has under way out of its slots: nothing of it is
    /// answered any more.
    pub(in crate::client) fn park(&mut self, volume: usize, volumes: &mut [Volume]) {
        for index in 0..self.slots.len() {
            if self.slots[index].purpose.volume() == Some(volume) {
                self.park_slot(index, volumes);
            }
        }
        volumes[volume].lose_session();
    }

    /// Takes the request out of one slot, to be sent later.
    pub(super) fn park_slot(&mut self, index: usize, volumes: &mut [Volume]) {
        let slot = &mut self.slots[index];
        let purpose = slot.purpose;
        let Some(volume) = purpose.volume() else { return };
        let data = slot.data.take();
        self.room.give_back(index, slot, &mut volumes[volume]);
        self.partly_read &= !(1 << index);
        match purpose {
            Use::Part(part) => volumes[usize::from(part.volume.0)].parked.push((part, data)),
            Use::Replay { volume, entry } => {
                if let Some(kept) = volumes[volume].kept.get_mut(entry) {
                    kept.data = data;
                    let range = kept.range;
                    volumes[volume].replaying.retain(|other| *other != range);
                }
            }
            Use::Flush(volume) => volumes[volume].flushing = false,
            Use::Free | Use::Attach(_) | Use::Detach(_) => {}
        }
    }

    /// Takes a volume's next steps; they end where answers are waited for.
    pub(in crate::client) fn recover(&mut self, now: Time, index: usize, volumes: &mut [Volume]) {
        if volumes[index].wants_flush(now) && self.room.has_slot_for(index, volumes) {
            volumes[index].flushing = true;
            volumes[index].flush_at = None;
            self.occupy_again(Use::Flush(index), None, 0, &mut volumes[index]);
        }
        while matches!(volumes[index].state, VolumeState::Attached(_)) && self.is_live() {
            let volume = &mut volumes[index];
            match volume.recovery {
                Recovery::Done => return,
                Recovery::Draining if volume.in_use == 0 => {
                    volume.lose_session();
                    return self.note_retry(volume.retry_at);
                }
                Recovery::Draining | Recovery::Inheriting => return,
                Recovery::Replaying { next } => {
                    if next == volume.kept.len() && volume.replaying.is_empty() {
                        volume.replayed();
                    } else if !self.replay(next, index, volumes) {
                        return;
                    }
                }
                Recovery::Changes => {
                    if self.resume(index, Op::changes, volumes) || volumes[index].is_changing() {
                        return;
                    }
                    volumes[index].recovery = Recovery::Rest;
                }
                Recovery::Rest => {
                    if self.resume(index, |_| true, volumes) {
                        return;
                    }
                    volumes[index].recovery = Recovery::Done;
                }
            }
        }
    }

    /// As [`Session::occupy`], which is made for a guest's new requests and stands
    /// in their way only there.
    #[cold]
    fn occupy_again(
        &mut self,
        purpose: Use,
        data: Option<Buffer>,
        bytes: usize,
        volume: &mut Volume,
    ) {
        self.occupy(purpose, data, bytes, volume);
    }

    /// Sends the `next`th kept change again, unless it has to wait.
    fn replay(&mut self, next: usize, index: usize, volumes: &mut [Volume]) -> bool {
        if !self.room.has_slot_for(index, volumes) {
            return false;
        }
        let Volume { kept, replaying, recovery, .. } = &mut volumes[index];
        let Some(entry) = kept.get_mut(next) else { return false };
        let (range, has_data) = (entry.range, entry.data.is_some());
        let waits = replaying.iter().any(|other| overlap(*other, range));
        if waits || has_data && !self.room.has_credit_for(Op::Write, 0) {
            return false;
        }
        let data = entry.data.take();
        let bytes = if has_data { range.bytes() as usize } else { 0 };
        replaying.push(range);
        *recovery = Recovery::Replaying { next: next + 1 };
        self.occupy_again(
            Use::Replay { volume: index, entry: next },
            data,
            bytes,
            &mut volumes[index],
        );
        true
    }

    /// Gives slots to parked parts of some kinds; whether one of them has to
    /// wait.
    fn resume(&mut self, index: usize, kinds: fn(Op) -> bool, volumes: &mut [Volume]) -> bool {
        let mut at = 0;
        while let Some((part, _)) = volumes[index].parked.get(at) {
            let part = *part;
            if !kinds(part.op) {
                at += 1;
                continue;
            }
            let bytes = data_bytes(&part).unwrap_or(0);
            if !self.room.has_slot_for(index, volumes) || !self.room.has_credit_for(part.op, bytes)
            {
                return true;
            }
            let (_, data) = volumes[index].parked.swap_remove(at);
            self.occupy_again(Use::Part(part), data, bytes, &mut volumes[index]);
        }
        false
    }

    /// A kept change was answered once more.
    pub(super) fn replayed(
        &mut self,
        now: Time,
        index: usize,
        outcome: Result<(), BlockError>,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        let Use::Replay { volume, .. } = self.slots[index].purpose else { return };
        self.park_slot(index, volumes);
        match outcome {
            Ok(()) => {}
            Err(error @ (BlockError::Lost | BlockError::NotAttached)) => {
                drain(now, &mut volumes[volume], Some(error));
            }
            Err(error) => {
                tracing::error!(
                    volume = %volumes[volume].name,
                    "a write that the guest was told is done was lost by the server and failed \
                     when it was sent again ({error}): its disk stops; mend what the server's log \
                     says, then start the guest anew"
                );
                volumes[volume].state = VolumeState::Broken(error);
                self.stop_volume(volume, volumes, guest);
            }
        }
    }

    /// A flush of the client's own was answered.
    pub(super) fn flush_answered(
        &mut self,
        now: Time,
        index: usize,
        outcome: Result<(), BlockError>,
        verifier: u64,
        volumes: &mut [Volume],
    ) {
        let Use::Flush(volume) = self.slots[index].purpose else { return };
        let mark = self.slots[index].covers;
        self.park_slot(index, volumes);
        let volume = &mut volumes[volume];
        match outcome {
            Ok(()) if volume.believes(verifier) => {
                volume.flushed(mark);
                volume.inherited();
            }
            Ok(()) => drain(now, volume, None),
            Err(BlockError::Lost) => drain(now, volume, Some(BlockError::Lost)),
            Err(error) => {
                tracing::error!(volume = %volume.name, "what was written cannot be flushed: {error}");
                volume.disinherit();
                volume.flush_error = Some(error);
                volume.flush_at = Some(now + RETRY_PAUSE);
                self.note_retry(volume.flush_at);
            }
        }
    }

    /// Ends all parts of a volume that is served no more, and forgets what is
    /// kept of it.
    pub(super) fn stop_volume(
        &mut self,
        volume: usize,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        self.park(volume, volumes);
        self.fail_parts(volume, BlockError::NotAttached, volumes, guest);
        let Volume { kept, name, .. } = &mut volumes[volume];
        if !kept.is_empty() {
            let changes = kept.len();
            tracing::error!(volume = %name, changes, "answered, unflushed changes are given up");
        }
        kept.clear();
    }

    pub(super) fn note_retry(&mut self, at: Option<Time>) {
        if let Some(at) = at {
            self.next_deadline = self.next_deadline.min(at);
        }
    }
}

/// The volume may have lost changes: it takes nothing new, and when all
/// that runs has ended it is attached anew.
pub(super) fn drain(now: Time, volume: &mut Volume, error: Option<BlockError>) {
    if volume.recovery != Recovery::Draining {
        tracing::warn!(volume = %volume.name, ?error, "the server may have lost answered writes");
    }
    volume.recovery = Recovery::Draining;
    volume.retry_at = error.map(|_| now + RETRY_PAUSE);
}
