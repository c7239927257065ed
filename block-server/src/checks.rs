//! Checks that the server makes by itself: when, and what came of the last
//! one of each pool. Kept in one file of the server's state.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::api::{ChecksInfo, LastCheck, ScheduleInfo};
use crate::size::Size;
use crate::whole_file;

/// The least from one check to the next, in seconds.
pub const MIN_EVERY: u64 = 60;

/// The most from one check to the next, in seconds: ten years.
pub const MAX_EVERY: u64 = 3650 * 86_400;

/// The least rate: a block in a second.
pub const MIN_RATE: Size = Size(4096);

/// A check that could not begin, because its pool is locked or is being
/// checked, is tried again after so many seconds.
const TRY_AGAIN: u64 = 3600;

/// Why there is no such schedule.
#[derive(Debug, Error)]
pub enum BadSchedule {
    /// Nobody would see a check end.
    #[error("a pool is checked at most once a minute, and at least once in 3650 days")]
    Every,
    /// It would not end.
    #[error("a check reads at least {MIN_RATE} in a second")]
    Rate,
    /// It would be forgotten.
    #[error("the schedule cannot be kept in {path}: {error}; make room there, or correct its mode")]
    File {
        /// Where.
        path: PathBuf,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// What is known of the pools' checks.
#[derive(Debug, Default)]
pub struct Checks {
    /// Where it is kept; nowhere in tests.
    path: Option<PathBuf>,
    pools: Mutex<BTreeMap<String, Kept>>,
    /// Somebody's time to be checked has changed.
    changed: Notify,
}

/// What is kept of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    #[serde(default)]
    schedule: Option<ScheduleInfo>,
    #[serde(default)]
    last: Option<LastCheck>,
    /// When a check was last meant to begin, in seconds since 1970.
    #[serde(skip)]
    tried: Option<u64>,
}

impl Checks {
    /// What the file says. One that says nothing is replaced as soon as there
    /// is something to keep: checks are no reason not to serve.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let pools = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        };
        let pools = pools.unwrap_or_else(|why| {
            let file = path.display();
            error!(
                "{file} does not say when pools are checked ({why}); say it again with `vrio pool \
                 check --schedule`"
            );
            BTreeMap::new()
        });
        Self { path: Some(path), pools: Mutex::new(pools), changed: Notify::new() }
    }

    /// What there is to say about a pool's checks.
    #[must_use]
    pub fn of(&self, device: &str) -> ChecksInfo {
        let kept = self.lock().get(device).cloned().unwrap_or_default();
        ChecksInfo { next: kept.next(), schedule: kept.schedule, last: kept.last }
    }

    /// Sets when a pool is checked, or that it is not. One that never was is
    /// checked at once.
    ///
    /// # Errors
    /// A sentence; then the schedule is what it was.
    pub fn set(&self, device: &str, schedule: Option<ScheduleInfo>) -> Result<(), BadSchedule> {
        if let Some(ScheduleInfo { every_seconds, rate }) = &schedule {
            if !(MIN_EVERY..=MAX_EVERY).contains(every_seconds) {
                return Err(BadSchedule::Every);
            }
            if *rate < MIN_RATE {
                return Err(BadSchedule::Rate);
            }
        }
        self.change(|pools| {
            let kept = pools.entry(device.to_owned()).or_default();
            (kept.schedule, kept.tried) = (schedule, None);
        })
    }

    /// A check has ended.
    pub fn ended(&self, device: &str, last: LastCheck) {
        self.keep_result(|pools| pools.entry(device.to_owned()).or_default().last = Some(last));
    }

    /// Another pool is made where one was checked: its checks are no news of
    /// this one.
    pub fn forget(&self, device: &str) {
        self.keep_result(|pools| {
            pools.remove(device);
        });
    }

    /// The pools whose time has come, and their rates; not again for a while.
    #[must_use]
    pub fn due(&self, now: u64) -> Vec<(String, Size)> {
        let mut due = Vec::new();
        for (device, kept) in self.lock().iter_mut() {
            if let (Some(next), Some(schedule)) = (kept.next(), &kept.schedule)
                && next <= now
            {
                due.push((device.clone(), schedule.rate));
                kept.tried = Some(now);
            }
        }
        due
    }

