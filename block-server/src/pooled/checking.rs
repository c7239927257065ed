//! Checking a pool while it is used: one check at a time, which tells how far
//! it is.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::rc::Rc;

use block_core::Device;
use block_core::unit::{BLOCK_SIZE, BlockCount};
use interpose::check::{CheckOptions, Phase, Progress, Report};
use tokio::sync::oneshot;

use super::Pooled;
use crate::api::CheckInfo;
use crate::room::Life;
use crate::size::Size;

/// The check that runs, or the last one.
pub(super) type LastCheck = Rc<RefCell<Option<CheckInfo>>>;

impl<D: Device + 'static> Pooled<D> {
    /// Begins a check, at so many bytes in a second at most, and tells `ended`
    /// what came of it; `None` while one runs.
    #[must_use]
    pub fn start_check(
        &self,
        rate: Option<Size>,
        ended: oneshot::Sender<CheckInfo>,
    ) -> Option<Life> {
        if self.check().is_some_and(|check| check.running) {
            return None;
        }
        *self.check.borrow_mut() = Some(CheckInfo { running: true, ..CheckInfo::default() });
        let (pool, told) = (Rc::clone(&self.pool), Rc::clone(&self.check));
        let options =
            CheckOptions { blocks_per_second: rate.map(blocks), ..CheckOptions::default() };
        Some(self.until_abandoned(Box::pin(async move {
            let outcome = pool.check(&options, &|progress| tell(&told, progress)).await;
            if let Some(check) = &mut *told.borrow_mut() {
                check.running = false;
                match outcome {
                    Ok(report) => conclude(check, &report),
                    Err(error) => check.failed = Some(error.to_string()),
                }
                // Whoever asked may be gone; what was found stays here.
                let _ = ended.send(check.clone());
            }
        })))
    }

    /// How far the check is, or what the last one found.
    #[must_use]
    pub fn check(&self) -> Option<CheckInfo> {
        self.check.borrow().clone()
    }
}

/// At least one block in a second, or it would never end.
fn blocks(rate: Size) -> NonZeroU32 {
    let blocks = rate.bytes() / BLOCK_SIZE as u64;
    NonZeroU32::new(u32::try_from(blocks).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN)
}

fn tell(told: &LastCheck, progress: Progress) {
    if let Some(check) = &mut *told.borrow_mut() {
        check.phase = match progress.phase {
            Phase::Pages => "pages",
            Phase::Data => "blocks",
        }
        .to_owned();
        check.done = Size(BlockCount(progress.done).bytes());
        check.total = Size(BlockCount(progress.total).bytes());
    }
}

fn conclude(check: &mut CheckInfo, report: &Report) {
    check.done = Size(BlockCount(report.pages + report.data).bytes());
    check.total = check.done;
    check.findings = report.faults.iter().map(ToString::to_string).collect();
    check.wrong = report.faults.len() as u64 + report.omitted;
    if let Some((said, found)) = &report.usage {
        check.findings.push(format!(
            "the superblock counts {} blocks of guests, {} references and {} pages; there are {}, {} \
             and {}",
            said.data, said.references, said.pages, found.data, found.references, found.pages
        ));
        check.wrong += 1;
    }
    check.failed = report.incomplete.map(|why| why.to_string());
}
