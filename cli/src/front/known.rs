//! Which volumes this front has served, and which of their lives: kept in its
//! state directory, so that a start of the front knows whether a volume is
//! still what its guest has seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, bail};
use block_front::Breach;
use block_server::whole_file;
use link::Attached;
use link::wire::address::Address;
use uuid::Uuid;

use super::config::Disk;

/// The file in the state directory: a line for each volume.
const FILE: &str = "volumes";

/// A volume's id and generation.
type Life = (Uuid, u64);

/// What the file says.
#[derive(Debug)]
pub(crate) struct Known {
    path: PathBuf,
    lives: BTreeMap<String, Life>,
}

impl Known {
    /// Reads the file; without one nothing is known.
    pub(crate) fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let path = state_dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            outcome => outcome.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let lives = parse(&text).with_context(|| {
            format!("{} is damaged; remove it when no guest is running", path.display())
        })?;
        Ok(Self { path, lives })
    }

    /// What came between the disk's volume and the guest that it had last.
    pub(crate) fn breach(&self, disk: &Disk, attached: &Attached) -> Option<Breach> {
        if self.is_other(disk, attached) {
            return Some(Breach::OtherVolume);
        }
        (attached.stored_verifier != attached.verifier).then_some(Breach::LostWrites)
    }

    /// Whether the disk's volume is another than the one that was served last,
    /// or in another life: restored, imported or taken away by force since.
    fn is_other(&self, disk: &Disk, attached: &Attached) -> bool {
        self.lives.get(&name(disk)).is_some_and(|known| *known != life(attached))
    }

    /// Writes down what is served now, durably, if it is news.
    pub(crate) fn learn(&mut self, disk: &Disk, attached: &Attached) -> anyhow::Result<()> {
        let life = life(attached);
        if self.lives.insert(name(disk), life) == Some(life) {
            return Ok(());
        }
        self.store().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn store(&self) -> io::Result<()> {
        let mut text = String::new();
        for (name, (id, generation)) in &self.lives {
            text += &format!("{name} {id} {generation}\n");
        }
        whole_file::replace(&self.path, text.as_bytes())
    }
}

/// Servers give names; volume names have no blanks.
fn name(disk: &Disk) -> String {
    // Files of earlier versions, which knew only UDP, stay readable.
    match &disk.server {
        Address::Udp(server) => format!("{server} {}", disk.volume),
        server => format!("{server} {}", disk.volume),
    }
}

fn life(attached: &Attached) -> Life {
    (Uuid::from_bytes(attached.volume_id), attached.generation)
}

fn parse(text: &str) -> anyhow::Result<BTreeMap<String, Life>> {
    let line = |line: &str| {
        let [server, volume, id, generation] = line.split(' ').collect::<Vec<_>>()[..] else {
            bail!("{line:?} does not have four parts");
        };
        Ok((format!("{server} {volume}"), (id.parse()?, generation.parse()?)))
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk {
            server: Address::Udp(([127, 0, 0, 1], 7700).into()),
            server_key: None,
            volume: link::VolumeName::new("a").expect("a name"),
            socket: "/tmp/a".into(),
            read_only: false,
            logical_block_size: 512,
            serial: None,
            queues: None,
            accept_loss: false,
        }
    }

    fn attached(id: u8, generation: u64) -> Attached {
        Attached {
            handle: link::VolumeHandle(0),
            volume_id: [id; 16],
            generation,
            verifier: 1,
            stored_verifier: 1,
            sectors: 8,
            read_only: false,
        }
    }

    /// A volume that was restored while its front was away looks the same to
    /// a front that has forgotten.
    #[test]
    fn another_life_of_a_volume_is_known_from_the_last_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut known = Known::open(dir.path()).expect("empty");
        assert!(!known.is_other(&disk(), &attached(1, 1)), "nothing is known");
        known.learn(&disk(), &attached(1, 1)).expect("written");
        let mut known = Known::open(dir.path()).expect("read");
        assert!(!known.is_other(&disk(), &attached(1, 1)));
        assert!(known.is_other(&disk(), &attached(1, 2)));
        assert!(known.is_other(&disk(), &attached(2, 1)));
        known.learn(&disk(), &attached(1, 2)).expect("written");
        let known = Known::open(dir.path()).expect("read");
        assert!(!known.is_other(&disk(), &attached(1, 2)));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["a b c\n", "1.2.3.4:5 a 1 x\n"] {
            fs::write(dir.path().join(FILE), text).expect("written");
            let error = Known::open(dir.path()).expect_err("refused");
            assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
        }
    }
}
