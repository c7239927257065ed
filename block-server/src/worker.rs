//! A worker: one thread's world of sessions, volumes and devices.
//!
//! It does not own the thread. Whoever does calls [`Worker::run`] once a turn
//! and moves work and replies between it and a wire ([`Host`]) or, fused, a
//! front.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use block_core::device::{Ended, Failure};
use block_core::unit::{BLOCK_SIZE, MAX_REQUEST_BLOCKS};
use block_core::{BlockError, Buffer, Chance, Device, Pool, Time};
use interpose::layout::stream::FRAME_BLOCKS;
use link::{Caller, Host, PublicKey, Reply, SessionIndex, SlotRef, Work};
use nvme::Namespace;
use thiserror::Error;
use tracing::warn;
use turn::{Executor, TaskId};

use crate::authority::Authority;
use crate::catalog::{DESK_BYTES, Formatting, OpenError};
use crate::config::{DeviceConfig, PoolConfig};
use crate::directory::{Directory, WorkerIndex};
use crate::engine::{Change, Engine, NvmeEngine};
use crate::errand::{self, Errand};
use crate::mailbox::Mailbox;
use crate::pooled::page_buffers;
use crate::remembered::Rollback;
use crate::room::Room;
use crate::session::{Job, Session, Slot, serve_slot};
use crate::store::{Means, Store, Transfers};
use crate::straights::Straights;
use crate::unlock::Unlock;

/// A small buffer: 8 KiB that begin inside of a block, and a block to merge
/// in (see [`Ordered::serve`](block_core::Ordered::serve)).
const SMALL_BYTES: usize = (2 + 1 + 1) * BLOCK_SIZE;

/// A large buffer: the largest request, and a block to merge in.
const LARGE_BYTES: usize = (MAX_REQUEST_BLOCKS + 1) * BLOCK_SIZE;

/// What a stream's blocks go through.
const TRANSFER_BYTES: usize = FRAME_BLOCKS * BLOCK_SIZE;

/// Most errands that are done at the same time.
const ERRANDS: usize = 64;

/// Most tasks that nobody waits for.
const LIVES: usize = 256;

/// How long a worker that was told to stop makes checkpoints.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Most errands that one turn begins.
const ERRAND_BURST: usize = 4;

/// How much a worker makes room for at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most sessions at a time.
    pub sessions: usize,
    /// Most slots of all sessions together.
    pub slots: usize,
    /// Buffers for requests of up to 8 KiB.
    pub small_buffers: usize,
    /// Buffers for requests of up to 128 KiB.
    pub large_buffers: usize,
}

impl Default for Limits {
    /// 16 MiB of small buffers and 34 MiB of large ones.
    fn default() -> Self {
        Self { sessions: 256, slots: 8192, small_buffers: 1024, large_buffers: 256 }
    }
}

/// A device that a worker shall own.
#[derive(Debug)]
pub struct Owned<D> {
    /// Its name in the configuration.
    pub name: String,
    /// The device.
    pub device: D,
    /// Whether it may be formatted.
    pub formatting: Formatting,
    /// What unlocks its pool, if it is one or becomes one.
    pub unlock: Option<Unlock>,
    /// How its pool is served.
    pub pool: PoolConfig,
    /// What is done about a pool that was set back.
    pub rollback: Rollback,
}

impl<D> Owned<D> {
    /// A device for raw volumes.
    #[must_use]
    pub fn raw(name: &str, device: D, formatting: Formatting) -> Self {
        let (name, pool) = (name.to_owned(), PoolConfig::default());
        let rollback = Rollback::Unnoticed;
        Self { name, device, formatting, unlock: None, pool, rollback }
    }
}

/// What a worker is told about the server that it is a part of.
#[derive(Clone, Debug)]
pub struct Place {
    /// Which of its workers this is.
    pub worker: WorkerIndex,
    /// What all of them share.
    pub directory: Arc<Directory>,
    /// Where others leave errands for it.
    pub mailbox: Arc<Mailbox>,
    /// Where its random numbers come from.
    pub chance: Chance,
    /// Seconds since 1970.
    pub wall: fn() -> u64,
}

