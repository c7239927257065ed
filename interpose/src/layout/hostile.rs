//! Whatever a device or a stream says: each parser with bytes that somebody
//! bent. A seal vouches for most of them, but a stream's reader knows nothing
//! of who has sealed it, and a pool can be written by another program.

use block_core::{BLOCK_SIZE, BlockCount, Extent, Lba, LbaRange, Pba};
use fuzz::{Metered, Target};

use super::control::{Control, SnapshotKey, VolumeId};
use super::dead::{self, Dead};
use super::identity::{DomainId, Epoch, EraId, LineId, PoolId};
use super::node::{DeadList, NODE_BYTES, NodeRecord, Stage, VolumeRecord};
use super::pointer::{Kind, Pointer, Seal};
use super::provenance::{Coming, Provenance};
use super::record::Record;
use super::stream::{Body, Manifest, Origin, PLAIN_BYTES, Plain};
use super::superblock::{Superblock, Usage};
use crate::hooks::throttle::{LIMITS_BYTES, Limits};
use crate::radix::Tree;
use crate::space::layout::{Entry, Segment, SegmentRoot};

#[global_allocator]
static ALLOCATOR: Metered = Metered;

/// What is parsed, and what the check makes of it, is not much larger than
/// what was said: the longest input is a block.
const HEAP: usize = 32 * BLOCK_SIZE;

/// Names and lists in volatile sizes: what is said of a block at most.
type Block = [u8; BLOCK_SIZE];

/// The input as a block; what is missing is zero.
fn block_of(bytes: &[u8]) -> Box<Block> {
    let mut block = Box::new([0; BLOCK_SIZE]);
    let count = bytes.len().min(BLOCK_SIZE);
    block[..count].copy_from_slice(&bytes[..count]);
    block
}

fn record(bytes: &[u8]) -> bool {
    let Ok((record, rest)) = Record::decode(bytes) else { return false };
    assert!(record.bytes() + rest.len() <= bytes.len(), "what was read is not read again");
    let mut again = vec![0xff; record.bytes()];
    record.encode(&mut again);
    assert_eq!(Record::decode(&again), Ok((record, &[][..])));
    true
}

fn control(bytes: &[u8]) -> bool {
    let Ok(control) = Control::decode(bytes) else { return false };
    let mut again = vec![0xff; control.bytes()];
    assert_eq!(again.len(), bytes.len());
    control.encode(&mut again);
    assert_eq!(Control::decode(&again), Ok(control));
    true
}

fn superblock(bytes: &[u8]) -> bool {
    let Ok(superblock) = Superblock::decode(&block_of(bytes)[..]) else { return false };
    let mut again = block_of(&[]);
    superblock.encode(&mut again[..]);
    assert_eq!(Superblock::decode(&again[..]), Ok(superblock));
    true
}

fn volume(bytes: &[u8]) -> bool {
    let Ok(volume) = VolumeRecord::decode(&block_of(bytes)[..]) else { return false };
    let Some(volume) = volume else { return true };
    let mut again = block_of(&[0xff; BLOCK_SIZE]);
    volume.encode(&mut again[..]);
    assert_eq!(VolumeRecord::decode(&again[..]), Ok(Some(volume)));
    true
}

fn node(bytes: &[u8]) -> bool {
    let block = block_of(bytes);
    let node = block.first_chunk::<NODE_BYTES>().expect("a block has that");
    let Ok(node) = NodeRecord::decode(node) else { return false };
    let again = node.as_ref().map(NodeRecord::encode);
    assert_eq!(again.map_or(Ok(None), |again| NodeRecord::decode(&again)), Ok(node));
    true
}

fn dead_list(bytes: &[u8]) -> bool {
    let mut entries = Vec::new();
    let Ok(older) = dead::decode(&block_of(bytes)[..], &mut entries) else { return false };
    assert!((1..=dead::ENTRIES).contains(&entries.len()));
    let (mut again, mut said) = (block_of(&[]), Vec::new());
    dead::encode(&mut again[..], &older, &entries);
    assert_eq!(dead::decode(&again[..], &mut said), Ok(older));
    assert_eq!(said, entries);
    true
}

