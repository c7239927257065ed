//! A driver that does everything wrong, by hand. Whatever it sends, it gets
//! the status that the specification names, no byte moves, and the next sound
//! command is served.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use block_core::DmaMemory;

use super::fault::Fault;
use super::namespace::Disk;
use super::{SoftController, SoftNamespace, SoftOptions};
use crate::PAGE;
use crate::bus::Bus;
use crate::command::{ALL_NAMESPACES, Command, DATASET_DEALLOCATE, admin, cns, feature, io};
use crate::completion::{Completion, Status};
use crate::identify::LbaSize;
use crate::registers::{
    ACQ, AQA, ASQ, CC, CC_ENABLE, CC_ENTRY_SIZES, CSTS, CSTS_FATAL, CSTS_READY, DOORBELLS, GONE,
};
use crate::ring::{CompletionRing, SubmissionRing};
use crate::sys::Words;

const ENTRIES: u16 = 8;
const BLOCKS: u64 = 64;
/// Longer than any disk takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the data pages hold before each wrong command.
const MARK: u64 = 0x5a5a_5a5a_5a5a_5a5a;

pub(super) struct Host {
    pub(super) soft: Arc<SoftController>,
    pub(super) bus: Arc<dyn Bus>,
    queues: Vec<(SubmissionRing, CompletionRing)>,
    memory: Vec<DmaMemory>,
    pub(super) data: DmaMemory,
}

impl Host {
    /// Enabled, with no I/O queue.
    fn new() -> Self {
        Self::over(SoftNamespace::memory(BLOCKS << 12, LbaSize::B4096).expect("memory"))
    }

    /// The same, over a namespace of any kind.
    pub(super) fn over(namespace: SoftNamespace) -> Self {
        let namespaces = vec![namespace];
        let options = SoftOptions { max_transfer: 8 * PAGE, queues: 4, ..SoftOptions::default() };
        let soft = SoftController::new(options, namespaces);
        let bus = soft.bus();
        let data = bus.allocate(16 * PAGE).expect("memory");
        let mut host = Self { soft, bus, queues: Vec::new(), memory: Vec::new(), data };
        host.add_rings();
        host.enable(host.memory[0].iova(), host.memory[1].iova());
        assert_eq!(host.bus.read32(CSTS), CSTS_READY);
        host
    }

    /// Enabled, with I/O queue 1.
    fn with_queue() -> Self {
        let mut host = Self::new();
        host.add_queue();
        host
    }

    /// I/O queue 1.
    pub(super) fn add_queue(&mut self) {
        self.add_rings();
        let (submission, completion) = (self.memory[2].iova(), self.memory[3].iova());
        self.expect(0, Command::create_completion_queue(1, ENTRIES, completion), Status::SUCCESS);
        self.expect(0, Command::create_submission_queue(1, ENTRIES, submission), Status::SUCCESS);
    }

    fn add_rings(&mut self) {
        let (submission, completion) =
            (self.bus.allocate(PAGE).expect("memory"), self.bus.allocate(PAGE).expect("memory"));
        let rings =
            (SubmissionRing::new(&submission, ENTRIES), CompletionRing::new(&completion, ENTRIES));
        self.queues.push(rings);
        self.memory.extend([submission, completion]);
    }

    /// Enabled again on the rings of the admin queue, after a reset.
    pub(super) fn start_again(&mut self) {
        self.queues.truncate(1);
        self.queues[0].0.restart();
        self.queues[0].1.restart();
        self.enable(self.memory[0].iova(), self.memory[1].iova());
        self.memory.truncate(2);
    }

    fn enable(&self, submission: u64, completion: u64) {
        let last = u32::from(ENTRIES - 1);
        self.bus.write32(AQA, last << 16 | last);
        self.bus.write64(ASQ, submission);
        self.bus.write64(ACQ, completion);
        self.bus.write32(CC, CC_ENTRY_SIZES | CC_ENABLE);
        self.soft.work();
    }

