//! The primitives of the handshake, from the crates that the rest of the house
//! uses. Randomness is a seed that serves one handshake.

use std::sync::Mutex;

use blake2::Blake2s256;
use blake2::digest::Digest;
use curve25519_dalek::MontgomeryPoint;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::{Zeroize, Zeroizing};

use super::TAG_BYTES;

pub(super) struct Primitives {
    seed: Zeroizing<[u8; 32]>,
}

impl Primitives {
    pub(super) fn new(mut seed: [u8; 32]) -> Self {
        let kept = Zeroizing::new(seed);
        seed.zeroize();
        Self { seed: kept }
    }
}

impl CryptoResolver for Primitives {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Drawn(Mutex::new(StdRng::from_seed(*self.seed)))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<Curve>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::Blake2s).then(|| Box::<Blake>::default() as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::<Aes>::default() as Box<dyn Cipher>)
    }
}

/// The library wants to share it between threads, which nobody does.
struct Drawn(Mutex<StdRng>);

impl Random for Drawn {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        self.0.get_mut().map_err(|_| Error::Rng)?.fill_bytes(dest);
        Ok(())
    }
}

#[derive(Default)]
struct Curve {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Curve {
    fn derive(&mut self) {
        self.public = MontgomeryPoint::mul_base_clamped(*self.private).to_bytes();
    }
}

impl Dh for Curve {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, privkey: &[u8]) {
        self.private.copy_from_slice(privkey);
        self.derive();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(&mut *self.private)?;
        self.derive();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &*self.private
    }

    fn dh(&self, pubkey: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let other = MontgomeryPoint(*pubkey.first_chunk().ok_or(Error::Dh)?);
        let shared = Zeroizing::new(other.mul_clamped(*self.private).to_bytes());
        // A point of small order gives a secret that everybody knows.
        if *shared == [0; 32] {
            return Err(Error::Dh);
        }
        out[..32].copy_from_slice(&*shared);
        Ok(())
    }
}

#[derive(Default)]
struct Blake(Blake2s256);

impl Hash for Blake {
    fn name(&self) -> &'static str {
        "BLAKE2s"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0 = Blake2s256::default();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&std::mem::take(&mut self.0).finalize());
    }
}

#[derive(Default)]
struct Aes(Option<LessSafeKey>);

/// Noise's nonce: four zero bytes, then the counter, the high byte first.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Cipher for Aes {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new);
    }

    /// # Panics
    /// Without a key: the library sets one before.
    fn encrypt(&self, counter: u64, authtext: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let key = self.0.as_ref().expect("the key is set");
        let (text, tag) = out[..plaintext.len() + TAG_BYTES].split_at_mut(plaintext.len());
        text.copy_from_slice(plaintext);
        let made = key
            .seal_in_place_separate_tag(nonce(counter), Aad::from(authtext), text)
            .expect("a message is short");
        tag.copy_from_slice(made.as_ref());
        plaintext.len() + TAG_BYTES
    }

    fn decrypt(
        &self,
        counter: u64,
        authtext: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let bytes = ciphertext.len().checked_sub(TAG_BYTES).ok_or(Error::Decrypt)?;
        let (text, tag) = ciphertext.split_at(bytes);
        let tag = <[u8; TAG_BYTES]>::try_from(tag).map_err(|_| Error::Decrypt)?;
        let out = out.get_mut(..bytes).ok_or(Error::Decrypt)?;
        out.copy_from_slice(text);
        key.open_in_place_separate_tag(nonce(counter), Aad::from(authtext), tag.into(), out, 0..)
            .map_err(|_| Error::Decrypt)?;
        Ok(bytes)
    }
}
