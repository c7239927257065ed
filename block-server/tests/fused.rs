//! A fused worker on a soft NVMe controller, from the guest's side.

mod support;

use block_core::{BlockError, Op, Time};
use std::sync::Arc;

use block_server::{Directory, Errand, LocalPath, Mailbox, WorkerIndex};
use link::{Access, AttachReply, AttachRequest, Part, Path, Refusal, Refused, Source, Token};
use nvme::{LbaSize, SoftNamespace};
use support::{
    DEVICE_BYTES, SoftPath, VecGuest, attach, create, errand, file_worker, front, io,
    memory_worker, name, place, worker_over,
};

fn turned(path: &mut SoftPath) -> impl FnMut() {
    || {
        path.turn(Time::ZERO, &mut VecGuest::default());
    }
}

/// The server and the first front start, on what a file holds.
fn start_on(file: &std::path::Path, incarnation: u64) -> (SoftPath, Arc<Mailbox>) {
    let (worker, mailbox) = file_worker(file);
    (LocalPath::over_nvme(worker, front(1), incarnation, 8), mailbox)
}

#[test]
fn data_and_the_attachment_are_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    let first = {
        let (worker, mailbox) = file_worker(&file);
        let mut path = LocalPath::over_nvme(worker, front(1), 1, 8);
        create(&mailbox, turned(&mut path), "vm", 8 << 20).expect("created");
        let attached = attach(&mut path, "vm", Access::Write).expect("free");
        assert_eq!(attached.sectors, 16_384);
        io(&mut path, attached.handle, Op::WriteThrough, 3, vec![7; 131_072]).expect("written");
        attached
    };
    {
        // The writer was killed: it has the volume until it says otherwise.
        let (worker, _) = file_worker(&file);
        let mut path = LocalPath::over_nvme(worker, front(2), 1, 8);
        let refused = attach(&mut path, "vm", Access::Read);
        assert_eq!(refused, Err(Refused::HasWriter(front(1))));
    }
    let (worker, _) = file_worker(&file);
    let mut path = LocalPath::over_nvme(worker, front(1), 1, 8);
    let again = attach(&mut path, "vm", Access::Write).expect("its own");
    assert_eq!(again.volume_id, first.volume_id);
    assert_eq!(again.generation, first.generation);
    assert_ne!(again.verifier, first.verifier, "the server is another one");
    let data = io(&mut path, again.handle, Op::Read, 0, vec![0xff; 132_096 - 512 * 2]);
    let data = data.expect("read");
    assert!(data[..1536].iter().all(|&byte| byte == 0));
    assert!(data[1536..].iter().all(|&byte| byte == 7));
    path.detach(again.handle).expect("stored");
    drop(path);
    let (worker, _) = file_worker(&file);
    let mut path = LocalPath::over_nvme(worker, front(2), 1, 8);
    attach(&mut path, "vm", Access::Write).expect("it was given back");
}

/// A front's answered writes may be gone with the server's memory. The server
/// remembers under which verifier they were all there, whoever dies and
/// however often, until the front says that they are there again.
#[test]
fn what_a_front_may_miss_is_remembered_until_it_has_settled() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    let start = |incarnation| start_on(&file, incarnation);
    let first = {
        let (mut path, mailbox) = start(1);
        create(&mailbox, turned(&mut path), "vm", 1 << 20).expect("created");
        let first = attach(&mut path, "vm", Access::Write).expect("free");
        assert_eq!(first.stored_verifier, first.verifier, "it has answered nothing yet");
        first.verifier
    };
    for incarnation in [2, 2, 3] {
        let (mut path, _mailbox) = start(incarnation);
        for _ in 0..2 {
            let again = attach(&mut path, "vm", Access::Write).expect("its own");
            assert_eq!(again.stored_verifier, first);
            assert_ne!(again.verifier, first);
        }
    }
    let settled = {
        let (mut path, _mailbox) = start(3);
        let AttachReply::Attached(now) = path.settle(AttachRequest::new(name("vm"), Access::Write))
        else {
            panic!("its own")
        };
        assert_eq!(now.stored_verifier, now.verifier);
        now.verifier
    };
    let (mut path, _mailbox) = start(4);
    let again = attach(&mut path, "vm", Access::Write).expect("its own");
    assert_eq!(again.stored_verifier, settled);
    path.detach(again.handle).expect("stored");
    let anew = attach(&mut path, "vm", Access::Write).expect("free");
    assert_eq!(anew.stored_verifier, anew.verifier, "who gave it back misses nothing");
}