fn provenance(bytes: &[u8]) -> bool {
    let Ok(provenance) = Provenance::decode(bytes) else { return false };
    assert_eq!(Provenance::decode(&provenance.encode()), Ok(provenance));
    true
}

fn body(bytes: &[u8]) -> bool {
    let Ok(body) = Body::decode(bytes) else { return false };
    let mut again = Vec::new();
    body.encode(&mut again);
    assert_eq!(Body::decode(&again), Ok(body));
    true
}

fn plain(bytes: &[u8]) -> bool {
    let block = block_of(bytes);
    let plain = Plain::decode(block.first_chunk::<PLAIN_BYTES>().expect("a block has that"));
    let Ok(plain) = plain else { return false };
    assert_eq!(Plain::decode(&plain.encode()), Ok(plain));
    true
}

fn limits(bytes: &[u8]) -> bool {
    let block = block_of(bytes);
    let limits = Limits::decode(block.first_chunk::<LIMITS_BYTES>().expect("a block has that"));
    assert_eq!(Limits::decode(&Limits::encode(limits)), limits);
    limits.is_some()
}

const PARSERS: [fn(&[u8]) -> bool; 10] =
    [record, control, superblock, volume, node, dead_list, provenance, body, plain, limits];

fn pointer(kind: Kind) -> Pointer {
    let seal = Seal { tag: [1; 16], seq: 2, era: EraId(3) };
    Pointer { seal, pba: Pba(4), birth: Epoch(5), kind }
}

fn origin() -> Origin {
    let snapshot = SnapshotKey { line: LineId(1), epoch: Epoch(2) };
    Origin { pool: PoolId([3; 16]), snapshot, tag: [4; 16] }
}

fn controls() -> Vec<Control> {
    let (id, line, name) = (VolumeId([1; 16]), LineId(2), "disk-1".to_owned());
    let (snapshot, attributes) = (origin().snapshot, vec![7; 40]);
    vec![
        Control::Opened { era: EraId(1), cut: 2 },
        Control::Create {
            line,
            id,
            domain: DomainId(3),
            blocks: BlockCount(400),
            name: name.clone(),
            attributes: attributes.clone(),
        },
        Control::Resize { id, blocks: BlockCount(800), attributes: attributes.clone() },
        Control::Snapshot {
            epoch: Epoch(9),
            taken: 10,
            name: name.clone(),
            as_is: true,
            volumes: vec![id; 3],
        },
        Control::Clone { of: snapshot, line, id, name, attributes: attributes.clone() },
        Control::Restore { id, to: snapshot, line, attributes },
        Control::DeleteSnapshot { snapshot },
    ]
}

fn records() -> Vec<Record> {
    let (line, lba) = (LineId(1), Lba(2));
    let range = LbaRange { start: lba, count: BlockCount(30) };
    let (data, hash) = (pointer(Kind::Data), [9; 16]);
    let mut records = vec![
        Record::New { line, lba, pointer: data, hash },
        Record::Share { line, lba, pointer: data },
        Record::Hole { line, range },
    ];
    records.extend(controls().into_iter().map(Record::Control));
    records
}

fn bodies() -> Vec<Body<'static>> {
    let manifest = Manifest {
        from: Lba(0),
        blocks: BlockCount(100),
        taken: 1,
        as_is: false,
        source: origin(),
        base: Some(origin()),
        volume: "disk-1".to_owned(),
        snapshot: "monday".to_owned(),
    };
    let holes = Body::Holes { start: Lba(4), count: BlockCount(5) };
    let blocks = Body::Blocks { start: Lba(9), content: &[6; BLOCK_SIZE] };
    vec![Body::Manifest(manifest), blocks, holes, Body::End]
}

