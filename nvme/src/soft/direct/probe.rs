//! Whether a file can be served this way, and in what steps.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, statx};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::PAGE;
use crate::identify::LbaSize;

/// Why a file's bytes do not go straight between its storage and a driver's memory.
#[derive(Debug, thiserror::Error)]
pub enum NotDirect {
    /// Everything there goes through the page cache.
    #[error("its file system has no O_DIRECT ({0})")]
    Cached(#[source] io::Error),
    /// It cannot say that it would have to wait.
    #[error(
        "its file system knows no RWF_NOWAIT, so that the kernel would serve each request \
         with a thread"
    )]
    Threads,
    /// It takes larger pieces only.
    #[error("its file system moves {least} bytes at least, and the logical blocks have {lba}")]
    Blocks {
        /// What it takes.
        least: usize,
        /// What the namespace promises.
        lba: usize,
    },
    /// The kernel gives no ring.
    #[error("the kernel gives no io_uring ({0}); Linux 5.19 and later have it, if it is allowed")]
    Ring(#[source] io::Error),
}

/// What memory and file must be aligned to, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    pub(super) memory: usize,
    pub(super) file: usize,
}

/// Takes the page cache out of the file's way, if its file system does without, and
/// without threads.
pub(super) fn bypass_cache(file: &File, lba_size: LbaSize) -> Result<Alignment, NotDirect> {
    let flags = fcntl_getfl(file).map_err(|error| NotDirect::Cached(error.into()))?;
    let set = fcntl_setfl(file, flags | OFlags::DIRECT);
    set.map_err(|error| NotDirect::Cached(error.into()))?;
    let outcome = examine(file, lba_size);
    if outcome.is_err() {
        restore_cache(file);
    }
    outcome
}

/// Puts it back, for whoever takes the file instead.
pub(super) fn restore_cache(file: &File) {
    // It was taken away in the same manner, so this does not fail.
    if let Ok(flags) = fcntl_getfl(file) {
        let _ = fcntl_setfl(file, flags - OFlags::DIRECT);
    }
}

fn examine(file: &File, lba_size: LbaSize) -> Result<Alignment, NotDirect> {
    // io_uring asks a file system in the same way whether it would have to wait, and hands
    // what one cannot say to a thread. What is read does not matter.
    let mut memory = vec![0; 2 * PAGE];
    let start = memory.as_ptr().align_offset(PAGE);
    let mut page = [IoSliceMut::new(&mut memory[start..start + PAGE])];
    match preadv2(file, &mut page, 0, ReadWriteFlags::NOWAIT) {
        Err(Errno::OPNOTSUPP) => return Err(NotDirect::Threads),
        Err(error @ Errno::INVAL) => return Err(NotDirect::Cached(error.into())),
        // One that would wait now, or whose storage fails, knows it.
        Ok(_) | Err(_) => {}
    }
    let alignment = alignment(file);
    if alignment.file > lba_size.bytes() {
        return Err(NotDirect::Blocks { least: alignment.file, lba: lba_size.bytes() });
    }
    Ok(alignment)
}

/// As the file system says (Linux 6.1 and later), or what every one takes.
fn alignment(file: &File) -> Alignment {
    let usual = Alignment { memory: PAGE, file: PAGE };
    let Ok(said) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return usual;
    };
    let (memory, bytes) = (said.stx_dio_mem_align as usize, said.stx_dio_offset_align as usize);
    let sound = memory.is_power_of_two() && bytes.is_power_of_two() && memory.max(bytes) <= PAGE;
    if sound { Alignment { memory, file: bytes } } else { usual }
}
