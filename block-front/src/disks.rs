//! The disks and their queues: what is taken out of the rings, what the path
//! says to it, and how a ring stops.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use block_core::{BlockError, Time};
use link::path::Refusal;
use link::{Guest, Part, Path, Source, Token};
use rustix::net::Shutdown;

use crate::command::{ID_BYTES, Limits, Status};
use crate::disk::DiskSpec;
use crate::guest_memory::NotThere;
use crate::mail::Mail;
use crate::queue::{Broken, Offer, Place, Queue};

/// How long a ring that stops waits for its requests before what is left
/// fails.
const DRAIN: Duration = Duration::from_secs(10);

/// Most parts that one ring hands over in a turn.
const BURST: usize = 32;

/// A machine has many rings and few are busy: those that were empty for this long
/// sleep. They wake when they are kicked, and about [`ASLEEP_PER_TURN`] of them
/// are looked at in a turn, since who is not told to kick does not.
const QUIET: Duration = Duration::from_millis(1);
const ASLEEP_PER_TURN: usize = 8;

/// All disks and their queues; what the path sees of the front while it is
/// turned.
#[derive(Debug)]
pub(crate) struct Disks {
    pub(crate) disks: Vec<Disk>,
    pub(crate) queues: Vec<Berth>,
    /// The queues that run, in no order.
    pub(crate) running: Vec<u16>,
    /// A queue that sleeps is looked at when these bits of its number are the
    /// turn's.
    pub(crate) asleep_mask: usize,
    /// The queues that have something to publish; each stands here once.
    pub(crate) dirty: Vec<u16>,
    /// Whether the path has completed anything in this turn: then it has room.
    pub(crate) has_completed: bool,
    /// Whether the path may have had no room for a queue.
    pub(crate) has_blocked: bool,
    /// How many queues are stopping.
    pub(crate) stopping: usize,
    /// Nothing new is taken from any ring.
    pub(crate) quiescing: bool,
    /// Disks with a breach whose guests have begun anew.
    pub(crate) begun: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) spec: Arc<DiskSpec>,
    pub(crate) id: [u8; ID_BYTES],
    pub(crate) limits: Limits,
    /// The front-end's socket, while there is one.
    pub(crate) socket: Option<UnixStream>,
    pub(crate) broken: bool,
    /// There is a breach, and no guest has begun anew since.
    pub(crate) is_breached: bool,
    /// When rings that stop have waited long enough.
    pub(crate) drain_by: Option<Time>,
    /// Until then, rings that stop do not wait: the disk's requests have been
    /// given up a moment ago, and QEMU stops ring after ring.
    pub(crate) given_up_until: Time,
}

/// Where a queue is: empty while its ring does not run.
#[derive(Debug)]
pub(crate) struct Berth {
    pub(crate) disk: usize,
    pub(crate) queue: Option<Box<Queue>>,
    pub(crate) stop: Option<SyncSender<Option<Box<Queue>>>>,
    pub(crate) is_dirty: bool,
    /// Whether the ring is looked at in every turn.
    is_awake: bool,
    told: Told,
    /// When the ring last had something.
    last_busy: Time,
}

/// Whether a ring's guest has been told to kick since the ring last had something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    No,
    /// It may have added something before it knew: the ring must be looked at.
    Now,
    /// What it adds it kicks for.
    Before,
}

impl Berth {
    /// An empty one of a disk.
    pub(crate) const fn of(disk: usize) -> Self {
        Self {
            disk,
            queue: None,
            stop: None,
            is_dirty: false,
            is_awake: true,
            told: Told::No,
            last_busy: Time::ZERO,
        }
    }

    /// The queue, which is number `number`, has something to publish.
    fn mark_dirty(&mut self, number: usize, dirty: &mut Vec<u16>) {
        if !std::mem::replace(&mut self.is_dirty, true) {
            dirty.push(number as u16);
        }
    }
}

impl Disks {
    pub(crate) fn receive(&mut self, now: Time, mail: Mail) {
        match mail {
            Mail::Open { disk, socket } => {
                let disk = &mut self.disks[disk];
                disk.socket = Some(socket);
                disk.broken = false;
            }
            Mail::Close { disk } => self.disks[disk].socket = None,
            Mail::Start { queue, running } => {
                let place = &mut self.queues[queue];
                *place = Berth { queue: Some(running), ..Berth::of(place.disk) };
                self.disks[place.disk].given_up_until = Time::ZERO;
                self.running.push(queue as u16);
                self.set_asleep_mask();
            }
            // All that there is to do is to look.
            Mail::Kick => {}
            Mail::Stop { queue, answer } => self.stop(queue, now, answer),
            Mail::Enable { queue, on } => {
                if let Some(queue) = &mut self.queues[queue].queue {
                    queue.enabled = on;
                }
            }
            Mail::Call { queue, call } => {
                if let Some(queue) = &mut self.queues[queue].queue {
                    drop(queue.set_call(call));
                    // Calls on the old descriptor may have gone unheard.
                    queue.call();
                }
            }
            Mail::Memory { disk, memory, rings, taken } => {
                for (queue, ring) in rings {
                    let Some(running) = &mut self.queues[queue].queue else { continue };
                    if let Err(why) = running.set_memory(Arc::clone(&memory), ring) {
                        self.disks[disk].drop_for(why);
                    }
                }
                // The thread that asked waits for it. Its tables are let go
                // first: they are unmapped there, never here.
                drop(memory);
                let _ = taken.send(());
            }
            Mail::WriteThrough { disk, on } => self.disks[disk].limits.write_through = on,
        }
    }

