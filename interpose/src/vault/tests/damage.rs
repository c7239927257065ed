//! A key area that is not what was written.

use block_core::Pba;
use proptest::prelude::*;

use super::*;
use crate::vault::area::Entry;

/// The blocks that a small pool has.
const USED: [u16; 3] = [0, 1, 65];

fn place(index: u16, copy: Copy) -> Pba {
    key_area(index.into(), copy)
}

/// Each copy of each block is lost in turn, in several manners; the pool opens
/// from the other copy, and has two again.
#[test]
fn one_bad_copy_is_repaired_from_the_other() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    let (block, seal) = sealed(&vault, domain);
    let manners: [fn(&mut area::Block); 4] = [
        |block| block.fill(0),
        |block| block.fill(0xff),
        |block| block[4000] ^= 1,
        |block| block[512..].fill(0),
    ];
    for (index, copy) in USED.into_iter().flat_map(|index| Copy::BOTH.map(|copy| (index, copy))) {
        let good = disk.block(place(index, copy));
        for manner in manners {
            let disk = disk.copied();
            disk.rot(place(index, copy), manner);
            let changed = disk.block(place(index, copy)) != good;
            let before = disk.changes();
            let vault = unlock(&disk, 2);
            assert_eq!(disk.changes() > before, changed);
            assert_eq!(disk.block(place(index, copy)), good);
            vault.open(domain, &seal, b"here", &mut { block }).expect("opened");
        }
    }
}

/// A device that answered and did not write leaves one copy as it was: the
/// newer one holds, whichever it is.
#[test]
fn of_two_whole_copies_the_newer_one_holds() {
    let disk = Rc::new(Disk::default());
    let (vault, _) = with_domain(&disk);
    let before = disk.copied();
    done(vault.begin_era());
    done(vault.add_domain("another"));
    done(vault.add_way(way("another", &key_file(2))));
    for (index, copy) in USED.into_iter().flat_map(|index| Copy::BOTH.map(|copy| (index, copy))) {
        let disk = disk.copied();
        let old = before.block(place(index, copy));
        let new = disk.block(place(index, copy));
        disk.rot(place(index, copy), |block| *block = *old);
        let vault = unlock(&disk, 2);
        assert_eq!((vault.eras(), vault.domains().len(), vault.ways().len()), (2, 2, 2));
        assert_eq!(disk.block(place(index, copy)), new);
    }
}

/// With both copies gone there is a sentence that says which block it was.
#[test]
fn two_bad_copies_are_said() {
    let disk = Rc::new(Disk::default());
    with_domain(&disk);
    let rotten = |index, manner: fn(&mut area::Block)| {
        let disk = disk.copied();
        Copy::BOTH.into_iter().for_each(|copy| disk.rot(place(index, copy), manner));
        unlock_with(&disk, &key_file(1), 2).expect_err("damaged")
    };
    assert_eq!(rotten(0, |block| block[100] ^= 1), UnlockError::HeaderDamaged);
    assert_eq!(rotten(0, |block| block.fill(0)), UnlockError::NotAPool);
    assert_eq!(rotten(0, |block| block.fill(b'x')), UnlockError::NotAPool);
    let what = "keys of domains";
    assert_eq!(rotten(1, |block| block[100] ^= 1), UnlockError::KeysDamaged { index: 1, what });
    let what = "salts of eras";
    let error = rotten(65, |block| block[100] ^= 1);
    assert_eq!(error, UnlockError::KeysDamaged { index: 65, what });
    assert_eq!(
        error.to_string(),
        "both copies of block 65 of its key area (salts of eras) are damaged: restore the device \
         from a copy"
    );
}

/// A discard that took both copies of a block in the middle is not the end of
/// the list.
#[test]
fn a_block_that_is_missing_before_others_is_damage() {
    let disk = Rc::new(Disk::default());
    let (vault, _) = with_domain(&disk);
    while vault.era() < Some(EraId(113)) {
        done(vault.begin_era());
    }
    for copy in Copy::BOTH {
        disk.rot(place(65, copy), |block| block.fill(0));
    }
    let error = unlock_with(&disk, &key_file(1), 2).expect_err("damaged");
    assert_eq!(error, UnlockError::KeysDamaged { index: 65, what: "salts of eras" });
}

/// A block that lies where another one should be, and one of another pool.
#[test]
fn a_block_opens_in_its_place_only() {
    let disk = Rc::new(Disk::default());
    let (vault, domain) = with_domain(&disk);
    done(vault.begin_era());
    let foreign = Rc::new(Disk::default());
    let first = way("first", &key_file(1));
    let other = done(Vault::create(Rc::clone(&foreign), buffers(), POOL, first, chance(77)));
    // More often written, so that its blocks look newer.
    for _ in 0..10 {
        done(other.begin_era());
    }
    for block in [disk.block(place(1, Copy::A)), foreign.block(place(65, Copy::A))] {
        let disk = disk.copied();
        disk.rot(place(65, Copy::A), |at| at.copy_from_slice(&block[..]));
        let vault = unlock(&disk, 2);
        assert_eq!(vault.eras(), 2);
        done(vault.begin_era());
        sealed(&vault, domain);
    }
}

