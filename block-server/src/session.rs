//! A front's session: its handles, and a task for each of its slots.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use block_core::device::Tag;
use block_core::{Begun, BlockCount, BlockError, Buffer, Device, Op, Request, Served, Time};
use interpose::hooks::{RequestFacts, Ticket};
use link::{
    Access, AttachReply, AttachRequest, Attached, Caller, Refused, Reply, SlotRef, VolumeHandle,
    Work,
};
use tracing::warn;

use crate::attach::{Claim, Given};
use crate::hold::Hold;
use crate::room::{Located, Room};
use crate::volume::Volume;

/// Most volumes that one session has at a time, and handles that it has been
/// given and lost: one for each volume whenever its device is reset.
pub const MAX_HANDLES: usize = 16 * 1024;

/// One slot: where the worker puts work, and its task finds it.
pub struct Slot<D> {
    job: Cell<Option<Job<D>>>,
}

/// What a slot's task does next.
pub enum Job<D> {
    /// This, and answer.
    Serve(Work),
    /// Ask the device again for what it gave up, and answer.
    AskAgain(Straight<D>, Buffer),
    /// End: the session is over.
    End,
}

impl<D> Default for Slot<D> {
    fn default() -> Self {
        Self { job: Cell::new(None) }
    }
}

impl<D> Slot<D> {
    /// Leaves a job; the caller wakes the task.
    pub fn put(&self, job: Job<D>) {
        self.job.set(Some(job));
    }

    async fn next(&self) -> Job<D> {
        poll_fn(|_| match self.job.take() {
            Some(job) => Poll::Ready(job),
            None => Poll::Pending,
        })
        .await
    }
}

/// A front's session with this worker.
pub struct Session<D> {
    caller: Caller,
    incarnation: u64,
    slots: u16,
    handles: RefCell<Vec<Option<Rc<Handle<D>>>>>,
    /// One attach or detach at a time: a repeated attach must find what the
    /// first one got.
    changing: tokio::sync::Mutex<()>,
    /// It is over; what was under way ends without effect on its handles.
    closed: Cell<bool>,
}

struct Handle<D> {
    volume: Rc<Volume<D>>,
    hold: Rc<Hold>,
    /// The size that the front was told.
    told: BlockCount,
}

/// A request that runs: whoever takes the volume away waits for it.
struct Running<'a> {
    hold: &'a Hold,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.hold.end();
    }
}

/// A request that runs without its slot's task: the device has it, and its end is told
/// to the worker. Most requests do: a task, and the futures that it is made of, cost more
/// than all that is done for them.
pub struct Straight<D> {
    handle: Rc<Handle<D>>,
    arrived: Time,
    begun: Begun,
}

impl<D: Device + 'static> Straight<D> {
    /// It has ended on the device.
    #[inline]
    pub fn end(&self, room: &Room<D>, outcome: Result<(), BlockError>, buffer: Buffer) -> Reply {
        let Self { handle, arrived, begun } = self;
        let word = handle.volume.requests.end(begun);
        let reply = handle.answer(Served { outcome, word, buffer: Some(buffer) });
        handle.hold.end();
        let facts = RequestFacts { op: begun.op, range: Some(begun.range) };
        handle.volume.hooks.gone(facts, *arrived, reply.outcome, room.now());
        reply
    }

    async fn ask_again(self, room: &Room<D>, buffer: Buffer) -> Reply {
        let requests = &self.handle.volume.requests;
        let (buffer, outcome) = requests.ask_again(&self.begun, buffer).await;
        self.end(room, outcome, buffer)
    }
}

impl<D: Device + 'static> Handle<D> {
    /// A request that waited to be admitted did not run: meanwhile the volume
    /// may have been taken away, or resized.
    #[inline]
    fn begin(&self, op: Op) -> Result<(), BlockError> {
        self.hold.begin()?;
        let refused = if self.volume.has_failed() {
            BlockError::Medium
        } else if op.changes() && self.hold.access() == Access::Read {
            BlockError::ReadOnly
        } else {
            return Ok(());
        };
        self.hold.end();
        Err(refused)
    }

    /// Waits until the hooks let the request pass.
    async fn wait(&self, facts: RequestFacts, room: &Room<D>) -> Result<Ticket, BlockError> {
        tokio::select! {
            biased;
            ticket = self.volume.hooks.admit(facts, room.clock()) => Ok(ticket),
            // What waits has had no effect: neither the front's next session
            // nor whoever takes the volume away waits for it.
            why = self.hold.over() => Err(why),
        }
    }

    #[inline]
    fn answer(&self, served: Served) -> Reply {
        let Served { outcome, word, buffer } = served;
        // An answer from before a reset may be of what is lost.
        let outcome = if self.hold.is_outdated() { Err(BlockError::Lost) } else { outcome };
        let news = self.volume.requests.blocks() != self.told;
        Reply { outcome, word, buffer, attach: None, news }
    }
}

