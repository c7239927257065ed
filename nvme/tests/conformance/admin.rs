//! What a controller says about itself, and what it refuses.

use std::pin::pin;
use std::time::{Duration, Instant};

use block_core::Pba;
use block_core::device::{Device, Durability};
use nvme::command::{Command, admin, feature, io};
use nvme::completion::Status;
use nvme::soft::Fault;
use nvme::{LbaSize, StartError};

use crate::subject::{NAMESPACE_BYTES, Rig, SERIAL, filled, poll};
use crate::{Case, Verdict};

const BLOCK: usize = 4096;

pub(crate) const CASES: &[Case] = &[
    ("identify", identify),
    ("invalid and inactive namespaces", wrong_namespaces),
    ("unknown commands", unknown_commands),
    ("write cache off and on", write_cache),
    ("health log", health_log),
    ("events", events),
    ("abort of nothing", abort),
    ("abort of a stuck command", abort_stuck),
];

fn identify(rig: &Rig<'_>) -> Verdict {
    let info = rig.controller.info();
    assert_eq!(info.serial, SERIAL);
    assert!(!info.model.is_empty() && !info.firmware.is_empty());
    assert!(info.version >= 0x0001_0200 && info.version == rig.controller.version());
    assert!(info.has_volatile_cache && info.has_write_zeroes && info.has_dataset_management);
    assert!(info.last_namespace >= 2);
    let found: Vec<_> = rig.controller.namespaces().map(|it| (it.id, it.lba_size)).collect();
    assert_eq!(found, [(1, LbaSize::B4096), (2, LbaSize::B512)]);
    for namespace in rig.controller.namespaces() {
        assert_eq!(namespace.lba_count, NAMESPACE_BYTES / namespace.lba_size.bytes() as u64);
    }
    let missing = rig.controller.namespace(3);
    assert!(matches!(missing, Err(StartError::NoNamespace { id: 3, .. })));
    Verdict::Passed
}

/// An ID that cannot be is an invalid namespace; one that could be, and that nothing
/// is behind, an invalid field (Base 2.0, sections 3.2.1.2 and 3.2.1.4).
fn wrong_namespaces(rig: &Rig<'_>) -> Verdict {
    let last = rig.controller.info().last_namespace;
    for id in [0, last.saturating_add(1), u32::MAX - 1] {
        let read = Command::blocks(io::READ, id, 0, 1, 0);
        let status = rig.run(rig.queue.execute(read)).map(Status::kind);
        assert_eq!(status, Ok(Status::INVALID_NAMESPACE), "namespace {id}");
    }
    if last > 2 {
        let flush = rig.run(rig.queue.execute(Command::flush(3))).map(Status::kind);
        assert_eq!(flush, Ok(Status::INVALID_FIELD));
    }
    Verdict::Passed
}

fn unknown_commands(rig: &Rig<'_>) -> Verdict {
    let status = rig.run(rig.queue.execute(Command::new(0x7f, 1))).map(Status::kind);
    assert_eq!(status, Ok(Status::INVALID_OPCODE));
    let refused = |command, status| rig.refused(command, &[status]);
    refused(Command::new(0x7f, 0), Status::INVALID_OPCODE);
    refused(Command::identify(0xee, 0), Status::INVALID_FIELD);
    refused(Command::get_feature(0xbf), Status::INVALID_FIELD);
    refused(Command::set_feature(0xbf, 1), Status::INVALID_FIELD);
    // A reserved log is an invalid log page (Base 2.0, figure 203); QEMU 7.2 calls
    // it an invalid field. The driver takes either for "there is none".
    let either = [Status::INVALID_LOG_PAGE, Status::INVALID_FIELD];
    rig.refused(Command::get_log_page(0xbf, 512), &either);
    // The count is 0-based, and 65,535 is not a count; there are queues already, too
    // (section 5.27.1.5).
    let either = [Status::INVALID_FIELD, Status::SEQUENCE];
    rig.refused(Command::set_feature(feature::QUEUES, u32::MAX), &either);
    Verdict::Passed
}

/// With the cache off everything is durable when it is answered; a flush is still
/// answered (Base 2.0, section 5.27.1.4).
fn write_cache(rig: &Rig<'_>) -> Verdict {
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    for on in [false, true] {
        rig.controller.set_write_cache(on).expect("the cache has a switch");
        assert_eq!(rig.controller.write_cache().expect("it says"), on);
        let write = namespace.write(Pba(3), filled(&pool, u8::from(on)), 0..1, Durability::Cached);
        assert_eq!(rig.run(write).1, Ok(()));
        assert_eq!(rig.run(namespace.flush()), Ok(()));
    }
    Verdict::Passed
}

