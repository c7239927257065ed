//! `vrio server authorize`, `revoke` and `list`: which fronts may have which
//! volumes.

use block_server::api::{AccessInfo, Authorize, RightInfo, RightsInfo};
use clap::Subcommand;

use crate::control::Control;
use crate::table::{Side, table};

/// What a running server is asked about rights.
#[derive(Debug, Subcommand)]
pub(crate) enum RightsCommand {
    /// Let the front with this key have volumes
    ///
    /// The front says its key in its log when it starts; `vrio key show` on its key file
    /// prints it too.
    Authorize {
        /// The front's public key: vrio-key-...
        #[arg(value_name = "FRONT-KEY")]
        key: String,
        /// Which volumes: a name, in which '*' stands for any letters and '?' for one
        #[arg(long, value_name = "PATTERN")]
        volumes: String,
        /// Only to read
        #[arg(long)]
        read_only: bool,
        #[command(flatten)]
        control: Control,
    },
    /// Take all that a key was allowed, and end its sessions
    Revoke {
        /// The front's public key: vrio-key-...
        #[arg(value_name = "FRONT-KEY")]
        key: String,
        #[command(flatten)]
        control: Control,
    },
    /// Show the server's own key, and what fronts' keys are good for
    List {
        #[command(flatten)]
        control: Control,
    },
}

/// Asks the server and prints its answer.
pub(super) fn run(command: &RightsCommand) -> anyhow::Result<()> {
    let (control, rights) = match command {
        RightsCommand::Authorize { key, volumes, read_only, control } => {
            let right = Authorize { volumes: volumes.clone(), read_only: *read_only };
            (control, control.client().authorize(key, &right)?)
        }
        RightsCommand::Revoke { key, control } => (control, control.client().revoke(key)?),
        RightsCommand::List { control } => (control, control.client().rights()?),
    };
    control.print(&rights, describe)
}

fn describe(rights: &RightsInfo) -> String {
    let mut text = String::new();
    for (place, key) in rights.server_keys.iter().enumerate() {
        let what = if place == 0 { "this server's key" } else { "its key before " };
        text += &format!("{what}  {key}\n");
    }
    if rights.clear {
        text += "in the clear       allowed: whoever reaches the server may have every volume\n";
    }
    if rights.rights.is_empty() {
        return text + "no front's key is authorized\n";
    }
    let row = |right: &RightInfo| {
        let access = match right.access {
            AccessInfo::Read => "read-only",
            AccessInfo::Write => "read-write",
        };
        [right.key.clone(), access.to_owned(), right.volumes.clone()]
    };
    let rows: Vec<_> = rights.rights.iter().map(row).collect();
    let heads = [("FRONT'S KEY", Side::Left), ("ACCESS", Side::Left), ("VOLUMES", Side::Left)];
    text + "\n" + &table(heads, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_to_everybody_is_said() {
        let rights = RightsInfo {
            server_keys: vec!["vrio-key-new".to_owned(), "vrio-key-old".to_owned()],
            clear: true,
            rights: vec![RightInfo {
                key: "vrio-key-front".to_owned(),
                access: AccessInfo::Read,
                volumes: "vm-*".to_owned(),
            }],
        };
        let text = describe(&rights);
        assert!(text.starts_with("this server's key  vrio-key-new\nits key before "), "{text}");
        assert!(text.contains("every volume"), "{text}");
        assert!(text.ends_with("vrio-key-front  read-only  vm-*\n"), "{text}");
    }
}
