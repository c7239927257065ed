//! Pages of the pool: read, opened, kept, sealed and written.
