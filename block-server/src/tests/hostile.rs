//! A device that holds what nobody wrote: rot, another program, somebody who
//! puts checksums right. The server says why it does not use it, or uses it
//! and gives nobody what is another's.

use std::collections::BTreeMap;

use block_core::BlockCount;
use block_core::unit::{BLOCK_SIZE, Extent, Pba};
use fuzz::{Metered, Script, Target};
use link::{Access, FrontId, Refused, VolumeName};

use super::crash::{drive, front, name, open};
use super::disk::{Medium, SimDisk};
use crate::attach::Claim;
use crate::attachments::{Attachment, Attachments};
use crate::attributes::Attributes;
use crate::catalog::Formatting;
use crate::layout::{
    COPY_BLOCKS, DATA_START, DeviceId, Found, Record, Superblock, UNIT_BLOCKS, VolumeId,
    VolumeRecord,
};
use crate::size::Size;
use crate::store::StoreError;

#[global_allocator]
static ALLOCATOR: Metered = Metered;

const UNITS: u64 = 8;
const BLOCKS: u64 = DATA_START.0 + UNITS * UNIT_BLOCKS;
const UNIT: u64 = UNIT_BLOCKS * BLOCK_SIZE as u64;

/// Commands in which a device is opened, also when each block is read alone
/// and written again.
const COMMANDS: usize = 20_000;

/// Above what a catalog and the simulated disk need.
const HEAP: usize = 64 << 20;

fn seal(block: &mut [u8; BLOCK_SIZE]) {
    let crc = block_core::crc32c(&[&block[4..]]);
    block[..4].copy_from_slice(&crc.to_le_bytes());
}

/// A device with three volumes, one of which somebody has.
fn furnished() -> Medium {
    let disk = SimDisk::new(Medium::default(), BLOCKS, 1);
    drive(&disk, usize::MAX, async {
        let store = open(&disk, Formatting::IfBlank).await.expect("a blank device");
        for text in ["one", "two", "three"] {
            let made = store.create(name(text), Size(2 * UNIT), false, None).await;
            made.expect("there is room");
        }
        let volume = store.volume(&name("two")).expect("made above");
        let access = Access::Write;
        let claim = Claim { front: front(1), incarnation: 1, access, settled: 0, had: false };
        store.attach(&volume, claim, None).await.expect("nobody has it");
    });
    disk.shut_down()
}

/// Bends some blocks of the catalog. A decision of zero leaves it as it is.
fn bend(medium: &mut Medium, script: &mut Script<'_>) {
    for _ in 0..script.below(6) {
        let place = if script.below(4) == 0 { script.below(1100) } else { script.below(5) };
        let copies = [&[0][..], &[COPY_BLOCKS], &[0, COPY_BLOCKS]][script.below(3)];
        let mut block = medium.block(place as u64);
        for _ in 0..=script.below(4) {
            let at = match script.below(3) {
                0 => script.below(80),
                1 => 160 + script.below(40),
                _ => script.below(BLOCK_SIZE - 8),
            };
            let number = script.number().to_le_bytes();
            let count = [1, 2, 4, 8][script.below(4)];
            block[at..at + count].copy_from_slice(&number[..count]);
        }
        if script.byte() < 0xe0 {
            seal(&mut block);
        }
        copies.iter().for_each(|copy| medium.set(copy + place as u64, block));
    }
}

/// Each block of the device belongs to at most one volume, and is there.
fn are_apart(volumes: &[VolumeRecord]) {
    let mut extents: Vec<Extent> = volumes.iter().flat_map(|one| one.extents.clone()).collect();
    extents.sort_by_key(|extent| extent.start.0);
    assert!(extents.first().is_none_or(|first| first.start >= DATA_START));
    assert!(extents.last().is_none_or(|last| last.end() <= Pba(BLOCKS)));
    assert!(extents.windows(2).all(|two| two[0].end() <= two[1].start), "{extents:?}");
    for volume in volumes {
        let room: u64 = volume.extents.iter().map(|extent| extent.count.0).sum();
        assert!(volume.blocks.0 <= room, "{volume:?}");
    }
}

/// What no restart changes, by the volumes' ids.
fn what_holds(volumes: &[VolumeRecord]) -> BTreeMap<[u8; 16], (VolumeName, u64, Vec<Extent>)> {
    let of = |one: &VolumeRecord| (one.name.clone(), one.blocks.0, one.extents.clone());
    volumes.iter().map(|one| (one.id.0, of(one))).collect()
}

