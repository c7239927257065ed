//! Snapshots that go from one pool to another as sealed streams: whole, in
//! parts, cut off, changed on the way.

mod disk;
mod world;

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use block_core::{BLOCK_SIZE, Blocks, Lba, LbaRange};
use interpose::layout::provenance::{Coming, Provenance};
use interpose::layout::stream::{Body, HEADER_BYTES};
use interpose::pool::{Begun, ImportError, PoolError, SnapshotKey, Span, VolumeId};
use interpose::stream::{Fault, StreamReader};
use interpose::vault::stream::StreamKey;
use interpose::vault::{Cost, NewWay, Secret};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use world::{World, range};

const BLOCKS: u64 = 700;

/// Parts that were begun: each draws other numbers.
static PARTS: AtomicU64 = AtomicU64::new(0);

fn passphrase() -> Secret {
    Secret::passphrase(b"of the stream".to_vec().into())
}

/// A whole part from a block on: its header and its frames.
fn export(world: &mut World, span: Span, from: Lba) -> Vec<Vec<u8>> {
    let chance = world::chance(100 + PARTS.fetch_add(1, Ordering::Relaxed));
    let way = NewWay::new("stream", &passphrase(), Cost::LEAST, &chance).expect("a way");
    let (mut key, header) = StreamKey::create(&way, &chance);
    let mut seal = |body: Body<'_>| {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        key.seal(&bytes)
    };
    let pool = Rc::clone(&world.pool);
    let manifest = world.run(pool.manifest(span, from)).expect("there");
    let mut frames = vec![header.to_vec(), seal(Body::Manifest(manifest))];
    let mut next = Some(from);
    while let Some(at) = next {
        let buffer = world.buffers.take().expect("a buffer");
        let exported = world.run(pool.export(span, at, buffer)).expect("goes on");
        assert!(exported.next.is_none_or(|next| next > at), "it goes forward");
        assert!(exported.pieces.len() < 600, "an answer is bounded");
        frames.extend(exported.pieces.iter().map(|piece| seal(piece.body())));
        next = exported.next;
    }
    frames.push(seal(Body::End));
    frames
}

const fn whole(snapshot: SnapshotKey) -> Span {
    Span { snapshot, base: None }
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Stream(Fault),
    Pool(ImportError),
}

/// A volume that takes streams, as a server has it: what is kept with it
/// survives a crash as the pool's attributes do.
struct Copy {
    id: Option<VolumeId>,
    provenance: Provenance,
}

impl Copy {
    const fn none() -> Self {
        Self { id: None, provenance: Provenance { held: None, coming: None } }
    }

    /// Takes a stream to its end, in pieces of odd sizes; or stops, flushed,
    /// after some bytes.
    fn import(
        &mut self,
        world: &mut World,
        bytes: &[u8],
        cut: Option<usize>,
    ) -> Result<(), Refused> {
        let mut reader = StreamReader::new(passphrase());
        let mut position = Lba(0);
        for piece in bytes[..cut.unwrap_or(bytes.len())].chunks(10_007) {
            reader.push(piece);
            while let Some(body) =
                reader.next_body().map_err(|error| Refused::Stream(error.fault))?
            {
                let (start, content) = match body {
                    Body::Manifest(manifest) => {
                        let begun = self.begin(world, &manifest).map_err(Refused::Pool)?;
                        self.provenance = begun.provenance;
                        position = begun.position;
                        continue;
                    }
                    Body::End => continue,
                    Body::Blocks { start, content } => (start, Ok(content)),
                    Body::Holes { start, count } => (start, Err(count)),
                };
                if start < position {
                    continue;
                }
                let volume = world.pool.volume("copy").expect("there");
                match content {
                    Ok(content) => world.write(&volume, start.0, content),
                    Err(count) => {
                        world.run(volume.zero(LbaRange { start, count }, true)).expect("zeroed");
                    }
                }
            }
        }
        if cut.is_some() {
            let Some((_, position)) = reader.sound() else { return Ok(()) };
            let volume = world.pool.volume("copy").expect("there");
            world.run(volume.flush()).expect("flushed");
            let coming = self.provenance.coming.as_mut().expect("begun");
            coming.position = coming.position.max(position);
            return Ok(());
        }
        reader.finish().map_err(|error| Refused::Stream(error.fault))?;
        let manifest = reader.manifest().expect("has come");
        let coming = self.provenance.coming.expect("begun");
        let (pool, id) = (Rc::clone(&world.pool), self.id.expect("begun"));
        let ended = world.run(pool.end_import(id, &coming, &manifest.snapshot, manifest.as_is));
        self.provenance = ended.map_err(Refused::Pool)?;
        Ok(())
    }

