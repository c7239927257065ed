//! The front: all disks of a machine, turned by one thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use block_core::{BlockError, Time};
use link::path::Refusal;
use link::{Guest, Part, Path, Token, VolumeHandle};
use rustix::event::epoll;
use rustix::net::Shutdown;

use crate::command::{ID_BYTES, Limits, Status};
use crate::disk::DiskSpec;
use crate::mail::{Mail, Mailbox};
use crate::queue::{Broken, Offer, Place, Queue};
use crate::socket::{Doorkeeper, StartError};

/// How long a ring that stops waits for its requests before what is left
/// fails.
const DRAIN: Duration = Duration::from_secs(10);

/// Most parts that one ring hands over in a turn.
const BURST: usize = 32;

/// A machine has many rings and few are busy: of those that were empty for
/// [`QUIET`], about this many are looked at in a turn.
const QUIET_PER_TURN: usize = 32;
const QUIET: Duration = Duration::from_millis(1);

/// All disks of one machine: takes requests from the guests' rings, hands
/// them to a [`Path`], gives the answers back.
///
/// One thread owns it, and the path, and turns both. Each disk has a thread
/// of its own that speaks vhost-user with QEMU and that this one never waits
/// for.
#[derive(Debug)]
pub struct Front {
    core: Core,
    mailbox: Arc<Mailbox>,
    epoll: Arc<OwnedFd>,
    doorkeepers: Vec<Doorkeeper>,
    turns: usize,
}

/// What the path sees of the front while it is turned.
#[derive(Debug)]
struct Core {
    disks: Vec<Disk>,
    queues: Vec<Berth>,
    /// The queues that run, in no order.
    running: Vec<u16>,
    /// A quiet queue is looked at when these bits of its number are the
    /// turn's.
    quiet_mask: usize,
    /// The queues that have something to publish; each stands here once.
    dirty: Vec<u16>,
    /// How many queues are stopping.
    stopping: usize,
    /// Nothing new is taken from any ring.
    quiescing: bool,
}

#[derive(Debug)]
struct Disk {
    spec: Arc<DiskSpec>,
    id: [u8; ID_BYTES],
    limits: Limits,
    /// The front-end's socket, while there is one.
    socket: Option<UnixStream>,
    broken: bool,
    /// When rings that stop have waited long enough.
    drain_by: Option<Time>,
    /// Until then, rings that stop do not wait: the disk's requests have been
    /// given up a moment ago, and QEMU stops ring after ring.
    given_up_until: Time,
}

/// Where a queue is: empty while its ring does not run.
#[derive(Debug)]
struct Berth {
    disk: usize,
    queue: Option<Box<Queue>>,
    stop: Option<SyncSender<Option<Box<Queue>>>>,
    is_dirty: bool,
}

impl Front {
    /// Opens the disks' sockets and begins to listen.
    ///
    /// # Errors
    /// A sentence about the first socket that cannot be opened. Nothing is
    /// left open then.
    pub fn new(disks: Vec<DiskSpec>) -> Result<Self, StartError> {
        let mailbox = Arc::new(Mailbox::new().map_err(StartError::Process)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| StartError::Process(error.into()))?;
        let epoll = Arc::new(epoll);
        watch(&epoll, mailbox.as_fd()).map_err(StartError::Process)?;
        let mut front = Self {
            core: Core {
                disks: Vec::with_capacity(disks.len()),
                queues: Vec::new(),
                running: Vec::new(),
                quiet_mask: 0,
                dirty: Vec::new(),
                stopping: 0,
                quiescing: false,
            },
            mailbox,
            epoll,
            doorkeepers: Vec::with_capacity(disks.len()),
            turns: 0,
        };
        for spec in disks {
            front.add(Arc::new(spec))?;
        }
        let queues = front.core.queues.len();
        front.core.running.reserve_exact(queues);
        front.core.dirty.reserve_exact(queues);
        Ok(front)
    }

    fn add(&mut self, spec: Arc<DiskSpec>) -> Result<(), StartError> {
        let number = self.core.disks.len();
        let first_queue = self.core.queues.len();
        if first_queue + usize::from(spec.queues()) > usize::from(u16::MAX) {
            return Err(StartError::TooManyQueues);
        }
        self.doorkeepers.push(Doorkeeper::open(
            Arc::clone(&spec),
            number,
            first_queue,
            Arc::clone(&self.mailbox),
            Arc::clone(&self.epoll),
        )?);
        let queue = || Berth { disk: number, queue: None, stop: None, is_dirty: false };
        self.core.queues.extend((0..spec.queues()).map(|_| queue()));
        self.core.disks.push(Disk {
            id: spec.id(),
            limits: Limits {
                sectors: spec.sectors(),
                read_only: spec.is_read_only(),
                write_through: false,
            },
            spec,
            socket: None,
            broken: false,
            drain_by: None,
            given_up_until: Time::ZERO,
        });
        Ok(())
    }