    fn run(&mut self, queue: usize, command: Command) -> Completion {
        self.begin(queue, command.with_id(77));
        let start = Instant::now();
        let entry = loop {
            match self.take(queue) {
                Some(entry) => break entry,
                // What a disk has begun it ends in its own time; all else is done.
                None => assert!(start.elapsed() < PATIENCE, "no answer"),
            }
            self.soft.work();
        };
        assert_eq!((entry.command_id, usize::from(entry.submission_queue)), (77, queue));
        entry
    }

    /// Gives the controller a command, which it looks at once.
    pub(super) fn begin(&mut self, queue: usize, command: Command) {
        let (submission, _) = &mut self.queues[queue];
        submission.push(command.words());
        let tail = submission.news().expect("a new tail");
        self.bus.write32(DOORBELLS + 8 * queue as u32, tail);
        self.soft.work();
    }

    /// An answer that is there.
    pub(super) fn take(&mut self, queue: usize) -> Option<Completion> {
        let (_, completion) = &mut self.queues[queue];
        let entry = completion.pop()?;
        let head = completion.news().expect("a new head");
        self.bus.write32(DOORBELLS + 8 * queue as u32 + 4, head);
        Some(entry)
    }

    #[track_caller]
    pub(super) fn expect(&mut self, queue: usize, command: Command, status: Status) -> u32 {
        let entry = self.run(queue, command);
        assert_eq!(entry.status.kind(), status, "{command:x?}");
        entry.result
    }

    /// The command is refused, and neither the host's memory nor the namespace
    /// has changed.
    #[track_caller]
    fn refused(&mut self, queue: usize, command: Command, status: Status) {
        let words = Words::all(&self.data);
        for index in 0..16 * PAGE / 8 {
            words.store(index, MARK, Ordering::Relaxed);
        }
        self.expect(queue, command, status);
        for index in 0..16 * PAGE / 8 {
            assert_eq!(words.load(index, Ordering::Relaxed), MARK, "{command:x?}");
        }
        let mut engine = self.soft.engine();
        let Disk::InPlace(namespace) = &mut engine.namespaces[0].disk else {
            panic!("it is in memory");
        };
        for block in 0..BLOCKS {
            namespace.read(block << 12, self.data.memory(), 0, PAGE).expect("memory");
            assert_eq!(words.load(0, Ordering::Relaxed), 0, "{command:x?} wrote");
        }
    }

    pub(super) fn page(&self, index: usize) -> u64 {
        self.data.iova() + (index * PAGE) as u64
    }
}

