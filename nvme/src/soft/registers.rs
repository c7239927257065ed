//! The registers and doorbells as the bus sees them: words that both sides
//! store and load, nothing else. What they mean happens in the engine.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::registers::{ACQ, AQA, ASQ, CAP, CC, CC_ENABLE, CSTS, DOORBELLS, GONE, PAGE_BITS, VS};
use crate::sys::HalfWords;

/// Bytes of registers that mean something.
const REGISTER_BYTES: u32 = 0x40;

/// The version that is reported: 2.0.
pub(super) const VERSION: u32 = 0x0002_0000;

/// CAP.CQR: queues are contiguous.
const CONTIGUOUS_QUEUES: u64 = 1 << 16;
/// CAP.TO, in 500 ms: a file may take its time to be written out.
const READY_TIMEOUT: u64 = 20 << 24;
/// The same where a reset waits for the kernel's I/O, which waits for whatever else is
/// done to its file system.
const LONG_READY_TIMEOUT: u32 = 120 << 24;
/// CAP.CSS bit 0: the NVM command set.
const NVM_COMMANDS: u64 = 1 << 37;

/// CC as the engine finds it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Configuration {
    /// The register.
    pub(super) value: u32,
    /// How often EN was cleared, modulo 2^32.
    pub(super) resets: u32,
}

#[derive(Debug)]
pub(super) struct Registers {
    words: [AtomicU32; REGISTER_BYTES as usize / 4],
    /// CC, and above it how often its EN was cleared. A driver may set EN again before
    /// the engine has looked, and a reset is the clearing (Base 2.0, section 3.7.2).
    configuration: AtomicU64,
    doorbells: Doorbells,
    /// Tail doorbells that were written, by queue.
    rung: Box<[AtomicBool]>,
    gone: AtomicBool,
}

/// Where doorbells are stored.
#[derive(Debug)]
enum Doorbells {
    Own(Box<[AtomicU32]>),
    /// In memory that a driver of another process has mapped.
    Shared(HalfWords),
}

impl Doorbells {
    fn load(&self, index: usize) -> u32 {
        // Acquire: with a doorbell come the ring's entries.
        match self {
            Self::Own(words) => words[index].load(Ordering::Acquire),
            Self::Shared(words) => words.load(index, Ordering::Acquire),
        }
    }

    /// Release: with a doorbell go the ring's entries. One that is not there is
    /// ignored.
    fn store(&self, index: usize, value: u32) {
        match self {
            Self::Own(words) => {
                if let Some(word) = words.get(index) {
                    word.store(value, Ordering::Release);
                }
            }
            Self::Shared(words) if index < words.len() => {
                words.store(index, value, Ordering::Release);
            }
            Self::Shared(_) => {}
        }
    }
}

impl Registers {
    /// Registers whose doorbells are in `shared`, or their own.
    pub(super) fn new(queues: u16, entries: u16, shared: Option<HalfWords>) -> Self {
        const { assert!(PAGE_BITS == 12, "MPSMIN and MPSMAX are 0") };
        let count = 2 * (usize::from(queues) + 1);
        assert!(shared.as_ref().is_none_or(|words| words.len() >= count));
        let own = || Doorbells::Own((0..count).map(|_| AtomicU32::new(0)).collect());
        let doorbells = shared.map_or_else(own, Doorbells::Shared);
        let rung = (0..=queues).map(|_| AtomicBool::new(false)).collect();
        let gone = AtomicBool::new(false);
        let (words, configuration) = Default::default();
        let registers = Self { words, configuration, doorbells, rung, gone };
        let cap = u64::from(entries - 1) | CONTIGUOUS_QUEUES | READY_TIMEOUT | NVM_COMMANDS;
        registers.word(CAP).store(cap as u32, Ordering::Relaxed);
        registers.word(CAP + 4).store((cap >> 32) as u32, Ordering::Relaxed);
        registers.word(VS).store(VERSION, Ordering::Relaxed);
        registers
    }

