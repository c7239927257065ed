//! A controller from its first register to its shutdown.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block_core::unit::BLOCK_SIZE;
use block_core::{Pool, Time};

use crate::admin::Admin;
use crate::bus::Bus;
use crate::command::{Command, cns, feature, log};
use crate::completion::Status;
use crate::event::{self, Event};
use crate::health::{HEALTH_BYTES, HealthLog};
use crate::identify::{CommandLimits, ControllerInfo, FormatError, NamespaceInfo};
use crate::pieces;
use crate::port::Port;
use crate::queue_pair::QueuePair;
use crate::registers::{CSTS, CSTS_FATAL, CSTS_READY, GONE, VS};
use crate::shadow::Shadow;
use crate::table::{Ending, MAX_TRANSFER_BYTES};

/// Tells the time while the driver waits for the controller.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// Most namespaces that are looked at.
const MAX_NAMESPACES: usize = 1024;

/// Most I/O queue pairs that are asked for; more cores than that poll nothing.
const QUEUES_WANTED: u16 = 64;

/// Why a controller cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // The sentences say it, the fields are their words.
pub enum StartError {
    #[error(
        "the controller does not answer (its registers read as all ones): it was removed, has lost \
         power, or memory space is off in its PCI command register"
    )]
    Gone,
    #[error(
        "the controller was taken away: it was unplugged, or is given to another driver; restart the \
         server when it is back"
    )]
    Revoked,
    #[error(
        "the controller has no NVM command set, so it does not store blocks; use another device"
    )]
    NoBlockCommands,
    #[error("the controller needs memory pages of 2^{bits} bytes, and only 4096 are supported")]
    PageSize { bits: u32 },
    #[error("the controller's queues hold a single entry (CAP.MQES is 0), which NVMe forbids")]
    NoRoom,
    #[error("the controller needs queue entries of other sizes than 64 and 16 bytes")]
    EntrySizes,
    #[error(
        "the controller did not {step} within {patience:?} (CSTS is {status:#x}); power-cycle the \
         device"
    )]
    Silent { step: &'static str, patience: Duration, status: u32 },
    #[error(
        "the controller reports a fatal status (CSTS.CFS); if a reset does not help, power-cycle the device"
    )]
    Fatal,
    #[error("the controller gave no answer to \"{command}\" within {patience:?}; reset it")]
    NoAnswer { command: &'static str, patience: Duration },
    #[error("the controller refused \"{command}\": {status}")]
    Refused { command: &'static str, status: Status },
    #[error("no memory for the controller's queues: {0}")]
    Memory(io::Error),
    #[error("all {granted} I/O queues of the controller are in use; use fewer workers")]
    NoQueue { granted: usize },
    #[error("namespace {id} cannot be used: {reason}")]
    Format { id: u32, reason: FormatError },
    #[error("the controller has no namespace {id}; it has {present}")]
    NoNamespace { id: u32, present: String },
    #[error(
        "after a reset another device answers, or it has changed: {what} was {then} and is {now}; \
         restart the server to use it as it is"
    )]
    Changed { what: &'static str, then: String, now: String },
}

/// What a controller's status register says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Ready,
    /// It is off or was reset by someone else.
    NotReady,
    /// It has failed; only a reset helps.
    Fatal,
    /// Nobody answers.
    Gone,
}

/// A controller that runs. Clones are the same controller; any thread may have
/// one and make its own queue pairs. When the last one and the last queue pair
/// are dropped, it is shut down.
#[derive(Clone)]
pub struct Controller {
    core: Arc<Core>,
}

/// What queue pairs and the controller's owners share.
pub(crate) struct Core {
    pub(crate) port: Port,
    admin: Mutex<Admin>,
    info: ControllerInfo,
    limits: CommandLimits,
    namespaces: Vec<Result<NamespaceInfo, (u32, FormatError)>>,
    granted: AtomicU32,
    /// Where doorbells are stored that the controller looks at by itself.
    shadow: Option<Shadow>,
    /// Rises when the controller has been stopped: queues made under an
    /// earlier value exist no more, and nothing they pointed at is touched.
    epoch: AtomicU32,
    /// It is asked to interrupt less often, again after each reset.
    coalesces: AtomicBool,
    /// It was given up: it reaches no memory and is not asked anything.
    cut_off: AtomicBool,
}

