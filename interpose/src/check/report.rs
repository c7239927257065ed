//! What a check has found.

use std::fmt;

use block_core::{LbaRange, Pba};

use crate::layout::Class;
use crate::layout::control::{SnapshotKey, VolumeId};
use crate::layout::superblock::Usage;
use crate::pages::What;

/// Faults that a report lists.
pub const MOST_FAULTS: usize = 1000;

/// Volumes and snapshots that are listed for one fault.
pub const MOST_TOUCHED: usize = 256;

/// What a check of a pool has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The checkpoint that was looked at.
    pub generation: u64,
    /// Pages of the pool that were opened.
    pub pages: u64,
    /// Guests' blocks that were opened, each time that one was.
    pub data: u64,
    /// Guests' blocks that nobody can open, because the keys of their domain
    /// were erased.
    pub erased: u64,
    /// References to guests' blocks that were compared with the counts.
    pub references: u64,
    /// What is wrong; at most [`MOST_FAULTS`].
    pub faults: Vec<Fault>,
    /// Faults beyond those.
    pub omitted: u64,
    /// What the blocks are used for, as the superblock says and as it is, if
    /// that differs.
    pub usage: Option<(Usage, Usage)>,
    /// What could not be looked at.
    pub incomplete: Option<Incomplete>,
}

/// Why a check has not looked at everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incomplete {
    /// The counts cannot be compared with the maps of the same moment.
    #[error(
        "more was freed meanwhile than could be held for the check, so counts were not compared: \
         check again when there is less to do, or at a higher rate"
    )]
    Overtaken,
    /// Below a damaged page nobody knows what is named.
    #[error("below damaged pages it is not known what is named, so counts were not compared")]
    Damaged,
}

/// Something that is wrong with one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which block of the device.
    pub pba: Pba,
    /// What it should be.
    pub class: Class,
    /// What is wrong.
    pub wrong: Wrong,
    /// What it touches that somebody wants; at most [`MOST_TOUCHED`].
    pub touches: Vec<Touched>,
}

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It cannot be had.
    #[error("{0}")]
    Lost(#[from] What),
    /// It opens, and its content has another hash than the pool says.
    #[error("has another content than its hash says")]
    OtherContent,
    /// What duplicates of it would be opened with does not open it.
    #[error("is sealed otherwise than duplicates of it would be opened")]
    OtherSeal,
    /// More pointers name it than are counted: it may be overwritten.
    #[error("is named {0} times more than it is counted, so it may be overwritten")]
    Uncounted(u64),
    /// Fewer pointers name it than are counted: it is never free again.
    #[error("is counted {0} times more than it is named, so its space is lost")]
    Unnamed(u64),
}

/// A part of a volume or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The head or the snapshot.
    pub key: SnapshotKey,
    /// Of which volume.
    pub volume: VolumeId,
    /// The volume's name; none when only its snapshots are left.
    pub name: String,
    /// The snapshot's name, if it is one.
    pub snapshot: Option<String>,
    /// Which of its blocks.
    pub range: LbaRange,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it looks at.
    pub phase: Phase,
    /// How much of it is done.
    pub done: u64,
    /// About how much it is.
    pub total: u64,
}

/// What a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Pages of the pool, and counts.
    Pages,
    /// Guests' blocks.
    Data,
}

impl Report {
    /// Whether everything was looked at and is as it should be.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.faults.is_empty()
            && self.omitted == 0
            && self.usage.is_none()
            && self.incomplete.is_none()
    }

    pub(super) fn add(&mut self, fault: Fault) {
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(fault);
        } else {
            self.omitted += 1;
        }
    }
}

impl Fault {
    /// Adds what it touches; ranges that meet become one.
    pub(super) fn touch(&mut self, more: impl IntoIterator<Item = Touched>) {
        for touched in more {
            let (start, count) = (touched.range.start, touched.range.count.0);
            let meets = |known: &Touched| known.key == touched.key && known.range.end() == start;
            match self.touches.iter().position(meets) {
                Some(at) => self.touches[at].range.count.0 += count,
                None if self.touches.len() < MOST_TOUCHED => self.touches.push(touched),
                None => {}
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.class {
            Class::Data => "a guest's block",
            Class::Map => "a page of a map",
            Class::Seals => "a page of seals",
            Class::Catalog => "a page of the catalog",
            Class::Dead => "a page of a dead list",
            Class::Counts => "a page of counts",
            Class::Directory => "a page of the directory of counts",
            Class::Journal => "a block of the journal",
            Class::Superblock => "a superblock",
        };
        write!(f, "block {} ({what}) {}", self.pba.0, self.wrong)?;
        for (number, touched) in self.touches.iter().enumerate() {
            write!(f, "{}{touched}", if number == 0 { ": " } else { ", " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Touched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            None => write!(f, "volume {}", self.name)?,
            Some(snapshot) => write!(f, "snapshot {}@{snapshot}", self.name)?,
        }
        match self.range.count.0 {
            1 => write!(f, " block {}", self.range.start.0),
            _ => write!(f, " blocks {}..{}", self.range.start.0, self.range.end().0),
        }
    }
}