/// The state directory of a front was copied and the server restarted: the
/// copy that started earlier must not take the volume from the one that runs.
#[test]
fn an_earlier_start_of_a_front_does_not_get_what_a_later_one_had() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    for (incarnation, refused) in [(7, None), (6, Some(Refused::Stale)), (7, None), (8, None)] {
        let (worker, mailbox) = file_worker(&file);
        let mut path = LocalPath::over_nvme(worker, front(1), incarnation, 8);
        // It is there from the second time on.
        let _ = create(&mailbox, turned(&mut path), "vm", 1 << 20);
        assert_eq!(attach(&mut path, "vm", Access::Write).err(), refused, "{incarnation}");
    }
}

/// A front was thought dead and went on. Meanwhile a later start of it had given
/// the volume back, and the server had been started anew: nothing was stored of
/// either, and the old one was let in, to send again what it had kept over what
/// was written since. Now a front says that it has had the volume, and then
/// must be the last one that had it.
#[test]
fn who_has_had_a_volume_gets_it_again_only_as_the_last_that_had_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    let start = |incarnation| start_on(&file, incarnation);
    let again = |path: &mut SoftPath, access| {
        path.attach(AttachRequest { had: true, ..AttachRequest::new(name("vm"), access) })
    };
    let is_refused = |reply| reply == AttachReply::Refused(Refused::NotYours);
    {
        let (mut path, mailbox) = start(7);
        create(&mailbox, turned(&mut path), "vm", 1 << 20).expect("created");
        attach(&mut path, "vm", Access::Write).expect("free");
    }
    {
        let (mut path, _mailbox) = start(7);
        let same = again(&mut path, Access::Write);
        assert!(matches!(same, AttachReply::Attached(_)), "only the server was another: {same:?}");
    }
    {
        let (mut path, _mailbox) = start(8);
        let later = attach(&mut path, "vm", Access::Write).expect("its own");
        path.detach(later.handle).expect("stored");
    }
    let (mut path, mailbox) = start(7);
    assert!(is_refused(again(&mut path, Access::Write)), "a later start gave it back");
    assert!(matches!(again(&mut path, Access::Read), AttachReply::Attached(_)), "it sends nothing");
    attach(&mut path, "vm", Access::Write).expect("who has had nothing may begin");
    let detach = |answer| Errand::Detach { name: name("vm"), front: None, force: true, answer };
    errand(&mailbox, turned(&mut path), detach).expect("taken away");
    assert!(is_refused(again(&mut path, Access::Write)), "it was taken away by force");
    drop(path);
    let (worker, _) = file_worker(&file);
    let mut path = LocalPath::over_nvme(worker, front(2), 1, 8);
    attach(&mut path, "vm", Access::Write).expect("nobody is stored who was refused");
}

/// A front was killed, and the server with it; what was answered may be missing.
/// The next front was told so, but ended before it served: another one's server
/// did not answer. It gave the volume back, and so the one after it was told
/// nothing, and a guest went on with older data than it had been answered. Now
/// the volume is another one then.
#[test]
fn who_gives_back_what_may_miss_writes_leaves_word_of_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    let start = |incarnation| start_on(&file, incarnation);
    let first = {
        let (mut path, mailbox) = start(1);
        create(&mailbox, turned(&mut path), "vm", 1 << 20).expect("created");
        attach(&mut path, "vm", Access::Write).expect("free")
    };
    let (mut path, _mailbox) = start(2);
    let told = attach(&mut path, "vm", Access::Write).expect("its own");
    assert_ne!(told.stored_verifier, told.verifier, "this one is told");
    path.detach(told.handle).expect("stored");
    let next = attach(&mut path, "vm", Access::Write).expect("free");
    assert_eq!(next.generation, first.generation + 1, "and so is this one");

    path.detach(next.handle).expect("stored");
    let whole = attach(&mut path, "vm", Access::Write).expect("free");
    assert_eq!(whole.generation, next.generation, "nothing was missing");
    drop(path);
    let (mut path, _mailbox) = start(3);
    let request = AttachRequest::new(name("vm"), Access::Write);
    let AttachReply::Attached(settled) = path.settle(request) else { panic!("its own") };
    path.detach(settled.handle).expect("stored");
    let again = attach(&mut path, "vm", Access::Write).expect("free");
    assert_eq!(again.generation, whole.generation, "it had said that nothing is missing");
}

