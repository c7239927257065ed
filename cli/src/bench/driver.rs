//! The device's other end: a virtio-blk driver over vhost-user.
//!
//! The only place that knows the crate `virtio-driver`.

use std::io;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags as Blk,
    VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags as Ring,
    virtio_blk_max_queues,
};

use super::sys::{Arena, MOST_SEGMENTS};
use super::workload::Kind;

/// How long a device may take to answer the messages of the set-up. A vhost-user
/// device serves one client: a second one is let in and never answered.
const SETUP_PATIENCE: Duration = Duration::from_secs(5);

/// Most queues of one run.
pub(super) const MOST_QUEUES: usize = 64;

/// Entries in the largest ring that peers accept (QEMU's VIRTQUEUE_MAX_SIZE).
const LARGEST_RING: usize = 1024;

/// Entries in the smallest ring used: QEMU's default for vhost-user-blk.
const SMALLEST_RING: usize = 128;

/// Which optional features to take when the device offers them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    /// Notifications by index (VIRTIO_F_EVENT_IDX) instead of by flag.
    pub(crate) event_idx: bool,
    /// Without the FLUSH feature a device must make every write durable
    /// before it answers (virtio 1.2, section 5.2.6.2).
    pub(crate) write_through: bool,
}

/// What the device says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Bytes.
    pub(crate) capacity: u64,
    /// Bytes in the smallest unit it reads and writes.
    pub(crate) logical_block: u32,
    pub(crate) read_only: bool,
    pub(crate) flush: bool,
    pub(crate) discard: Option<TrimLimits>,
    pub(crate) zero: Option<TrimLimits>,
    pub(crate) most_queues: usize,
    /// Bytes in the largest piece of a request's data.
    pub(crate) largest_segment: u32,
}

/// What the device takes in one discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrimLimits {
    /// Bytes.
    pub(crate) most: u64,
    /// Bytes that offsets and lengths should be multiples of.
    pub(crate) alignment: u64,
}

/// A device that answered and was not started yet.
pub(crate) struct Device {
    transport: Arc<Mutex<Box<VirtioBlkTransport>>>,
    facts: Facts,
}

impl Device {
    /// Connects to the vhost-user socket and asks the device who it is.
    pub(crate) fn connect(socket: &Path, wishes: Wishes) -> anyhow::Result<Self> {
        let shown = socket.display();
        let name = socket
            .to_str()
            .with_context(|| format!("the socket's path {shown} is not UTF-8; move it"))?
            .to_owned();

        let transport = within(SETUP_PATIENCE, move || {
            VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(&name, features(wishes))
        })
        .with_context(|| {
            format!(
                "{shown} let us in and did not answer within {} s: \
                 is another client using this device?",
                SETUP_PATIENCE.as_secs()
            )
        })?
        .map_err(|error| explain(error, socket))?;
        let transport: Box<VirtioBlkTransport> = Box::new(transport);
        let facts = facts(&*transport)
            .with_context(|| format!("{shown} did not tell its configuration"))?;
        Ok(Self { transport: Arc::new(Mutex::new(transport)), facts })
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Something that tells whether the device is still connected.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse(Arc::clone(&self.transport))
    }

