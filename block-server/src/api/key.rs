//! What the control socket speaks about keys. The socket is its owner's alone,
//! so that secrets may pass through it.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::size::Size;

/// `GET /pools/DEVICE/keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysInfo {
    /// What unlocks the pool.
    pub ways: Vec<WayInfo>,
    /// The keys of data.
    pub domains: Vec<DomainInfo>,
}

/// A way to unlock a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayInfo {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub kind: SecretKind,
}

/// What unlocks a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretKind {
    /// A passphrase.
    Passphrase,
    /// The content of a file.
    KeyFile,
}

/// A domain and its keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainInfo {
    /// Its name.
    pub name: String,
    /// How many keys it has: one, and those that were rotated away and still
    /// open older blocks.
    pub keys: usize,
    /// Of its volumes, how much has been looked at to write anew what old keys
    /// seal, and how much there is; only while that is being done.
    #[serde(default)]
    pub rewriting: Option<[Size; 2]>,
    /// Its keys are gone, and with them what its volumes held.
    pub erased: bool,
    /// Its volumes.
    pub volumes: Vec<String>,
}

/// `POST /pools/DEVICE/keys`; the answer is [`KeysInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddWay {
    /// What it is called from now on.
    pub name: String,
    /// What it takes.
    pub kind: SecretKind,
    /// The secret.
    pub secret: HexSecret,
}

/// The bytes of a secret, which travel as hexadecimal digits. They are
/// overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexSecret(Zeroizing<String>);

impl HexSecret {
    /// A secret to be sent.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        // All room at once: a text that grows leaves copies behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len()));
        for byte in bytes {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        Self(text)
    }

    /// The secret's bytes, or `None` if these are no pairs of digits.
    #[must_use]
    pub fn bytes(&self) -> Option<Zeroizing<Vec<u8>>> {
        let digits = self.0.as_bytes();
        let mut bytes = Zeroizing::new(Vec::with_capacity(digits.len() / 2));
        let pairs = digits.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return None;
        }
        for pair in pairs {
            let [high, low] = [pair[0], pair[1]].map(|digit| char::from(digit).to_digit(16));
            bytes.push((high? << 4 | low?) as u8);
        }
        Some(bytes)
    }
}

impl fmt::Debug for HexSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HexSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_arrives_as_it_was_sent_and_is_not_printed() {
        let all: Vec<u8> = (0..=255).collect();
        let secret = HexSecret::new(&all);
        assert_eq!(secret.bytes().expect("digits").as_slice(), all);
        assert!(!format!("{secret:?}").contains("00"));
        for bad in ["\"0\"", "\"0g\"", "\"é\""] {
            let secret: HexSecret = serde_json::from_str(bad).expect("a text");
            assert_eq!(secret.bytes(), None, "{bad}");
        }
    }
}
