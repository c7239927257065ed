//! The keys by which fronts and servers know each other, and how they are
//! written.
//!
//! A key is an X25519 key. Its text is one word: a prefix, then in base32
//! (RFC 4648, small letters) the 32 bytes and the first three of their CRC32C:
//! 35 bytes are 56 letters exactly. The sum notices every mistyped letter; it
//! protects from nothing else.

use std::fmt;
use std::str::FromStr;

use block_core::crc32c;
use curve25519_dalek::MontgomeryPoint;
use rand::CryptoRng;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::attach::FrontId;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

const SUM_BYTES: usize = 3;
const LETTERS: usize = (KEY_BYTES + SUM_BYTES) * 8 / 5;
const _: () = assert!(LETTERS * 5 == (KEY_BYTES + SUM_BYTES) * 8);

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const PUBLIC_PREFIX: &str = "vrio-key-";
const SECRET_PREFIX: &str = "vrio-secret-";

/// Who a front or a server is to everybody else. May be shown to anybody.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

/// What shows that a front or a server is who its [`PublicKey`] says. The bytes
/// are overwritten when it is dropped, and `Debug` shows the public key.
#[derive(Clone)]
pub struct SecretKey {
    bytes: Box<Zeroizing<[u8; KEY_BYTES]>>,
    public: PublicKey,
}

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadKey {
    /// It does not begin as a key does.
    #[error("a key begins with '{0}'")]
    Prefix(&'static str),
    /// The other kind of key: a secret where a public key is wanted.
    #[error(
        "this is a secret key, and the public one is wanted, which begins with \
         '{PUBLIC_PREFIX}'; the secret must stay where it was made"
    )]
    Secret,
    /// Not all of it, or too much.
    #[error("a key has {LETTERS} letters after its prefix, and this one {0}")]
    Length(usize),
    /// Not one of the letters that keys are written with.
    #[error("'{0}' is in no key: they are written with the letters a to z and the digits 2 to 7")]
    Letter(char),
    /// Mistyped.
    #[error("the key is mistyped: its letters do not fit each other; copy it once more")]
    Sum,
}

impl PublicKey {
    /// The front that has this key: so nobody claims to be another one. Another
    /// key with the same 16 bytes takes 2^128 tries to find.
    #[must_use]
    pub fn front(&self) -> FrontId {
        let [front @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = self.0;
        FrontId(front)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", *encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PublicKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        if text.starts_with(SECRET_PREFIX) {
            return Err(BadKey::Secret);
        }
        let letters = text.strip_prefix(PUBLIC_PREFIX).ok_or(BadKey::Prefix(PUBLIC_PREFIX))?;
        Ok(Self(*decode(letters)?))
    }
}

impl SecretKey {
    /// A key that nobody can guess, if nobody can guess `random`.
    #[must_use]
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        random.fill_bytes(&mut *bytes);
        Self::from_bytes(&bytes)
    }

    /// The key of these bytes: any 32 are one.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        let public = PublicKey(MontgomeryPoint::mul_base_clamped(*bytes).to_bytes());
        Self { bytes: Box::new(Zeroizing::new(*bytes)), public }
    }

    /// The key in the text that [`SecretKey::to_text`] has written.
    ///
    /// # Errors
    /// [`BadKey`].
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let letters = text.strip_prefix(SECRET_PREFIX).ok_or(BadKey::Prefix(SECRET_PREFIX))?;
        Ok(Self::from_bytes(&*decode(letters)?))
    }

    /// The key as text, for the file that keeps it.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let letters = encode(self.bytes());
        let mut text = Zeroizing::new(String::with_capacity(SECRET_PREFIX.len() + LETTERS));
        text.push_str(SECRET_PREFIX);
        text.push_str(&letters);
        text
    }

    /// What others may know of it.
    #[must_use]
    pub const fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.bytes
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public)
    }
}

fn sum(key: &[u8; KEY_BYTES]) -> [u8; SUM_BYTES] {
    let [one, two, three, _] = crc32c(&[key]).to_le_bytes();
    [one, two, three]
}