#[test]
fn every_malformed_read_and_write_is_refused_and_moves_nothing() {
    let mut host = Host::with_queue();
    let (page, next) = (host.page(0), host.page(1));
    for opcode in [io::READ, io::WRITE] {
        let sound = Command::blocks(opcode, 1, 0, 1, 0).with_data(page, 0);
        let with_opcode_bits = |bits: u64| {
            let mut words = *sound.words();
            words[0] |= bits;
            Command::from_words(words)
        };
        let cases = [
            (with_opcode_bits(0b01 << 8), Status::INVALID_FIELD, "fused"),
            (with_opcode_bits(0b01 << 14), Status::INVALID_FIELD, "SGL"),
            (Command::blocks(opcode, 0, 0, 1, 0), Status::INVALID_NAMESPACE, "namespace 0"),
            (Command::blocks(opcode, 2, 0, 1, 0), Status::INVALID_NAMESPACE, "namespace 2"),
            (Command::blocks(opcode, u32::MAX, 0, 1, 0), Status::INVALID_NAMESPACE, "all"),
            (Command::blocks(opcode, 1, BLOCKS, 1, 0), Status::OUT_OF_RANGE, "past the end"),
            (Command::blocks(opcode, 1, BLOCKS - 1, 2, 0), Status::OUT_OF_RANGE, "over the end"),
            (Command::blocks(opcode, 1, u64::MAX, 1, 0), Status::OUT_OF_RANGE, "a sum that wraps"),
            (Command::blocks(opcode, 1, u64::MAX, 65_536, 0), Status::OUT_OF_RANGE, "wraps far"),
            (Command::blocks(opcode, 1, 0, 9, 0), Status::INVALID_FIELD, "above MDTS"),
            (sound.with_data(0, 0), Status::DATA_TRANSFER, "null"),
            (sound.with_data(1 << 60, 0), Status::DATA_TRANSFER, "nowhere"),
            (sound.with_data(u64::MAX - 3, 0), Status::DATA_TRANSFER, "the last address"),
            (sound.with_data(page + 1, next), Status::PRP_OFFSET, "odd"),
            (sound.with_data(page + 8, 0), Status::DATA_TRANSFER, "second page missing"),
            (sound.with_data(page + 8, next + 4), Status::PRP_OFFSET, "second page inside"),
            (sound.with_data(host.page(16), 0), Status::DATA_TRANSFER, "past the window"),
            (
                Command::blocks(opcode, 1, 0, 4, 0).with_data(page, 0),
                Status::DATA_TRANSFER,
                "a list at null",
            ),
            (
                Command::blocks(opcode, 1, 0, 4, 0).with_data(page, next + 2),
                Status::PRP_OFFSET,
                "a crooked list",
            ),
            // The marks in the data page are no addresses.
            (
                Command::blocks(opcode, 1, 0, 4, 0).with_data(page, next),
                Status::PRP_OFFSET,
                "a list of nonsense",
            ),
        ];
        for (command, status, name) in cases {
            println!("{name}");
            host.refused(1, command, status);
        }
        host.expect(1, sound, Status::SUCCESS);
        if opcode == io::WRITE {
            // Back to zero for whoever looks next.
            host.expect(1, Command::blocks(io::WRITE_ZEROES, 1, 0, 1, 0), Status::SUCCESS);
        }
    }
}

#[test]
fn every_malformed_command_without_data_is_refused() {
    let mut host = Host::with_queue();
    for opcode in [0x04, 0x05, 0x0a, 0x0c, 0x7f, 0xff] {
        host.refused(1, Command::new(opcode, 1), Status::INVALID_OPCODE);
    }
    host.refused(1, Command::flush(2), Status::INVALID_NAMESPACE);
    host.expect(1, Command::flush(ALL_NAMESPACES), Status::SUCCESS);
    let zeroes = |start, count| Command::blocks(io::WRITE_ZEROES, 1, start, count, 0);
    host.refused(1, zeroes(BLOCKS, 1), Status::OUT_OF_RANGE);
    host.refused(1, zeroes(1, 65_536), Status::OUT_OF_RANGE);
    host.refused(1, Command::deallocate(2), Status::INVALID_NAMESPACE);
    host.refused(1, Command::deallocate(1), Status::DATA_TRANSFER);
    let ranges = Command::deallocate(1).with_dword(10, 255);
    let page = host.page(0);
    // The marks read as a range far outside.
    host.refused(1, ranges.with_data(page, 0), Status::OUT_OF_RANGE);
    host.refused(1, ranges.with_data(page + 16, 0), Status::DATA_TRANSFER);
}

/// The first range is sound and the second is not: neither is executed.
#[test]
fn a_deallocation_with_one_bad_range_does_nothing() {
    let mut host = Host::with_queue();
    let page = host.page(0);
    let words = Words::all(&host.data);
    words.store(0, 7, Ordering::Relaxed);
    host.expect(1, Command::blocks(io::WRITE, 1, 0, 1, 0).with_data(page, 0), Status::SUCCESS);
    for (index, word) in [1 << 32, 0, 1 << 32, BLOCKS].into_iter().enumerate() {
        words.store(index, word, Ordering::Relaxed);
    }
    let command = Command::new(io::DATASET_MANAGEMENT, 1)
        .with_dword(10, 1)
        .with_dword(11, DATASET_DEALLOCATE)
        .with_data(page, 0);
    host.expect(1, command, Status::OUT_OF_RANGE);
    host.expect(1, Command::blocks(io::READ, 1, 0, 1, 0).with_data(page, 0), Status::SUCCESS);
    assert_eq!(words.load(0, Ordering::Relaxed), 7);
}

