//! How much memory an open pool takes, and what it does when it is full.

/// What a pool does with writes that it has no room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// They wait until there is room: virtio-blk has no word for a full disk,
    /// and an error can cost the guest its file system.
    #[default]
    Wait,
    /// They fail.
    Fail,
}

/// The memory of an open pool, and its habits. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Opened pages of maps, seals and counts.
    pub page_cache: usize,
    /// Changes since the last checkpoint.
    pub overlay: usize,
    /// The dedup index: 8 bytes for each block that it shall know. 0: nothing
    /// is deduplicated.
    pub index: usize,
    /// Opened blocks of guests. 0: none are kept.
    pub read_cache: usize,
    /// What writes do when there is no room.
    pub full: WhenFull,
    /// Whether nothing may change.
    pub read_only: bool,
}

impl Settings {
    /// The fewest buffers of pages that a pool can work with: what its parts
    /// may hold while they ask for more.
    pub const LEAST_PAGES: usize = 256;
}

impl Default for Settings {
    /// 64 MiB of pages, 128 MiB of changes, 64 MiB of index (32 GiB of unique
    /// blocks), 64 MiB of blocks.
    fn default() -> Self {
        Self {
            page_cache: 64 << 20,
            overlay: 128 << 20,
            index: 64 << 20,
            read_cache: 64 << 20,
            full: WhenFull::Wait,
            read_only: false,
        }
    }
}
