//! A worker as the link's server drives it, on a disk that completes when the
//! test lets it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use block_core::device::Ended;
use block_core::unit::{BLOCK_SIZE, SectorRange};
use block_core::{BlockError, Op, Pool, Request, Time};
use link::{
    Access, AttachReply, AttachRequest, Attached, Caller, Host, Refused, Reply, SessionIndex,
    SlotRef, VolumeHandle, Work,
};

use super::crash::{front, name};
use super::disk::{Medium, SimDisk};
use crate::api::VolumeInfo;
use crate::catalog::Formatting;
use crate::directory::{Directory, WorkerIndex};
use crate::engine::Engine;
use crate::errand::{Errand, Failed};
use crate::layout::{Copy, DATA_START, UNIT_BLOCKS};
use crate::mailbox::Mailbox;
use crate::size::Size;
use crate::worker::{Limits, Owned, Place, Worker};
use block_core::Chance;

/// Completes one command each time it works, unless it is held.
struct SimEngine {
    disk: SimDisk,
    held: Rc<Cell<bool>>,
}

impl Engine for SimEngine {
    type Device = SimDisk;

    fn reap(&mut self, ended: &mut Vec<Ended>) -> usize {
        let before = ended.len();
        ended.append(&mut self.disk.take_ended());
        ended.len() - before
    }

    fn ring(&mut self) {}

    fn work(&mut self) -> usize {
        usize::from(!self.held.get() && self.disk.step())
    }

    fn is_busy(&self) -> bool {
        false
    }

    fn pool(&self, count: usize, buffer_bytes: usize) -> io::Result<Pool> {
        Pool::private(count, buffer_bytes)
    }
}

struct Rig {
    worker: Worker<SimEngine>,
    mailbox: Arc<Mailbox>,
    directory: Arc<Directory>,
    disk: SimDisk,
    held: Rc<Cell<bool>>,
    replies: Vec<(SlotRef, Reply)>,
}

const SLOTS: u16 = 4;

fn slot(session: u16, slot: u16) -> SlotRef {
    SlotRef { session: SessionIndex(session), slot }
}

impl Rig {
    /// A worker with the volumes "a" and "b".
    fn new() -> Self {
        let disk = SimDisk::new(Medium::default(), DATA_START.0 + 8 * UNIT_BLOCKS, 5);
        let held = Rc::new(Cell::new(false));
        let engine = SimEngine { disk: disk.clone(), held: Rc::clone(&held) };
        let mailbox = Mailbox::new().expect("an eventfd");
        let drawn = Cell::new(0);
        let directory = Arc::new(Directory::default());
        let place = Place {
            worker: WorkerIndex(0),
            directory: Arc::clone(&directory),
            mailbox: Arc::clone(&mailbox),
            chance: Chance::new(move || {
                drawn.set(drawn.get() + 1);
                drawn.get()
            }),
            wall: || 0,
        };
        let (name_of_disk, device) = ("disk".to_owned(), disk.clone());
        let owned = Owned::raw(&name_of_disk, device, Formatting::IfBlank);
        let slots = 2 * usize::from(SLOTS);
        let limits = Limits { sessions: 2, slots, small_buffers: 8, large_buffers: 2 };
        let worker = Worker::start(engine, vec![owned], place, limits).expect("a worker");
        let mut rig = Self { worker, mailbox, directory, disk, held, replies: Vec::new() };
        for volume in ["a", "b"] {
            rig.create(volume).expect("created");
        }
        rig
    }

    fn settle(&mut self) {
        while self.worker.run(Time::ZERO) {}
        self.replies.extend(std::iter::from_fn(|| self.worker.next_reply()));
    }

    fn reply(&mut self, at: SlotRef) -> Option<Reply> {
        self.settle();
        let found = self.replies.iter().position(|(from, _)| *from == at)?;
        Some(self.replies.swap_remove(found).1)
    }

