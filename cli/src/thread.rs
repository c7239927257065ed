//! Where a polling thread runs.

use anyhow::Context;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps the calling thread on one processor.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    let known = cpu < CpuSet::MAX_CPU;
    if known {
        set.set(cpu);
    }
    known
        .then(|| sched_setaffinity(None, &set).ok())
        .flatten()
        .with_context(|| format!("this machine has no processor {cpu} that this process may use"))
}