impl Controller {
    /// Resets the controller, starts it and asks what it is.
    ///
    /// # Errors
    /// A sentence about the step that failed.
    pub fn start(bus: Arc<dyn Bus>, clock: Clock) -> Result<Self, StartError> {
        let port = Port::open(bus, clock)?;
        port.complete(port.disable())?;
        let mut admin = Admin::new(&port)?;
        port.complete(admin.start(&port))?;
        let described = port.complete(describe(&port, &mut admin));
        let described = described.and_then(|described| {
            port.complete(ask_for_events(&port, &mut admin))?;
            let shadow = port.complete(shadow_doorbells(&port, &mut admin, &described.info))?;
            Ok((described, shadow))
        });
        let (Described { info, limits, namespaces, granted }, shadow) = match described {
            Ok(described) => described,
            Err(error) => {
                give_up(&port, admin);
                return Err(error);
            }
        };
        let core = Core {
            port,
            admin: Mutex::new(admin),
            info,
            limits,
            namespaces,
            granted: AtomicU32::new(u32::from(granted)),
            shadow,
            epoch: AtomicU32::new(0),
            coalesces: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// What the controller says about itself.
    #[must_use]
    pub fn info(&self) -> &ControllerInfo {
        &self.core.info
    }

    /// The version of the specification it follows, from its register.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.core.port.bus.read32(VS)
    }

    /// The namespaces that can be served.
    pub fn namespaces(&self) -> impl Iterator<Item = &NamespaceInfo> {
        self.core.namespaces.iter().flatten()
    }

    /// The namespace with this ID.
    ///
    /// # Errors
    /// When there is none, or it cannot be served.
    pub fn namespace(&self, id: u32) -> Result<NamespaceInfo, StartError> {
        for namespace in &self.core.namespaces {
            match namespace {
                Ok(info) if info.id == id => return Ok(*info),
                Err((bad, reason)) if *bad == id => {
                    return Err(StartError::Format { id, reason: *reason });
                }
                _ => {}
            }
        }
        let ids: Vec<String> = self.namespaces().map(|info| info.id.to_string()).collect();
        let present = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        Err(StartError::NoNamespace { id, present })
    }

    /// How many I/O queue pairs the controller has granted.
    #[must_use]
    pub fn queues_granted(&self) -> usize {
        self.core.granted()
    }

    /// `count` buffers of `buffer_bytes` that the controller reaches.
    ///
    /// # Errors
    /// When there is no such memory.
    pub fn pool(&self, count: usize, buffer_bytes: usize) -> io::Result<Pool> {
        pieces::pool(|bytes| self.core.port.bus.allocate(bytes), count, buffer_bytes)
    }

    /// A queue pair of this thread for up to `depth` commands at a time (fewer
    /// when the controller's queues are shorter).
    ///
    /// # Errors
    /// When all queues are in use, or the controller refuses.
    pub fn create_queue_pair(&self, depth: u16) -> Result<Rc<QueuePair>, StartError> {
        Ok(Rc::new(QueuePair::create(Arc::clone(&self.core), depth, false)?))
    }

    /// [`Controller::create_queue_pair`] for a thread that sleeps: completions ring the
    /// bus's [bells](Bus::bells), if it has interrupts.
    ///
    /// # Errors
    /// As there.
    pub fn create_ringing_queue_pair(&self, depth: u16) -> Result<Rc<QueuePair>, StartError> {
        Ok(Rc::new(QueuePair::create(Arc::clone(&self.core), depth, true)?))
    }

    /// Asks for fewer interrupts, from now on: for a thread that polls while there is
    /// work, and for which they are waste until it sleeps. Controllers may decline.
    ///
    /// # Errors
    /// When the controller is silent.
    pub fn coalesce_interrupts(&self) -> Result<(), StartError> {
        let core = &self.core;
        core.coalesces.store(true, Ordering::Relaxed);
        core.port.complete(coalesce(&core.port, &mut core.admin()))
    }

    /// What becomes readable when the controller has something to say.
    #[must_use]
    pub fn bells(&self) -> Vec<BorrowedFd<'_>> {
        self.core.port.bus.bells()
    }

