//! Turning a controller on and off (NVMe Base 2.0, section 3.5 and 3.6), with
//! a limit to every wait.
//!
//! Each step is a future that looks once whenever it is polled. Nobody wakes
//! it: who has other things to do polls it once a turn, who has not calls
//! [`Port::complete`].

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use block_core::DmaMemory;

use crate::bus::Bus;
use crate::controller::{Clock, StartError};
use crate::registers::{
    ACQ, AQA, ASQ, CAP, CC, CC_ENABLE, CC_ENTRY_SIZES, CC_SHUTDOWN, CC_SHUTDOWN_MASK, CSTS,
    CSTS_FATAL, CSTS_READY, CSTS_SHUTDOWN_COMPLETE, CSTS_SHUTDOWN_MASK, Capabilities, GONE,
    PAGE_BITS,
};

/// The least time that a controller gets for anything; some say 0.5 s in CAP
/// and mean it for a warm start only.
const LEAST_PATIENCE: Duration = Duration::from_secs(5);

/// Entries of the admin queues. Commands run one at a time.
pub(crate) const ADMIN_ENTRIES: u16 = 16;

/// A controller's registers, and the clock that limits each wait for them.
pub(crate) struct Port {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) clock: Clock,
    pub(crate) capabilities: Capabilities,
}

impl Port {
    /// Looks at a controller for the first time.
    pub(crate) fn open(bus: Arc<dyn Bus>, clock: Clock) -> Result<Self, StartError> {
        if bus.read32(CSTS) == GONE {
            return Err(StartError::Gone);
        }
        let capabilities = Capabilities::parse(bus.read64(CAP));
        if !capabilities.has_nvm_commands {
            return Err(StartError::NoBlockCommands);
        }
        if capabilities.min_page_bits > PAGE_BITS {
            return Err(StartError::PageSize { bits: capabilities.min_page_bits });
        }
        if capabilities.max_queue_entries < 2 {
            return Err(StartError::NoRoom);
        }
        Ok(Self { bus, clock, capabilities })
    }

    /// How long the controller may take for one step.
    pub(crate) fn patience(&self) -> Duration {
        self.capabilities.ready_timeout.max(LEAST_PATIENCE)
    }

    /// Takes a step to its end; there is nothing else to do meanwhile.
    pub(crate) fn complete<T>(&self, step: impl Future<Output = T>) -> T {
        let mut step = pin!(step);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match step.as_mut().poll(&mut context) {
                Poll::Ready(done) => return done,
                Poll::Pending => self.bus.relax(),
            }
        }
    }

    /// Stops the controller. When this returns without an error it touches no
    /// memory any more.
    pub(crate) async fn disable(&self) -> Result<(), StartError> {
        let configuration = self.bus.read32(CC);
        if configuration == GONE {
            return Err(StartError::Gone);
        }
        if configuration & CC_ENABLE != 0 {
            // Clearing EN before RDY has followed it is undefined (section
            // 3.1.3.5). A controller that failed at its start never gets ready.
            self.wait("start, so that it could be stopped,", |status| {
                status & (CSTS_READY | CSTS_FATAL) != 0
            })
            .await?;
            self.bus.write32(CC, configuration & !CC_ENABLE & !CC_SHUTDOWN_MASK);
        }
        self.wait("stop", |status| status & CSTS_READY == 0).await
    }

    /// Starts the controller, which has been stopped, on these admin queues.
    pub(crate) async fn enable(
        &self,
        submission: &DmaMemory,
        completion: &DmaMemory,
    ) -> Result<(), StartError> {
        let last = u32::from(ADMIN_ENTRIES - 1);
        self.bus.write32(AQA, last << 16 | last);
        self.bus.write64(ASQ, submission.iova());
        self.bus.write64(ACQ, completion.iova());
        self.bus.write32(CC, CC_ENTRY_SIZES | CC_ENABLE);
        self.wait("become ready", |status| status & (CSTS_READY | CSTS_FATAL) != 0).await?;
        if self.bus.read32(CSTS) & CSTS_FATAL != 0 {
            return Err(StartError::Fatal);
        }
        Ok(())
    }

    /// Announces the end of work, so that the controller writes out its cache.
    pub(crate) async fn shut_down(&self) -> Result<(), StartError> {
        let configuration = self.bus.read32(CC);
        if configuration == GONE {
            return Err(StartError::Gone);
        }
        self.bus.write32(CC, configuration & !CC_SHUTDOWN_MASK | CC_SHUTDOWN);
        self.wait("shut down", |status| {
            status & CSTS_SHUTDOWN_MASK == CSTS_SHUTDOWN_COMPLETE || status & CSTS_FATAL != 0
        })
        .await?;
        if self.bus.read32(CSTS) & CSTS_FATAL != 0 {
            return Err(StartError::Fatal);
        }
        Ok(())
    }

    async fn wait(&self, step: &'static str, done: impl Fn(u32) -> bool) -> Result<(), StartError> {
        let limit = (self.clock)() + self.patience();
        loop {
            let status = self.bus.read32(CSTS);
            if status == GONE {
                return Err(StartError::Gone);
            }
            if done(status) {
                return Ok(());
            }
            if (self.clock)() >= limit {
                return Err(StartError::Silent { step, patience: self.patience(), status });
            }
            pause().await;
        }
    }
}

/// Ready when it is polled the second time.
pub(crate) async fn pause() {
    let mut paused = false;
    poll_fn(|_| if std::mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending })
        .await;
}
