//! Network interfaces by name.

use std::ffi::CString;
use std::num::NonZeroU32;

/// The number of the network interface with that name, if there is one.
pub(in crate::wire) fn index_of(name: &str) -> Option<NonZeroU32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with a zero byte and lives during the call.
    NonZeroU32::new(unsafe { libc::if_nametoindex(name.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_found_by_name() {
        assert!(index_of("lo").is_some());
        assert_eq!(index_of("no such interface"), None);
        assert_eq!(index_of("lo\0"), None);
    }
}