    fn errand<T>(
        &mut self,
        errand: impl FnOnce(crate::errand::Answer<T>) -> Errand,
    ) -> Result<T, Failed> {
        let (answer, mut outcome) = tokio::sync::oneshot::channel();
        self.mailbox.send(errand(answer));
        self.settle();
        outcome.try_recv().expect("done")
    }

    fn create(&mut self, volume: &str) -> Result<VolumeInfo, Failed> {
        self.errand(|answer| Errand::Create {
            device: "disk".to_owned(),
            name: name(volume),
            size: Size(1 << 20),
            read_only: false,
            domain: None,
            answer,
        })
    }

    /// How many fronts have the volume, as it is stored.
    fn fronts_of(&mut self, volume: &str) -> usize {
        let info = self.errand(|answer| Errand::Show { name: name(volume), answer });
        info.expect("it is there").attachments.len()
    }

    fn ask_attach(&mut self, at: SlotRef, volume: &str, access: Access) {
        self.worker.start(at, Work::Attach(AttachRequest::new(name(volume), access)));
    }

    fn attach(&mut self, at: SlotRef, volume: &str, access: Access) -> Result<Attached, Refused> {
        self.ask_attach(at, volume, access);
        attached(self.reply(at).expect("an answer"))
    }

    fn write(&mut self, at: SlotRef, volume: VolumeHandle) {
        let buffer = self.worker.buffer(BLOCK_SIZE, 0);
        assert!(buffer.is_some(), "a buffer is free");
        let request = Request { op: Op::Write, range: SectorRange::new(0, 8), buffer };
        self.worker.start(at, Work::Block { volume, request });
    }
}

fn attached(reply: Reply) -> Result<Attached, Refused> {
    match *reply.attach.expect("an attach answer") {
        AttachReply::Attached(attached) => Ok(attached),
        AttachReply::Refused(refused) => Err(refused),
        AttachReply::Elsewhere { .. } => panic!("there is one worker"),
    }
}

/// A front comes back before the write of its lost session has ended on the
/// device. If it were let in, that write could land on top of a later one.
#[test]
fn a_front_that_comes_back_waits_for_what_its_old_session_still_does() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    let old = rig.attach(slot(0, 0), "a", Access::Write).expect("free");
    rig.held.set(true);
    rig.write(slot(0, 1), old.handle);
    rig.settle();

    rig.worker.opened(SessionIndex(1), caller(1), 1, SLOTS);
    rig.ask_attach(slot(1, 0), "a", Access::Write);
    assert!(rig.reply(slot(1, 0)).is_none(), "the old write runs");
    rig.write(slot(0, 2), old.handle);
    let late = rig.reply(slot(0, 2)).expect("refused at once");
    assert_eq!(late.outcome, Err(BlockError::NotAttached));

    rig.held.set(false);
    let new = attached(rig.reply(slot(1, 0)).expect("the old write has ended")).expect("its own");
    assert_eq!(rig.reply(slot(0, 1)).expect("answered").outcome, Ok(()));
    assert_eq!((new.generation, new.volume_id), (old.generation, old.volume_id));
    rig.write(slot(1, 1), new.handle);
    let first = rig.reply(slot(1, 1)).expect("answered");
    assert_eq!(first.outcome, Ok(()));

    // The old session's detach is late too: the volume is not its any more.
    rig.worker.start(slot(0, 3), Work::Detach(old.handle));
    assert_eq!(rig.reply(slot(0, 3)).expect("answered").outcome, Ok(()));
    rig.worker.closed(SessionIndex(0));
    rig.write(slot(1, 2), new.handle);
    let second = rig.reply(slot(1, 2)).expect("answered");
    assert_eq!((second.outcome, second.word), (Ok(()), first.word + 1));
}

