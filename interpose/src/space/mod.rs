//! Which blocks are free: counts, their directory, and who gets the next one.
