//! The driver's share of a request, apart from the soft controller's: a device does that
//! for itself.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use anyhow::{Context, ensure};
use block_core::device::{Device, Durability};
use block_core::{BlockError, Buffer, Op, Pba, Pool};
use nvme::{Controller, LbaSize, Namespace, QueuePair, SoftController, SoftNamespace, SoftOptions};

use super::{OPERATIONS, Round};
use crate::meter::Meter;
use crate::worker::Ticks;

/// Bytes of the namespace: caches hold it.
const BYTES: u64 = 1 << 20;

/// What a request ends with.
type Outcome = (Buffer, Result<(), BlockError>);

/// A controller, one queue of it, and its namespace.
struct Rig {
    soft: Arc<SoftController>,
    queue: Rc<QueuePair>,
    namespace: &'static Namespace,
    pool: Pool,
    /// Keeps the controller running.
    _controller: Controller,
}

impl Rig {
    fn new() -> anyhow::Result<Self> {
        let namespace = SoftNamespace::memory(BYTES, LbaSize::B4096)?;
        let soft = SoftController::new(SoftOptions::default(), vec![namespace]);
        let ticks = Ticks::default();
        let controller = Controller::start(soft.bus(), Arc::new(move || ticks.now()))?;
        let queue = controller.create_queue_pair(OPERATIONS as u16)?;
        // As long-lived as the process: requests that are under way borrow it.
        let namespace = Namespace::new(queue.clone(), &controller.namespace(1)?);
        let namespace: &'static Namespace = Box::leak(Box::new(namespace));
        let pool = controller.pool(OPERATIONS, 4096)?;
        Ok(Self { soft, queue, namespace, pool, _controller: controller })
    }

    /// Rounds of requests that this makes of a buffer and a place.
    fn rounds<R: Future<Output = Outcome> + 'static>(
        self,
        begin: impl Fn(Pba, Buffer) -> R + 'static,
    ) -> anyhow::Result<Round> {
        let blocks = self.namespace.blocks().0;
        let mut random = 1_u64;
        let mut next = move |buffer| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            begin(Pba((random >> 33) % blocks), buffer)
        };
        let buffers = (0..OPERATIONS).map(|_| self.pool.take().context("a free buffer"));
        let mut slots = buffers
            .map(|buffer| anyhow::Ok(Box::pin(next(buffer?))))
            .collect::<anyhow::Result<Vec<_>>>()?;
        // The first round has nothing to reap.
        ensure!(turn(&self.queue, &mut slots, &mut next)? == 0, "ended before it began");
        Ok(Box::new(move |meter: &mut Meter| {
            self.soft.work();
            let ended = meter.measure(|| turn(&self.queue, &mut slots, &mut next))?;
            ensure!(ended == OPERATIONS, "{ended} of {OPERATIONS} requests have ended");
            Ok(())
        }))
    }
}

/// A worker's turn, as far as the driver takes part in it: what has ended makes place
/// for the next request. How many have.
fn turn<R: Future<Output = Outcome>>(
    queue: &QueuePair,
    slots: &mut [Pin<Box<R>>],
    mut next: impl FnMut(Buffer) -> R,
) -> anyhow::Result<usize> {
    let mut context = TaskContext::from_waker(Waker::noop());
    let mut ended = 0;
    queue.reap();
    for slot in slots {
        match slot.as_mut().poll(&mut context) {
            Poll::Ready((buffer, outcome)) => {
                outcome?;
                ended += 1;
                slot.set(next(buffer));
                let _ = slot.as_mut().poll(&mut context);
            }
            Poll::Pending => {}
        }
    }
    queue.ring();
    Ok(ended)
}

/// Requests of 4 KiB at random places, [`OPERATIONS`] of them under way.
pub(super) fn transfer(op: Op) -> anyhow::Result<Round> {
    let rig = Rig::new()?;
    let namespace = rig.namespace;
    if op == Op::Read {
        return rig.rounds(|at, buffer| namespace.read(at, buffer, 0..1));
    }
    rig.rounds(|at, buffer| namespace.write(at, buffer, 0..1, Durability::Cached))
}

/// What of the two above is this bench's own: requests that nobody serves, under way
/// when they are polled first, and then done.
pub(super) fn nothing() -> anyhow::Result<Round> {
    Rig::new()?.rounds(|at, buffer| Nothing(Some(buffer), Some(at)))
}

struct Nothing(Option<Buffer>, Option<Pba>);

impl Future for Nothing {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Outcome> {
        if self.1.take().is_some() {
            return Poll::Pending;
        }
        self.0.take().map_or(Poll::Pending, |buffer| Poll::Ready((buffer, Ok(()))))
    }
}
