//! MSI-X of an exported controller (PCI 3.0, section 6.8.2): an eventfd of the driver's for
//! each vector. Table and pending bits are there for who looks for them; who has the
//! eventfds decides what becomes of a vector, and masks it.

use std::fs;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::wire::{
    ACTION_TRIGGER, DATA_EVENTFD, DATA_NONE, EINVAL, ENOTSUP, Fields, INTERRUPT_BY_EVENTFD, Writer,
};
use super::{INTERRUPT_KINDS, MSIX};

/// The region with table and pending bits.
pub(super) const BAR: u32 = 4;

/// Most vectors: one for the admin queue, and as many I/O queues as a table has room for.
pub(super) const MOST_VECTORS: u16 = 2048;

/// Bytes of a vector in the table.
const ENTRY_BYTES: usize = 16;

/// Where the pending bits begin, behind the table: each has half of the region.
const fn pending_at(vectors: u16) -> usize {
    let table = (vectors as usize * ENTRY_BYTES).next_power_of_two();
    if table < 2048 { 2048 } else { table }
}

/// The capability as it stands in the configuration.
pub(super) fn capability(vectors: u16) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = 0x11;
    bytes[2..4].copy_from_slice(&(vectors - 1).to_le_bytes());
    bytes[4..8].copy_from_slice(&BAR.to_le_bytes());
    bytes[8..].copy_from_slice(&(pending_at(vectors) as u32 | BAR).to_le_bytes());
    bytes
}

/// The vectors of one driver.
pub(super) struct Msix {
    bells: Vec<Option<OwnedFd>>,
    /// Vectors that were raised when they had no eventfd.
    pending: Vec<bool>,
    region: Vec<u8>,
}

impl Msix {
    /// # Panics
    /// If there are none, or more than [`MOST_VECTORS`].
    pub(super) fn new(vectors: u16) -> Self {
        assert!((1..=MOST_VECTORS).contains(&vectors));
        let count = usize::from(vectors);
        Self {
            bells: (0..count).map(|_| None).collect(),
            pending: vec![false; count],
            region: vec![0; 2 * pending_at(vectors)],
        }
    }

    /// Bytes of the region, a power of two.
    pub(super) fn region_bytes(&self) -> usize {
        self.region.len()
    }

    pub(super) fn read(&self, range: Range<usize>) -> Option<&[u8]> {
        self.region.get(range)
    }

    /// Nothing when the range is not in the region. Of it only the table can be changed.
    pub(super) fn write(&mut self, range: Range<usize>, data: &[u8]) -> Option<()> {
        self.region.get(range.clone())?;
        let table = self.bells.len() * ENTRY_BYTES;
        for (at, byte) in range.zip(data).filter(|(at, _)| *at < table) {
            self.region[at] = *byte;
        }
        Some(())
    }

    /// What interrupts of a kind there are.
    pub(super) fn describe(&self, mut fields: Fields<'_>) -> Result<Vec<u8>, u32> {
        let mut parse = || {
            let _ = (fields.u32()?, fields.u32()?);
            fields.u32()
        };
        let index = parse().filter(|&index| index < INTERRUPT_KINDS).ok_or(EINVAL)?;
        let is_ours = index == MSIX;
        let (flags, count) =
            if is_ours { (INTERRUPT_BY_EVENTFD, self.bells.len() as u32) } else { (0, 0) };
        let mut info = Writer::default();
        info.u32(16).u32(flags).u32(index).u32(count);
        Ok(info.0)
    }