fn health_log(rig: &Rig<'_>) -> Verdict {
    let before = rig.controller.health_log().expect("the health log");
    // Between ice and steam.
    assert!((273..373).contains(&before.kelvin), "{} K", before.kelvin);
    assert_eq!(before.critical_warning, 0);
    let pool = rig.pool(1, 32 * BLOCK);
    let namespace = rig.namespace(1);
    for _ in 0..10 {
        let write = namespace.write(Pba(0), filled(&pool, 1), 0..32, Durability::Cached);
        assert_eq!(rig.run(write).1, Ok(()));
        assert_eq!(rig.run(namespace.read(Pba(0), filled(&pool, 1), 0..32)).1, Ok(()));
    }
    let after = rig.controller.health_log().expect("the health log");
    assert_eq!((after.reads - before.reads, after.writes - before.writes), (10, 10));
    let (read, written) =
        (after.bytes_read - before.bytes_read, after.bytes_written - before.bytes_written);
    // Ten times 128 KiB, in steps of 512,000 bytes.
    assert!((1_024_000..=1_536_000).contains(&read), "{read} bytes read");
    assert!((1_024_000..=1_536_000).contains(&written), "{written} bytes written");
    Verdict::Passed
}

/// An abort of what is not there is answered, and says that nothing was aborted
/// (Base 2.0, section 5.1); the queue is as it was.
fn abort(rig: &Rig<'_>) -> Verdict {
    assert!(!rig.controller.abort(&rig.queue, 0x155).expect("an answer"));
    let nowhere = Command::new(admin::ABORT, 0).with_dword(10, 7 << 16 | 0xff);
    match rig.controller.execute(nowhere) {
        Ok(result) => assert_eq!(result & 1, 1, "aborted in a queue that is not there"),
        Err(StartError::Refused { status, .. }) => {
            assert_eq!(status.kind(), Status::INVALID_FIELD);
        }
        Err(error) => panic!("{error}"),
    }
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    assert_eq!(rig.run(namespace.read(Pba(0), filled(&pool, 0), 0..1)).1, Ok(()));
    Verdict::Passed
}

/// Its own completion says that it is over; the driver runs it again.
fn abort_stuck(rig: &Rig<'_>) -> Verdict {
    let Some(soft) = &rig.subject.soft else {
        return Verdict::Skipped("it has no switch that makes commands stick");
    };
    soft.inject(Fault::Stick { count: 1 });
    let pool = rig.pool(1, BLOCK);
    let namespace = rig.namespace(1);
    let mut read = pin!(namespace.read(Pba(0), filled(&pool, 0), 0..1));
    assert!(poll(read.as_mut()).is_pending());
    // A controller on another thread may not have fetched it yet.
    while !rig
        .controller
        .abort(&rig.queue, rig.queue.any_command().expect("it"))
        .expect("an answer")
    {
        rig.turn();
    }
    assert_eq!(rig.run(read.as_mut()).1, Ok(()));
    assert_eq!(rig.queue.counters().submitted, 2);
    Verdict::Passed
}

/// A threshold below the temperature there is: the controller tells by itself, once for
/// each time, and its log says why (Base 2.0, sections 5.2 and 5.27.1.3).
fn events(rig: &Rig<'_>) -> Verdict {
    let threshold = |kelvin| {
        let command = Command::set_feature(feature::TEMPERATURE, kelvin);
        rig.controller.execute(command).expect("it has a threshold");
    };
    let next = || rig.controller.next_event().expect("the controller lives");
    assert!(next().is_none(), "nothing has happened");
    for _ in 0..3 {
        threshold(250);
        let end = Instant::now() + Duration::from_secs(20);
        let (event, health) = loop {
            if let Some(event) = next() {
                break event;
            }
            rig.turn();
            assert!(Instant::now() < end, "no event");
        };
        assert!(event.to_string().contains("temperature"), "{event:?}");
        assert_eq!(health.expect("the health log").critical_warning, 1 << 1);
        threshold(360);
        assert_eq!(rig.controller.health_log().expect("the log").critical_warning, 0);
        assert!(next().is_none(), "told once");
    }
    // A reset forgets what was open; it is asked for anew.
    rig.controller.reset().expect("a reset");
    rig.queue.restart().expect("the queues again");
    threshold(250);
    let end = Instant::now() + Duration::from_secs(20);
    while next().is_none() {
        rig.turn();
        assert!(Instant::now() < end, "no event after a reset");
    }
    threshold(360);
    Verdict::Passed
}