fn a_superblock() -> Superblock {
    let extent = Extent { start: Pba(0), count: BlockCount(0x1_0000) };
    let segment = Segment::new(extent, Pba(0x3000)).expect("a segment");
    let tree = Tree::new(pointer(Kind::Page), 2).expect("a tree");
    Superblock {
        blocks: extent.count,
        journal: Extent { start: Pba(1024), count: BlockCount(64) },
        from: 1,
        previous: [2; 16],
        mark: 3,
        epoch: Epoch(4),
        next_line: LineId(5),
        volumes: tree,
        nodes: tree,
        seals: tree,
        slots: (1, 1),
        usage: Usage::default(),
        segments: vec![SegmentRoot { segment, top: Entry::Untouched }],
    }
}

fn a_node() -> NodeRecord {
    let list = DeadList { newest: pointer(Kind::Page), entries: 7 };
    NodeRecord {
        key: origin().snapshot,
        parent: Some(origin().snapshot),
        domain: DomainId(1),
        volume: VolumeId([2; 16]),
        blocks: BlockCount(100),
        taken: 3,
        as_is: false,
        tree: Some((pointer(Kind::Page), 2)),
        dead: list,
        stage: Stage::Merging { work: list, target: Some(origin().snapshot) },
        name: "monday".to_owned(),
    }
}

/// Valid bytes, each with the parser that believes it.
fn valid() -> Vec<(u8, Vec<u8>)> {
    let mut valid = Vec::new();
    for record in records() {
        let mut bytes = vec![0; record.bytes()];
        record.encode(&mut bytes);
        valid.push((0, bytes));
    }
    for control in controls() {
        let mut bytes = vec![0; control.bytes()];
        control.encode(&mut bytes);
        valid.push((1, bytes));
    }
    let mut block = block_of(&[]);
    a_superblock().encode(&mut block[..]);
    valid.push((2, block[..400].to_vec()));
    let of_volume = VolumeRecord {
        id: VolumeId([1; 16]),
        domain: DomainId(2),
        blocks: BlockCount(100),
        line: LineId(3),
        name: "disk-1".to_owned(),
        attributes: vec![5; 40],
    };
    of_volume.encode(&mut block[..]);
    valid.push((3, block[..160].to_vec()));
    valid.push((4, a_node().encode().to_vec()));
    let entries = [1, 2, 3].map(|pba| Dead { pba: Pba(pba), birth: Epoch(4), is_page: pba == 2 });
    dead::encode(&mut block[..], &pointer(Kind::Page), &entries);
    valid.push((5, block[..100].to_vec()));
    let coming = Coming { source: origin(), base: None, position: Lba(5), since: Epoch(6) };
    let held = Some((origin(), origin().snapshot));
    valid.push((6, Provenance { held, coming: Some(coming) }.encode().to_vec()));
    for body in bodies() {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        valid.push((7, bytes));
    }
    valid.push((8, Plain { cost: Some([65_536, 3, 1]), salt: [1; 32] }.encode().to_vec()));
    let burst = [100u64, 1 << 20, 1_000_000_000].map(u64::to_le_bytes);
    valid.push((9, burst.as_flattened().to_vec()));
    valid
}

/// What is believed means the same when it is written again, and nothing that
/// a length or a count says makes more memory than there are bytes.
#[test]
fn bytes_are_refused_or_mean_the_same_again() {
    let mut target = Target::new("bytes_are_refused_or_mean_the_same_again")
        .cases(120_000)
        .most_bytes(BLOCK_SIZE + 64)
        .may_allocate(HEAP);
    for (parser, bytes) in valid() {
        assert!(PARSERS[usize::from(parser)](&bytes), "parser {parser} believes what is valid");
        target = target.with([&[parser], &bytes[..]].concat());
    }
    target.run(|input| {
        let Some((&parser, bytes)) = input.split_first() else { return (0, false) };
        let parser = usize::from(parser) % PARSERS.len();
        (parser, PARSERS[parser](bytes))
    });
}
