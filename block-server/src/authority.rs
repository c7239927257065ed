//! Who may have a session, and which volumes in it.

use link::{Access, Caller, Refused, VolumeName};

/// Answers for whoever runs the server. It is asked in the worker's turn, when
/// a session begins and at each attach, so it must not wait.
pub trait Authority {
    /// Whether a front may have a session.
    fn admits(&self, caller: &Caller) -> bool;

    /// Whether a front may attach a volume, which need not exist.
    ///
    /// # Errors
    /// [`Refused::NotAuthorized`], or [`Refused::OnlyToRead`] for one that it
    /// may read.
    fn may_attach(
        &self,
        caller: &Caller,
        volume: &VolumeName,
        access: Access,
    ) -> Result<(), Refused>;
}

/// No key is known: fronts in the clear, which cannot be told apart, may have
/// every volume. They come only where the server allows them.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKeys;

impl Authority for NoKeys {
    fn admits(&self, caller: &Caller) -> bool {
        caller.key.is_none()
    }

    fn may_attach(&self, caller: &Caller, _: &VolumeName, _: Access) -> Result<(), Refused> {
        if caller.key.is_none() { Ok(()) } else { Err(Refused::NotAuthorized) }
    }
}