#[test]
fn a_reader_reads_and_changes_nothing() {
    let (worker, mailbox) = memory_worker();
    let mut path = LocalPath::over_nvme(worker, front(1), 1, 8);
    create(&mailbox, turned(&mut path), "vm", 1 << 20).expect("created");
    let reader = attach(&mut path, "vm", Access::Read).expect("free");
    assert!(reader.read_only);
    assert_eq!(io(&mut path, reader.handle, Op::Read, 0, vec![1; 512]), Ok(vec![0; 512]));
    for op in [Op::Write, Op::WriteThrough, Op::Discard, Op::WriteZeroes, Op::WriteZeroesUnmap] {
        let refused = io(&mut path, reader.handle, op, 0, vec![1; 4096]);
        assert_eq!(refused, Err(BlockError::ReadOnly), "{op:?}");
    }
    let unknown = link::VolumeHandle(900);
    assert_eq!(io(&mut path, unknown, Op::Read, 0, vec![0; 512]), Err(BlockError::NotAttached));
}

/// What a front sends for a volume that was taken away must fail, and must not
/// reach a volume that it gets later.
#[test]
fn a_volume_taken_away_by_force_is_gone_for_the_front_that_had_it() {
    let (worker, mailbox) = memory_worker();
    let mut path = LocalPath::over_nvme(worker, front(1), 1, 8);
    create(&mailbox, turned(&mut path), "vm", 1 << 20).expect("created");
    create(&mailbox, turned(&mut path), "other", 1 << 20).expect("created");
    let had = attach(&mut path, "vm", Access::Write).expect("free");
    let same = attach(&mut path, "vm", Access::Write).expect("its own");
    assert_eq!(same, had, "asking again changes nothing");

    let delete = |answer| Errand::Delete { name: name("vm"), snapshots: false, answer };
    let refused = errand(&mailbox, turned(&mut path), delete).expect_err("it is attached");
    let writer = format!("writer {}", front(1));
    assert!(refused.to_string().contains(&writer), "{refused}");

    let detach = |answer| Errand::Detach { name: name("vm"), front: None, force: true, answer };
    let info = errand(&mailbox, turned(&mut path), detach).expect("taken away");
    assert_eq!((info.generation, info.attachments.len()), (had.generation + 1, 0));
    let write = |path: &mut SoftPath| io(path, had.handle, Op::Write, 0, vec![9; 512]);
    assert_eq!(write(&mut path), Err(BlockError::NotAttached));
    let other = attach(&mut path, "other", Access::Write).expect("free");
    assert_ne!(other.handle, had.handle);
    assert_eq!(write(&mut path), Err(BlockError::NotAttached));
    assert_eq!(io(&mut path, other.handle, Op::Read, 0, vec![1; 512]), Ok(vec![0; 512]));
    errand(&mailbox, turned(&mut path), delete).expect("nobody has it now");
    let gone = path.attach(AttachRequest::new(name("vm"), Access::Write));
    assert_eq!(gone, AttachReply::Refused(Refused::Unknown));
}

#[test]
fn a_deleted_volumes_data_is_not_in_the_next_one() {
    let (worker, mailbox) = memory_worker();
    let mut path = LocalPath::over_nvme(worker, front(1), 1, 8);
    let whole = 48 << 20;
    create(&mailbox, turned(&mut path), "first", whole).expect("created");
    let first = attach(&mut path, "first", Access::Write).expect("free");
    for at in (0..whole / 512).step_by(4096) {
        io(&mut path, first.handle, Op::Write, at, vec![0x5e; 65_536]).expect("written");
    }
    path.detach(first.handle).expect("stored");
    let delete = |answer| Errand::Delete { name: name("first"), snapshots: false, answer };
    errand(&mailbox, turned(&mut path), delete).expect("deleted");
    create(&mailbox, turned(&mut path), "second", whole).expect("the space is free again");
    let second = attach(&mut path, "second", Access::Read).expect("free");
    for at in (0..whole / 512).step_by(256) {
        let data = io(&mut path, second.handle, Op::Read, at, vec![1; 131_072]).expect("read");
        assert!(data.iter().all(|&byte| byte == 0), "sector {at}");
    }
}