    /// One turn: takes messages, takes a bounded burst of every ring, turns
    /// the path, shows the guests what has ended. Returns whether anything
    /// moved.
    pub fn turn(&mut self, now: Time, path: &mut impl Path) -> bool {
        let mut moved = self.take_mail(now);
        self.turns = self.turns.wrapping_add(1);
        let count = self.core.running.len();
        for step in 0..count {
            let at = (self.turns + step) % count;
            let queue = usize::from(self.core.running[at]);
            moved |= self.core.serve(queue, self.turns, now, path);
        }
        moved |= path.turn(now, &mut self.core);
        self.core.publish();
        if self.core.stopping > 0 {
            moved |= self.core.finish_stops(now, path);
        }
        moved
    }

    /// When a turn is due though nothing came in.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.core.disks.iter().filter_map(|disk| disk.drain_by).min()
    }

    /// The one descriptor to sleep on: it becomes readable when a guest kicks
    /// or a message waits. It stays the same as rings come and go.
    #[must_use]
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Asks every guest to kick. Then comes a full fence, then
    /// [`Front::has_work`], then the sleep.
    pub fn announce_sleep(&mut self) {
        for &queue in &self.core.running {
            if let Some(queue) = &mut self.core.queues[usize::from(queue)].queue
                && !queue.is_announced()
            {
                queue.announce();
            }
        }
    }

    /// Whether a turn would find something to do: then there is no sleep.
    #[must_use]
    pub fn has_work(&mut self) -> bool {
        if self.mailbox.is_filled() {
            return true;
        }
        let Core { running, queues, disks, quiescing, .. } = &mut self.core;
        running.iter().any(|&queue| {
            let place = &mut queues[usize::from(queue)];
            let waits = *quiescing || disks[place.disk].broken || place.stop.is_some();
            !waits && place.queue.as_mut().is_some_and(|queue| queue.has_work())
        })
    }

    /// After the sleep. A ring stays announced until it has traffic again.
    pub fn retract_sleep(&mut self) {
        let none =
            epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; 64];
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        // Which descriptor has news does not matter: the turn looks at all.
        while epoll::wait(&*self.epoll, &mut events[..], Some(&at_once)) == Ok(events.len()) {}
    }

    /// The volume of disk `disk` (its place in [`Front::new`]) has another
    /// size: the guest is told, and requests are bounded by it from now on.
    pub fn resized(&mut self, disk: usize, sectors: u64) {
        if let (Some(disk), Some(keeper)) =
            (self.core.disks.get_mut(disk), self.doorkeepers.get(disk))
            && std::mem::replace(&mut disk.limits.sectors, sectors) != sectors
        {
            keeper.resized(sectors);
        }
    }

    /// Takes nothing new from any ring from now on. What guests add stays in
    /// their rings for a front that comes later.
    pub fn quiesce(&mut self) {
        self.core.quiescing = true;
    }

    /// Whether nothing that was taken from a ring is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let mut queues = self.core.queues.iter().filter_map(|place| place.queue.as_ref());
        queues.all(|queue| queue.is_idle())
    }

    /// The volumes of the disks, in the order of [`Front::new`].
    pub fn volumes(&self) -> impl Iterator<Item = VolumeHandle> {
        self.core.disks.iter().map(|disk| disk.spec.volume())
    }

    fn take_mail(&mut self, now: Time) -> bool {
        if !self.mailbox.is_filled() {
            return false;
        }
        for mail in self.mailbox.take() {
            self.core.receive(now, mail);
        }
        true
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Threads that wait for an answer must not wait for ever.
        self.mailbox.close();
        self.core.queues.clear();
        self.doorkeepers.clear();
    }
}

/// Lets news of `fd` end a sleep on `epoll`. Edge-triggered: a kick need not
/// be read.
pub(crate) fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(epoll, fd, epoll::EventData::new_u64(0), flags)?;
    Ok(())
}

/// The opposite of [`watch`]. Closing alone would not do: the front-end has
/// the same file open.
pub(crate) fn unwatch(epoll: &OwnedFd, fd: BorrowedFd<'_>) {
    // It is registered, or was never.
    let _ = epoll::delete(epoll, fd);
}