/// Why a worker could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// One of its devices cannot be used.
    #[error("device '{name}': {why}")]
    Device {
        /// Which one.
        name: String,
        /// Why.
        why: OpenError,
    },
    /// Two devices have a volume of the same name.
    #[error(
        "device '{device}': volume '{name}' exists on another device too; leave one of the two \
         devices out of the configuration and delete it on the other"
    )]
    Twice {
        /// On which device.
        device: String,
        /// Which one.
        name: link::VolumeName,
    },
    /// There is no memory.
    #[error("no memory for the buffers of {what}: {why}; lower the worker's limits")]
    Memory {
        /// What they are for.
        what: &'static str,
        /// The kernel's reason.
        why: io::Error,
    },
}

/// Sessions, volumes and devices of one thread.
pub struct Worker<E: Engine> {
    /// Declared first: its tasks borrow from everything below.
    executor: Executor,
    sessions: Vec<Option<Seat<E::Device>>>,
    room: Rc<Room<E::Device>>,
    small: Pool,
    large: Pool,
    mailbox: Arc<Mailbox>,
    engine: E,
    /// Requests that devices have and no task waits for, and those that have ended.
    straights: Straights<E::Device>,
    ended: Vec<Ended>,
    limits: Limits,
    slots: usize,
    turns: usize,
    stop: Stop,
}

/// Whether somebody asked the worker to stop.
#[derive(Default)]
struct Stop {
    /// Until when its pools are waited for.
    until: Option<Time>,
    /// They have ended.
    closed: Rc<Cell<bool>>,
}

/// A session and the tasks of its slots.
struct Seat<D> {
    session: Rc<Session<D>>,
    slots: Vec<(Rc<Slot<D>>, TaskId)>,
}

impl<E: Engine> Worker<E> {
    /// Opens the devices, which are the engine's in its order, formats those
    /// that may be, and makes all buffers.
    ///
    /// # Errors
    /// A sentence about what is in the way.
    pub fn start(
        mut engine: E,
        devices: Vec<Owned<E::Device>>,
        place: Place,
        limits: Limits,
    ) -> Result<Self, StartError> {
        let memory = |what| move |why| StartError::Memory { what, why };
        let small = engine.pool(limits.small_buffers, SMALL_BYTES).map_err(memory("requests"))?;
        let large = engine.pool(limits.large_buffers, LARGE_BYTES).map_err(memory("requests"))?;
        let count = devices.len().max(1);
        let desks = engine.pool(count, DESK_BYTES).map_err(memory("the catalog"))?;
        let mut changes = Vec::new();
        let scratch = engine.pool(1, BLOCK_SIZE).map_err(memory("partial blocks"))?.take();
        let scratch = Rc::new(tokio::sync::Mutex::new(scratch));
        let (mut stores, mut lives) = (Vec::with_capacity(count), Vec::new());
        for Owned { name, device, formatting, unlock, pool, rollback } in devices {
            let buffers = unlock.as_ref().map_or(1, |_| page_buffers(&pool));
            let pages = engine.pool(buffers, BLOCK_SIZE).map_err(memory("a pool's pages"))?;
            let transfer = engine.pool(2, TRANSFER_BYTES).map_err(memory("streams"))?;
            let means = Means {
                transfers: Transfers::new(transfer),
                name: name.clone(),
                device: RefCell::new(Rc::new(device)),
                desks: desks.clone(),
                scratch: Rc::clone(&scratch),
                chance: place.chance.clone(),
                wall: place.wall,
                pages,
                unlock,
                pool,
                rollback,
            };
            match complete(&mut engine, Store::open(means, formatting), &mut changes) {
                Ok((store, begun)) => {
                    stores.push((name, store));
                    lives.extend(begun);
                }
                Err(why) => return Err(StartError::Device { name, why }),
            }
        }
        for (device, store) in &stores {
            for volume in store.volumes() {
                let name = volume.record().name;
                if !place.directory.claim(&name, place.worker) {
                    return Err(StartError::Twice { device: device.clone(), name });
                }
            }
        }
        let room = Room::new(stores, place.directory, place.worker);
        lives.into_iter().for_each(|life| room.begin(life));
        let room = Rc::new(room);
        changes.into_iter().for_each(|change| heed(&room, change));
        Ok(Self {
            // Twice: the tasks of a session that has just been closed end in
            // the next turn, and a new one may have opened by then.
            executor: Executor::new(2 * limits.slots + ERRANDS + LIVES),
            sessions: std::iter::repeat_with(|| None).take(limits.sessions).collect(),
            room,
            small,
            large,
            mailbox: place.mailbox,
            engine,
            straights: Straights::with_room_for(limits.slots),
            ended: Vec::with_capacity(limits.slots),
            limits,
            slots: 0,
            turns: 0,
            stop: Stop::default(),
        })
    }