#[test]
fn a_newer_pool_is_not_touched() {
    let disk = Rc::new(Disk::default());
    create(&disk);
    disk.rot(place(0, Copy::A), |block| {
        block[8] = 9;
        block[12..16].fill(0);
        let crc = block_core::crc32c(&[&block[..]]);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    let before = disk.changes();
    let error = unlock_with(&disk, &key_file(1), 2).expect_err("newer");
    assert_eq!(error, UnlockError::Newer { found: 9 });
    assert_eq!(
        error.to_string(),
        "its pool was made by a newer version of vRIO (format 9; this one reads up to 1): use \
         that version"
    );
    assert_eq!(disk.changes(), before);
}

#[test]
fn sentences_name_the_way_out() {
    let disk = Rc::new(Disk::too_small());
    let error = unlock_with(&disk, &key_file(1), 2).expect_err("small");
    assert_eq!(error.to_string(), "it has 16383 blocks of 4 KiB; a pool needs at least 16384");
    let disk = Rc::new(Disk::default());
    create(&disk);
    let error = unlock_with(&disk, &key_file(2), 2).expect_err("wrong");
    assert_eq!(error.to_string(), "the key file does not open its pool (1 tried)");
    let error = unlock_with(&disk, &passphrase("x"), 2).expect_err("wrong");
    assert_eq!(error.to_string(), "its pool is not opened by the passphrase: use the key file");
}

/// Somebody who can write to the device, but has no key, makes a header that
/// looks newer. The other copy holds.
#[test]
fn a_forged_header_makes_room_for_the_other_copy() {
    let disk = Rc::new(Disk::default());
    create(&disk);
    let good = disk.block(place(0, Copy::A));
    let area::Reading::Whole(head) = area::read(&good, 0) else { panic!("whole") };
    for copy in Copy::BOTH {
        let disk = disk.copied();
        disk.rot(place(0, copy), |block| {
            let head = area::Head { sequence: head.sequence + 5, ..head };
            area::close(block, 0, head, &Key::blank());
        });
        unlock(&disk, 2);
        assert_eq!(disk.block(place(0, copy)), good);
    }
}

/// Puts a block on the device as somebody with the pool key would.
fn plant<E: Entry>(disk: &Disk, vault: &Vault, index: u16, entries: &[Option<E>]) {
    let block = area::encode(entries.iter().map(Option::as_ref));
    plant_bytes(disk, vault, index, block);
}

fn plant_bytes(disk: &Disk, vault: &Vault, index: u16, mut block: Box<area::Block>) {
    let head = area::Head { pool: POOL, sequence: 100 };
    area::close(&mut block, index, head, &vault.pool_key.derive(Purpose::Area, &[0; 32]));
    for copy in Copy::BOTH {
        disk.rot(place(index, copy), |at| *at = *block);
    }
}

#[test]
fn an_era_in_the_place_of_another_is_damage() {
    let disk = Rc::new(Disk::default());
    let (vault, _) = with_domain(&disk);
    let era = Some(area::Era { id: EraId(65_537), salt: [1; 32] });
    plant(&disk, &vault, 65, &[None, era]);
    assert_eq!(unlock(&disk, 2).eras(), 1);
    plant(&disk, &vault, 65, &[era]);
    let error = unlock_with(&disk, &key_file(1), 2).expect_err("damaged");
    assert_eq!(error, UnlockError::KeysDamaged { index: 65, what: "salts of eras" });
}

#[test]
fn a_key_that_was_moved_to_another_domain_is_damage() {
    let disk = Rc::new(Disk::default());
    let (vault, _) = with_domain(&disk);
    let mut keys = vault.domains.borrow().places.clone();
    plant(&disk, &vault, 1, &keys);
    unlock(&disk, 2);
    keys[0].as_mut().expect("a key").domain = DomainId(2);
    plant(&disk, &vault, 1, &keys);
    let error = unlock_with(&disk, &key_file(1), 2).expect_err("damaged");
    assert_eq!(error, UnlockError::KeysDamaged { index: 1, what: "keys of domains" });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Authentic and still malformed: an error or a pool, never a panic.
    #[test]
    fn no_key_area_is_too_strange(
        index in prop::sample::select(USED.to_vec()),
        bytes in prop::collection::vec((0..256usize, prop_oneof![0..4u8, any::<u8>()]), 1..20),
    ) {
        let disk = Rc::new(Disk::default());
        let (vault, _) = with_domain(&disk);
        let mut block = disk.block(place(index, Copy::A));
        for (at, byte) in bytes {
            block[64 + at] = byte;
        }
        plant_bytes(&disk, &vault, index, block);
        if let Ok(vault) = unlock_with(&disk, &key_file(1), 2) {
            done(vault.begin_era());
            prop_assert!(vault.domains().len() <= area::DOMAIN_KEYS);
        }
    }
}
