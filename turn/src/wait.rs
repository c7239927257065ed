//! The one order in which anything here goes to sleep.

use crate::Station;
use crate::atomic::{Ordering, fence};

/// Announce, fence, look once more, wait: whoever makes work after the look sees
/// the announcement and rings; whoever made it before is seen. `wait` sleeps until
/// somebody rings or the station's deadline.
///
/// # Errors
/// Those of `wait`.
pub(crate) fn sleep<S: Station, E>(
    station: &mut S,
    wait: impl FnOnce(&S) -> Result<(), E>,
) -> Result<(), E> {
    station.announce_sleep();
    fence(Ordering::SeqCst);
    if !station.has_work() && !station.is_stopped() {
        wait(station)?;
    }
    station.retract_sleep();
    Ok(())
}
