//! `vrio key`: keys of the link, what unlocks a pool, and the keys of its domains.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use block_server::api::{AddWay, DomainInfo, HexSecret, KeysInfo, SecretKind};
use block_server::unlock::Unlock;
use clap::{Args, Subcommand};
use link::SecretKey;

use crate::control::Control;
use crate::link_key;
use crate::pool::the_pool;
use crate::prompt;
use crate::table::{Side, table};

/// Make a key for the link; say who unlocks a pool; rotate and erase the keys of its domains
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: Command,
    /// Which pool; may be left out if there is one
    #[arg(long, value_name = "DEVICE", global = true)]
    device: Option<String>,
    #[command(flatten)]
    control: Control,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key for a front or a server, and print its public key
    ///
    /// Fronts and servers make one themselves when they have none.
    Generate {
        /// Where to keep it; only its owner may read it
        file: PathBuf,
    },
    /// Print the public key of a front's or server's key file
    Show {
        /// Where it is kept
        file: PathBuf,
    },
    #[command(flatten)]
    OfAPool(PoolCommand),
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Show what unlocks the pool, and its domains
    List,
    /// Let another passphrase or key file unlock the pool; asks for a
    /// passphrase if no file is named
    Add {
        /// What to call it
        name: String,
        /// The passphrase is this file's first line
        #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
        passphrase_file: Option<PathBuf>,
        /// All of this file is the key: at least 32 random bytes
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Let a passphrase or key file unlock the pool no more
    Remove {
        /// Which one; see `list`
        name: String,
    },
    /// Give a domain a new key; its volumes are sealed anew in the background
    Rotate {
        /// Which one; see `list`
        domain: String,
    },
    /// Destroy a domain's keys: what its volumes and snapshots hold is gone
    Erase {
        /// Which one; see `list`
        domain: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Does what it says.
pub(crate) fn run(args: KeyArgs) -> anyhow::Result<()> {
    match args.command {
        Command::Generate { file } => print_public(&link_key::make(&file)?),
        Command::Show { file } => print_public(&link_key::read(&file)?),
        Command::OfAPool(command) => ask(&args.control, args.device, command),
    }
}

/// Asks the server and prints its answer.
fn ask(control: &Control, device: Option<String>, command: PoolCommand) -> anyhow::Result<()> {
    let client = control.client();
    let device = the_pool(&client, device)?;
    let keys = match command {
        PoolCommand::List => client.keys(&device)?,
        PoolCommand::Add { name, passphrase_file, key_file } => {
            let (kind, secret) = match (passphrase_file, key_file) {
                (None, None) => (SecretKind::Passphrase, prompt::new_passphrase()?),
                (Some(file), _) => (SecretKind::Passphrase, Unlock::PassphraseFile(file).bytes()?),
                (None, Some(file)) => (SecretKind::KeyFile, Unlock::KeyFile(file).bytes()?),
            };
            client.add_way(&device, &AddWay { name, kind, secret: HexSecret::new(&secret) })?
        }
        PoolCommand::Remove { name } => client.remove_way(&device, &name)?,
        PoolCommand::Rotate { domain } => client.rotate_key(&device, &domain)?,
        PoolCommand::Erase { domain, yes } => {
            if !yes {
                confirm_erase(&client.keys(&device)?, &domain)?;
            }
            client.erase_key(&device, &domain)?
        }
    };
    control.print(&keys, describe)
}

fn print_public(key: &SecretKey) -> anyhow::Result<()> {
    println!("{}", key.public());
    Ok(())
}

/// Lets a person say once more what cannot be undone.
fn confirm_erase(keys: &KeysInfo, domain: &str) -> anyhow::Result<()> {
    let Some(found) = keys.domains.iter().find(|one| one.name == domain) else {
        bail!("there is no domain '{domain}'; `vrio key list` shows what there is");
    };
    if !io::stdin().is_terminal() {
        bail!(
            "erasing domain '{domain}' destroys what {} hold; if that is wanted, say so (`--yes`)",
            volumes(found)
        );
    }
    eprint!("This destroys what {} hold. Type the domain's name to go on: ", volumes(found));
    io::stderr().flush().context("cannot ask")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    if answer.trim() != domain {
        bail!("nothing was erased");
    }
    Ok(())
}

fn volumes(domain: &DomainInfo) -> String {
    match &domain.volumes[..] {
        [] => "its volumes and snapshots".to_owned(),
        some => format!("the volumes {} and their snapshots", some.join(", ")),
    }
}

fn describe(keys: &KeysInfo) -> String {
    let way = |way: &block_server::api::WayInfo| {
        let kind = match way.kind {
            SecretKind::Passphrase => "a passphrase",
            SecretKind::KeyFile => "a key file",
        };
        [way.name.clone(), kind.to_owned()]
    };
    let ways: Vec<_> = keys.ways.iter().map(way).collect();
    let domain = |domain: &DomainInfo| {
        let state = match (domain.erased, domain.keys) {
            (true, _) => "erased".to_owned(),
            (false, 0 | 1) => "one key".to_owned(),
            (false, keys) => format!("{keys} keys, of which {} open older blocks", keys - 1),
        };
        let state = match domain.rewriting {
            Some([done, total]) => format!("{state}; being written anew: {done} of {total}"),
            None => state,
        };
        [domain.name.clone(), state, domain.volumes.join(", ")]
    };
    let domains: Vec<_> = keys.domains.iter().map(domain).collect();
    let mut text = table([("UNLOCKED BY", Side::Left), ("WHICH IS", Side::Left)], &ways);
    text += "\n";
    let heads = [("DOMAIN", Side::Left), ("KEYS", Side::Left), ("VOLUMES", Side::Left)];
    text + &table(heads, &domains)
}

#[cfg(test)]
mod tests {
    use block_server::Size;
    use block_server::api::WayInfo;

    use super::*;

    #[test]
    fn old_keys_and_erased_domains_are_told() {
        let domain = |name: &str, keys, erased| DomainInfo {
            name: name.to_owned(),
            keys,
            rewriting: (keys == 2).then_some([Size(1 << 30), Size(4 << 30)]),
            erased,
            volumes: vec!["a".to_owned(), "b".to_owned()],
        };
        let text = describe(&KeysInfo {
            ways: vec![WayInfo { name: "first".to_owned(), kind: SecretKind::KeyFile }],
            domains: vec![
                domain("default", 3, false),
                domain("gone", 1, true),
                domain("new", 2, false),
            ],
        });
        assert!(text.contains("first        a key file"), "{text}");
        assert!(text.contains("3 keys, of which 2 open older blocks  "), "{text}");
        assert!(text.contains("erased"), "{text}");
        assert!(text.contains("older blocks; being written anew: 1G of 4G"), "{text}");
    }
}