    pub(crate) fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core)
    }

    /// What the controller's status register says.
    #[must_use]
    pub fn health(&self) -> Health {
        self.core.health()
    }

    /// Asks the controller to give up on one command of a queue pair. Whatever
    /// the answer, the command has ended only when its completion has come.
    ///
    /// # Errors
    /// When the controller refuses or is silent.
    pub fn abort(&self, queue: &QueuePair, command_id: u16) -> Result<bool, StartError> {
        let command = Command::abort(queue.id(), command_id);
        let port = &self.core.port;
        let result = port.complete(self.core.admin().execute(port, "abort", command))?;
        Ok(result & 1 == 0)
    }

    /// Stops the controller and starts it again. Every queue pair fails the
    /// commands it still had at its next [`QueuePair::reap`] and works again
    /// after [`QueuePair::restart`]. Answered writes that were not flushed may
    /// be lost: whoever hands out verifiers draws a new one.
    ///
    /// Workers on other threads stop ringing first: a doorbell rung during the
    /// reset could reach a queue that is made right after it.
    ///
    /// # Errors
    /// A sentence about the step that failed, or about what has changed. As
    /// long as the controller could not be stopped, commands and their buffers
    /// stay where they are.
    pub fn reset(&self) -> Result<(), StartError> {
        self.core.port.complete(self.core.reset())
    }

    /// How often the controller has been stopped since it was started.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.core.epoch()
    }

    /// Shuts the controller down in order: it writes out its cache. Queue
    /// pairs that still exist fail what they had.
    ///
    /// # Errors
    /// When the controller does not follow.
    pub fn shut_down(&self) -> Result<(), StartError> {
        self.core.shut_down()
    }
}

impl Core {
    pub(crate) fn admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> u32 {
        // Acquire: who sees a new epoch also sees what the controller wrote
        // before it was stopped.
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn info(&self) -> &ControllerInfo {
        &self.info
    }

    pub(crate) fn granted(&self) -> usize {
        self.granted.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn limits(&self) -> &CommandLimits {
        &self.limits
    }

    /// A doorbell goes from `old` to `new`; how many registers that took.
    pub(crate) fn ring(&self, doorbell: u32, old: u32, new: u32) -> u64 {
        let told = self.shadow.as_ref().is_some_and(|shadow| !shadow.ring(doorbell, old, new));
        if told {
            return 0;
        }
        self.port.bus.write32(doorbell, new);
        1
    }

    /// A queue pair is about to be created.
    pub(crate) fn clear_shadow(&self, queue: u16) {
        if let Some(shadow) = &self.shadow {
            shadow.clear_queue(queue);
        }
    }

    /// Most bytes of one data transfer: whole blocks.
    pub(crate) fn max_transfer(&self) -> usize {
        let said = self.info.max_transfer.unwrap_or(u64::MAX);
        let bytes = usize::try_from(said).unwrap_or(usize::MAX).min(MAX_TRANSFER_BYTES);
        bytes / BLOCK_SIZE * BLOCK_SIZE
    }

    /// Stops the controller, starts it again and looks whether it is the same.
    #[expect(
        clippy::await_holding_lock,
        reason = "nobody may ask the controller anything between two steps; a thread that wants to \
                  waits, and this one drops the future first"
    )]
    pub(crate) async fn reset(&self) -> Result<(), StartError> {
        let mut admin = self.admin();
        self.stop().await?;
        self.let_go();
        admin.start(&self.port).await?;
        let found = describe(&self.port, &mut admin).await?;
        self.compare(&found)?;
        self.granted.store(u32::from(found.granted), Ordering::Relaxed);
        ask_for_events(&self.port, &mut admin).await?;
        if self.coalesces.load(Ordering::Relaxed) {
            coalesce(&self.port, &mut admin).await?;
        }
        if let Some(shadow) = &self.shadow {
            shadow.clear();
            admin.execute(&self.port, "shadow doorbells", shadow.command()).await?;
        }
        Ok(())
    }

    /// Stops the controller, by the bus's means when it does not follow.
    async fn stop(&self) -> Result<(), StartError> {
        let Err(error) = self.port.disable().await else { return Ok(()) };
        if self.port.bus.is_revoked() {
            return Err(StartError::Revoked);
        }
        match self.port.bus.revive() {
            Ok(true) => {
                tracing::warn!("the controller did not stop, so its bus has reset it: {error}");
                self.port.disable().await
            }
            Ok(false) => Err(error),
            Err(why) => {
                tracing::warn!("the controller's bus does not help: {why}");
                Err(error)
            }
        }
    }

    /// What the controller has told by itself, if nobody asks it anything just now.
    pub(crate) fn take_event(&self) -> Option<Event> {
        self.admin.try_lock().ok()?.take_event(&self.port)
    }

