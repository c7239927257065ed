//! What earlier starts of this front had answered: is it all there?

use anyhow::bail;
use block_front::DiskSpec;
use link::wire::Wire;
use link::{Client, VolumeHandle, VolumeState};

use super::config::Disk;
use super::known::Known;

/// Answers for the volumes that lack nothing and are those that were served
/// last. The disks of the others serve only guests that start anew.
///
/// # Errors
/// A sentence, when a volume went away meanwhile, its disk makes no sense, or
/// what is served now cannot be written down.
pub(super) fn settle<W: Wire>(
    client: &mut Client<W>,
    known: &mut Known,
    disks: &[Disk],
    volumes: &[VolumeHandle],
) -> anyhow::Result<Vec<DiskSpec>> {
    let mut specs = Vec::with_capacity(disks.len());
    for (disk, &volume) in disks.iter().zip(volumes) {
        let VolumeState::Attached(attached) = client.state(volume) else {
            bail!("volume {} went away before its disk was there", disk.volume);
        };
        let breach = super::check_breach(disk, known.breach(disk, &attached));
        let spec = super::disk_spec(disk, volume, &attached, breach)?;
        if breach.is_none() {
            known.learn(disk, &attached)?;
            client.settle(volume);
        }
        specs.push(spec);
    }
    Ok(specs)
}