/// The front's link broke while its write was under way, and the server was
/// told so before the front came back. Then nobody waited for that write.
#[test]
fn a_front_waits_for_its_old_session_also_when_that_has_been_closed() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    let old = rig.attach(slot(0, 0), "a", Access::Write).expect("free");
    rig.held.set(true);
    rig.write(slot(0, 1), old.handle);
    rig.settle();
    rig.worker.closed(SessionIndex(0));
    rig.worker.opened(SessionIndex(1), caller(1), 1, SLOTS);
    rig.ask_attach(slot(1, 0), "a", Access::Write);
    assert!(rig.reply(slot(1, 0)).is_none(), "the old write runs");
    rig.held.set(false);
    assert!(attached(rig.reply(slot(1, 0)).expect("it has ended")).is_ok());
}

/// The catalog refuses the write of a detach. The front asks again, and was
/// told that it is done, while what is stored still named it: nobody else got
/// the volume.
#[test]
fn a_detach_that_could_not_be_stored_is_stored_when_it_is_asked_for_again() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    // The attachment is stored once only; before anything else changes, the
    // second copy must be written too.
    rig.disk.broken.set(Some(Copy::B.record(0).0));
    let had = rig.attach(slot(0, 0), "a", Access::Write).expect("free");
    for _ in 0..2 {
        rig.worker.start(slot(0, 0), Work::Detach(had.handle));
        assert_eq!(rig.reply(slot(0, 0)).expect("answered").outcome, Err(BlockError::Medium));
    }
    assert_eq!(rig.fronts_of("a"), 1);
    rig.disk.broken.set(None);
    rig.worker.start(slot(0, 0), Work::Detach(had.handle));
    assert_eq!(rig.reply(slot(0, 0)).expect("answered").outcome, Ok(()));
    assert_eq!(rig.fronts_of("a"), 0);
    rig.worker.opened(SessionIndex(1), caller(2), 1, SLOTS);
    assert!(rig.attach(slot(1, 0), "a", Access::Write).is_ok(), "it is free");
}

/// A detach waits for the changes before it: a resize, and an attach of the
/// same front by another session. What that one got is not the detaching
/// session's.
#[test]
fn a_detach_takes_nothing_from_the_session_that_came_after() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    rig.worker.opened(SessionIndex(1), caller(1), 1, SLOTS);
    let old = rig.attach(slot(0, 0), "a", Access::Read).expect("free");
    rig.held.set(true);
    let (answer, mut resized) = tokio::sync::oneshot::channel();
    let size = Size(2 << 20);
    rig.mailbox.send(Errand::Resize { name: name("a"), size, shrink: false, answer });
    rig.settle();
    rig.ask_attach(slot(1, 0), "a", Access::Write);
    rig.settle();
    rig.worker.start(slot(0, 0), Work::Detach(old.handle));
    rig.settle();
    rig.held.set(false);
    let new = attached(rig.reply(slot(1, 0)).expect("answered")).expect("its own");
    assert!(resized.try_recv().expect("done").is_ok());
    assert_eq!(rig.reply(slot(0, 0)).expect("answered").outcome, Ok(()));
    rig.write(slot(1, 1), new.handle);
    assert_eq!(rig.reply(slot(1, 1)).expect("answered").outcome, Ok(()));
    assert_eq!(rig.fronts_of("a"), 1);
}

/// A front detaches and its link breaks while that is being stored: the
/// session's handles are gone when the detach comes to its own. It panicked.
#[test]
fn a_session_that_is_closed_during_its_detach_ends_quietly() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    let had = rig.attach(slot(0, 0), "a", Access::Write).expect("free");
    rig.held.set(true);
    rig.worker.start(slot(0, 0), Work::Detach(had.handle));
    rig.settle();
    rig.worker.closed(SessionIndex(0));
    rig.held.set(false);
    rig.settle();
    assert_eq!(rig.fronts_of("a"), 0);
}

/// A front's link breaks while its attach is being stored. The front has the
/// volume then, but nobody holds it: no request can come, and `connected` would
/// be said of a front that is gone.
#[test]
fn a_session_that_is_closed_during_its_attach_holds_nothing() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    rig.held.set(true);
    rig.ask_attach(slot(0, 0), "a", Access::Write);
    rig.settle();
    rig.worker.closed(SessionIndex(0));
    rig.held.set(false);
    rig.settle();
    let info = rig.errand(|answer| Errand::Show { name: name("a"), answer }).expect("there");
    assert_eq!(info.attachments.len(), 1);
    assert!(!info.attachments[0].connected);
}

