//! Keys against crashes, damage, copies and another implementation.

mod cost;
mod crash;
mod damage;
mod disk;
mod oracle;

use std::collections::HashSet;

use block_core::{BLOCK_SIZE, Pool};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::*;
use crate::hash::hash;
use crate::layout::fixed::{Copy, KEY_AREA_BLOCKS, key_area};
use disk::{Disk, run};

const POOL: PoolId = PoolId([7; 16]);

fn chance(seed: u64) -> Chance {
    let random = RefCell::new(StdRng::seed_from_u64(seed));
    Chance::new(move || random.borrow_mut().next_u64())
}

fn buffers() -> Pool {
    Pool::private(2, BLOCK_SIZE).expect("memory")
}

fn passphrase(text: &str) -> Secret {
    Secret::passphrase(text.as_bytes().to_vec().into())
}

fn key_file(byte: u8) -> Secret {
    Secret::key_file(vec![byte; 32].into())
}

fn way(name: &str, secret: &Secret) -> NewWay {
    NewWay::new(name, secret, Cost::LEAST, &chance(3)).expect("valid")
}

fn create(disk: &Rc<Disk>) -> Vault {
    let first = way("first", &key_file(1));
    let vault = Vault::create(Rc::clone(disk), buffers(), POOL, first, chance(1));
    run(vault).expect("power").expect("made")
}

fn unlock_with(disk: &Rc<Disk>, secret: &Secret, seed: u64) -> Result<Vault, UnlockError> {
    run(Vault::unlock(Rc::clone(disk), buffers(), secret, chance(seed))).expect("power")
}

fn unlock(disk: &Rc<Disk>, seed: u64) -> Vault {
    unlock_with(disk, &key_file(1), seed).expect("unlocked")
}

/// What cannot go wrong, because nothing was told to.
fn done<T, E: fmt::Debug>(future: impl Future<Output = Result<T, E>>) -> T {
    run(future).expect("power").expect("done")
}

/// A pool with an era and a domain.
fn with_domain(disk: &Rc<Disk>) -> (Vault, DomainId) {
    let vault = create(disk);
    done(vault.begin_era());
    let domain = done(vault.add_domain("tenant"));
    (vault, domain)
}

fn sealed(vault: &Vault, domain: DomainId) -> ([u8; BLOCK_SIZE], Seal) {
    let mut block = [5; BLOCK_SIZE];
    let seal = vault.seal(domain, b"here", &mut block).expect("sealed");
    (block, seal)
}

/// The life of a key: made, used, closed, used again.
#[test]
fn what_was_sealed_opens_after_the_pool_was_unlocked_again() {
    let disk = Rc::new(Disk::default());
    let vault = create(&disk);
    assert_eq!(vault.seal(DomainId(1), b"", &mut []), Err(VaultError::NoEra));
    assert!(vault.needs_era());
    done(vault.begin_era());
    assert!(!vault.needs_era());
    assert_eq!(vault.seal(DomainId(1), b"", &mut []), Err(VaultError::UnknownDomain));
    let domain = done(vault.add_domain("tenant"));
    let (block, seal) = sealed(&vault, domain);
    assert_ne!(block, [5; BLOCK_SIZE]);

    let vault = unlock(&disk, 2);
    assert_eq!(vault.pool_id(), POOL);
    for (wrong, aad) in [(domain, &b"there"[..]), (DomainId::METADATA, b"here")] {
        assert_eq!(vault.open(wrong, &seal, aad, &mut { block }), Err(OpenError::Damaged));
    }
    let unknown = Seal { era: EraId(2), ..seal };
    assert_eq!(vault.open(domain, &unknown, b"here", &mut { block }), Err(OpenError::UnknownEra));
    let mut opened = block;
    vault.open(domain, &seal, b"here", &mut opened).expect("opened");
    assert_eq!(opened, [5; BLOCK_SIZE]);
}

/// After a rotation old blocks open, new ones are of the new key, and equal
/// blocks of both hash differently; the old key can be forgotten.
#[test]
fn a_rotated_domain_has_both_keys_until_the_old_one_is_forgotten() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    let other = done(vault.add_domain("other"));
    let (old, old_seal) = sealed(&vault, domain);
    let block = [5; BLOCK_SIZE];
    let old_hash = hash(&vault.hash_key(domain).expect("there"), &block);
    let other_hash = hash(&vault.hash_key(other).expect("there"), &block);

    let era = done(vault.rotate(domain));
    assert_eq!(vault.era(), Some(era));
    let hash_of = |vault: &Vault, domain| hash(&vault.hash_key(domain).expect("there"), &block);
    assert_ne!(hash_of(&vault, domain), old_hash);
    assert_eq!(hash_of(&vault, other), other_hash);
    let (new, new_seal) = sealed(&vault, domain);
    assert_eq!(new_seal.era, era);

    for vault in [&vault, &unlock(&disk, 2)] {
        assert_eq!(vault.domains()[0].keys, [EraId(0), era]);
        vault.open(domain, &old_seal, b"here", &mut { old }).expect("opened");
        vault.open(domain, &new_seal, b"here", &mut { new }).expect("opened");
        assert_ne!(hash_of(vault, domain), old_hash);
    }
    assert_eq!(run(vault.forget_key(domain, era)), Some(Err(KeyError::InUse)));
    assert_eq!(run(vault.forget_key(domain, EraId(1))), Some(Err(KeyError::NotThere)));
    done(vault.forget_key(domain, EraId(0)));
    for vault in [&vault, &unlock(&disk, 2)] {
        assert_eq!(vault.domains()[0].keys, [era]);
        let opened = vault.open(domain, &old_seal, b"here", &mut { old });
        assert_eq!(opened, Err(OpenError::Erased));
        vault.open(domain, &new_seal, b"here", &mut { new }).expect("opened");
    }
    assert_eq!(vault.domains()[1].keys, [EraId(0)]);
}

