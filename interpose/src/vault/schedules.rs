//! The keys that seal and open blocks, ready for use, in one bounded table.
//!
//! Making one costs half as much as sealing a block, so those in use are kept.
//! What is thrown out is overwritten in place: nothing is freed that holds
//! what a key became.

use std::hint::black_box;

use ring::aead::LessSafeKey;

use super::key::Key;
use crate::layout::{DomainId, EraId};

// 1024 keys of 0.6 KiB would be 0.6 MiB; 256 cover a pool that was opened
// daily for the better part of a year and whose old blocks are all in use.
const SETS: usize = 64;
const WAYS: usize = 4;

const _: () = assert!(SETS.is_power_of_two());

/// Which key stands in a place; eras begin at 1, so that 0 is none.
type Name = u64;

/// The table. A name can stand in the places of one set only.
pub(crate) struct Schedules {
    names: [[Name; WAYS]; SETS],
    keys: Box<[[LessSafeKey; WAYS]]>,
    /// Which place of a set is thrown out next.
    oldest: [u8; SETS],
    blank: LessSafeKey,
}

impl Schedules {
    pub(crate) fn new() -> Self {
        let blank = Key::blank().schedule();
        let set = || std::array::from_fn(|_| blank.clone());
        let keys = (0..SETS).map(|_| set()).collect();
        Self { names: [[0; WAYS]; SETS], keys, oldest: [0; SETS], blank }
    }

    /// The key of a domain in an era, made if it is not there.
    pub(crate) fn find<E>(
        &mut self,
        domain: DomainId,
        era: EraId,
        make: impl FnOnce() -> Result<Key, E>,
    ) -> Result<&LessSafeKey, E> {
        let name = name(domain, era);
        // Consecutive eras of one domain lie in different sets, and so do
        // consecutive domains in one era.
        let set = (era.0.wrapping_add(domain.0.wrapping_mul(5)) as usize) % SETS;
        let place = match self.names[set].iter().position(|&other| other == name) {
            Some(place) => place,
            None => {
                let key = make()?;
                let place = usize::from(self.oldest[set]) % WAYS;
                self.oldest[set] = self.oldest[set].wrapping_add(1);
                self.names[set][place] = name;
                self.keys[set][place] = key.schedule();
                place
            }
        };
        Ok(&self.keys[set][place])
    }

    /// Overwrites every key of a domain.
    pub(crate) fn purge(&mut self, domain: DomainId) {
        self.overwrite(|name| name >> 32 == u64::from(domain.0));
    }

    fn overwrite(&mut self, mut which: impl FnMut(Name) -> bool) {
        let names = self.names.as_flattened_mut().iter_mut();
        for (name, key) in names.zip(self.keys.as_flattened_mut()) {
            if *name != 0 && which(*name) {
                *name = 0;
                key.clone_from(&self.blank);
            }
        }
        // Somebody might look: so the stores are not dropped as dead ones.
        black_box(&self.keys);
    }
}

impl Drop for Schedules {
    fn drop(&mut self) {
        self.overwrite(|_| true);
    }
}

const fn name(domain: DomainId, era: EraId) -> Name {
    (domain.0 as u64) << 32 | era.0 as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        let mut key = Key::blank();
        key.bytes_mut()[..4].copy_from_slice(&number.to_le_bytes());
        key
    }

    /// A key that was thrown out is made again, one that is in use is not.
    #[test]
    fn keys_are_made_once_until_others_take_their_place() {
        let mut schedules = Schedules::new();
        let mut made = 0;
        let mut find = |domain, era| {
            let make = || {
                made += 1;
                Ok::<_, ()>(key(era))
            };
            schedules.find(DomainId(domain), EraId(era), make).expect("made");
            made
        };
        assert_eq!(find(0, 1), 1);
        assert_eq!(find(1, 1), 2);
        assert_eq!(find(0, 1), 2);
        let sets = SETS as u32;
        for turn in 1..=WAYS as u32 {
            find(0, 1 + turn * sets);
        }
        assert_eq!(find(1, 1), 2 + WAYS as u32);
        assert_eq!(find(0, 1), 3 + WAYS as u32);
    }

    #[test]
    fn a_purged_domain_has_no_key_left_and_others_keep_theirs() {
        let mut schedules = Schedules::new();
        for (domain, era) in [(1, 1), (1, 2), (2, 1)] {
            let make = || Ok::<_, ()>(key(era));
            schedules.find(DomainId(domain), EraId(era), make).expect("made");
        }
        schedules.purge(DomainId(1));
        assert_eq!(schedules.find(DomainId(1), EraId(1), || Err(())).err(), Some(()));
        assert_eq!(schedules.find(DomainId(1), EraId(2), || Err(())).err(), Some(()));
        assert!(schedules.find(DomainId(2), EraId(1), || Err(())).is_ok());
    }
}