    /// Lets chance choose the order of tasks that can go on: for simulations.
    pub fn draw_order(&mut self, chance: Chance) {
        self.executor.draw_order(chance);
    }

    /// A turn begins: what is started from now on has come now.
    pub fn tick(&mut self, now: Time) {
        self.room.tick(now);
    }

    /// One turn of everything below the wire: takes errands, takes what the
    /// devices have answered, runs who can go on, hands commands down, and
    /// takes what was answered at once. Returns whether anything moved.
    pub fn run(&mut self, now: Time) -> bool {
        self.turns = self.turns.wrapping_add(1);
        self.room.tick(now);
        let mut moved = 0;
        while let Some(change) = self.engine.look(now) {
            heed(&self.room, change);
            moved += 1;
        }
        moved += usize::from(self.take_errands(now));
        moved += self.begin_lives();
        moved += self.step();
        // A controller of this thread answers at once: look again.
        if self.engine.work() > 0 {
            moved += 1 + self.step();
        }
        moved > 0
    }

    fn step(&mut self) -> usize {
        let reaped = self.engine.reap(&mut self.ended);
        // What ended has ended now, not when the turn began.
        if reaped > 0
            && let Some(now) = self.engine.now()
        {
            self.room.tick(now);
        }
        let mut ended = std::mem::take(&mut self.ended);
        ended.drain(..).for_each(|ended| self.end_straight(ended));
        self.ended = ended;
        let ran = self.executor.run(self.turns);
        self.engine.ring();
        reaped + ran
    }

    /// A request has ended that no task waits for.
    fn end_straight(&mut self, ended: Ended) {
        let Ended { tag, buffer, outcome } = ended;
        let Some((at, straight)) = self.straights.take(tag) else { return };
        let outcome = match outcome {
            Ok(()) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::GivenUp) => match self.slot(at) {
                Some((slot, task)) => {
                    slot.put(Job::AskAgain(straight, buffer));
                    return self.executor.wake(*task);
                }
                // The session is over: nobody waits for the answer.
                None => Err(BlockError::Medium),
            },
        };
        self.room.reply(at, straight.end(&self.room, outcome, buffer));
    }

    /// Pools are left as a checkpoint, which opens faster; not for long.
    fn begin_stop(&mut self, now: Time) {
        if self.stop.until.is_none() {
            self.stop.until = Some(now + LAST_WAIT);
            let (room, closed) = (Rc::clone(&self.room), Rc::clone(&self.stop.closed));
            self.room.begin(Box::pin(async move {
                for (_, store) in &room.stores {
                    store.close().await;
                }
                closed.set(true);
            }));
        }
    }

    fn take_errands(&mut self, now: Time) -> bool {
        for begun in 0..ERRAND_BURST {
            match self.mailbox.take() {
                None => return begun > 0,
                Some(Errand::Stop) => self.begin_stop(now),
                Some(errand) => {
                    // Without a place its answer is dropped, and whoever asked
                    // is told that the server is busy.
                    if self.executor.spawn(errand::run(Rc::clone(&self.room), errand)).is_none() {
                        warn!("too many errands at a time; one was not done");
                    }
                }
            }
        }
        true
    }

    /// Begins what other tasks have begun and nobody waits for.
    fn begin_lives(&mut self) -> usize {
        let mut begun = 0;
        while let Some(life) = self.room.next_life() {
            begun += 1;
            if self.executor.spawn(life).is_none() {
                warn!("too many tasks at a time; one was not begun");
            }
        }
        begun
    }

    /// When the worker wants to be turned although nothing has come.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        [self.room.deadline(), self.stop.until, self.engine.deadline()].into_iter().flatten().min()
    }

    /// What a slot has answered, the oldest first.
    pub fn next_reply(&mut self) -> Option<(SlotRef, Reply)> {
        self.room.next_reply()
    }

    /// Whether a turn would move something, or something is under way that
    /// only turning will find: then the thread must not sleep.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.executor.is_runnable()
            || self.room.has_lives()
            || self.mailbox.has_news()
            || self.engine.is_busy()
            || self.room.has_replies()
    }

    /// Readable when an errand has come; to be waited for edge-triggered.
    #[must_use]
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.mailbox.bell()
    }

    /// Whether somebody asked the worker to stop, and its pools are closed.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stop.closed.get()
            || self.stop.until.is_some_and(|until| self.room.clock().now() >= until)
    }

    /// A key that has lost rights: its sessions are to be ended.
    #[must_use]
    pub fn next_ending(&self) -> Option<PublicKey> {
        self.room.next_ending()
    }

    /// Who may have a session and which volumes is from now on asked of this.
    pub fn obey(&mut self, authority: Rc<dyn Authority>) {
        self.room.obey(authority);
    }

    /// What moves the devices.
    #[must_use]
    pub fn engine(&self) -> &E {
        &self.engine
    }

    fn seat(&self, session: SessionIndex) -> Option<&Seat<E::Device>> {
        self.sessions.get(usize::from(session.0))?.as_ref()
    }

    fn slot(&self, at: SlotRef) -> Option<&(Rc<Slot<E::Device>>, TaskId)> {
        self.seat(at.session)?.slots.get(usize::from(at.slot))
    }
}