    fn begin(
        &mut self,
        world: &mut World,
        manifest: &interpose::layout::stream::Manifest,
    ) -> Result<Begun, ImportError> {
        let pool = Rc::clone(&world.pool);
        if let Some(id) = self.id {
            let name = &manifest.snapshot;
            return world.run(pool.begin_import(id, self.provenance, manifest, name));
        }
        let begun = Begun::new(manifest)?;
        let (id, _) = world.volume("copy", manifest.blocks.0);
        self.id = Some(id);
        Ok(begun)
    }
}

/// A volume with data, zeroes, duplicates and holes, and a snapshot of it.
fn source(seed: u64) -> (World, SnapshotKey, Vec<u8>) {
    let mut world = World::new(seed);
    let (id, volume) = world.volume("disk", BLOCKS);
    world.fill(&volume, 0, 150, 1);
    world.fill(&volume, 300, 300, 1);
    world.write(&volume, 320, &vec![0; 10 * BLOCK_SIZE]);
    world.fill(&volume, 690, 10, 5000);
    let snapshot = world.snapshot(id, "first");
    let content = world.read(&volume, 0, BLOCKS);
    // What comes later is not in it.
    world.fill(&volume, 100, 60, 7000);
    (world, snapshot, content)
}

/// An image goes to another pool and what changed since follows, also where it
/// became zero; the copy is the same and has the snapshots.
#[test]
fn a_volume_goes_to_another_pool_whole_and_then_what_changed() {
    let (mut here, first, content) = source(1);
    let mut there = World::new(50);
    let mut copy = Copy::none();
    let stream = export(&mut here, whole(first), Lba(0)).concat();
    assert!(stream.len() < 460 * BLOCK_SIZE, "{} bytes for 450 blocks", stream.len());
    copy.import(&mut there, &stream, None).expect("imported");
    let volume = there.pool.volume("copy").expect("there");
    assert!(there.read(&volume, 0, BLOCKS) == content);
    let held = copy.provenance.held.map(|(_, key)| key);
    assert_eq!(held, there.pool.find_snapshot(volume.id(), "first").ok());

    let disk = here.pool.volume("disk").expect("there");
    here.run(disk.zero(range(0, 90), true)).expect("zeroed");
    here.fill(&disk, 500, 7, 9000);
    let second = here.snapshot(disk.id(), "second");
    let content = here.read(&disk, 0, BLOCKS);
    let since = Span { snapshot: second, base: Some(first) };
    let stream = export(&mut here, since, Lba(0)).concat();
    assert!(stream.len() < 70 * BLOCK_SIZE, "{} bytes for 67 blocks", stream.len());
    let refused = Copy::none().import(&mut there, &stream, None);
    assert_eq!(refused, Err(Refused::Pool(ImportError::NotWhole)));
    copy.import(&mut there, &stream, None).expect("imported");
    assert!(there.read(&volume, 0, BLOCKS) == content);
    assert_eq!(there.pool.snapshots(volume.id()).len(), 2);
    // Not twice, and not on what somebody wrote to.
    let exists = PoolError::Exists { what: "snapshot", name: "second".to_owned() };
    let again = copy.import(&mut there, &stream, None);
    assert_eq!(again, Err(Refused::Pool(ImportError::Pool(exists))));
    let third = here.snapshot(disk.id(), "third");
    let since = Span { snapshot: third, base: Some(second) };
    let next = export(&mut here, since, Lba(0)).concat();
    there.fill(&volume, 3, 1, 1_000_000);
    let changed = Err(Refused::Pool(ImportError::Changed("second".to_owned())));
    assert_eq!(copy.import(&mut there, &next, None), changed);
    let far = Span { snapshot: third, base: Some(first) };
    let far = export(&mut here, far, Lba(0)).concat();
    let other = copy.import(&mut there, &far, None);
    assert_eq!(other, Err(Refused::Pool(ImportError::OtherBase)));
    let clean = there.run(Rc::clone(&there.pool).check(&Default::default(), &|_| {}));
    assert!(clean.expect("looks").is_clean());
}

