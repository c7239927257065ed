//! Placeholder for the crate's words; replaced by its first commit.