    /// Reads the log that an event points at and asks for the next event. The health
    /// log, if it was that.
    #[expect(clippy::await_holding_lock, reason = "as for a reset")]
    pub(crate) async fn attend(&self, event: Event) -> Result<Option<HealthLog>, StartError> {
        let mut admin = self.admin();
        let page = match admin.ask(&self.port, "get a log", event.question()).await {
            Ok(page) => Some(page),
            Err(StartError::Refused { .. }) => None,
            Err(error) => return Err(error),
        };
        admin.request_event(&self.port);
        let is_health = event.log == log::HEALTH;
        Ok(page.filter(|_| is_health).map(|page| HealthLog::parse(&page)))
    }

    /// The device's health log.
    #[expect(clippy::await_holding_lock, reason = "as for a reset")]
    pub(crate) async fn health_log(&self) -> Result<HealthLog, StartError> {
        let command = Command::get_log_page(log::HEALTH, HEALTH_BYTES);
        let page = self.admin().ask(&self.port, "get the health log", command).await?;
        Ok(HealthLog::parse(&page))
    }

    /// Asks the controller to give up on a command; whether it says that it
    /// did.
    #[expect(clippy::await_holding_lock, reason = "as for a reset")]
    pub(crate) async fn abort(&self, queue: u16, id: u16) -> Result<bool, StartError> {
        let command = Command::abort(queue, id);
        let result = self.admin().execute(&self.port, "abort", command).await?;
        Ok(result & 1 == 0)
    }

    /// The controller does not come back: whatever it still does, it does not
    /// reach memory any more, and what it had is handed back.
    pub(crate) fn give_up(&self) {
        self.port.bus.cut_off();
        self.cut_off.store(true, Ordering::Relaxed);
        self.let_go();
    }

    /// How commands end that an earlier run of the controller had.
    pub(crate) fn ending(&self) -> Ending {
        if self.cut_off.load(Ordering::Relaxed) { Ending::GIVEN_UP } else { Ending::RESET }
    }