/// What changed can also go back to the volume where it comes from, if that
/// was restored.
#[test]
fn what_changed_goes_onto_the_volume_itself_that_was_restored() {
    let (mut here, first, _) = source(2);
    let disk = here.pool.volume("disk").expect("there");
    let second = here.snapshot(disk.id(), "second");
    let content = here.read(&disk, 0, BLOCKS);
    let stream = export(&mut here, Span { snapshot: second, base: Some(first) }, Lba(0)).concat();
    let pool = Rc::clone(&here.pool);
    here.run(pool.delete_snapshot(second)).expect("deleted");
    let mut copy = Copy { id: Some(disk.id()), ..Copy::none() };
    let changed = Err(Refused::Pool(ImportError::Changed("first".to_owned())));
    assert_eq!(copy.import(&mut here, &stream, None), changed);
    here.run(pool.restore(disk.id(), first, Vec::new())).expect("restored");
    let mut reader = StreamReader::new(passphrase());
    reader.push(&stream);
    let Ok(Some(Body::Manifest(manifest))) = reader.next_body() else { panic!("no manifest") };
    let begun = copy.begin(&mut here, &manifest).expect("fits");
    assert_eq!(begun.position, Lba(0));
    while let Some(body) = reader.next_body().expect("sound") {
        match body {
            Body::Blocks { start, content } => here.write(&disk, start.0, content),
            Body::Holes { start, count } => {
                here.run(disk.zero(LbaRange { start, count }, true)).expect("zeroed");
            }
            Body::Manifest(_) | Body::End => {}
        }
    }
    reader.finish().expect("all");
    assert!(here.read(&disk, 0, BLOCKS) == content);
}

/// A snapshot that was deleted is named, not called damaged.
#[test]
fn a_snapshot_that_is_gone_is_not_exported() {
    let (mut here, first, _) = source(3);
    let pool = Rc::clone(&here.pool);
    here.run(pool.delete_snapshot(first)).expect("deleted");
    let buffer = here.buffers.take().expect("a buffer");
    let outcome = here.run(pool.export(whole(first), Lba(0), buffer));
    let error = outcome.expect_err("gone");
    assert!(error.to_string().contains("snapshot"), "{error}");
}

/// Long runs that became zero cost one piece, not one for each block.
#[test]
fn a_long_run_of_zeroes_is_one_piece() {
    let mut here = World::new(4);
    let (id, volume) = here.volume("disk", 3000);
    for at in (0..3000).step_by(500) {
        here.write(&volume, at, &world::unique(7).repeat(500));
    }
    let full = here.snapshot(id, "full");
    here.run(volume.zero(range(10, 2900), true)).expect("zeroed");
    let empty = here.snapshot(id, "empty");
    let frames = export(&mut here, Span { snapshot: empty, base: Some(full) }, Lba(0));
    assert_eq!(frames.len(), 4, "a header, a manifest, a run, the end");
    assert!(frames[2].len() < 100);
}

