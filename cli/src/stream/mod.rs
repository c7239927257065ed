//! Snapshots as streams: sealed on their way out, opened and checked on their
//! way in. The secret stays in this process.

mod export;
mod import;

use std::path::PathBuf;

use block_server::unlock::Unlock;
use clap::Args;
use interpose::vault::{Secret, WayKind};
use zeroize::Zeroizing;

pub(crate) use export::{ExportArgs, export};
pub(crate) use import::{ImportArgs, import};

use crate::prompt;

/// What seals a stream, or opens it.
#[derive(Debug, Args)]
#[group(multiple = false)]
struct SecretArgs {
    /// The stream's passphrase is this file's first line; one is asked for if no file is named
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// All of this file is the stream's key: at least 32 random bytes
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// A stream's secret, to be used more than once.
struct StreamSecret {
    kind: WayKind,
    bytes: Zeroizing<Vec<u8>>,
}

impl SecretArgs {
    /// Reads the secret, or asks for a passphrase: twice, if it is a new one.
    fn read(self, is_new: bool) -> anyhow::Result<StreamSecret> {
        let (kind, bytes) = match (self.passphrase_file, self.key_file) {
            (Some(file), _) => (WayKind::Passphrase, Unlock::PassphraseFile(file).bytes()?),
            (None, Some(file)) => (WayKind::KeyFile, Unlock::KeyFile(file).bytes()?),
            (None, None) if is_new => (WayKind::Passphrase, prompt::new_passphrase()?),
            (None, None) => (WayKind::Passphrase, prompt::passphrase()?),
        };
        Ok(StreamSecret { kind, bytes })
    }
}

impl StreamSecret {
    fn secret(&self) -> Secret {
        match self.kind {
            WayKind::Passphrase => Secret::passphrase(self.bytes.clone()),
            WayKind::KeyFile => Secret::key_file(self.bytes.clone()),
        }
    }
}
