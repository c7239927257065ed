//! `vrio volume`: what the control socket of a server is asked.

mod hooks;

use block_server::Size;
use block_server::api::{
    AccessInfo, CreateVolume, DeleteVolume, DetachVolume, ResizeVolume, VolumeInfo,
};
use clap::{Args, Subcommand};
use hooks::Setting;

use crate::control::Control;
use crate::table::{Side, table};

/// Create, list, resize and delete volumes: run this on the IOhost
#[derive(Debug, Args)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    control: Control,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a volume, which reads as zero
    Create {
        /// 1 to 63 letters, digits, '.', '_' or '-'
        name: String,
        /// For example 512M, 20G or 1.5T
        #[arg(long)]
        size: Size,
        /// The device to put it on; may be left out if there is one
        #[arg(long)]
        device: Option<String>,
        /// Nobody may change it
        #[arg(long)]
        read_only: bool,
        /// In a pool: share a key and equal blocks with the volumes of this domain only
        #[arg(long)]
        domain: Option<String>,
    },
    /// Show all volumes, a line each
    List,
    /// Show one volume and who has it
    Show {
        /// Which one
        name: String,
    },
    /// Give a volume another size; new space reads as zero
    Resize {
        /// Which one
        name: String,
        /// For example 512M, 20G or 1.5T
        #[arg(long)]
        size: Size,
        /// Cut off what lies past a smaller size
        #[arg(long)]
        shrink: bool,
    },
    /// Limit or record a volume's requests, at once and while it is in use
    Set {
        /// Which one
        name: String,
        /// throttle.iops=500, throttle.bytes=10M (a second), throttle.burst=2s,
        /// record=FILE; each also =off
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<Setting>,
    },
    /// Delete a volume that no front has attached
    Delete {
        /// Which one
        name: String,
        /// Its snapshots go with it
        #[arg(long)]
        snapshots: bool,
    },
    /// Take a volume away from a front that will not come back
    Detach {
        /// Which one
        name: String,
        /// Only from this front (its id; see `show`)
        #[arg(long)]
        front: Option<String>,
        /// Do it although the front may still use it; what it has not flushed is lost
        #[arg(long)]
        force: bool,
    },
}

/// Asks the server and prints its answer.
pub(crate) fn run(args: VolumeArgs) -> anyhow::Result<()> {
    let client = args.control.client();
    let volume = match args.command {
        Command::Create { name, size, device, read_only, domain } => {
            client.create(&CreateVolume { name, size, device, read_only, domain })?
        }
        Command::List => return args.control.print(&client.volumes()?[..], lines),
        Command::Show { name } => client.volume(&name)?,
        Command::Resize { name, size, shrink } => {
            client.resize(&name, &ResizeVolume { size, shrink })?
        }
        Command::Set { name, settings } => client.set_hooks(&name, &hooks::asked(&settings)?)?,
        Command::Delete { name, snapshots } => {
            client.delete(&name, &DeleteVolume { snapshots })?;
            println!("volume {name} is deleted");
            return Ok(());
        }
        Command::Detach { name, front, force } => {
            client.detach(&name, &DetachVolume { front, force })?
        }
    };
    args.control.print(&volume, describe)
}

fn lines(volumes: &[VolumeInfo]) -> String {
    if volumes.is_empty() {
        return "no volumes; make one with `vrio volume create NAME --size SIZE`\n".to_owned();
    }
    let heads = [
        ("NAME", Side::Left),
        ("SIZE", Side::Right),
        ("DEVICE", Side::Left),
        ("DOMAIN", Side::Left),
        ("ACCESS", Side::Left),
        ("ATTACHED", Side::Left),
    ];
    let row = |volume: &VolumeInfo| {
        let access = if volume.read_only { "read-only" } else { "read-write" };
        [
            volume.name.clone(),
            volume.size.to_string(),
            volume.device.clone(),
            volume.domain.clone().unwrap_or_else(|| "-".to_owned()),
            access.to_owned(),
            attached(volume),
        ]
    };
    table(heads, &volumes.iter().map(row).collect::<Vec<_>>())
}

fn attached(volume: &VolumeInfo) -> String {
    if volume.importing {
        return "importing".to_owned();
    }
    match &volume.attachments[..] {
        [] => "no".to_owned(),
        [one] if one.access == AccessInfo::Write => format!("by {}", one.front),
        readers => format!("by {} readers", readers.len()),
    }
}

fn describe(volume: &VolumeInfo) -> String {
    let VolumeInfo { name, id, device, size, read_only, generation, attachments, .. } = volume;
    let place = match (&volume.domain, volume.extents) {
        (Some(domain), _) => format!("a pool, domain {domain}"),
        (None, 1) => "in 1 piece".to_owned(),
        (None, pieces) => format!("in {pieces} pieces"),
    };
    let mut text = format!(
        "name        {name}\nid          {id}\nsize        {size}\ndevice      {device}, {place}\n\
         access      {}\ngeneration  {generation}\n",
        if *read_only { "read-only" } else { "read-write" },
    );
    if volume.importing {
        text += "attached    no: it is being imported, and has come in part only\n";
    } else if attachments.is_empty() {
        text += "attached    no\n";
    }
    for one in attachments {
        let access = match one.access {
            AccessInfo::Read => "to read",
            AccessInfo::Write => "to write",
        };
        let connected = match &one.key {
            Some(key) => format!("connected, sealed by {key}"),
            None if one.connected => "connected, in the clear".to_owned(),
            None => "away".to_owned(),
        };
        text += &format!("attached    {access} by front {} ({connected})\n", one.front);
    }
    text + &hooks::describe(&volume.hooks)
}

#[cfg(test)]
mod tests {
    use block_server::api::{AttachmentInfo, HooksInfo};

    use super::*;

    fn volume(name: &str, attachments: Vec<AttachmentInfo>) -> VolumeInfo {
        VolumeInfo {
            name: name.to_owned(),
            id: "2b0f".to_owned(),
            device: "disk0".to_owned(),
            size: Size(20 << 30),
            read_only: false,
            generation: 3,
            extents: 1,
            importing: false,
            domain: None,
            attachments,
            hooks: HooksInfo::default(),
        }
    }

    #[test]
    fn columns_line_up_whatever_the_names() {
        let writer = AttachmentInfo {
            front: "9f".to_owned(),
            access: AccessInfo::Write,
            connected: false,
            key: None,
        };
        let text = lines(&[volume("a", vec![]), volume("a-long-name", vec![writer.clone()])]);
        let places: Vec<_> =
            text.lines().map(|line| line.find("disk0").or(line.find("DEVICE"))).collect();
        assert_eq!(places[0], places[1]);
        assert_eq!(places[1], places[2]);
        assert!(text.ends_with("by 9f\n"));
        assert!(describe(&volume("a", vec![writer])).contains("to write by front 9f (away)"));
    }
}
