//! Keyed BLAKE3 of blocks, several at once.
