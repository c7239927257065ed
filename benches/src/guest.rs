//! A guest's driver, by way of the one that the front's tests have.

#[allow(missing_docs, dead_code, unreachable_pub, clippy::new_without_default)]
#[path = "../../block-front/tests/world/front_end.rs"]
pub mod front_end;

use std::path::Path;

use anyhow::anyhow;

use front_end::{ALL, EVENT_IDX, FrontEnd, Guest, Ring};

/// Lets a guest use a disk: its memory is shared and its ring runs. `turn` turns the
/// front meanwhile. The connection must be kept.
///
/// # Errors
/// The front refuses the guest.
pub fn connect<'a>(
    socket: &Path,
    guest: &'a Guest,
    mut turn: impl FnMut(),
) -> anyhow::Result<(FrontEnd, Ring<'a>)> {
    std::thread::scope(|scope| {
        let set_up = scope.spawn(|| front_end::ready(socket, guest, ALL | EVENT_IDX));
        while !set_up.is_finished() {
            turn();
        }
        set_up.join()
    })
    .map_err(|_| anyhow!("the front refused its guest"))
}
