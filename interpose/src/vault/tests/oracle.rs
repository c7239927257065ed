//! Seals made by hand: with another implementation of AES-GCM, and from
//! numbers that are known.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use proptest::prelude::*;

use super::*;
use crate::layout::{Binding, Class};
use block_core::Pba;

/// The derivation and the nonce as the documents say them, in another hand.
fn seal_by_hand(
    key: &[u8; 32],
    salt: &[u8; 32],
    seq: u32,
    aad: &[u8],
    block: &mut [u8],
) -> [u8; 16] {
    let mut input = b"vrio seal".to_vec();
    input.resize(32, 0);
    input.extend(salt);
    let key = *blake3::keyed_hash(key, &input).as_bytes();
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&seq.to_le_bytes());
    let tag = Aes256Gcm::new(&key.into())
        .encrypt_inout_detached(&nonce.into(), aad, block.into())
        .expect("not too long");
    tag.into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn seals_are_those_of_another_implementation(
        plain in prop::collection::vec(any::<u8>(), 0..5000),
        aad in prop::collection::vec(any::<u8>(), 0..100),
        next in 0..1u64 << 32,
        rotate: bool,
    ) {
        let disk = Rc::new(Disk::default());
        let (vault, domain) = with_domain(&disk);
        if rotate {
            done(vault.rotate(domain));
        }
        let era = vault.era().expect("begun");
        vault.current.set(Some(Current { era, next }));
        let mut bytes = plain.clone();
        let seal = vault.seal(domain, &aad, &mut bytes).expect("sealed");
        prop_assert_eq!((u64::from(seal.seq), seal.era), (next, era));

        let salt = *vault.eras.borrow().salt(era).expect("known");
        let from = if rotate { era } else { EraId(0) };
        let key = *vault.domains.borrow().keys[&(domain, from)].bytes();
        let mut expected = plain.clone();
        let tag = seal_by_hand(&key, &salt, seal.seq, &aad, &mut expected);
        prop_assert_eq!(&bytes, &expected);
        prop_assert_eq!(seal.tag, tag);
        vault.open(domain, &seal, &aad, &mut bytes).expect("opened");
        prop_assert_eq!(bytes, plain);
    }
}

/// Chance that gives 1, 2, 3 and so on.
fn counted() -> Chance {
    let last = Cell::new(0);
    Chance::new(move || {
        last.set(last.get() + 1);
        last.get()
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Everything that is on a device from known numbers: each block of the key
/// area by its hash, and a page's and a block's seal. A later version has to
/// read it.
#[test]
fn a_pool_of_known_numbers_has_these_bytes() {
    let disk = Rc::new(Disk::default());
    let secret = passphrase("known");
    let first = NewWay::new("first", &secret, Cost::LEAST, &counted()).expect("valid");
    let vault = Vault::create(Rc::clone(&disk), buffers(), POOL, first, counted());
    let vault = done(vault);
    done(vault.begin_era());
    let domain = done(vault.add_domain("tenant"));
    let known = |index| {
        let block = disk.block(key_area(index, Copy::A));
        assert_eq!(block, disk.block(key_area(index, Copy::B)));
        hex(&blake3::hash(&block[..]).as_bytes()[..16])
    };
    let aad = Binding::page(Class::Superblock, 0, Pba(1)).encode(&POOL);
    let page = vault.seal(DomainId::METADATA, &aad, &mut [1; BLOCK_SIZE]).expect("sealed");
    assert_eq!((page.era, page.seq), (EraId(1), 0));
    let aad = Binding::data(domain, Pba(10_000)).encode(&POOL);
    let data = vault.seal(domain, &aad, &mut [2; BLOCK_SIZE]).expect("sealed");
    assert_eq!((data.era, data.seq), (EraId(1), 1));
    let hash = hash(&vault.hash_key(domain).expect("there"), &[2; BLOCK_SIZE]);
    assert_eq!(
        [known(0), known(1), known(65), hex(&page.tag), hex(&data.tag), hex(&hash)],
        [
            "bd35c23855c87cce27e677b8e36514af",
            "d09380aca42aca2e186dda888d2dc625",
            "cca68d0f5ca7ede875935e273c1ff8b5",
            "9913f10166dbdec68a73a163f9fdc1fa",
            "247475fe89e0dce225d0093e4e0d63d7",
            "5e5389afcf53833e1e7658dbd4cfc5a9"
        ]
    );
}
