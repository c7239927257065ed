//! Memory that two processes share and neither trusts the other with.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU32;

use block_core::Mapping;
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create,
};

/// Pages of a memfd whose size nobody can change any more: touching them cannot
/// fail because the other process cut them off. What is in them may change at any
/// moment, so it is copied before it is looked at.
#[derive(Debug)]
pub(in crate::wire) struct SharedPages {
    mapping: Mapping,
}

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl SharedPages {
    /// New pages of zeroes, and the file to pass to the other process.
    ///
    /// # Errors
    /// The kernel's: there is no memory.
    pub(in crate::wire) fn make(bytes: usize) -> io::Result<(File, Self)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("vrio-wire", flags)?;
        ftruncate(&file, bytes as u64)?;
        // All of it now: later there may be none, and a fault then is no error code.
        fallocate(&file, FallocateFlags::empty(), 0, bytes as u64)?;
        fcntl_add_seals(&file, SEALS)?;
        let file = File::from(file);
        let mapping = Mapping::of_file(&file, 0, bytes, true)?;
        Ok((file, Self { mapping }))
    }

    /// Pages that the other process has made.
    ///
    /// # Errors
    /// It can still be cut, it has another size, or the kernel's.
    pub(in crate::wire) fn of_peer(file: &File, bytes: usize) -> io::Result<Self> {
        let sealed = fcntl_get_seals(file)?.contains(SealFlags::SHRINK);
        if !sealed || u64::try_from(fstat(file)?.st_size).ok() != Some(bytes as u64) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { mapping: Mapping::of_file(file, 0, bytes, true)? })
    }

    /// The word at `offset`, a multiple of four.
    pub(in crate::wire) fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.mapping.len());
        // SAFETY: aligned, inside of the mapping, and borrowed from its owner. Both
        // processes access these words by atomic operations only; one that does not
        // harms nobody: any value is a valid one.
        unsafe { &*self.mapping.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    /// Copies what is at `offset` now.
    pub(in crate::wire) fn read(&self, offset: usize, into: &mut [u8]) {
        assert!(offset <= self.mapping.len() && into.len() <= self.mapping.len() - offset);
        // SAFETY: inside of the mapping, as was just checked, and `into` is memory of
        // this process alone. The other process may write meanwhile: then the copy is
        // a mixture, which is as good as any other bytes that it could send, and
        // nobody looks at the original again.
        unsafe {
            let from = self.mapping.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len());
        }
    }

    /// Puts bytes at `offset`.
    pub(in crate::wire) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.mapping.len() && bytes.len() <= self.mapping.len() - offset);
        // SAFETY: as in `read`; what the other process makes of a write that it does
        // not wait for is its own concern.
        unsafe {
            let to = self.mapping.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever makes the pages could cut them off under the other process's feet.
    #[test]
    fn pages_that_can_be_cut_are_refused() {
        let (sealed, _pages) = SharedPages::make(8192).expect("memory");
        assert!(ftruncate(&sealed, 0).is_err(), "nobody can");
        assert!(SharedPages::of_peer(&sealed, 8192).is_ok());
        assert!(SharedPages::of_peer(&sealed, 4096).is_err(), "another size");
        let open = memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let open = File::from(open.expect("memory"));
        ftruncate(&open, 8192).expect("a size");
        assert!(SharedPages::of_peer(&open, 8192).is_err());
        assert!(SharedPages::of_peer(&File::open("/dev/null").expect("it"), 0).is_err());
    }
}