    fn stop(&mut self, queue: usize, now: Time, answer: SyncSender<Option<Box<Queue>>>) {
        let place = &mut self.queues[queue];
        if place.queue.is_none() || place.stop.is_some() {
            // The receiver may have gone: nothing is lost with this answer.
            let _ = answer.send(None);
            return;
        }
        place.stop = Some(answer);
        self.stopping += 1;
        let disk = &mut self.disks[place.disk];
        let grace = if now < disk.given_up_until { Duration::ZERO } else { DRAIN };
        let by = disk.drain_by.unwrap_or(now + grace);
        disk.drain_by = Some(by.min(now + grace));
    }

    fn set_asleep_mask(&mut self) {
        self.asleep_mask = (self.running.len() / ASLEEP_PER_TURN).next_power_of_two() - 1;
    }

    /// The next turn looks at a ring.
    pub(crate) fn wake(&mut self, queue: usize) {
        if let Some(place) = self.queues.get_mut(queue) {
            place.is_awake = true;
        }
    }

    /// The next turn looks at all rings: something has changed for some of them.
    pub(crate) fn wake_all(&mut self) {
        self.queues.iter_mut().for_each(|place| place.is_awake = true);
    }

    /// Tells guests to kick who do not know that they should.
    pub(crate) fn announce(&mut self) {
        for &number in &self.running {
            let place = &mut self.queues[usize::from(number)];
            if place.told == Told::No
                && let Some(queue) = &mut place.queue
            {
                queue.announce();
                place.told = Told::Now;
            }
        }
    }

    /// Whether a turn would find something in a ring: only in those whose guests did not
    /// know before that they should kick.
    pub(crate) fn have_work(&mut self) -> bool {
        let Self { running, queues, disks, quiescing, .. } = self;
        running.iter().any(|&number| {
            let place = &mut queues[usize::from(number)];
            let Some(queue) = place.queue.as_mut().filter(|_| place.told == Told::Now) else {
                return false;
            };
            place.told = Told::Before;
            let drain = *quiescing || disks[place.disk].broken || place.stop.is_some();
            let has_work = queue.has_work(drain);
            place.is_awake |= has_work;
            has_work
        })
    }

    /// Answers the stops whose rings have drained; gives up those that have
    /// waited long enough.
    pub(crate) fn finish_stops(&mut self, now: Time, path: &mut impl Path) -> bool {
        for disk in 0..self.disks.len() {
            if self.disks[disk].drain_by.is_some_and(|by| by <= now) {
                self.give_up(disk, now, path);
            }
        }
        let mut moved = false;
        let mut at = 0;
        while at < self.running.len() {
            let number = usize::from(self.running[at]);
            let place = &mut self.queues[number];
            let drained = place.queue.as_ref().is_some_and(|queue| queue.is_idle());
            if !drained || place.stop.is_none() {
                at += 1;
                continue;
            }
            let (answer, queue) = (place.stop.take(), place.queue.take());
            self.running.swap_remove(at);
            self.set_asleep_mask();
            self.stopping -= 1;
            moved = true;
            if let Some(answer) = answer {
                // The thread that asked waits for it.
                let _ = answer.send(queue);
            }
        }
        for (number, disk) in self.disks.iter_mut().enumerate() {
            let waits = |place: &Berth| place.disk == number && place.stop.is_some();
            if disk.drain_by.is_some() && !self.queues.iter().any(waits) {
                disk.drain_by = None;
            }
        }
        moved
    }

    /// Fails what is left of a disk's requests.
    fn give_up(&mut self, disk: usize, now: Time, path: &mut impl Path) {
        let state = &mut self.disks[disk];
        state.given_up_until = now + DRAIN;
        // Should the path keep a part, its stop is looked at again.
        state.drain_by = Some(now + DRAIN);
        let volume = state.spec.volume();
        tracing::warn!(
            disk = state.spec.name(),
            "requests were still unanswered when their queue had to stop; they fail"
        );
        path.abandon(volume, self);
        for number in 0..self.queues.len() {
            let place = &mut self.queues[number];
            if place.disk != disk || place.stop.is_none() {
                continue;
            }
            if let Some(queue) = &mut place.queue {
                queue.pass_on();
                if let Err(why) = queue.refused(Status::Failed) {
                    self.disks[disk].drop_for(why);
                }
            }
            self.mark_dirty(number);
        }
        self.publish();
    }