    /// Sets up the queues. Each has `depth` slots with `slot_len` bytes of
    /// data, told to the device in pieces of at most `segment` bytes.
    pub(crate) fn start(
        self,
        queues: usize,
        depth: usize,
        slot_len: usize,
        segment: usize,
        notified: bool,
    ) -> anyhow::Result<Rings> {
        let pieces = slot_len.div_ceil(segment);
        if pieces > MOST_SEGMENTS {
            bail!("a request of {pieces} segments is above {MOST_SEGMENTS}; use larger segments");
        }
        // Header and status take an entry each.
        let entries = (depth * (pieces + 2)).next_power_of_two().max(SMALLEST_RING);
        if entries > LARGEST_RING {
            bail!(
                "depth {depth} with {pieces} segments a request needs {entries} ring entries and \
                 a ring has {LARGEST_RING}: lower --depth, or use more --queues"
            );
        }
        let arena = Arena::new(queues * depth, slot_len).with_context(|| {
            format!("no memory for {} buffers of {slot_len} bytes", queues * depth)
        })?;

        let transport = Arc::clone(&self.transport);
        let mut device = transport.lock().unwrap_or_else(PoisonError::into_inner);
        device
            .map_mem_region(arena.address(), arena.len(), arena.fd(), 0)
            .context("the device refused our memory")?;
        let rings = VirtioBlkQueue::<u16>::setup_queues(device.as_mut(), queues, entries as u16)
            .with_context(|| format!("the device refused {queues} rings of {entries} entries"))?;
        let queues = rings
            .into_iter()
            .enumerate()
            .map(|(index, mut ring)| {
                ring.set_used_notif_enabled(notified);
                let notifier = device.get_submission_notifier(index);
                Queue { ring, notifier, answers: device.get_completion_fd(index) }
            })
            .collect();
        drop(device);
        Ok(Rings { queues, arena, segment, _transport: transport })
    }
}

/// The running device: queues and the buffers of their slots. Slots are
/// numbered over all queues.
pub(crate) struct Rings {
    queues: Box<[Queue]>,
    arena: Arena,
    segment: usize,
    // The rings live in memory of the transport, so it is dropped last.
    _transport: Arc<Mutex<Box<VirtioBlkTransport>>>,
}

struct Queue {
    ring: VirtioBlkQueue<'static, u16>,
    notifier: Box<dyn QueueNotifier>,
    answers: Arc<EventFd>,
}

/// How the device answered a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    IoError,
    Unsupported,
    Nonsense,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::IoError => "I/O error",
            Self::Unsupported => "unsupported",
            Self::Nonsense => "a status that virtio-blk does not have",
        }
    }
}

impl Rings {
    /// The first `len` bytes of a slot's buffer; the slot is not in flight.
    pub(super) fn bytes(&self, slot: usize, len: usize) -> &[u8] {
        self.arena.bytes(slot, len)
    }

    /// The first `len` bytes of a slot's buffer, to be filled.
    pub(super) fn bytes_mut(&mut self, slot: usize, len: usize) -> &mut [u8] {
        self.arena.bytes_mut(slot, len)
    }

    /// Puts a request of `len` bytes at byte `offset` into the queue's ring;
    /// [`Rings::notify`] tells the device.
    pub(super) fn submit(
        &mut self,
        queue: usize,
        slot: usize,
        kind: Kind,
        offset: u64,
        len: usize,
    ) -> io::Result<()> {
        let ring = &mut self.queues[queue].ring;
        match kind {
            Kind::Read => self.arena.read(ring, slot, offset, len, self.segment),
            Kind::Write => self.arena.write(ring, slot, offset, len, self.segment),
            Kind::Discard => ring.discard(offset, len as u64, slot as u16),
            Kind::Zero => ring.write_zeroes(offset, len as u64, true, slot as u16),
            Kind::Flush => ring.flush(slot as u16),
        }
    }

    /// Kicks the device, unless it looks at the ring anyway.
    pub(super) fn notify(&mut self, queue: usize) -> io::Result<()> {
        let queue = &mut self.queues[queue];
        if !queue.ring.avail_notif_needed() {
            return Ok(());
        }
        queue.notifier.notify()
    }

    /// The next answered request of the queue; its slot is ours again.
    pub(super) fn next_answer(&mut self, queue: usize) -> Option<(usize, Status)> {
        let answer = self.queues[queue].ring.completions().next()?;
        let slot = usize::from(answer.context);
        self.arena.take_back(slot);
        let status = match -answer.ret {
            0 => Status::Ok,
            libc::EIO => Status::IoError,
            libc::ENOTSUP => Status::Unsupported,
            _ => Status::Nonsense,
        };
        Some((slot, status))
    }