    /// The controller touches no memory that it was given until now.
    fn let_go(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Whoever answers after a reset must be who was there before it: blocks
    /// of another device would be taken for the volumes' own.
    fn compare(&self, now: &Described) -> Result<(), StartError> {
        let (then, info) = (&self.info, &now.info);
        let changed = |what, then: &dyn Debug, now: &dyn Debug| {
            let (then, now) = (format!("{then:?}"), format!("{now:?}"));
            Err(StartError::Changed { what, then, now })
        };
        if then.serial != info.serial || then.model != info.model {
            let name = |info: &ControllerInfo| format!("{} {}", info.model, info.serial);
            return changed("who it says it is", &name(then), &name(info));
        }
        if self.namespaces != now.namespaces {
            return changed("its namespaces", &self.namespaces, &now.namespaces);
        }
        // New firmware may be why it was reset.
        let then = ControllerInfo { firmware: info.firmware.clone(), ..then.clone() };
        if then != *info {
            return changed("what it can do", &then, info);
        }
        if self.limits != now.limits {
            return changed("the limits of its commands", &self.limits, &now.limits);
        }
        Ok(())
    }

    fn shut_down(&self) -> Result<(), StartError> {
        let _admin = self.admin();
        let announced = self.port.complete(self.port.shut_down());
        self.port.complete(self.port.disable())?;
        self.let_go();
        announced
    }

    /// Whether somebody else has stopped the controller (its power failed):
    /// then it has forgotten its queues and touches no memory.
    pub(crate) fn is_stopped(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
            || self.port.bus.read32(CSTS) & (CSTS_READY | CSTS_FATAL) == 0
    }

    /// What the controller's status register says.
    pub(crate) fn health(&self) -> Health {
        match self.port.bus.read32(CSTS) {
            GONE => Health::Gone,
            status if status & CSTS_FATAL != 0 => Health::Fatal,
            status if status & CSTS_READY != 0 => Health::Ready,
            _ => Health::NotReady,
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.is_stopped() {
            return;
        }
        if let Err(error) = self.shut_down() {
            tracing::error!("the controller was not shut down in order: {error}");
        }
        if self.port.bus.read32(CSTS) & CSTS_READY != 0
            && let Ok(admin) = Admin::new(&self.port)
        {
            let admin = std::mem::replace(&mut *self.admin(), admin);
            // The controller may still write to them.
            std::mem::forget(admin);
            std::mem::forget(self.shadow.take());
        }
    }
}

/// What start-up asks a controller.
struct Described {
    info: ControllerInfo,
    limits: CommandLimits,
    namespaces: Vec<Result<NamespaceInfo, (u32, FormatError)>>,
    granted: u16,
}

async fn describe(port: &Port, admin: &mut Admin) -> Result<Described, StartError> {
    let page_bits = port.capabilities.min_page_bits;
    let info = ControllerInfo::parse(&*admin.identify(port, cns::CONTROLLER, 0).await?, page_bits);
    if !info.has_usual_entries {
        return Err(StartError::EntrySizes);
    }
    let mut limits = CommandLimits::UNSAID;
    if info.has_command_limits() {
        match admin.identify(port, cns::COMMAND_SET_CONTROLLER, 0).await {
            Ok(page) => limits = CommandLimits::parse(&page, page_bits),
            Err(StartError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    } else {
        // Before 2.0 nothing said how much one Write Zeroes may cover; drivers
        // keep within the limit for data.
        limits.write_zeroes = info.max_transfer;
    }
    let mut namespaces = Vec::new();
    for id in active_namespaces(port, admin).await? {
        let page = admin.identify(port, cns::NAMESPACE, id).await?;
        namespaces.push(NamespaceInfo::parse(id, &page).map_err(|reason| (id, reason)));
    }
    let granted = ask_for_queues(port, admin).await?;
    Ok(Described { info, limits, namespaces, granted })
}

/// Asks for events about health, and leaves a request for one. A controller that
/// tells none is served without.
async fn ask_for_events(port: &Port, admin: &mut Admin) -> Result<(), StartError> {
    let command = Command::set_feature(feature::ASYNC_EVENTS, event::WANTED);
    match admin.execute(port, "set event configuration", command).await {
        Ok(_) => admin.request_event(port),
        Err(StartError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Interrupt Coalescing (Base 2.0, section 5.27.1.6): one for eight completions, or
/// after 100 us, the shortest time that can be said. A thread spins about as long
/// before it sleeps.
async fn coalesce(port: &Port, admin: &mut Admin) -> Result<(), StartError> {
    let (threshold, hundreds_of_us) = (8 - 1, 1);
    let command = Command::set_feature(feature::COALESCING, hundreds_of_us << 8 | threshold);
    match admin.execute(port, "set interrupt coalescing", command).await {
        Ok(_) | Err(StartError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Tells the controller where doorbells are shadowed, if it wants to know. One that
/// refuses is told by registers.
async fn shadow_doorbells(
    port: &Port,
    admin: &mut Admin,
    info: &ControllerInfo,
) -> Result<Option<Shadow>, StartError> {
    if !info.has_shadow_doorbells {
        return Ok(None);
    }
    let shadow = Shadow::new(port)?;
    match admin.execute(port, "shadow doorbells", shadow.command()).await {
        Ok(_) => Ok(Some(shadow)),
        Err(StartError::Refused { .. }) => Ok(None),
        Err(error) => {
            std::mem::forget(shadow); // It may have heard it.
            Err(error)
        }
    }
}

/// The active namespace ID list: pages of 1024 rising IDs, ended by a zero
/// (Base 2.0, section 5.17.2.2).
async fn active_namespaces(port: &Port, admin: &mut Admin) -> Result<Vec<u32>, StartError> {
    let mut ids: Vec<u32> = Vec::new();
    loop {
        let after = ids.last().copied().unwrap_or(0);
        let page = admin.identify(port, cns::ACTIVE_NAMESPACES, after).await?;
        let before = ids.len();
        for bytes in page.chunks_exact(4) {
            let id = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if id <= ids.last().copied().unwrap_or(0) || ids.len() == MAX_NAMESPACES {
                return Ok(ids);
            }
            ids.push(id);
        }
        if ids.len() == before {
            return Ok(ids);
        }
    }
}

/// Set Features, Number of Queues: both counts are 0-based, and the controller
/// answers with what it grants (Base 2.0, section 5.27.1.5).
async fn ask_for_queues(port: &Port, admin: &mut Admin) -> Result<u16, StartError> {
    let wanted = u32::from(QUEUES_WANTED - 1);
    let command = Command::set_feature(feature::QUEUES, wanted << 16 | wanted);
    let granted = admin.execute(port, "set the number of queues", command).await?;
    let granted = (granted & 0xffff).min(granted >> 16).min(wanted) as u16 + 1;
    admin.grant(granted);
    Ok(granted)
}

/// Start-up has failed half-way: the memory is freed only if the controller
/// has let go of it.
fn give_up(port: &Port, admin: Admin) {
    if port.complete(port.disable()).is_err() {
        std::mem::forget(admin);
    }
}