    /// Offers the path what a ring has, up to a burst.
    pub(crate) fn serve(
        &mut self,
        number: usize,
        turn: usize,
        now: Time,
        path: &mut impl Path,
    ) -> bool {
        let place = &mut self.queues[number];
        if !place.is_awake && (number ^ turn) & self.asleep_mask != 0 {
            return false;
        }
        let disk = &mut self.disks[place.disk];
        let Some(queue) = &mut place.queue else { return false };
        let volume = disk.spec.volume();
        let (mut offered, mut moved, mut ended) = (false, false, false);
        for _ in 0..BURST {
            let drain = place.stop.is_some() || disk.broken || self.quiescing;
            let outcome = match queue.offer(&disk.limits, &disk.id, drain) {
                Ok(Offer::Nothing) => break,
                Ok(Offer::Part(at, op, range)) => {
                    offered = true;
                    let part = Part { token: token(number, at), volume, op, range };
                    let mut data = Offered { queue, at, fetched: Ok(()) };
                    let answer = path.submit(now, part, &mut data);
                    let fetched = data.fetched.map_err(Broken::from);
                    match answer {
                        Ok(()) => {
                            queue.took();
                            Ok(())
                        }
                        Err(Refusal::Busy) => {
                            (queue.is_blocked, self.has_blocked) = (true, true);
                            break;
                        }
                        Err(Refusal::Failed(error)) => {
                            ended = true;
                            fetched.and(queue.refused(Status::from(error)))
                        }
                    }
                }
                Ok(Offer::Served) => {
                    (offered, ended) = (true, true);
                    Ok(())
                }
                Err(why) => {
                    disk.drop_for(why);
                    break;
                }
            };
            if let Err(why) = outcome {
                disk.drop_for(why);
            }
            moved = true;
        }
        // What is under way may have parts that wait to be offered.
        if offered || !queue.is_idle() {
            place.is_awake = true;
            place.told = Told::No;
            place.last_busy = now;
        } else if now - place.last_busy > QUIET {
            place.is_awake = false;
        }
        // Only a guest that has begun anew could start a ring of such a disk.
        if disk.is_breached && offered {
            self.begun.push(place.disk);
            disk.is_breached = false;
        }
        if ended {
            self.mark_dirty(number);
        }
        moved
    }

    /// The path has room again after a completion: what waits for that is due
    /// in the next turn, whoever's completion it was. Returns whether there
    /// was one.
    pub(crate) fn unblock(&mut self) -> bool {
        let has_room = std::mem::take(&mut self.has_completed);
        if has_room && std::mem::take(&mut self.has_blocked) {
            for &number in &self.running {
                if let Some(queue) = &mut self.queues[usize::from(number)].queue {
                    queue.is_blocked = false;
                }
            }
        }
        has_room
    }

    fn mark_dirty(&mut self, number: usize) {
        self.queues[number].mark_dirty(number, &mut self.dirty);
    }

    pub(crate) fn publish(&mut self) {
        while let Some(number) = self.dirty.pop() {
            let place = &mut self.queues[usize::from(number)];
            place.is_dirty = false;
            let Some(queue) = &mut place.queue else { continue };
            if let Err(why) = queue.publish() {
                self.disks[place.disk].drop_for(why);
            }
        }
    }
}

impl Disk {
    /// Cuts the front-end off: its guest has lied or lost its memory. The
    /// disk listens again when what is under way has ended.
    #[cold]
    fn drop_for(&mut self, why: Broken) {
        if std::mem::replace(&mut self.broken, true) {
            return;
        }
        tracing::error!(disk = self.spec.name(), "the guest's connection is cut off: {why}");
        if let Some(socket) = self.socket.take() {
            // It may have closed by itself.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
    }
}

/// A token is where the part is: queue, slot, part, and the slot's user.
fn token(queue: usize, place: Place) -> Token {
    let Place { slot, part, user } = place;
    let fields = [queue as u16, slot, part, user];
    Token(fields.iter().fold(0, |token, &field| token << 16 | u64::from(field)))
}

fn untoken(token: Token) -> (usize, Place) {
    let field = |from: u32| (token.0 >> from) as u16;
    (usize::from(field(48)), Place { slot: field(32), part: field(16), user: field(0) })
}

/// The part that is being offered, as the path sees it.
struct Offered<'a> {
    queue: &'a Queue,
    at: Place,
    /// Whether guest memory held its data.
    fetched: Result<(), NotThere>,
}

impl Source for Offered<'_> {
    fn fetch(&mut self, _: Token, into: &mut [u8]) -> Result<(), BlockError> {
        self.fetched = self.queue.fetch(self.at, into);
        self.fetched.map_err(|_| BlockError::Malformed)
    }
}

impl Guest for Disks {
    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]) {
        let (number, at) = untoken(token);
        let Some(place) = self.queues.get_mut(number) else { return };
        let Some(queue) = &place.queue else { return };
        if let Err(why) = queue.put(at, offset, bytes) {
            self.disks[place.disk].drop_for(why.into());
        }
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        self.has_completed = true;
        let (number, at) = untoken(token);
        let Some(place) = self.queues.get_mut(number) else { return };
        let Some(queue) = &mut place.queue else { return };
        if let Err(why) = queue.complete(at, outcome) {
            self.disks[place.disk].drop_for(why);
        }
        place.mark_dirty(number, &mut self.dirty);
    }
}
