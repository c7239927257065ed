//! Interposers: pairs of hooks around every request of a volume.