/// An erased domain's keys are nowhere: not in memory, ready for use, nor in
/// either copy on the device; its name stays.
#[test]
fn nothing_opens_what_an_erased_domain_sealed() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    done(vault.rotate(domain));
    let (block, seal) = sealed(&vault, domain);
    let wraps: Vec<[u8; 32]> = vault
        .domains
        .borrow()
        .entries(domain)
        .map(|entry| entry.wrapped.as_ref().expect("a key").sealed)
        .collect();
    let on_device = |wrap: &[u8; 32]| {
        let blocks = Copy::BOTH
            .into_iter()
            .flat_map(|copy| (0..KEY_AREA_BLOCKS).map(move |index| key_area(index, copy)));
        blocks.filter(|at| disk.block(*at).windows(32).any(|bytes| bytes == wrap)).count()
    };
    assert_eq!(wraps.iter().map(on_device).collect::<Vec<_>>(), [2, 2]);
    done(vault.erase(domain));
    assert_eq!(wraps.iter().map(on_device).collect::<Vec<_>>(), [0, 0]);

    let again = unlock(&disk, 2);
    done(again.begin_era());
    for vault in [&vault, &again] {
        assert!(vault.domains()[0].is_erased());
        assert_eq!(vault.domains()[0].name, "tenant");
        let opened = vault.open(domain, &seal, b"here", &mut { block });
        assert_eq!(opened, Err(OpenError::Erased));
        assert_eq!(vault.seal(domain, b"", &mut []), Err(VaultError::Erased));
        assert_eq!(vault.hash_key(domain).err(), Some(VaultError::Erased));
        assert_eq!(run(vault.rotate(domain)), Some(Err(KeyError::Erased)));
        assert_eq!(run(vault.add_domain("tenant")), Some(Err(KeyError::NameTaken)));
        vault.seal(DomainId::METADATA, b"", &mut []).expect("pages go on");
    }
}

/// Each secret unlocks while its way is there, and the last one stays.
#[test]
fn ways_come_and_go() {
    let disk = Rc::new(Disk::default());
    let vault = create(&disk);
    assert_eq!(run(vault.remove_way("first")), Some(Err(KeyError::LastWay)));
    done(vault.add_way(way("me", &passphrase("open, sesame"))));
    assert_eq!(run(vault.add_way(way("me", &key_file(9)))), Some(Err(KeyError::NameTaken)));
    let wrong = UnlockError::WrongSecret { kind: WayKind::Passphrase, ways: 1 };
    assert_eq!(unlock_with(&disk, &passphrase("sesame"), 2).err(), Some(wrong));
    let vault = unlock_with(&disk, &passphrase("open, sesame"), 2).expect("unlocked");
    assert_eq!(run(vault.remove_way("you")), Some(Err(KeyError::NotThere)));
    done(vault.remove_way("first"));
    let none = UnlockError::NoSuchWay { kind: WayKind::KeyFile };
    assert_eq!(unlock_with(&disk, &key_file(1), 2).err(), Some(none));
    let names = |vault: &Vault| vault.ways().into_iter().map(|way| way.name).collect::<Vec<_>>();
    assert_eq!(names(&vault), ["me"]);
    for number in 1..area::WAYS as u8 {
        done(vault.add_way(way(&number.to_string(), &key_file(number))));
    }
    let more = vault.add_way(way("more", &key_file(99)));
    assert_eq!(run(more), Some(Err(KeyError::NoRoomForWays)));
    let vault = unlock_with(&disk, &key_file(7), 2).expect("unlocked");
    assert_eq!(names(&vault), ["1", "me", "2", "3", "4", "5", "6", "7"]);
}

#[test]
fn secrets_that_are_none_make_no_way() {
    let new = |name, secret: &Secret| NewWay::new(name, secret, Cost::LEAST, &chance(1)).err();
    assert_eq!(new("me", &passphrase("")), Some(SecretError::Empty));
    let short = Secret::key_file(vec![1; 31].into());
    assert_eq!(new("me", &short), Some(SecretError::Short { bytes: 31 }));
    assert_eq!(new("", &key_file(1)), Some(SecretError::Name));
    assert_eq!(new(&"x".repeat(33), &key_file(1)), Some(SecretError::Name));
}

