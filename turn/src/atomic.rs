//! The atomics of what is shared between threads. The models in `tests/` put
//! others in this module's place and try every order of every access.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