#[test]
fn every_malformed_admin_command_is_refused() {
    let mut host = Host::new();
    let page = host.page(0);
    let (create_cq, create_sq) =
        (Command::create_completion_queue, Command::create_submission_queue);
    for (command, status) in [
        (Command::new(0x7f, 0), Status::INVALID_OPCODE),
        (create_cq(0, 8, page), Status::INVALID_QUEUE_ID),
        (create_cq(5, 8, page), Status::INVALID_QUEUE_ID),
        (create_cq(u16::MAX, 8, page), Status::INVALID_QUEUE_ID),
        (create_cq(1, 1, page), Status::INVALID_QUEUE_SIZE),
        (create_cq(1, 1025, page), Status::INVALID_QUEUE_SIZE),
        (create_cq(1, 8, page + 64), Status::PRP_OFFSET),
        (create_cq(1, 8, 0), Status::DATA_TRANSFER),
        (create_cq(1, 1024, host.page(15)), Status::DATA_TRANSFER),
        (create_cq(1, 8, page).with_dword(11, 0), Status::INVALID_FIELD),
        (create_cq(1, 8, page).with_dword(11, 9 << 16 | 3), Status::INVALID_VECTOR),
        (create_sq(1, 8, page), Status::INVALID_COMPLETION_QUEUE),
        (create_sq(1, 8, page).with_dword(11, 1), Status::INVALID_QUEUE_ID),
        (create_sq(1, 8, page).with_dword(11, 9 << 16 | 1), Status::INVALID_QUEUE_ID),
        (Command::delete_queue(admin::DELETE_SUBMISSION_QUEUE, 0), Status::INVALID_QUEUE_ID),
        (Command::delete_queue(admin::DELETE_SUBMISSION_QUEUE, 1), Status::INVALID_QUEUE_ID),
        (Command::delete_queue(admin::DELETE_COMPLETION_QUEUE, 0), Status::INVALID_QUEUE_ID),
        (Command::delete_queue(admin::DELETE_COMPLETION_QUEUE, 999), Status::INVALID_QUEUE_ID),
        (Command::identify(0xee, 0).with_data(page, 0), Status::INVALID_FIELD),
        (Command::identify(cns::NAMESPACE, 2).with_data(page, 0), Status::INVALID_NAMESPACE),
        (Command::identify(cns::NAMESPACE, 0).with_data(page, 0), Status::INVALID_NAMESPACE),
        (Command::identify(cns::ACTIVE_NAMESPACES, u32::MAX), Status::INVALID_NAMESPACE),
        (Command::identify(cns::CONTROLLER, 0), Status::DATA_TRANSFER),
        (Command::identify(cns::CONTROLLER, 0).with_data(page + 4, 0), Status::DATA_TRANSFER),
        (Command::set_feature(0x00, 0), Status::INVALID_FIELD),
        (Command::set_feature(0x03, 0), Status::INVALID_FIELD),
        (Command::set_feature(0xff, 0), Status::INVALID_FIELD),
        (Command::set_feature(feature::QUEUES, 0xffff), Status::INVALID_FIELD),
        (Command::get_feature(0x7f), Status::INVALID_FIELD),
        (Command::new(admin::GET_LOG_PAGE, 0).with_dword(10, 0x55), Status::INVALID_LOG_PAGE),
        (
            Command::new(admin::GET_LOG_PAGE, 0).with_dword(10, 2).with_dword(13, 1),
            Status::INVALID_FIELD,
        ),
    ] {
        host.refused(0, command, status);
    }
    let before = host.expect(0, Command::get_feature(feature::QUEUES), Status::SUCCESS);
    assert_eq!(before, 3 << 16 | 3);
}

