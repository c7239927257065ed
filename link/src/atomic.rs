//! The atomics of what is shared with other processes. The models in `tests/` put
//! others in this module's place and try every order of every access.

pub(crate) use std::sync::atomic::{AtomicU32, Ordering, fence};
