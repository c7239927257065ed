//! Opened guest blocks, by the seal that names them.