    /// Sleeps until the device announces an answer, at most for `patience`.
    pub(super) fn sleep(&mut self, patience: Duration) -> io::Result<()> {
        // Without EVENT_IDX the rings' last look was not fenced against the
        // flag that asks for notifications.
        fence(Ordering::SeqCst);
        if self.queues.iter_mut().any(|queue| queue.ring.completions().has_next()) {
            return Ok(());
        }
        let timeout = Timespec {
            tv_sec: patience.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let queues = &self.queues;
        let mut fds: [PollFd<'_>; MOST_QUEUES] = std::array::from_fn(|index| {
            PollFd::new(&queues[index.min(queues.len() - 1)].answers, PollFlags::IN)
        });
        let fds = &mut fds[..queues.len()];
        match poll(fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for (fd, queue) in fds.iter().zip(queues) {
            if fd.revents().contains(PollFlags::IN) {
                queue.answers.read()?;
            }
        }
        Ok(())
    }
}

/// Tells whether a device is still connected.
pub(crate) struct Pulse(Arc<Mutex<Box<VirtioBlkTransport>>>);

impl Pulse {
    /// Asks the device for its configuration. `false` means that the
    /// connection is closed; a device that is slow to answer is alive.
    pub(super) fn is_alive(&self) -> bool {
        let transport = Arc::clone(&self.0);
        let asked = within(Duration::from_secs(1), move || {
            transport.lock().unwrap_or_else(PoisonError::into_inner).get_config().is_ok()
        });
        asked.unwrap_or(true)
    }
}

/// Says in a sentence why there is no device at the socket.
fn explain(error: io::Error, socket: &Path) -> anyhow::Error {
    let socket = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!("there is no socket {socket}: start the device first, or check the path")
        }
        io::ErrorKind::ConnectionRefused => anyhow!(
            "nobody listens on {socket}: the device that made this socket is gone; start it again"
        ),
        io::ErrorKind::PermissionDenied => {
            anyhow!("no permission to connect to {socket}: run as the user who owns the socket")
        }
        _ => anyhow!(error)
            .context(format!("{socket} is not a vhost-user block device that we can drive")),
    }
}

fn features(wishes: Wishes) -> u64 {
    let mut ring = Ring::VERSION_1;
    ring.set(Ring::RING_EVENT_IDX, wishes.event_idx);
    let mut block = Blk::SIZE_MAX
        | Blk::SEG_MAX
        | Blk::RO
        | Blk::BLK_SIZE
        | Blk::TOPOLOGY
        | Blk::MQ
        | Blk::DISCARD
        | Blk::WRITE_ZEROES;
    block.set(Blk::FLUSH, !wishes.write_through);
    ring.bits() | block.bits()
}

fn facts(transport: &VirtioBlkTransport) -> io::Result<Facts> {
    let taken = transport.get_features();
    if taken & Ring::VERSION_1.bits() == 0 {
        return Err(io::Error::other("it offers only the legacy interface, not VERSION_1"));
    }
    let features = Blk::from_bits_truncate(taken);
    let config = transport.get_config()?;
    let limits = |feature, sectors: u32, alignment: u32| {
        features.contains(feature).then(|| TrimLimits {
            most: u64::from(sectors) * 512,
            alignment: u64::from(alignment.max(1)) * 512,
        })
    };
    let with = |feature, value: u32, without| match value {
        0 => without,
        value if features.contains(feature) => value,
        _ => without,
    };
    Ok(Facts {
        capacity: u64::from(config.capacity).saturating_mul(512),
        logical_block: with(Blk::BLK_SIZE, config.blk_size.into(), 512),
        read_only: features.contains(Blk::RO),
        flush: features.contains(Blk::FLUSH),
        discard: limits(
            Blk::DISCARD,
            config.max_discard_sectors.into(),
            config.discard_sector_alignment.into(),
        ),
        zero: limits(Blk::WRITE_ZEROES, config.max_write_zeroes_sectors.into(), 1),
        most_queues: virtio_blk_max_queues(transport)?,
        largest_segment: with(Blk::SIZE_MAX, config.size_max.into(), u32::MAX),
    })
}

/// Runs a call that may never return; `None` when it takes longer. The thread
/// that waits in it ends with the process.
fn within<T: Send + 'static>(
    patience: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, answer) = mpsc::channel();
    std::thread::spawn(move || sender.send(call()));
    answer.recv_timeout(patience).ok()
}