/// Most memory that a worker with these limits and devices shares with them, in bytes:
/// what [`Worker::start`] makes, and what the devices' queues take.
#[must_use]
pub fn dma_bytes(limits: &Limits, devices: &[DeviceConfig]) -> usize {
    let requests = limits.small_buffers * SMALL_BYTES + limits.large_buffers * LARGE_BYTES;
    let of_device = |device: &DeviceConfig| {
        let pages = device.unlock.as_ref().map_or(1, |_| page_buffers(&device.pool));
        DESK_BYTES + pages * BLOCK_SIZE + 2 * TRANSFER_BYTES
    };
    let devices_own = devices.iter().map(of_device).sum::<usize>().max(DESK_BYTES);
    requests + devices_own + BLOCK_SIZE + NvmeEngine::dma_bytes(devices.len())
}

/// The worker that programs have, compiled here and not again in each of
/// them.
impl Worker<NvmeEngine> {
    /// [`Worker::start`].
    ///
    /// # Errors
    /// A sentence about what is in the way.
    pub fn over_nvme(
        engine: NvmeEngine,
        devices: Vec<Owned<Namespace>>,
        place: Place,
        limits: Limits,
    ) -> Result<Self, StartError> {
        Self::start(engine, devices, place, limits)
    }

    /// [`Worker::run`].
    pub fn turn(&mut self, now: Time) -> bool {
        self.run(now)
    }
}

impl<E: Engine> Host for Worker<E> {
    fn buffer(&mut self, bytes: usize, held: usize) -> Option<Buffer> {
        let bytes = bytes + BLOCK_SIZE;
        debug_assert!(bytes <= LARGE_BYTES);
        let share = |pool: &Pool| if held < pool.available() { pool.take() } else { None };
        let small = if bytes <= SMALL_BYTES { share(&self.small) } else { None };
        small.or_else(|| share(&self.large))
    }

    fn admits(&mut self, caller: &Caller) -> bool {
        self.room.authority().admits(caller)
    }