/// The importing server dies again and again, each time after some more bytes;
/// each part begins where the last durable position was, and has a key of its
/// own. Parts in one file are read as one stream.
#[test]
fn an_import_that_is_cut_off_goes_on_where_it_was_durable() {
    for seed in 0..5 {
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut here, first, content) = source(seed + 10);
        let mut there = World::new(seed + 60);
        let mut copy = Copy::none();
        // What whoever exports has in a file, and what is sound of it.
        let (mut file, mut headers) = (Vec::new(), Vec::new());
        let mut from = Lba(0);
        for part in 0..4 {
            let frames = export(&mut here, whole(first), from);
            assert!(!headers.contains(&frames[0]), "a key came twice");
            headers.push(frames[0].clone());
            let more = frames.concat();
            let least = HEADER_BYTES + frames[1].len() + 30;
            let cut = if part == 3 { more.len() } else { random.random_range(least..more.len()) };
            file.extend_from_slice(&more[..cut]);
            if part < 3 {
                copy.import(&mut there, &file, Some(file.len())).expect("so far");
                assert!(there.pool.snapshots(copy.id.expect("begun")).is_empty());
                there = there.crash(seed + 70);
            }
            let mut reader = StreamReader::new(passphrase());
            reader.push(&file);
            while reader.next_body().expect("sound").is_some() {}
            let (sound, position) = reader.sound().expect("a manifest");
            assert_eq!(reader.finish().is_err(), part < 3, "seed {seed}");
            file.truncate(sound as usize);
            from = position;
        }
        copy.import(&mut there, &file, None).expect("imported");
        let volume = there.pool.volume("copy").expect("there");
        assert!(there.read(&volume, 0, BLOCKS) == content, "seed {seed}");
        assert_eq!(copy.provenance.coming, None);
    }
}

/// The server dies between taking the snapshot and saying so: the import ends
/// as that one. A snapshot that was there before is not taken for it.
#[test]
fn an_end_that_was_not_said_is_found() {
    let (mut here, first, _) = source(20);
    let mut there = World::new(90);
    let mut copy = Copy::none();
    let stream = export(&mut here, whole(first), Lba(0)).concat();
    copy.import(&mut there, &stream, None).expect("imported");
    let disk = here.pool.volume("disk").expect("there");
    let second = here.snapshot(disk.id(), "second");
    let since = Span { snapshot: second, base: Some(first) };
    let stream = export(&mut here, since, Lba(0)).concat();
    copy.import(&mut there, &stream, Some(stream.len())).expect("all but the end");
    let before = copy.provenance;
    copy.import(&mut there, &stream, None).expect("imported");
    let after = std::mem::replace(&mut copy.provenance, before);
    copy.import(&mut there, &stream, None).expect("ended again");
    assert_eq!(copy.provenance, after);
    let (pool, id) = (Rc::clone(&there.pool), copy.id.expect("there"));
    let coming = before.coming.expect("was under way");
    let refused = there.run(pool.end_import(id, &coming, "first", false));
    assert!(matches!(refused, Err(ImportError::Pool(PoolError::Exists { .. }))), "{refused:?}");
}

