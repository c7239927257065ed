//! The dedup index: from a hash to where such a block may be.
