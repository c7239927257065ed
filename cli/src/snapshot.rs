//! `vrio snapshot`: what a volume was, kept, compared and brought back.

use std::str::FromStr;

use anyhow::bail;
use block_server::Size;
use block_server::api::{AskDiff, CloneSnapshot, RestoreSnapshot, SnapshotInfo, TakeSnapshots};
use block_server::client::Client;
use clap::{Args, Subcommand};

use crate::control::Control;
use crate::moment::utc;
use crate::pool::wait_for_deletions;
use crate::stream::{self, ExportArgs, ImportArgs};
use crate::table::{Side, table};

/// Take, compare, restore, clone and move snapshots of volumes in a pool: run this
/// on the IOhost
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    control: Control,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take a snapshot; of several volumes at one moment if several are named
    Create {
        /// For example disk@before-upgrade
        #[arg(value_name = "VOLUME@NAME", required = true)]
        snapshots: Vec<Snapshot>,
        /// Take it although the volume's writer is away and may have writes that were lost
        #[arg(long)]
        as_is: bool,
    },
    /// Show snapshots, a line each, the oldest first
    List {
        /// Of this volume only
        volume: Option<String>,
    },
    /// Show one snapshot
    Show {
        /// Which one
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Snapshot,
    },
    /// Make a volume what it was; later snapshots stay
    Restore {
        /// Which one
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Snapshot,
        /// Take the volume away from the front that has it; what it has not flushed is lost
        #[arg(long)]
        force: bool,
    },
    /// Make a volume that begins as a snapshot; both share their blocks
    Clone {
        /// Which one
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Snapshot,
        /// The new volume's name
        name: String,
        /// Nobody may change it
        #[arg(long)]
        read_only: bool,
    },
    /// Delete a snapshot; its space comes back in the background
    Delete {
        /// Which one
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: Snapshot,
        /// Wait until its space is back
        #[arg(long)]
        wait: bool,
    },
    /// Write a snapshot, or what changed since another one, as a sealed stream
    ///
    /// A passphrase or a key file that is the stream's own opens it, in any pool. What becomes of
    /// it on its way does not matter: nothing of it is imported that was not exported.
    Export(ExportArgs),
    /// Make a snapshot, and the volume that has it, of a stream
    ///
    /// Until all of the stream has come, the volume cannot be used; the same command again goes on
    /// where an import was cut off.
    Import(ImportArgs),
    /// Print the ranges that changed since a snapshot
    Diff {
        /// Since which one
        #[arg(value_name = "VOLUME@NAME")]
        from: Snapshot,
        /// Up to this later one of the same volume; up to now if left out
        #[arg(value_name = "VOLUME@NAME")]
        to: Option<Snapshot>,
    },
}

/// A snapshot as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) volume: String,
    pub(crate) name: String,
}

impl FromStr for Snapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            Some((volume, name)) if !volume.is_empty() && !name.is_empty() => {
                Ok(Self { volume: volume.to_owned(), name: name.to_owned() })
            }
            _ => Err("write VOLUME@NAME, as in disk@before-upgrade".to_owned()),
        }
    }
}

/// Asks the server and prints its answer.
pub(crate) fn run(args: SnapshotArgs) -> anyhow::Result<()> {
    let (client, control) = (args.control.client(), &args.control);
    match args.command {
        Command::Create { snapshots, as_is } => {
            control.print(&client.take_snapshots(&group(&snapshots, as_is)?)?[..], lines)
        }
        Command::List { volume } => control.print(&list(&client, volume.as_deref())?[..], lines),
        Command::Show { snapshot: Snapshot { volume, name } } => {
            control.print(&client.snapshot(&volume, &name)?, describe)
        }
        Command::Restore { snapshot: Snapshot { volume, name }, force } => {
            client.restore_snapshot(&volume, &name, &RestoreSnapshot { force })?;
            println!("volume {volume} is what it was at {volume}@{name}");
            Ok(())
        }
        Command::Clone { snapshot: Snapshot { volume, name: of }, name, read_only } => {
            let made = client.clone_snapshot(&volume, &of, &CloneSnapshot { name, read_only })?;
            println!("volume {} begins as {volume}@{of}", made.name);
            Ok(())
        }
        Command::Delete { snapshot: Snapshot { volume, name }, wait } => {
            let device = client.volume(&volume)?.device;
            client.delete_snapshot(&volume, &name)?;
            if wait {
                wait_for_deletions(&client, &device)?;
            }
            println!("snapshot {volume}@{name} is deleted");
            Ok(())
        }
        Command::Export(export) => stream::export(&client, export),
        Command::Import(import) => control.print(&[stream::import(&client, import)?][..], lines),
        Command::Diff { from, to } => diff(&client, &from, to.as_ref(), control.json),
    }
}

