//! Front and server in one thread, which spins.

use std::path::Path;

use crate::ring::Ring;
use crate::store::Store;

/// Serves until it is killed.
pub(crate) fn serve(ring: &Path, size: usize) -> anyhow::Result<()> {
    let mut store = Store::new(size);
    let ring = Ring::make(ring)?;
    let mut seen = 0_u32;
    loop {
        let head = ring.head();
        if seen == head {
            std::hint::spin_loop();
            continue;
        }
        while seen != head {
            let request = ring.request(seen);
            if request.write {
                store.block_mut(request.block).copy_from_slice(ring.slot(request.slot));
            } else {
                ring.fill_slot(request.slot, store.block(request.block));
            }
            ring.complete(seen, request.slot);
            seen = seen.wrapping_add(1);
        }
        ring.tell(seen);
    }
}
