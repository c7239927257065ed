//! Keys against crashes, damage, copies and another implementation.

#[expect(dead_code)]
mod disk;

use std::rc::Rc;

use block_core::{BLOCK_SIZE, Chance, Pool};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::*;
use disk::{Disk, run};

const POOL: PoolId = PoolId([7; 16]);

fn chance(seed: u64) -> Chance {
    let random = RefCell::new(StdRng::seed_from_u64(seed));
    Chance::new(move || random.borrow_mut().next_u64())
}

fn buffers() -> Pool {
    Pool::private(2, BLOCK_SIZE).expect("memory")
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

fn unlock(disk: &Rc<Disk>, secret: &Secret, seed: u64) -> Result<Vault, UnlockError> {
    run(Vault::unlock(Rc::clone(disk), buffers(), secret, chance(seed))).expect("power")
}

/// The life of a key: made, used, closed, used again.
#[test]
fn what_was_sealed_opens_after_the_pool_was_unlocked_again() {
    let disk = Rc::new(Disk::default());
    let vault = create(&disk);
    assert_eq!(vault.seal(DomainId(1), b"", &mut []), Err(VaultError::NoEra));
    assert!(vault.needs_era());
    run(vault.begin_era()).expect("power").expect("begun");
    assert!(!vault.needs_era());
    assert_eq!(vault.seal(DomainId(1), b"", &mut []), Err(VaultError::UnknownDomain));
    let domain = run(vault.add_domain("tenant")).expect("power").expect("made");
    let mut block = [5; BLOCK_SIZE];
    let seal = vault.seal(domain, b"here", &mut block).expect("sealed");
    assert_ne!(block, [5; BLOCK_SIZE]);

    let vault = unlock(&disk, &key_file(1), 2).expect("unlocked");
    assert_eq!(vault.pool_id(), POOL);
    for (wrong, aad) in [(domain, &b"there"[..]), (DomainId::METADATA, b"here")] {
        assert_eq!(vault.open(wrong, &seal, aad, &mut { block }), Err(OpenError::Damaged));
    }
    vault.open(domain, &seal, b"here", &mut block).expect("opened");
    assert_eq!(block, [5; BLOCK_SIZE]);
    assert_eq!(
        unlock(&disk, &key_file(2), 2).err(),
        Some(UnlockError::WrongSecret { kind: WayKind::KeyFile, ways: 1 })
    );
}