/// A part that begins behind what is there would leave a gap that nobody sees;
/// one of another snapshot would mix two.
#[test]
fn a_gap_and_another_stream_are_refused() {
    let (mut here, first, _) = source(30);
    let mut there = World::new(80);
    let mut copy = Copy::none();
    let frames = export(&mut here, whole(first), Lba(0));
    let begun = frames[..4].concat();
    copy.import(&mut there, &begun, Some(begun.len())).expect("so far");
    let Coming { position, .. } = copy.provenance.coming.expect("under way");
    let gap = export(&mut here, whole(first), Lba(position.0 + 1)).concat();
    let (from, position) = (position.0 + 1, position.0);
    let refused = copy.import(&mut there, &[begun.clone(), gap].concat(), None);
    assert_eq!(refused, Err(Refused::Stream(Fault::Gap { from, position })));
    let goes_on = export(&mut here, whole(first), Lba(position)).concat();
    let refused = copy.import(&mut there, &goes_on, None);
    assert_eq!(refused, Err(Refused::Stream(Fault::Gap { from: position, position: 0 })));

    let disk = here.pool.volume("disk").expect("there");
    let other = here.snapshot(disk.id(), "other");
    let other = export(&mut here, whole(other), Lba(0)).concat();
    let refused = copy.import(&mut there, &other, None);
    assert_eq!(refused, Err(Refused::Pool(ImportError::OtherStream)));
    let refused = copy.import(&mut there, &[begun, other].concat(), None);
    assert_eq!(refused, Err(Refused::Stream(Fault::OtherSnapshot)));
}

/// Whoever can write a stream knows its secret, and may still be anybody.
#[test]
fn blocks_that_go_back_or_lie_outside_are_refused() {
    let (mut here, stream) = small();
    let manifest = {
        let mut reader = StreamReader::new(passphrase());
        reader.push(&stream);
        reader.next_body().expect("sound");
        reader.manifest().expect("has come").clone()
    };
    let content = vec![1; 2 * BLOCK_SIZE];
    let blocks = |start| Body::Blocks { start: Lba(start), content: &content };
    let holes = |start, count| {
        let count = block_core::BlockCount(count);
        Body::Holes { start: Lba(start), count }
    };
    let begin = || Body::Manifest(manifest.clone());
    for bodies in [
        vec![blocks(0)],
        vec![Body::End],
        vec![begin(), begin()],
        vec![begin(), blocks(39)],
        vec![begin(), blocks(5), blocks(6)],
        vec![begin(), holes(u64::MAX, 2)],
        vec![begin(), holes(40, 1)],
    ] {
        let chance = world::chance(5);
        let way = NewWay::new("stream", &passphrase(), Cost::LEAST, &chance).expect("a way");
        let (mut key, header) = StreamKey::create(&way, &chance);
        let mut stream = header.to_vec();
        for body in &bodies {
            let mut bytes = Vec::new();
            body.encode(&mut bytes);
            stream.extend(key.seal(&bytes));
        }
        let outcome = Copy::none().import(&mut here, &stream, None);
        assert_eq!(outcome, Err(Refused::Stream(Fault::Malformed)), "{bodies:?}");
        if let Some(copy) = here.pool.volume("copy") {
            let pool = Rc::clone(&here.pool);
            here.run(pool.delete_volume(copy.id())).expect("deleted");
        }
    }
}

fn small() -> (World, Vec<u8>) {
    let mut here = World::new(40);
    let (id, volume) = here.volume("disk", 40);
    here.fill(&volume, 3, 2, 1);
    here.fill(&volume, 20, 1, 9);
    let snapshot = here.snapshot(id, "one");
    let stream = export(&mut here, whole(snapshot), Lba(0)).concat();
    (here, stream)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever becomes of a stream on its way, nothing of it is accepted that
    /// was not exported, and the end is not believed before it comes.
    #[test]
    fn a_stream_that_was_changed_is_not_accepted(
        at in 0.0..1.0f64, bit in 0u8..8, how in 0u8..3, more: [u8; 9],
    ) {
        let (mut world, mut stream) = small();
        let at = (stream.len() as f64 * at) as usize;
        // What the passphrase costs is bound too, but believed first: a large
        // cost would only make the test slow.
        prop_assume!(!(16..28).contains(&at));
        match how {
            0 => stream[at] ^= 1 << bit,
            1 => stream.truncate(at),
            _ => drop(stream.splice(at..at, more)),
        }
        prop_assert!(Copy::none().import(&mut world, &stream, None).is_err());
        if let Some(copy) = world.pool.volume("copy") {
            prop_assert!(world.pool.snapshots(copy.id()).is_empty());
        }
    }
}