/// Snapshots of one moment have one name.
fn group(snapshots: &[Snapshot], as_is: bool) -> anyhow::Result<TakeSnapshots> {
    let Some(first) = snapshots.first() else { bail!("no snapshot was named") };
    if let Some(other) = snapshots.iter().find(|other| other.name != first.name) {
        bail!(
            "snapshots of one moment have one name, and '{}' is not '{}'; write {}@{}, or take them \
             one by one",
            other.name,
            first.name,
            other.volume,
            first.name
        );
    }
    let volumes = snapshots.iter().map(|snapshot| snapshot.volume.clone()).collect();
    Ok(TakeSnapshots { volumes, name: first.name.clone(), as_is })
}

fn list(client: &Client, volume: Option<&str>) -> anyhow::Result<Vec<SnapshotInfo>> {
    if let Some(volume) = volume {
        return Ok(client.snapshots(volume)?);
    }
    let mut all = Vec::new();
    for volume in client.volumes()?.into_iter().filter(|volume| volume.domain.is_some()) {
        all.append(&mut client.snapshots(&volume.name)?);
    }
    Ok(all)
}

fn lines(snapshots: &[SnapshotInfo]) -> String {
    if snapshots.is_empty() {
        return "no snapshots; take one with `vrio snapshot create VOLUME@NAME`\n".to_owned();
    }
    let row = |snapshot: &SnapshotInfo| {
        let note = match (snapshot.as_is, snapshot.branches) {
            (true, _) => "as is: unflushed writes may be missing".to_owned(),
            (false, 0 | 1) => String::new(),
            (false, branches) => format!("{branches} branches"),
        };
        let SnapshotInfo { volume, name, .. } = snapshot;
        [format!("{volume}@{name}"), utc(snapshot.taken), snapshot.size.to_string(), note]
    };
    let heads = [
        ("SNAPSHOT", Side::Left),
        ("TAKEN (UTC)", Side::Left),
        ("SIZE", Side::Right),
        ("NOTE", Side::Left),
    ];
    table(heads, &snapshots.iter().map(row).collect::<Vec<_>>())
}

fn describe(snapshot: &SnapshotInfo) -> String {
    let SnapshotInfo { volume, name, taken, size, as_is, branches } = snapshot;
    let as_is = if *as_is { "yes: unflushed writes may be missing" } else { "no" };
    format!(
        "snapshot  {volume}@{name}\ntaken     {} UTC\nsize      {size}\nas is     {as_is}\nbranches  \
         {branches}\n",
        utc(*taken)
    )
}

/// A line for each range, as it comes: there may be many.
fn diff(client: &Client, from: &Snapshot, to: Option<&Snapshot>, json: bool) -> anyhow::Result<()> {
    if let Some(to) = to.filter(|to| to.volume != from.volume) {
        bail!(
            "'{}' and '{}' are different volumes; compare snapshots of one volume",
            from.volume,
            to.volume
        );
    }
    let to = to.map(|to| to.name.clone());
    let mut ask = AskDiff { from: from.name.clone(), to, start: 0 };
    let (mut changed, mut count) = (0, 0u64);
    loop {
        let part = client.diff(&from.volume, &ask)?;
        for range in &part.ranges {
            changed += range.bytes;
            count += 1;
            if json {
                println!("{}", serde_json::to_string(range)?);
            } else {
                println!("{}+{}", range.offset, range.bytes);
            }
        }
        match part.next {
            // The server's word, and still no reason to ask for ever.
            Some(next) if next > ask.start => ask.start = next,
            _ => break,
        }
    }
    eprintln!("{count} ranges, {}", Size(changed));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn a_snapshot_is_written_with_its_volume() {
        assert_eq!(snapshot("disk@a").volume, "disk");
        for bad in ["disk", "@a", "disk@", ""] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_group_has_one_name() {
        let taken = group(&[snapshot("a@x"), snapshot("b@x")], false).expect("one name");
        assert_eq!((taken.volumes, taken.name), (vec!["a".to_owned(), "b".to_owned()], "x".into()));
        let error = group(&[snapshot("a@x"), snapshot("b@y")], false).expect_err("two names");
        assert!(error.to_string().contains("write b@x"), "{error}");
    }
}