    /// When the next check is due, in seconds since 1970.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.lock().values().filter_map(Kept::next).min()
    }

    /// Waits until [`Checks::next`] may be another moment.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn keep_result(&self, change: impl FnOnce(&mut BTreeMap<String, Kept>)) {
        if let Err(error) = self.change(change) {
            warn!("what came of a check will be forgotten: {error}");
        }
    }

    /// What cannot be written is not changed.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Kept>)) -> Result<(), BadSchedule> {
        let mut pools = self.lock();
        let mut changed = pools.clone();
        change(&mut changed);
        if let Some(path) = &self.path {
            let written = serde_json::to_vec_pretty(&changed).map_err(io::Error::from);
            let written = written.and_then(|bytes| whole_file::replace(path, &bytes));
            written.map_err(|error| BadSchedule::File { path: path.clone(), error })?;
        }
        *pools = changed;
        self.changed.notify_one();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// When a check is due, in seconds since 1970.
    fn next(&self) -> Option<u64> {
        let every = self.schedule.as_ref()?.every_seconds;
        let by_last = self.last.as_ref().map_or(0, |last| last.ended.saturating_add(every));
        let again = self.tried.map_or(0, |tried| tried.saturating_add(every.min(TRY_AGAIN)));
        Some(by_last.max(again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::CheckInfo;

    const WEEK: u64 = 7 * 86_400;

    fn weekly() -> ScheduleInfo {
        ScheduleInfo { every_seconds: WEEK, rate: Size(20 << 20) }
    }

    fn ended(at: u64) -> LastCheck {
        let check = CheckInfo { wrong: 1, findings: vec!["x".to_owned()], ..CheckInfo::default() };
        LastCheck { began: at - 10, ended: at, check }
    }

    /// A server that is restarted every day still checks its pools every week,
    /// and knows what the last check found.
    #[test]
    fn schedules_and_results_outlive_the_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state/checks.json");
        let checks = Checks::open(path.clone());
        checks.set("disk", Some(weekly())).expect("kept");
        assert_eq!(checks.due(1000), [("disk".to_owned(), Size(20 << 20))], "it never was");
        checks.ended("disk", ended(5000));
        for _ in 0..2 {
            let checks = Checks::open(path.clone());
            let (next, last) = (Some(5000 + WEEK), Some(ended(5000)));
            assert_eq!(checks.of("disk"), ChecksInfo { schedule: Some(weekly()), next, last });
            assert_eq!(checks.due(4999 + WEEK), []);
            assert_eq!(checks.due(5000 + WEEK).len(), 1);
        }
        checks.set("disk", None).expect("kept");
        assert_eq!((Checks::open(path.clone()).next(), checks.next()), (None, None));
        assert!(checks.of("disk").last.is_some());
        checks.forget("disk");
        assert_eq!(Checks::open(path).of("disk"), ChecksInfo::default());
    }

    /// A locked pool must not be asked in a loop, nor given up.
    #[test]
    fn a_check_that_did_not_begin_is_tried_again() {
        let checks = Checks::default();
        checks.set("disk", Some(weekly())).expect("kept");
        assert_eq!(checks.due(100).len(), 1);
        assert_eq!(checks.due(100), []);
        assert_eq!(checks.next(), Some(100 + TRY_AGAIN));
        assert_eq!(checks.due(100 + TRY_AGAIN).len(), 1);
    }

    #[test]
    fn what_no_check_keeps_is_refused_and_what_makes_no_sense_is_no_schedule() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("checks.json");
        std::fs::write(&path, "{\"disk\": 7}").expect("written");
        let checks = Checks::open(path.clone());
        assert_eq!(checks.of("disk"), ChecksInfo::default());
        for (every_seconds, rate, words) in
            [(59, 4096, "minute"), (MAX_EVERY + 1, 4096, "3650"), (60, 4095, "4K")]
        {
            let schedule = ScheduleInfo { every_seconds, rate: Size(rate) };
            let error = checks.set("disk", Some(schedule)).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
        }
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("a folder in its place");
        let error = checks.set("disk", Some(weekly())).expect_err("no file").to_string();
        assert!(error.contains("checks.json"), "{error}");
        assert_eq!(checks.of("disk").schedule, None, "what cannot be kept is not promised");
    }
}