    /// Its driver shall be patient with a reset.
    pub(super) fn take_long(&self) {
        let cap = self.word(CAP).load(Ordering::Relaxed) & 0x00ff_ffff;
        self.word(CAP).store(cap | LONG_READY_TIMEOUT, Ordering::Relaxed);
    }

    /// The driver reads.
    pub(super) fn read(&self, offset: u32) -> u32 {
        if self.gone.load(Ordering::Relaxed) {
            return GONE;
        }
        match offset {
            _ if offset & !3 == CC => self.configuration().value,
            // Acquire: with CSTS comes what the controller did before it.
            0..REGISTER_BYTES => self.word(offset).load(Ordering::Acquire),
            _ => 0,
        }
    }

    /// The driver writes. Release: with a doorbell go the ring's entries, with
    /// CC the addresses of the admin queues.
    pub(super) fn write(&self, offset: u32, value: u32) {
        if offset >= DOORBELLS {
            let index = (offset - DOORBELLS) as usize / 4;
            self.doorbells.store(index, value);
            if let (0, Some(rung)) = (index % 2, self.rung.get(index / 2)) {
                rung.store(true, Ordering::Release);
            }
        } else if offset & !3 == CC {
            self.configure(value);
        } else if offset & !3 == AQA || (ASQ..ACQ + 8).contains(&offset) {
            self.word(offset).store(value, Ordering::Release);
        }
    }

    /// What a queue's tail doorbell says.
    pub(super) fn tail(&self, queue: u16) -> u32 {
        self.doorbells.load(2 * usize::from(queue))
    }

    /// Whether a queue's tail doorbell was written since this was asked last.
    pub(super) fn take_ring(&self, queue: u16) -> bool {
        self.rung[usize::from(queue)].swap(false, Ordering::AcqRel)
    }

    /// What a queue's head doorbell says.
    pub(super) fn head(&self, queue: u16) -> u32 {
        self.doorbells.load(2 * usize::from(queue) + 1)
    }

    /// A queue's tail doorbell is as if never written.
    pub(super) fn clear_tail(&self, queue: u16) {
        self.doorbells.store(2 * usize::from(queue), 0);
    }

    /// A queue's head doorbell is as if never written.
    pub(super) fn clear_head(&self, queue: u16) {
        self.doorbells.store(2 * usize::from(queue) + 1, 0);
    }

    /// The driver writes CC.
    fn configure(&self, value: u32) {
        let after = |before: u64| {
            let clears = before as u32 & CC_ENABLE != 0 && value & CC_ENABLE == 0;
            let resets = (before >> 32) as u32;
            let resets = resets.wrapping_add(u32::from(clears));
            Some(u64::from(resets) << 32 | u64::from(value))
        };
        // Release: with CC go the addresses of the admin queues.
        let _ = self.configuration.fetch_update(Ordering::Release, Ordering::Relaxed, after);
    }

    pub(super) fn configuration(&self) -> Configuration {
        let word = self.configuration.load(Ordering::Acquire);
        Configuration { value: word as u32, resets: (word >> 32) as u32 }
    }

    /// CC is as after power on.
    pub(super) fn clear_configuration(&self) {
        self.configure(0);
    }

    pub(super) fn admin_attributes(&self) -> u32 {
        self.word(AQA).load(Ordering::Relaxed)
    }

    pub(super) fn admin_addresses(&self) -> (u64, u64) {
        let pair = |offset| {
            u64::from(self.word(offset).load(Ordering::Relaxed))
                | u64::from(self.word(offset + 4).load(Ordering::Relaxed)) << 32
        };
        (pair(ASQ), pair(ACQ))
    }

    pub(super) fn status(&self) -> u32 {
        self.word(CSTS).load(Ordering::Relaxed)
    }

    pub(super) fn set_status(&self, status: u32) {
        self.word(CSTS).store(status, Ordering::Release);
    }

    /// From now on nobody answers.
    pub(super) fn remove(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Somebody answers again.
    pub(super) fn put_back(&self) {
        self.gone.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        &self.words[offset as usize / 4]
    }
}
