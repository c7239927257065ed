//! Trees of pages: found in, merged into, walked.