/// A pool is copied, and both copies run: the eras get the same numbers and
/// still no key meets a nonce twice. So it is after a crash.
#[test]
fn no_copy_of_a_pool_uses_a_salt_and_number_of_another() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    let mut used = HashSet::new();
    let mut seals = 0;
    let mut work = |vault: &Vault| {
        for era in 0..3 {
            for _ in 0..5 {
                let (_, seal) = sealed(vault, domain);
                let salt = *vault.eras.borrow().salt(seal.era).expect("known");
                used.insert((salt, seal.seq));
                seals += 1;
            }
            if era < 2 {
                done(vault.begin_era());
            }
        }
    };
    work(&vault);
    let mut disks = vec![disk];
    for seed in 10..16 {
        let copy = disks[seed as usize % disks.len()].copied();
        let vault = unlock(&copy, seed);
        assert_eq!(vault.seal(domain, b"", &mut []), Err(VaultError::NoEra));
        done(vault.begin_era());
        work(&vault);
        disks.push(copy);
    }
    assert_eq!(used.len(), seals);
    assert_eq!(seals, 7 * 15);
}

/// An era ends; it says so long before, and not one seal too late.
#[test]
fn the_last_number_of_an_era_is_used_once() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    let era = vault.era().expect("begun");
    let at = |next| vault.current.set(Some(Current { era, next }));
    at((1 << 32) - EARLY);
    assert!(!vault.needs_era());
    at((1 << 32) - EARLY + 1);
    assert!(vault.needs_era());
    at((1 << 32) - 1);
    let (block, seal) = sealed(&vault, domain);
    assert_eq!(seal.seq, u32::MAX);
    assert_eq!(vault.seal(domain, b"", &mut []), Err(VaultError::EraEnded));
    assert_eq!(vault.seal(domain, b"", &mut []), Err(VaultError::EraEnded));
    done(vault.begin_era());
    let (_, next) = sealed(&vault, domain);
    assert_eq!((next.era, next.seq), (EraId(era.0 + 1), 0));
    vault.open(domain, &seal, b"here", &mut { block }).expect("opened");
}

/// 65,536 opens and no room; eras that no block needs make some, under higher
/// numbers.
#[test]
fn eras_that_are_forgotten_make_room_for_new_ones() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    let (first, first_seal) = sealed(&vault, domain);
    {
        // As if they had been begun one after the other.
        let mut eras = vault.eras.borrow_mut();
        while let Some(id) = eras.next() {
            eras.put(area::Era { id, salt: [0; 32] });
        }
    }
    assert_eq!(vault.eras(), area::ERAS);
    assert_eq!(run(vault.begin_era()), Some(Err(KeyError::NoRoomForEras)));
    assert_eq!(run(vault.rotate(domain)), Some(Err(KeyError::NoRoomForEras)));
    sealed(&vault, domain);

    let last = EraId(area::ERAS as u32);
    let unused = [EraId(3), EraId(4), EraId(300), last, EraId(99_999)];
    done(vault.forget_eras(&unused));
    assert_eq!(vault.eras(), area::ERAS - 3);
    for place in [3, 4, 300] {
        assert_eq!(done(vault.begin_era()), EraId(area::ERAS as u32 + place));
        let (block, seal) = sealed(&vault, domain);
        vault.open(domain, &seal, b"here", &mut { block }).expect("opened");
    }
    assert_eq!(run(vault.begin_era()), Some(Err(KeyError::NoRoomForEras)));
    let gone = Seal { era: EraId(3), ..first_seal };
    assert_eq!(vault.open(domain, &gone, b"here", &mut { first }), Err(OpenError::UnknownEra));
    vault.open(domain, &first_seal, b"here", &mut { first }).expect("opened");
    assert_eq!(vault.eras.borrow().places.len(), area::ERAS);
}

#[test]
fn there_is_no_room_for_endless_keys() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    let key = vault.domains.borrow().places[0].clone();
    vault.domains.borrow_mut().places.resize(area::DOMAIN_KEYS - 1, key);
    done(vault.rotate(domain));
    assert_eq!(run(vault.rotate(domain)), Some(Err(KeyError::NoRoomForKeys)));
    assert_eq!(run(vault.add_domain("one more")), Some(Err(KeyError::NoRoomForKeys)));
}

/// A pool that is no more is made anew: nothing of the old one remains.
#[test]
fn a_new_pool_has_nothing_of_the_one_before() {
    let disk = Rc::new(Disk::default());
    let (vault, _) = with_domain(&disk);
    assert_eq!(vault.domains().len(), 1);
    create(&disk);
    let vault = unlock(&disk, 2);
    assert_eq!((vault.domains().len(), vault.eras()), (0, 0));
}