impl Core {
    fn receive(&mut self, now: Time, mail: Mail) {
        match mail {
            Mail::Open { disk, socket } => {
                let disk = &mut self.disks[disk];
                disk.socket = Some(socket);
                disk.broken = false;
            }
            Mail::Start { queue, running } => {
                let place = &mut self.queues[queue];
                place.queue = Some(running);
                self.disks[place.disk].given_up_until = Time::ZERO;
                self.running.push(queue as u16);
                self.set_quiet_mask();
            }
            Mail::Stop { queue, answer } => self.stop(queue, now, answer),
            Mail::Enable { queue, on } => {
                if let Some(queue) = &mut self.queues[queue].queue {
                    queue.enabled = on;
                }
            }
            Mail::Call { queue, call } => {
                if let Some(queue) = &mut self.queues[queue].queue {
                    drop(queue.set_call(call));
                }
            }
            Mail::Memory { disk, memory, rings } => {
                for (queue, ring) in rings {
                    let Some(running) = &mut self.queues[queue].queue else { continue };
                    if let Err(why) = running.set_memory(Arc::clone(&memory), ring) {
                        self.disks[disk].drop_for(why);
                    }
                }
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

    fn set_quiet_mask(&mut self) {
        self.quiet_mask = (self.running.len() / QUIET_PER_TURN).next_power_of_two() - 1;
    }

    /// Answers the stops whose rings have drained; gives up those that have
    /// waited long enough.
    fn finish_stops(&mut self, now: Time, path: &mut impl Path) -> bool {
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
            self.set_quiet_mask();
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
            if let Some(queue) = &mut place.queue
                && let Err(why) = queue.refused(Status::Failed)
            {
                self.disks[disk].drop_for(why);
            }
            self.mark_dirty(number);
        }
        self.publish();
    }

    /// Offers the path what a ring has, up to a burst.
    fn serve(&mut self, number: usize, turn: usize, now: Time, path: &mut impl Path) -> bool {
        let mut moved = false;
        for _ in 0..BURST {
            match self.offer(number, turn, now) {
                Ok(Offer::Nothing) => break,
                Ok(Offer::Served) => self.mark_dirty(number),
                Ok(Offer::Part(place, op, range)) => {
                    let volume = self.disks[self.queues[number].disk].spec.volume();
                    let part = Part { token: token(number, place), volume, op, range };
                    let answer = path.submit(now, part, self);
                    if !self.answer(number, answer) {
                        break;
                    }
                }
                Err(why) => {
                    self.disks[self.queues[number].disk].drop_for(why);
                    break;
                }
            }
            moved = true;
        }
        moved
    }

    fn offer(&mut self, number: usize, turn: usize, now: Time) -> Result<Offer, Broken> {
        let place = &mut self.queues[number];
        let disk = &self.disks[place.disk];
        let Some(queue) = &mut place.queue else { return Ok(Offer::Nothing) };
        if (number ^ turn) & self.quiet_mask != 0 && now - queue.last_busy > QUIET {
            return Ok(Offer::Nothing);
        }
        let drain = place.stop.is_some() || disk.broken || self.quiescing;
        let offer = queue.offer(&disk.limits, &disk.id, drain)?;
        if offer != Offer::Nothing || !queue.is_idle() {
            queue.last_busy = now;
        }
        Ok(offer)
    }

    /// What the path said to an offer; whether the next one makes sense.
    fn answer(&mut self, number: usize, answer: Result<(), Refusal>) -> bool {
        let Some(queue) = &mut self.queues[number].queue else { return false };
        queue.is_blocked = answer == Err(Refusal::Busy);
        match answer {
            Ok(()) => queue.took(),
            Err(Refusal::Busy) => return false,
            Err(Refusal::Failed(error)) => {
                let ended = queue.refused(Status::from(error));
                self.settle(number, ended);
                self.mark_dirty(number);
            }
        }
        true
    }

    fn mark_dirty(&mut self, number: usize) {
        if !std::mem::replace(&mut self.queues[number].is_dirty, true) {
            self.dirty.push(number as u16);
        }
    }

    fn publish(&mut self) {
        while let Some(number) = self.dirty.pop() {
            let place = &mut self.queues[usize::from(number)];
            place.is_dirty = false;
            let Some(queue) = &mut place.queue else { continue };
            if let Err(why) = queue.publish() {
                self.disks[place.disk].drop_for(why);
            }
        }
    }

    fn settle(&mut self, number: usize, outcome: Result<(), impl Into<Broken>>) {
        if let Err(why) = outcome {
            self.disks[self.queues[number].disk].drop_for(why.into());
        }
    }
}

impl Disk {
    /// Cuts the front-end off: its guest has lied or lost its memory. The
    /// disk listens again when what is under way has ended.
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

impl Core {
    fn running(&mut self, token: Token) -> Option<(usize, Place, &mut Queue)> {
        let (number, place) = untoken(token);
        let queue = self.queues.get_mut(number)?.queue.as_mut()?;
        Some((number, place, queue))
    }
}

impl Guest for Core {
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError> {
        let Some((number, place, queue)) = self.running(token) else {
            return Err(BlockError::Malformed);
        };
        let outcome = queue.fetch(place, into);
        self.settle(number, outcome);
        outcome.map_err(|_| BlockError::Malformed)
    }

    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]) {
        if let Some((number, place, queue)) = self.running(token) {
            let outcome = queue.put(place, offset, bytes);
            self.settle(number, outcome);
        }
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        if let Some((number, place, queue)) = self.running(token) {
            let outcome = queue.complete(place, outcome);
            self.settle(number, outcome);
            self.mark_dirty(number);
        }
    }
}
