//! What earlier starts of this front had answered: is it all there?

use anyhow::bail;
use block_front::DiskSpec;
use link::wire::Wire;
use link::{Client, VolumeHandle, VolumeState};

use super::config::Disk;

/// Answers for the volumes that lack nothing. The disks of the others serve
/// only guests that start anew.
///
/// # Errors
/// A sentence, when a volume went away meanwhile or its disk makes no sense.
pub(super) fn settle<W: Wire>(
    client: &mut Client<W>,
    disks: &[Disk],
    volumes: &[VolumeHandle],
) -> anyhow::Result<Vec<DiskSpec>> {
    let mut specs = Vec::with_capacity(disks.len());
    for (disk, &volume) in disks.iter().zip(volumes) {
        let VolumeState::Attached(attached) = client.state(volume) else {
            bail!("volume {} went away before its disk was there", disk.volume);
        };
        let spec = super::disk_spec(disk, volume, &attached)?;
        if !spec.has_lost_writes() {
            client.settle(volume);
        }
        specs.push(spec);
    }
    Ok(specs)
}