#[test]
fn an_abandoned_part_ends_once_and_its_slot_serves_again() {
    let (worker, mailbox) = memory_worker();
    let mut path = LocalPath::over_nvme(worker, front(1), 1, 2);
    create(&mailbox, turned(&mut path), "vm", 1 << 20).expect("created");
    let volume = attach(&mut path, "vm", Access::Write).expect("free").handle;
    let mut guest = VecGuest { data: vec![vec![3; 4096]; 3], ended: Vec::new() };
    let part = |token| Part {
        token: Token(token),
        volume,
        op: Op::Write,
        range: block_core::SectorRange::new(8 * token, 8),
    };
    path.submit(Time::ZERO, part(0), &mut guest).expect("a slot");
    path.submit(Time::ZERO, part(1), &mut guest).expect("a slot");
    assert_eq!(path.submit(Time::ZERO, part(2), &mut guest), Err(Refusal::Busy));
    path.abandon(volume, &mut guest);
    let unreachable = Err(BlockError::Unreachable);
    assert_eq!(guest.ended, [(0, unreachable), (1, unreachable)]);
    while path.has_work() {
        path.turn(Time::ZERO, &mut guest);
    }
    assert_eq!(guest.ended.len(), 2);
    path.submit(Time::ZERO, part(2), &mut guest).expect("a slot");
    while guest.ended.len() < 3 {
        path.turn(Time::ZERO, &mut guest);
    }
    assert_eq!(guest.ended[2], (2, Ok(())));
}

/// Users name the server, not the worker.
#[test]
fn a_worker_sends_a_front_to_the_worker_that_has_the_volume() {
    let directory = Arc::new(Directory::default());
    let mut paths: Vec<SoftPath> = Vec::new();
    for worker in 0..2 {
        let memory = SoftNamespace::memory(DEVICE_BYTES, LbaSize::B4096).expect("memory");
        let place = place(worker, &directory);
        let mailbox = Arc::clone(&place.mailbox);
        let mut path = LocalPath::over_nvme(worker_over(memory, place), front(1), 1, 8);
        directory.listens(WorkerIndex(worker), 7700 + worker as u16);
        create(&mailbox, turned(&mut path), &format!("vm{worker}"), 1 << 20).expect("created");
        let taken = create(&mailbox, turned(&mut path), "vm0", 1 << 20);
        assert!(taken.is_err(), "a name is one volume of the whole server");
        paths.push(path);
    }
    let ask = |path: &mut SoftPath, volume: &str| {
        path.attach(AttachRequest::new(name(volume), Access::Write))
    };
    assert_eq!(ask(&mut paths[0], "vm1"), AttachReply::Elsewhere { port: 7701 });
    assert_eq!(ask(&mut paths[1], "vm0"), AttachReply::Elsewhere { port: 7700 });
    assert!(matches!(ask(&mut paths[1], "vm1"), AttachReply::Attached(_)));
    assert_eq!(ask(&mut paths[1], "vm2"), AttachReply::Refused(Refused::Unknown));
}

/// A guest whose memory was taken away: the part is not sent, and nothing of
/// the path's stays taken.
#[test]
fn a_part_whose_data_cannot_be_fetched_takes_nothing() {
    struct Gone;
    impl Source for Gone {
        fn fetch(&mut self, _: Token, _: &mut [u8]) -> Result<(), BlockError> {
            Err(BlockError::Malformed)
        }
    }
    let (worker, mailbox) = memory_worker();
    let mut path = LocalPath::over_nvme(worker, front(1), 1, 2);
    create(&mailbox, turned(&mut path), "vm", 1 << 20).expect("created");
    let volume = attach(&mut path, "vm", Access::Write).expect("free").handle;
    let range = block_core::SectorRange::new(0, 8);
    for _ in 0..1000 {
        let part = Part { token: Token(0), volume, op: Op::Write, range };
        let refused = path.submit(Time::ZERO, part, &mut Gone);
        assert_eq!(refused, Err(Refusal::Failed(BlockError::Malformed)));
    }
    assert_eq!(io(&mut path, volume, Op::Write, 0, vec![1; 512]), Ok(vec![1; 512]));
}
