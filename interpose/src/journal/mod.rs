//! The journal: what happened since the last checkpoint.