    /// Gives vectors their eventfds, takes them away, or raises vectors, as the driver asks.
    pub(super) fn set(
        &mut self,
        mut fields: Fields<'_>,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), u32> {
        let mut parse = || {
            let (_, flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
            let (start, count) = (fields.u32()? as usize, fields.u32()? as usize);
            Some((flags, index, start..start.checked_add(count)?))
        };
        let (flags, index, range) = parse().ok_or(EINVAL)?;
        let most = if index == MSIX { self.bells.len() } else { 0 };
        if index >= INTERRUPT_KINDS || range.end > most {
            return Err(EINVAL);
        }
        const CONNECT: u32 = DATA_EVENTFD | ACTION_TRIGGER;
        const RAISE: u32 = DATA_NONE | ACTION_TRIGGER;
        match flags {
            // No vectors are all.
            RAISE if range.is_empty() && index == MSIX => {
                self.bells.iter_mut().for_each(|bell| *bell = None);
            }
            RAISE => range.for_each(|vector| self.ring(vector)),
            CONNECT if descriptors.is_empty() => self.bells[range].fill_with(|| None),
            CONNECT if descriptors.len() == range.len() => {
                if !descriptors.iter().all(is_bell) {
                    return Err(EINVAL);
                }
                for (vector, bell) in range.zip(descriptors) {
                    self.bells[vector] = Some(bell);
                    if std::mem::take(&mut self.pending[vector]) {
                        self.ring(vector);
                    }
                }
            }
            CONNECT => return Err(EINVAL),
            _ => return Err(ENOTSUP),
        }
        Ok(())
    }

    /// Tells the driver that something came on this vector, or will when it has an
    /// eventfd.
    pub(super) fn ring(&mut self, vector: usize) {
        match &self.bells[vector] {
            // One that is full has rung, and has not been heard.
            Some(bell) => drop(rustix::io::write(bell, &1_u64.to_ne_bytes())),
            None => self.pending[vector] = true,
        }
    }
}

/// Whether it is an eventfd, and one that nobody waits for while it is written to.
fn is_bell(descriptor: &OwnedFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    let flags = fcntl_getfl(descriptor);
    link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]")
        && flags.is_ok_and(|flags| fcntl_setfl(descriptor, flags | OFlags::NONBLOCK).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn asked(flags: u32, index: u32, start: u32, count: u32) -> Vec<u8> {
        let mut set = Writer::default();
        set.u32(20).u32(flags).u32(index).u32(start).u32(count);
        set.0
    }

    /// How often it has rung since the last time.
    fn heard(bell: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(bell, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    fn bell() -> OwnedFd {
        eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd")
    }

    fn given(bell: &OwnedFd) -> OwnedFd {
        bell.as_fd().try_clone_to_owned().expect("a second handle")
    }

    const CONNECT: u32 = DATA_EVENTFD | ACTION_TRIGGER;
    const RAISE: u32 = DATA_NONE | ACTION_TRIGGER;

    #[test]
    fn a_vector_rings_its_own_eventfd_and_only_while_it_has_one() {
        let mut msix = Msix::new(3);
        let (one, two) = (bell(), bell());
        let say = |msix: &mut Msix, message: Vec<u8>, with| msix.set(Fields(&message), with);
        msix.ring(2);
        let both = vec![given(&one), given(&two)];
        assert_eq!(say(&mut msix, asked(CONNECT, MSIX, 1, 2), both), Ok(()));
        assert_eq!((heard(&one), heard(&two)), (0, 1), "what was pending came");
        (0..3).for_each(|vector| msix.ring(vector));
        assert_eq!((heard(&one), heard(&two)), (1, 1));
        assert_eq!(say(&mut msix, asked(RAISE, MSIX, 1, 1), vec![]), Ok(()));
        assert_eq!((heard(&one), heard(&two)), (1, 0));
        assert_eq!(say(&mut msix, asked(CONNECT, MSIX, 1, 1), vec![]), Ok(()));
        (0..3).for_each(|vector| msix.ring(vector));
        assert_eq!((heard(&one), heard(&two)), (0, 1));
        assert_eq!(say(&mut msix, asked(RAISE, MSIX, 0, 0), vec![]), Ok(()));
        (0..3).for_each(|vector| msix.ring(vector));
        assert_eq!((heard(&one), heard(&two)), (0, 0));
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let mut msix = Msix::new(3);
        let kept = bell();
        msix.set(Fields(&asked(CONNECT, MSIX, 0, 1)), vec![given(&kept)]).expect("it is one");
        let file = || OwnedFd::from(tempfile::tempfile().expect("a file"));
        for (message, with) in [
            (asked(CONNECT, MSIX, 0, 1), vec![file()]),
            (asked(CONNECT, MSIX, 0, 3), vec![bell()]),
            (asked(CONNECT, MSIX, 2, 2), vec![bell(), bell()]),
            (asked(CONNECT, MSIX, u32::MAX, u32::MAX), vec![]),
            (asked(CONNECT, 0, 0, 1), vec![bell()]),
            (asked(RAISE, MSIX, 3, 1), vec![]),
            (asked(RAISE, INTERRUPT_KINDS, 0, 0), vec![]),
            (asked(DATA_NONE, MSIX, 0, 1), vec![]),
            (asked(CONNECT, MSIX, 0, 1)[..19].to_vec(), vec![bell()]),
        ] {
            assert!(msix.set(Fields(&message), with).is_err(), "{message:x?}");
        }
        msix.ring(0);
        assert_eq!(heard(&kept), 1);
    }

    /// An eventfd that is full, and whose owner wants writers to wait: nobody does.
    #[test]
    fn a_full_eventfd_holds_nobody_up() {
        let mut msix = Msix::new(1);
        let full = eventfd(0, EventfdFlags::empty()).expect("an eventfd");
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("room");
        msix.set(Fields(&asked(CONNECT, MSIX, 0, 1)), vec![given(&full)]).expect("it is one");
        msix.ring(0);
        assert_eq!(heard(&full), u64::MAX - 1);
    }

    /// Who looks finds a table and pending bits that do not overlap, in a region as PCI
    /// has them.
    #[test]
    fn the_region_has_room_for_the_table_and_the_pending_bits() {
        for vectors in [1, 17, 128, 129, MOST_VECTORS] {
            let mut msix = Msix::new(vectors);
            let bytes = msix.region_bytes();
            assert!(bytes.is_power_of_two());
            let capability = capability(vectors);
            let word = |at: usize| u32::from_le_bytes(capability[at..at + 4].try_into().unwrap());
            assert_eq!((word(4), word(8) & 0b111), (BAR, BAR));
            let pending = (word(8) & !0b111) as usize;
            let table = usize::from(vectors) * ENTRY_BYTES;
            assert!(table <= pending && pending + usize::from(vectors).div_ceil(64) * 8 <= bytes);
            msix.write(0..bytes, &vec![7; bytes]).expect("all of it");
            let read = msix.read(0..bytes).expect("all of it");
            assert!(read[..table].iter().all(|&byte| byte == 7));
            assert!(read[table..].iter().all(|&byte| byte == 0), "nothing is pending");
            assert!(msix.read(bytes - 4..bytes + 4).is_none());
        }
    }
}
