//! Keys: who unlocks the pool, what seals its blocks.