/// The record of a new volume could be neither written nor put back: it may be
/// there after a restart. Then the name is not free, for no worker: else two
/// devices had a volume of that name, and the server would not start.
#[test]
fn the_name_of_a_volume_that_may_be_there_stays_taken() {
    let mut rig = Rig::new();
    rig.disk.broken.set(Some(Copy::A.record(2).0));
    assert!(rig.create("c").is_err());
    assert_eq!(rig.directory.worker_of(&name("c")), Some(WorkerIndex(0)));
    rig.disk.broken.set(None);
    assert!(rig.create("c").is_err());
    assert_eq!(rig.directory.worker_of(&name("c")), Some(WorkerIndex(0)));
}

#[test]
fn a_forced_detach_waits_for_what_runs_and_refuses_what_comes() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    let had = rig.attach(slot(0, 0), "a", Access::Write).expect("free");
    rig.held.set(true);
    rig.write(slot(0, 1), had.handle);
    rig.settle();
    let (answer, mut outcome) = tokio::sync::oneshot::channel();
    rig.mailbox.send(Errand::Detach { name: name("a"), front: None, force: true, answer });
    rig.settle();
    assert!(outcome.try_recv().is_err(), "a write runs");
    rig.write(slot(0, 2), had.handle);
    let refused = rig.reply(slot(0, 2)).expect("refused at once");
    assert_eq!(refused.outcome, Err(BlockError::NotAttached));
    rig.held.set(false);
    assert_eq!(rig.reply(slot(0, 1)).expect("answered").outcome, Ok(()));
    let info = outcome.try_recv().expect("done").expect("stored");
    assert_eq!(info.generation, had.generation + 1);

    rig.worker.opened(SessionIndex(1), caller(2), 1, SLOTS);
    let next = rig.attach(slot(1, 0), "a", Access::Write).expect("free now");
    assert_eq!(next.generation, had.generation + 1);
}

#[test]
fn readers_share_and_a_writer_waits_for_nobody_and_gets_nothing() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    rig.worker.opened(SessionIndex(1), caller(2), 1, SLOTS);
    let one = rig.attach(slot(0, 0), "a", Access::Read).expect("free");
    let two = rig.attach(slot(1, 0), "a", Access::Read).expect("shared");
    assert!(one.read_only && two.read_only);
    assert_eq!(rig.attach(slot(1, 0), "a", Access::Write), Err(Refused::HasReaders(1)));
    rig.worker.start(slot(0, 0), Work::Detach(one.handle));
    assert_eq!(rig.reply(slot(0, 0)).expect("answered").outcome, Ok(()));
    let writer = rig.attach(slot(1, 0), "a", Access::Write).expect("alone");
    assert!(!writer.read_only);
    let refused = rig.attach(slot(0, 0), "a", Access::Read);
    assert_eq!(refused, Err(Refused::HasWriter(front(2))));
    // The hold that was replaced is no way around the new one.
    rig.write(slot(1, 1), two.handle);
    let stale = rig.reply(slot(1, 1)).expect("answered");
    assert!(two.handle == writer.handle || stale.outcome == Err(BlockError::NotAttached));
}

/// The answer to an attach got lost and the front asks again, in another slot,
/// while the first one is still being stored.
#[test]
fn two_attaches_at_once_get_the_same_handle() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    rig.ask_attach(slot(0, 0), "a", Access::Write);
    rig.ask_attach(slot(0, 1), "a", Access::Write);
    rig.ask_attach(slot(0, 2), "b", Access::Write);
    let [one, again, other] =
        [0, 1, 2].map(|at| attached(rig.reply(slot(0, at)).expect("answered")).expect("free"));
    assert_eq!(one, again);
    assert_ne!(one.handle, other.handle);
    rig.write(slot(0, 3), one.handle);
    assert_eq!(rig.reply(slot(0, 3)).expect("answered").outcome, Ok(()));
}

