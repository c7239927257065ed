//! Creating a queue pair in the controller, and deleting it.

use crate::command::{Command, admin};
use crate::controller::{Core, StartError};

/// Where a queue pair's rings are, as the controller is told.
#[derive(Clone, Copy)]
pub(super) struct RingsPlace {
    pub(super) submission: u64,
    pub(super) completion: u64,
    pub(super) entries: u16,
    pub(super) ring_bells: bool,
}

/// Creates both queues in the controller under a free number.
#[expect(
    clippy::await_holding_lock,
    reason = "the admin lock keeps a reset from coming between; it is this thread's for a few looks"
)]
pub(super) async fn create_queues(
    core: &Core,
    rings: RingsPlace,
) -> Result<(u16, u32), StartError> {
    let port = &core.port;
    let mut admin_queue = core.admin();
    let epoch = core.epoch();
    let Some(id) = admin_queue.take_queue() else {
        return Err(StartError::NoQueue { granted: core.granted() });
    };
    core.clear_shadow(id);
    let RingsPlace { submission, completion, entries, ring_bells } = rings;
    let completion = Command::create_completion_queue(id, entries, completion);
    let completion = if ring_bells { completion.with_interrupt() } else { completion };
    if let Err(error) = admin_queue.execute(port, "create a completion queue", completion).await {
        admin_queue.return_queue(id);
        return Err(error);
    }
    let submission = Command::create_submission_queue(id, entries, submission);
    if let Err(error) = admin_queue.execute(port, "create a submission queue", submission).await {
        let undo = Command::delete_queue(admin::DELETE_COMPLETION_QUEUE, id);
        if admin_queue.execute(port, "delete a completion queue", undo).await.is_ok() {
            admin_queue.return_queue(id);
        }
        return Err(error);
    }
    Ok((id, epoch))
}

/// Deletes both queues in the controller; the submission queue must go first
/// (Base 2.0, section 3.3.1.3).
pub(super) fn delete_queues(core: &Core, id: u16) -> Result<(), StartError> {
    let mut admin_queue = core.admin();
    for (name, opcode) in [
        ("delete a submission queue", admin::DELETE_SUBMISSION_QUEUE),
        ("delete a completion queue", admin::DELETE_COMPLETION_QUEUE),
    ] {
        core.port.complete(admin_queue.execute(
            &core.port,
            name,
            Command::delete_queue(opcode, id),
        ))?;
    }
    admin_queue.return_queue(id);
    Ok(())
}