    fn opened(&mut self, session: SessionIndex, caller: Caller, incarnation: u64, slots: u16) {
        self.closed(session);
        let front = caller.front;
        let state = Rc::new(Session::new(caller, incarnation, slots));
        let mut seat = Seat { session: Rc::clone(&state), slots: Vec::new() };
        for number in 0..slots {
            let (slot, at) = (Rc::new(Slot::default()), SlotRef { session, slot: number });
            let life = serve_slot(Rc::clone(&self.room), Rc::clone(&state), Rc::clone(&slot), at);
            let room = self.slots < self.limits.slots;
            let Some(task) = room.then(|| self.executor.spawn(life)).flatten() else {
                warn!(%front, slots, "no room for all slots of a session; raise the worker's limit");
                break;
            };
            self.slots += 1;
            seat.slots.push((slot, task));
        }
        self.room.reserve_replies(self.slots);
        match self.sessions.get_mut(usize::from(session.0)) {
            Some(place) => *place = Some(seat),
            None => warn!(%front, "no room for a session; raise the worker's limit"),
        }
    }

    fn start(&mut self, at: SlotRef, mut work: Work) {
        let seat = self.seat(at.session);
        let Some((seat, (slot, task))) =
            seat.and_then(|seat| Some((seat, seat.slots.get(usize::from(at.slot))?)))
        else {
            // There was no room for it (`opened` has said so).
            return self.room.reply(at, refuse(work));
        };
        if let Work::Block { volume, request } = &mut work {
            let tag = self.straights.next();
            if let Some(straight) = seat.session.begin(&self.room, *volume, request, tag) {
                return self.straights.put(at, straight);
            }
        }
        slot.put(Job::Serve(work));
        self.executor.wake(*task);
    }

    fn closing(&mut self, session: SessionIndex) {
        if let Some(seat) = self.seat(session) {
            seat.session.close();
        }
    }

    fn closed(&mut self, session: SessionIndex) {
        let place = self.sessions.get_mut(usize::from(session.0));
        let Some(seat) = place.and_then(Option::take) else { return };
        seat.session.close();
        self.slots -= seat.slots.len();
        for (slot, task) in seat.slots {
            slot.put(Job::End);
            self.executor.wake(task);
        }
    }
}

fn refuse(work: Work) -> Reply {
    match work {
        Work::Block { request, .. } => {
            Reply { buffer: request.buffer, ..Reply::plain(Err(BlockError::NotAttached), 0) }
        }
        Work::Attach(_) => Reply {
            attach: Some(Box::new(link::AttachReply::Refused(link::Refused::Full))),
            ..Reply::plain(Ok(()), 0)
        },
        Work::Detach(_) => Reply::plain(Ok(()), 0),
    }
}

/// A device is in trouble, or no longer.
fn heed<D: Device + 'static>(room: &Rc<Room<D>>, change: Change<D>) {
    let (device, change) = match change {
        Change::Down { device, why } => {
            if let Some((_, store)) = room.stores.get(device) {
                store.go_down(&why);
            }
            return;
        }
        Change::Late { device, commands } => {
            if let Some((_, store)) = room.stores.get(device) {
                store.note_late(commands);
            }
            return;
        }
        Change::Health { device, log } => {
            if let Some((_, store)) = room.stores.get(device) {
                store.note_health(log);
            }
            return;
        }
        Change::Up { device, made } => (device, Ok(Rc::new(made))),
        Change::GivenUp { device, why } => (device, Err(why)),
    };
    let life_room = Rc::clone(room);
    room.begin(Box::pin(async move {
        let Some((_, store)) = life_room.stores.get(device) else { return };
        match change {
            Ok(made) => store.come_back(&life_room, made).await,
            Err(why) => store.give_up(&life_room, &why).await,
        }
    }));
}

/// Turns the engine until a future of one of its devices is ready: at
/// start-up, when there is nothing else to do. What becomes of devices
/// meanwhile is to be heeded afterwards.
fn complete<E: Engine, T>(
    engine: &mut E,
    future: impl Future<Output = T>,
    changes: &mut Vec<Change<E::Device>>,
) -> T {
    let mut future = pin!(future);
    loop {
        if let Some(now) = engine.now() {
            changes.extend(std::iter::from_fn(|| engine.look(now)));
        }
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(ready) = future.as_mut().poll(&mut context) {
            return ready;
        }
        engine.ring();
        // Nothing was begun without a future yet.
        if engine.work() + engine.reap(&mut Vec::new()) == 0 {
            std::hint::spin_loop();
        }
    }
}