#[test]
fn queues_are_made_and_deleted_in_the_right_order_only() {
    let mut host = Host::with_queue();
    let data = host.page(0);
    let delete = Command::delete_queue;
    host.refused(0, Command::create_completion_queue(1, 8, data), Status::INVALID_QUEUE_ID);
    host.refused(0, Command::create_submission_queue(1, 8, data), Status::INVALID_QUEUE_ID);
    host.refused(0, Command::set_feature(feature::QUEUES, 0), Status::SEQUENCE);
    host.refused(0, delete(admin::DELETE_COMPLETION_QUEUE, 1), Status::INVALID_QUEUE_DELETION);
    host.expect(0, delete(admin::DELETE_SUBMISSION_QUEUE, 1), Status::SUCCESS);
    host.expect(0, delete(admin::DELETE_COMPLETION_QUEUE, 1), Status::SUCCESS);
    host.refused(0, delete(admin::DELETE_COMPLETION_QUEUE, 1), Status::INVALID_QUEUE_ID);
    assert_eq!(host.expect(0, Command::set_feature(feature::QUEUES, 9 << 16), Status::SUCCESS), 0);
    host.refused(0, Command::create_completion_queue(2, 8, data), Status::INVALID_QUEUE_ID);
}

#[test]
fn features_log_pages_and_event_requests_answer() {
    let mut host = Host::new();
    let page = host.page(0);
    assert_eq!(host.expect(0, Command::get_feature(feature::WRITE_CACHE), Status::SUCCESS), 1);
    host.expect(0, Command::set_feature(feature::WRITE_CACHE, 0), Status::SUCCESS);
    assert_eq!(host.expect(0, Command::get_feature(feature::WRITE_CACHE), Status::SUCCESS), 0);
    host.expect(0, Command::set_feature(feature::ASYNC_EVENTS, 0x1ff), Status::SUCCESS);
    let health = Command::new(admin::GET_LOG_PAGE, ALL_NAMESPACES).with_dword(10, 127 << 16 | 2);
    host.expect(0, health.with_data(page, 0), Status::SUCCESS);
    host.expect(0, Command::abort(1, 5), Status::SUCCESS);
    for _ in 0..super::admin::MAX_EVENTS {
        let (submission, _) = &mut host.queues[0];
        submission.push(Command::new(admin::ASYNC_EVENT_REQUEST, 0).with_id(1).words());
    }
    // The four stay open, the fifth is one too many.
    host.expect(0, Command::new(admin::ASYNC_EVENT_REQUEST, 0), Status::ASYNC_EVENT_LIMIT);
}

#[test]
fn an_impossible_start_ends_in_a_fatal_status_and_a_reset_helps() {
    let host = Host::new();
    let (submission, completion) = (host.memory[0].iova(), host.memory[1].iova());
    let off = || {
        host.bus.write32(CC, 0);
        host.soft.work();
        assert_eq!(host.bus.read32(CSTS), 0);
    };
    for (asq, acq) in [(0, completion), (submission, u64::MAX << 12), (submission + 64, completion)]
    {
        off();
        host.enable(asq, acq);
        assert_eq!(host.bus.read32(CSTS), CSTS_FATAL);
    }
    off();
    // Pages of 8 KiB.
    host.bus.write32(CC, CC_ENTRY_SIZES | CC_ENABLE | 1 << 7);
    host.soft.work();
    assert_eq!(host.bus.read32(CSTS), CSTS_FATAL);
    off();
    host.enable(submission, completion);
    assert_eq!(host.bus.read32(CSTS), CSTS_READY);
}

/// A driver that resets a controller which has failed need not wait for it: RDY is 0
/// already. It cleared EN and set it again, and the controller, which looked only then,
/// saw nothing change: it stayed as failed as it was through every reset.
#[test]
fn a_reset_is_seen_though_the_controller_is_enabled_again_before_it_looks() {
    let host = Host::new();
    host.soft.inject(Fault::Fatal);
    host.soft.work();
    assert_ne!(host.bus.read32(CSTS) & CSTS_FATAL, 0);
    host.bus.write32(CC, CC_ENTRY_SIZES);
    host.bus.write32(CC, CC_ENTRY_SIZES | CC_ENABLE);
    host.soft.work();
    host.soft.work();
    assert_eq!(host.bus.read32(CSTS), CSTS_READY);
}