fn not_run(request: Request, why: BlockError) -> Reply {
    Reply { buffer: request.buffer, ..Reply::plain(Err(why), 0) }
}

impl<D: Device + 'static> Session<D> {
    /// A session of a front's `incarnation`th start, without volumes.
    #[must_use]
    pub fn new(caller: Caller, incarnation: u64, slots: u16) -> Self {
        let (handles, changing) = (RefCell::default(), tokio::sync::Mutex::new(()));
        Self { caller, incarnation, slots, handles, changing, closed: Cell::new(false) }
    }

    /// Gives up what the session holds, so that nothing begins any more. The
    /// front keeps its volumes.
    pub fn close(&self) {
        self.closed.set(true);
        for handle in self.handles.borrow_mut().drain(..).flatten() {
            handle.volume.forget(&handle.hold);
        }
    }

    /// Begins a request without a task, if it is one of the usual ones and nothing is in
    /// its way. If not, a task finds out what there is to wait for or to refuse, and
    /// the request is as it was.
    #[inline]
    pub fn begin(
        &self,
        room: &Room<D>,
        handle: VolumeHandle,
        request: &mut Request,
        tag: Tag,
    ) -> Option<Straight<D>> {
        let handle = self.handle(handle)?;
        let Volume { hooks, requests, .. } = &*handle.volume;
        handle.begin(request.op).ok()?;
        let Some(begun) = hooks.is_free().then(|| requests.begin(request, tag)).flatten() else {
            handle.hold.end();
            return None;
        };
        let arrived = hooks.come(room.clock());
        Some(Straight { handle, arrived, begun })
    }

    /// One await where nothing is in the request's way.
    async fn serve(&self, room: &Room<D>, handle: VolumeHandle, request: Request) -> Reply {
        let Some(handle) = self.handle(handle) else {
            return not_run(request, BlockError::NotAttached);
        };
        let hooks = &handle.volume.hooks;
        let facts = RequestFacts::from(&request);
        let ticket = match hooks.try_admit(facts, room.clock()) {
            Some(ticket) => ticket,
            None => match handle.wait(facts, room).await {
                Ok(ticket) => ticket,
                Err(why) => return not_run(request, why),
            },
        };
        let reply = match handle.begin(request.op) {
            Ok(()) => {
                let running = Running { hold: &handle.hold };
                let served = handle.volume.requests.serve(request).await;
                drop(running);
                handle.answer(served)
            }
            Err(why) => not_run(request, why),
        };
        hooks.done(ticket, reply.outcome, room.now());
        reply
    }

    #[inline]
    fn handle(&self, handle: VolumeHandle) -> Option<Rc<Handle<D>>> {
        self.handles.borrow().get(usize::from(handle.0))?.clone()
    }

    async fn attach(&self, room: &Room<D>, request: AttachRequest) -> AttachReply {
        let _changing = self.changing.lock().await;
        // Asked first: who may not have a volume does not learn whether it is there.
        if let Err(refused) =
            room.authority().may_attach(&self.caller, &request.name, request.access)
        {
            warn!(front = %self.caller, volume = %request.name, "not attached: {refused}");
            return AttachReply::Refused(refused);
        }
        let Some(Located { store, volume, .. }) = room.find(&request.name) else {
            return match room.directory.elsewhere(&request.name, room.worker) {
                Some(port) => AttachReply::Elsewhere { port },
                None => AttachReply::Refused(Refused::Unknown),
            };
        };
        let own = self.handle_of(&volume);
        let Some(place) = own.as_ref().map(|(place, _)| *place).or_else(|| self.free_place())
        else {
            return AttachReply::Refused(Refused::Full);
        };
        let own = own.map(|(_, handle)| Rc::clone(&handle.hold));
        let AttachRequest { access, settled, had, .. } = request;
        let (front, incarnation) = (self.caller.front, self.incarnation);
        let claim = Claim { front, incarnation, access, settled, had };
        match store.attach(&volume, claim, own.as_ref()).await {
            // Nobody would ever give it back.
            Ok(given) if self.closed.get() => {
                volume.forget(&given.hold);
                AttachReply::Refused(Refused::Failed)
            }
            Ok(given) => {
                volume.requests.reserve(usize::from(self.slots));
                let same = own.is_some_and(|own| Rc::ptr_eq(&own, &given.hold));
                self.attached(if same { Some(place) } else { None }, volume, given)
            }
            Err(refused) => AttachReply::Refused(refused),
        }
    }

    /// The answer to an attach that worked. A new hold gets a number that has
    /// named no other volume, unless the front gave that one back: what it
    /// sent for a volume that was taken away must not reach another one.
    fn attached(&self, place: Option<usize>, volume: Rc<Volume<D>>, given: Given) -> AttachReply {
        let Given { hold, stored_verifier } = given;
        hold.seal_by(self.caller.key);
        let Some(place) = place.or_else(|| self.free_place()) else {
            volume.forget(&hold);
            return AttachReply::Refused(Refused::Full);
        };
        let record = volume.record();
        let reply = AttachReply::Attached(Attached {
            handle: VolumeHandle(place as u16),
            volume_id: record.id.0,
            generation: record.generation,
            verifier: volume.requests.verifier(),
            stored_verifier,
            sectors: record.blocks.sectors(),
            read_only: record.read_only || hold.access() == Access::Read,
        });
        let mut handles = self.handles.borrow_mut();
        if place == handles.len() {
            handles.push(None);
        }
        handles[place] = Some(Rc::new(Handle { volume, hold, told: record.blocks }));
        reply
    }

    fn handle_of(&self, volume: &Rc<Volume<D>>) -> Option<(usize, Rc<Handle<D>>)> {
        let handles = self.handles.borrow();
        let mut numbered = handles.iter().enumerate();
        numbered.find_map(|(place, handle)| {
            let handle = handle.as_ref()?;
            let here = Rc::ptr_eq(&handle.volume, volume) && !handle.hold.is_revoked();
            here.then(|| (place, Rc::clone(handle)))
        })
    }

    fn free_place(&self) -> Option<usize> {
        let handles = self.handles.borrow();
        let place = handles.iter().position(Option::is_none).unwrap_or(handles.len());
        (place < MAX_HANDLES).then_some(place)
    }

    async fn detach(&self, room: &Room<D>, handle: VolumeHandle) -> Reply {
        let _changing = self.changing.lock().await;
        let place = usize::from(handle.0);
        let entry = self.handles.borrow().get(place).cloned();
        let Some(entry) = entry else {
            return Reply::plain(Err(BlockError::NotAttached), 0);
        };
        if let Some(Handle { volume, hold, .. }) = entry.as_deref()
            && let Some(store) = room.store_of(volume)
            && let Err(error) = store.detach(volume, hold).await
        {
            // The handle stays, so that the front can ask again.
            warn!("a detach could not be stored: {error}");
            let why = if hold.is_outdated() { BlockError::Lost } else { BlockError::Medium };
            return Reply::plain(Err(why), 0);
        }
        // The session may have been closed meanwhile.
        if let Some(entry) = self.handles.borrow_mut().get_mut(place) {
            *entry = None;
        }
        Reply::plain(Ok(()), 0)
    }
}

/// The life of a slot: take its work, do it, answer it.
pub async fn serve_slot<D: Device + 'static>(
    room: Rc<Room<D>>,
    session: Rc<Session<D>>,
    slot: Rc<Slot<D>>,
    at: SlotRef,
) {
    loop {
        let reply = match slot.next().await {
            Job::End => return,
            Job::AskAgain(straight, buffer) => straight.ask_again(&room, buffer).await,
            Job::Serve(Work::Block { volume, request }) => {
                session.serve(&room, volume, request).await
            }
            Job::Serve(Work::Attach(request)) => {
                let reply = session.attach(&room, request).await;
                Reply { attach: Some(Box::new(reply)), ..Reply::plain(Ok(()), 0) }
            }
            Job::Serve(Work::Detach(handle)) => session.detach(&room, handle).await,
        };
        room.reply(at, reply);
    }
}