/// Sessions come and go for as long as the server runs.
#[test]
fn sessions_that_end_give_everything_back() {
    let mut rig = Rig::new();
    let mut last: Option<u64> = None;
    for round in 0..300 {
        // Opened over one that was never closed, too.
        rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
        let volume = rig.attach(slot(0, 0), "a", Access::Write).expect("its own").handle;
        for at in 0..SLOTS {
            rig.write(slot(0, at), volume);
        }
        let words: Vec<u64> =
            (0..SLOTS).map(|at| rig.reply(slot(0, at)).expect("answered").word).collect();
        let (low, high) = (words.iter().min().copied(), words.iter().max().copied());
        assert!(low > last, "order numbers rise, in round {round}");
        last = high;
        if round % 3 == 0 {
            rig.worker.closed(SessionIndex(0));
        }
    }
}

#[test]
fn what_there_is_no_room_for_is_refused_and_not_lost() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(7), caller(9), 1, SLOTS);
    rig.worker.opened(SessionIndex(0), caller(9), 1, 3 * SLOTS);
    for at in [slot(7, 0), slot(0, 3 * SLOTS - 1), slot(1, 0)] {
        assert_eq!(rig.attach(at, "a", Access::Write), Err(Refused::Full), "{at:?}");
        rig.write(at, VolumeHandle(0));
        let reply = rig.reply(at).expect("answered");
        assert_eq!(reply.outcome, Err(BlockError::NotAttached));
        assert!(reply.buffer.is_some(), "the buffer comes back");
    }
    assert!(rig.attach(slot(0, 0), "a", Access::Write).is_ok(), "the slots it got work");
}

fn caller(number: u8) -> Caller {
    Caller { front: front(number), key: None }
}

/// A device gives a write up that nobody waits for. It is asked for again, and what comes
/// later to the same block still waits for it: else the older data would win.
#[test]
fn what_a_device_gives_up_is_done_before_what_came_after_it() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    let attached = rig.attach(slot(0, 0), "a", Access::Write).expect("free");
    rig.held.set(true);
    rig.disk.gives_up.set(true);
    rig.write(slot(0, 1), attached.handle);
    rig.write(slot(0, 2), attached.handle);
    rig.settle();
    let before = rig.disk.executed();
    rig.held.set(false);
    while rig.disk.executed() == before {
        rig.worker.run(Time::ZERO);
    }
    rig.held.set(true);
    rig.settle();
    assert_eq!(rig.disk.waiting(), 1, "only the first is with the device again");
    rig.held.set(false);
    let first = rig.reply(slot(0, 1)).expect("answered");
    let second = rig.reply(slot(0, 2)).expect("answered");
    assert_eq!((first.outcome, second.outcome), (Ok(()), Ok(())));
    assert!(second.word > first.word, "{} after {}", second.word, first.word);
    assert_eq!(rig.disk.executed() - before, 3, "given up, done, and the one after it");
    assert!(rig.replies.is_empty(), "each is answered once");
}

/// The session ends while the device has a request that it then gives up: nobody is there
/// to ask again, and the next front must not wait for it.
#[test]
fn what_a_device_gives_up_for_a_session_that_is_over_has_ended() {
    let mut rig = Rig::new();
    rig.worker.opened(SessionIndex(0), caller(1), 1, SLOTS);
    let old = rig.attach(slot(0, 0), "a", Access::Write).expect("free");
    rig.held.set(true);
    rig.disk.gives_up.set(true);
    rig.write(slot(0, 1), old.handle);
    rig.settle();
    rig.worker.closed(SessionIndex(0));
    rig.worker.opened(SessionIndex(1), caller(1), 1, SLOTS);
    rig.ask_attach(slot(1, 0), "a", Access::Write);
    assert!(rig.reply(slot(1, 0)).is_none(), "the device has the old write");
    rig.held.set(false);
    assert!(attached(rig.reply(slot(1, 0)).expect("it has ended")).is_ok());
}
