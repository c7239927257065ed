//! The front: all disks of a machine, turned by one thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use block_core::Time;
use link::{Path, VolumeHandle};
use rustix::event::epoll;

use crate::command::Limits;
use crate::disk::DiskSpec;
use crate::disks::{Berth, Disk, Disks};
use crate::mail::Mailbox;
use crate::socket::{Doorkeeper, StartError};

/// All disks of one machine: takes requests from the guests' rings, hands
/// them to a [`Path`], gives the answers back.
///
/// One thread owns it, and the path, and turns both. Each disk has a thread
/// of its own that speaks vhost-user with QEMU and that this one never waits
/// for.
#[derive(Debug)]
pub struct Front {
    disks: Disks,
    mailbox: Arc<Mailbox>,
    epoll: Arc<OwnedFd>,
    doorkeepers: Vec<Doorkeeper>,
    turns: usize,
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
        watch(&epoll, mailbox.as_fd(), Bell::Mail).map_err(StartError::Process)?;
        let mut front = Self {
            disks: Disks {
                disks: Vec::with_capacity(disks.len()),
                queues: Vec::new(),
                running: Vec::new(),
                asleep_mask: 0,
                dirty: Vec::new(),
                has_completed: false,
                has_blocked: false,
                stopping: 0,
                quiescing: false,
                begun: Vec::new(),
            },
            mailbox,
            epoll,
            doorkeepers: Vec::with_capacity(disks.len()),
            turns: 0,
        };
        for spec in disks {
            front.add(Arc::new(spec))?;
        }
        let queues = front.disks.queues.len();
        front.disks.running.reserve_exact(queues);
        front.disks.dirty.reserve_exact(queues);
        Ok(front)
    }

    fn add(&mut self, spec: Arc<DiskSpec>) -> Result<(), StartError> {
        let number = self.disks.disks.len();
        let first_queue = self.disks.queues.len();
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
        self.disks.queues.extend((0..spec.queues()).map(|_| Berth::of(number)));
        self.disks.disks.push(Disk {
            id: spec.id(),
            limits: Limits {
                sectors: spec.sectors(),
                read_only: spec.is_read_only(),
                write_through: false,
            },
            is_breached: spec.breach().is_some(),
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
        let count = self.disks.running.len();
        let first = self.turns.checked_rem(count).unwrap_or(0);
        for at in (first..count).chain(0..first) {
            let queue = usize::from(self.disks.running[at]);
            moved |= self.disks.serve(queue, self.turns, now, path);
        }
        moved |= path.turn(now, &mut self.disks);
        self.disks.publish();
        if self.disks.stopping > 0 {
            moved |= self.disks.finish_stops(now, path);
        }
        moved | self.disks.unblock()
    }

    /// When a turn is due though nothing came in.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.disks.disks.iter().filter_map(|disk| disk.drain_by).min()
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
        self.disks.announce();
    }

    /// Whether a turn would find something to do: then there is no sleep.
    #[must_use]
    pub fn has_work(&mut self) -> bool {
        self.mailbox.is_filled() || self.disks.have_work()
    }

    /// After the sleep: which rings were kicked. A ring stays announced until it has
    /// traffic again.
    pub fn retract_sleep(&mut self) {
        let none =
            epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; 64];
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            // It does not wait: nothing keeps it from looking.
            let count = epoll::wait(&*self.epoll, &mut events[..], Some(&at_once)).unwrap_or(0);
            for event in &events[..count] {
                if let Bell::Kick(queue) = Bell::from(event.data) {
                    self.disks.wake(queue);
                }
            }
            if count < events.len() {
                return;
            }
        }
    }

    /// The volume of disk `disk` (its place in [`Front::new`]) has another
    /// size: the guest is told, and requests are bounded by it from now on.
    pub fn resized(&mut self, disk: usize, sectors: u64) {
        if let (Some(disk), Some(keeper)) =
            (self.disks.disks.get_mut(disk), self.doorkeepers.get(disk))
            && std::mem::replace(&mut disk.limits.sectors, sectors) != sectors
        {
            keeper.resized(sectors);
        }
    }

    /// A disk (its place in [`Front::new`]) with a
    /// [`breach`](crate::DiskOptions::breach) whose guest has begun anew: it
    /// misses nothing. Each is told once.
    pub fn take_begun(&mut self) -> Option<usize> {
        self.disks.begun.pop()
    }

    /// Takes nothing new from any ring from now on. What guests add stays in
    /// their rings for a front that comes later.
    pub fn quiesce(&mut self) {
        self.disks.quiescing = true;
    }

    /// Whether nothing that was taken from a ring is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let mut queues = self.disks.queues.iter().filter_map(|place| place.queue.as_ref());
        queues.all(|queue| queue.is_idle())
    }

    /// The volumes of the disks, in the order of [`Front::new`].
    pub fn volumes(&self) -> impl Iterator<Item = VolumeHandle> {
        self.disks.disks.iter().map(|disk| disk.spec.volume())
    }

    fn take_mail(&mut self, now: Time) -> bool {
        if !self.mailbox.is_filled() {
            return false;
        }
        for mail in self.mailbox.take() {
            self.disks.receive(now, mail);
        }
        self.disks.wake_all();
        true
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Threads that wait for an answer must not wait for ever.
        self.mailbox.close();
        self.disks.queues.clear();
        self.doorkeepers.clear();
    }
}

/// What the news of a descriptor means.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bell {
    /// A message waits.
    Mail,
    /// A guest has kicked the ring of the queue.
    Kick(usize),
}

impl Bell {
    const MAIL: u64 = u64::MAX;
}

impl From<Bell> for epoll::EventData {
    fn from(bell: Bell) -> Self {
        Self::new_u64(match bell {
            Bell::Mail => Bell::MAIL,
            Bell::Kick(queue) => queue as u64,
        })
    }
}

impl From<epoll::EventData> for Bell {
    fn from(data: epoll::EventData) -> Self {
        match data.u64() {
            Self::MAIL => Self::Mail,
            queue => Self::Kick(queue as usize),
        }
    }
}

/// Lets news of `fd` end a sleep on `epoll`. Edge-triggered: a kick need not
/// be read.
pub(crate) fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, bell: Bell) -> io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(epoll, fd, bell.into(), flags)?;
    Ok(())
}

/// The opposite of [`watch`]. Closing alone would not do: the front-end has
/// the same file open.
pub(crate) fn unwatch(epoll: &OwnedFd, fd: BorrowedFd<'_>) {
    // It is registered, or was never.
    let _ = epoll::delete(epoll, fd);
}