/// Opens the device, makes a volume and attaches all that there are; what they
/// are then.
fn used(medium: Medium) -> (Result<Vec<VolumeRecord>, String>, Medium) {
    let disk = SimDisk::new(medium, BLOCKS, 1);
    let volumes = drive(&disk, COMMANDS, async {
        let store = open(&disk, Formatting::IfBlank).await.map_err(|error| error.to_string())?;
        match store.create(name("new"), Size(UNIT), false, None).await {
            // It is there, or there is no room for it.
            Ok(_) | Err(StoreError::Exists(_) | StoreError::NoSpace(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
        for volume in store.volumes() {
            let claim = Claim {
                front: front(1),
                incarnation: 2,
                access: Access::Write,
                settled: 0,
                had: false,
            };
            // Somebody else may have it, or so the record says.
            let _ = store.attach(&volume, claim, None).await;
        }
        Ok(store.volumes().iter().map(|volume| volume.record()).collect())
    });
    (volumes.expect("opening ends"), disk.shut_down())
}

#[test]
fn a_bent_catalog_is_refused_or_gives_nobody_what_is_anothers() {
    let furnished = furnished();
    Target::new("a_bent_catalog_is_refused_or_gives_nobody_what_is_anothers")
        .with([1, 1, 1, 2, 0, 0, 1, 0, 0])
        .cases(250)
        .may_allocate(HEAP)
        .run(|input| {
            let mut medium = furnished.clone();
            bend(&mut medium, &mut Script::new(input));
            let (volumes, left) = used(medium);
            let volumes = match volumes {
                Ok(volumes) => volumes,
                Err(why) => return why,
            };
            are_apart(&volumes);
            // It is the same after a restart.
            let (again, _) = used(left);
            let again = again.expect("it could be used before");
            assert_eq!(what_holds(&volumes), what_holds(&again));
            format!("{} volumes", volumes.len())
        });
}

/// A record whose order numbers are used up: nobody restarts a server so often,
/// so somebody else wrote it. Attaching the volume ended the server by an
/// overflow, or began the numbers anew.
#[test]
fn a_volume_whose_order_numbers_are_used_up_is_not_attached() {
    let mut medium = furnished();
    for at in [1, COPY_BLOCKS + 1] {
        let mut block = medium.block(at);
        block[72..76].copy_from_slice(&u32::MAX.to_le_bytes());
        seal(&mut block);
        medium.set(at, block);
    }
    let disk = SimDisk::new(medium, BLOCKS, 1);
    drive(&disk, usize::MAX, async {
        let store = open(&disk, Formatting::IfBlank).await.expect("nothing else is wrong");
        let volume = store.volume(&name("one")).expect("it is there");
        assert_eq!(volume.record().order_epoch, u32::MAX);
        let claim = Claim {
            front: front(1),
            incarnation: 1,
            access: Access::Write,
            settled: 0,
            had: false,
        };
        let given = store.attach(&volume, claim, None).await;
        assert_eq!(given.map(|_| ()), Err(Refused::Failed));
    });
}

/// What is believed means the same when it is written again.
#[test]
fn records_are_refused_or_mean_the_same_again() {
    let device = DeviceId([9; 16]);
    let attachment = Attachment { front: FrontId([1; 16]), incarnation: 2, verifier: 3 };
    let volume = VolumeRecord {
        id: VolumeId([4; 16]),
        name: name("disk-1"),
        blocks: BlockCount(300),
        read_only: false,
        generation: 5,
        order_epoch: 6,
        extents: vec![Extent { start: DATA_START, count: BlockCount(2 * UNIT_BLOCKS) }],
        attachments: Attachments::Writer(attachment),
        settings: vec![7; 24],
        provenance: Default::default(),
    };
    let attributes = Attributes::of(&volume).encode();
    let (mut record, mut superblock) = ([0; BLOCK_SIZE], [0; BLOCK_SIZE]);
    Record { sequence: 8, volume: Some(volume) }.encode(device, 0, &mut record);
    Superblock { ready: true, ..Superblock::begin(device, BlockCount(BLOCKS)) }
        .encode(&mut superblock);
    Target::new("records_are_refused_or_mean_the_same_again")
        .with([&[0], &record[..1220]].concat())
        .with([&[1], &superblock[..64]].concat())
        .with([&[2], &attributes[..]].concat())
        .cases(30_000)
        .most_bytes(BLOCK_SIZE + 1)
        .may_allocate(16 * BLOCK_SIZE)
        .run(|input| {
            let Some((&parser, bytes)) = input.split_first() else { return (3, false) };
            let mut block = [0; BLOCK_SIZE];
            let count = bytes.len().min(BLOCK_SIZE);
            block[..count].copy_from_slice(&bytes[..count]);
            seal(&mut block);
            let mut again = [0; BLOCK_SIZE];
            let believed = match parser % 3 {
                0 => Record::parse(&block, device, 0).is_some_and(|record| {
                    record.encode(device, 0, &mut again);
                    assert_eq!(Record::parse(&again, device, 0), Some(record));
                    true
                }),
                1 => match Superblock::parse(&block) {
                    Found::Valid(found) => {
                        found.encode(&mut again);
                        assert_eq!(Superblock::parse(&again), Found::Valid(found));
                        true
                    }
                    _ => false,
                },
                _ => Attributes::parse(bytes).is_some_and(|attributes| {
                    assert_eq!(Attributes::parse(&attributes.encode()), Some(attributes));
                    true
                }),
            };
            (parser % 3, believed)
        });
}