fn encode(key: &[u8; KEY_BYTES]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(LETTERS));
    let mut bits = Zeroizing::new(0_u64);
    let mut count = 0;
    for byte in key.iter().chain(&sum(key)) {
        *bits = *bits << 8 | u64::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(ALPHABET[(*bits >> count & 31) as usize]));
        }
    }
    text
}

fn decode(letters: &str) -> Result<Zeroizing<[u8; KEY_BYTES]>, BadKey> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES + SUM_BYTES]);
    let (mut bits, mut count, mut at) = (Zeroizing::new(0_u64), 0, 0);
    for letter in letters.chars() {
        let small = letter.to_ascii_lowercase();
        let value = ALPHABET.iter().position(|known| char::from(*known) == small);
        *bits = *bits << 5 | value.ok_or(BadKey::Letter(letter))? as u64;
        count += 5;
        if count >= 8 {
            count -= 8;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = (*bits >> count) as u8;
            }
            at += 1;
        }
    }
    let length = letters.len();
    if length != LETTERS {
        return Err(BadKey::Length(length));
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    key.copy_from_slice(&bytes[..KEY_BYTES]);
    let fits = bytes[KEY_BYTES..] == sum(&key);
    bits.zeroize();
    if fits { Ok(key) } else { Err(BadKey::Sum) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    /// RFC 7748, section 5.2: the base point multiplied once by the number that
    /// it is itself.
    #[test]
    fn the_public_key_is_the_one_of_the_standard() {
        let public = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079";
        let mut secret = [0; KEY_BYTES];
        secret[0] = 9;
        let text: String = SecretKey::from_bytes(&secret)
            .public()
            .0
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(text, public);
    }

    #[test]
    fn keys_are_written_as_one_word_and_read_again() {
        let secret = SecretKey::generate(&mut StdRng::seed_from_u64(3));
        let text = secret.public().to_string();
        assert_eq!(text.len(), PUBLIC_PREFIX.len() + LETTERS);
        assert_eq!(text.parse(), Ok(secret.public()));
        let again = SecretKey::parse(&secret.to_text()).expect("its own text");
        assert_eq!(again.public(), secret.public());
        assert_eq!(again.bytes(), secret.bytes());
        assert!(!format!("{secret:?}").contains(&secret.to_text()[SECRET_PREFIX.len()..]));
    }

    #[test]
    fn a_text_that_is_no_key_is_told_why() {
        let secret = SecretKey::from_bytes(&[7; 32]);
        let text = secret.public().to_string();
        let key = |text: &str| text.parse::<PublicKey>();
        assert_eq!(key(&secret.to_text()), Err(BadKey::Secret));
        assert_eq!(key("ssh-ed25519"), Err(BadKey::Prefix(PUBLIC_PREFIX)));
        assert_eq!(key(&text[..text.len() - 1]), Err(BadKey::Length(55)));
        assert_eq!(key(&format!("{text}a")), Err(BadKey::Length(57)));
        assert_eq!(key(&text.replace(&text[20..21], "1")), Err(BadKey::Letter('1')));
        assert_eq!(
            key(&text.to_uppercase().replacen("VRIO-KEY-", PUBLIC_PREFIX, 1)),
            Ok(secret.public())
        );
        assert_eq!(
            SecretKey::parse(&text).expect_err("it is public"),
            BadKey::Prefix(SECRET_PREFIX)
        );
    }

    proptest! {
        /// A slip of the finger never names another key.
        #[test]
        fn a_mistyped_letter_is_noticed(bytes in any::<[u8; 32]>(), at in 0..LETTERS,
                                        other in 1..32_usize) {
            let text = PublicKey(bytes).to_string();
            let at = PUBLIC_PREFIX.len() + at;
            let was = ALPHABET.iter().position(|known| *known == text.as_bytes()[at]);
            let letter = ALPHABET[(was.expect("a letter") + other) % 32];
            let mut typed = text.into_bytes();
            typed[at] = letter;
            let typed = String::from_utf8(typed).expect("text");
            prop_assert_eq!(typed.parse::<PublicKey>(), Err(BadKey::Sum));
        }
    }
}