/// Doorbells hold any 32 bits. A value that is no place in the ring moves
/// nothing, and a head that is none frees nothing.
#[test]
fn doorbells_out_of_range_and_out_of_place_are_survived() {
    let mut host = Host::with_queue();
    for value in [u32::from(ENTRIES), 1000, u32::MAX] {
        host.bus.write32(DOORBELLS + 8, value);
        host.bus.write32(DOORBELLS + 12, value);
        assert_eq!(host.soft.work(), 0);
    }
    // Registers and doorbells that do not exist, and read-only ones.
    for offset in [0, 8, CSTS, 0x3c, 0x40, 0xfff, DOORBELLS + 4000, u32::MAX - 3] {
        host.bus.write32(offset, u32::MAX);
        host.bus.read32(offset);
    }
    host.bus.write32(DOORBELLS + 12, 0);
    let sound = Command::blocks(io::READ, 1, 0, 1, 0).with_data(host.page(0), 0);
    host.expect(1, sound, Status::SUCCESS);
}

/// A guest gives its whole disk back, in a row of commands that name a lot and
/// carry nothing. Each counted as one page, so that one turn punched gigabytes,
/// and everybody else on that thread waited.
#[test]
fn commands_without_data_are_work_too() {
    let mut host = Host::with_queue();
    let words = Words::all(&host.data);
    for (index, word) in [BLOCKS << 32, 0].into_iter().enumerate() {
        words.store(index, word, Ordering::Relaxed);
    }
    let zeroes = Command::blocks(io::WRITE_ZEROES, 1, 0, BLOCKS as u32, 0);
    let deallocate = Command::deallocate(1).with_data(host.page(0), 0);
    for command in [zeroes, deallocate] {
        for id in 0..7 {
            host.queues[1].0.push(command.with_id(id).words());
        }
        let tail = host.queues[1].0.news().expect("a new tail");
        host.bus.write32(DOORBELLS + 8, tail);
        // Four times 256 KiB are a turn.
        assert_eq!([host.soft.work(), host.soft.work(), host.soft.work()], [4, 3, 0]);
        let completion = &mut host.queues[1].1;
        let taken: Vec<_> = std::iter::from_fn(|| completion.pop()).collect();
        assert!(taken.len() == 7 && taken.iter().all(|entry| entry.status.is_success()));
        let head = host.queues[1].1.news().expect("a new head");
        host.bus.write32(DOORBELLS + 12, head);
    }
}

/// The driver does not take its completions: the controller waits and neither
/// overwrites nor drops one.
#[test]
fn a_full_completion_queue_is_not_overrun() {
    let mut host = Host::with_queue();
    let flush = Command::flush(1);
    let mut seen = Vec::new();
    for burst in 0..4 {
        for id in burst * 12..burst * 12 + 12 {
            host.queues[1].0.push(flush.with_id(id).words());
            let tail = host.queues[1].0.news().expect("a new tail");
            host.bus.write32(DOORBELLS + 8, tail);
            host.soft.work();
        }
        // Seven have room; the other five come when the head has moved.
        for count in [7, 5] {
            let completion = &mut host.queues[1].1;
            let taken: Vec<_> = std::iter::from_fn(|| completion.pop()).collect();
            assert_eq!(taken.len(), count);
            seen.extend(taken.iter().map(|entry| entry.command_id));
            assert_eq!(host.soft.work(), 0, "the head has not been told yet");
            let head = host.queues[1].1.news().expect("a new head");
            host.bus.write32(DOORBELLS + 12, head);
            host.soft.work();
        }
    }
    assert_eq!(seen, (0..48).collect::<Vec<u16>>());
}

#[test]
fn a_controller_that_was_pulled_out_reads_as_ones() {
    let host = Host::with_queue();
    host.soft.inject(super::Fault::Removal);
    assert_eq!((host.bus.read32(CSTS), host.bus.read64(0)), (GONE, u64::MAX));
    host.bus.write32(DOORBELLS + 8, 3);
    assert_eq!(host.soft.work(), 0);
}
