//! Traces that were recorded, cut, bent and made up.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

use block_core::{BlockCount, BlockError, Op, SectorRange, Time};
use proptest::prelude::*;

use super::chunk::{CHUNK_HEAD, Chunk};
use super::header::HEADER_BYTES;
use super::*;
use crate::hooks::RequestFacts;

fn header() -> Header {
    Header { volume: *b"0123456789abcdef", name: "disk-1".into(), blocks: BlockCount(9), began: 3 }
}

fn outcome() -> impl Strategy<Value = Result<(), BlockError>> {
    (0u8..=8).prop_map(BlockError::from_code)
}

/// All within a second, so that no chunk grows old.
fn request() -> impl Strategy<Value = TracedRequest> {
    let op = (1u8..=8).prop_map(|code| Op::from_code(code).expect("an operation"));
    let range = (any::<u64>(), 1u32..5000)
        .prop_map(|(start, count)| SectorRange::new(start >> (start % 55 + 9), count));
    (op, range, 1u64 << 50..(1 << 50) + (1 << 29), 0u64..1 << 28, outcome()).prop_map(
        |(op, range, arrival, latency, outcome)| TracedRequest {
            op,
            range: range.filter(|_| op != Op::Flush),
            arrival: Duration::from_nanos(arrival),
            latency: Duration::from_nanos(latency),
            outcome,
        },
    )
}

fn record(recorder: &Recorder, request: &TracedRequest) {
    let facts = RequestFacts { op: request.op, range: request.range };
    let arrived = Time::ZERO + request.arrival;
    recorder.done(facts, arrived, arrived + request.latency, request.outcome);
}

fn trace_of(requests: &[TracedRequest]) -> Vec<u8> {
    let (sink, writer) = pipe();
    let recorder = Recorder::new(header(), sink, Time::ZERO);
    let mut file = Vec::new();
    requests.iter().for_each(|request| record(&recorder, request));
    drop(recorder);
    assert!(writer.run(&mut file).expect("memory").ended);
    file
}

fn read_all(file: &[u8]) -> (Vec<Entry>, Option<TraceError>) {
    let mut entries = Vec::new();
    let reader = match Reader::open(file) {
        Ok(reader) => reader,
        Err(error) => return (entries, Some(error)),
    };
    for entry in reader {
        match entry {
            Ok(entry) => entries.push(entry),
            Err(error) => return (entries, Some(error)),
        }
    }
    (entries, None)
}

/// The bytes of a small trace, written by hand: traces must be read by every
/// later version.
#[test]
fn a_trace_has_these_bytes() {
    let requests = [
        TracedRequest {
            op: Op::Write,
            range: SectorRange::new(64, 8),
            arrival: Duration::from_nanos(5),
            latency: Duration::from_nanos(300),
            outcome: Ok(()),
        },
        TracedRequest {
            op: Op::Flush,
            range: None,
            arrival: Duration::from_nanos(4),
            latency: Duration::from_nanos(2),
            outcome: Err(BlockError::Medium),
        },
    ];
    let file = trace_of(&requests);
    assert_eq!(&file[..8], b"vRIOtrac");
    assert_eq!(file[8..16], [1, 0, 6, 0, 0, 2, 0, 0]);
    assert_eq!(&file[16..32], b"0123456789abcdef");
    assert_eq!(file[32..48], [9, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&file[48..56], b"disk-1\0\0");
    let chunk = &file[HEADER_BYTES..];
    assert_eq!(chunk[4..12], [0, 0, 0, 0, 10, 0, 0, 0]);
    assert_eq!(chunk[12..22], [0x02, 10, 0x80, 1, 8, 0xac, 0x02, 0x14, 1, 2]);
    let end = &chunk[22..];
    assert_eq!(end[4..], [1, 0, 0, 0, 3, 0, 0, 0, 0x20, 2, 0]);
}

/// The disk under a trace stalls: the volume goes on, and the trace says what
/// it does not have.
#[test]
fn what_is_dropped_is_told() {
    let (sink, writer) = pipe();
    let recorder = Recorder::new(header(), sink, Time::ZERO);
    let number = |number: u64| TracedRequest {
        op: Op::Read,
        range: SectorRange::new(number << 30, 1),
        arrival: Duration::from_nanos(number),
        latency: Duration::ZERO,
        outcome: Ok(()),
    };
    let mut sent = 0;
    while recorder.recorded().dropped < 1000 {
        record(&recorder, &number(sent));
        sent += 1;
        assert!(sent < 10_000_000, "memory is bounded");
    }
    let thread = std::thread::spawn(move || {
        let mut file = Vec::new();
        writer.run(&mut file).map(|written| (written, file))
    });
    // The disk is back; at some time the recorder finds an empty chunk.
    let dropped = loop {
        let before = recorder.recorded();
        record(&recorder, &number(sent));
        sent += 1;
        if recorder.recorded().requests > before.requests {
            break before.dropped;
        }
        std::thread::yield_now();
    };
    recorder.finish();
    record(&recorder, &number(sent));
    let (written, file) = thread.join().expect("no panic").expect("memory");
    let (entries, error) = read_all(&file);
    assert!(error.is_none(), "{error:?}");
    let total = recorder.recorded();
    assert_eq!((written.requests, written.dropped), (total.requests, total.dropped));
    assert_eq!(total.requests + total.dropped, sent);
    assert_eq!(written.bytes, file.len() as u64);
    let at = entries.iter().position(|entry| matches!(entry, Entry::Gap(_))).expect("a gap");
    assert_eq!(entries[at], Entry::Gap(dropped));
    assert_eq!(at as u64 + dropped, sent - 1);
    assert_eq!(entries[at + 1], Entry::Request(number(sent - 1)));
}

/// The file system is full: the volume goes on, and the recording is over.
#[test]
fn a_file_that_fails_ends_the_recording() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sink, writer) = pipe();
    let recorder = Recorder::new(header(), sink, Time::ZERO);
    assert!(recorder.recorded().open);
    let error = writer.run(&mut Full).expect_err("it is full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let flush = RequestFacts { op: Op::Flush, range: None };
    for second in [0, 1] {
        let now = Time::from_nanos(second * 1_000_000_000);
        recorder.done(flush, now, now, Ok(()));
    }
    assert!(!recorder.recorded().open);
}

/// A volume that is nearly idle is in its trace soon, not when it is full.
#[test]
fn a_quiet_volume_does_not_keep_its_trace_to_itself() {
    let (sink, writer) = pipe();
    let recorder = Recorder::new(header(), sink, Time::ZERO);
    let thread = std::thread::spawn(move || {
        let mut file = VecDeque::new();
        writer.run(&mut file).map(|written| (written, file))
    });
    let flush = RequestFacts { op: Op::Flush, range: None };
    for second in 0..40 {
        let now = Time::from_nanos(second * 1_000_000_000);
        recorder.done(flush, now, now, Ok(()));
    }
    drop(recorder);
    let (_, file) = thread.join().expect("no panic").expect("memory");
    let chunks = 21; // Each second one begins a chunk, the next one ends it.
    let entries = 40 * 8;
    assert!(file.len() > HEADER_BYTES + chunks * CHUNK_HEAD && file.len() < 2000 + entries);
}

#[test]
fn what_is_no_trace_is_refused_in_words() {
    let sentence = |file: &[u8]| read_all(file).1.expect("an error").to_string();
    assert_eq!(sentence(b""), "this is no trace of a volume (at byte 0)");
    assert_eq!(sentence(&[b'x'; 500]), "this is no trace of a volume (at byte 0)");
    let whole = trace_of(&[]);
    let mut newer = whole.clone();
    newer[8] = 9;
    assert_eq!(sentence(&newer), "the trace is damaged here (at byte 0)");
    let sum = block_core::crc32c(&[&newer[..124]]);
    newer[124..128].copy_from_slice(&sum.to_le_bytes());
    assert!(sentence(&newer).contains("a later version"));
    assert_eq!(sentence(&whole[..128]), "the trace is cut off here (at byte 128)");
    let longer = [&whole[..], &[0]].concat();
    assert!(sentence(&longer).contains("damaged"), "bytes after the end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_recorded_is_read(requests in prop::collection::vec(request(), 0..400)) {
        let (entries, error) = read_all(&trace_of(&requests));
        prop_assert!(error.is_none(), "{:?}", error);
        let expected: Vec<Entry> = requests.into_iter().map(Entry::Request).collect();
        prop_assert_eq!(entries, expected);
    }

    /// A trace that was cut off gives what is whole, and then says where.
    #[test]
    fn a_cut_is_noticed_where_it_is(
        requests in prop::collection::vec(request(), 1..200), cut: prop::sample::Index,
    ) {
        let whole = trace_of(&requests);
        let cut = cut.index(whole.len());
        let (entries, error) = read_all(&whole[..cut]);
        let error = error.expect("it is cut");
        prop_assert!(error.at <= cut as u64);
        let good = requests.iter().zip(&entries);
        prop_assert!(good.into_iter().all(|(was, is)| Entry::Request(*was) == *is));
    }

    /// Any changed bit is noticed, and costs nothing before its chunk.
    #[test]
    fn rot_is_noticed_where_it_is(
        requests in prop::collection::vec(request(), 1..100), place: prop::sample::Index, bit in 0u8..8,
    ) {
        let mut file = trace_of(&requests);
        let place = place.index(file.len());
        file[place] ^= 1 << bit;
        let error = read_all(&file).1.expect("it is damaged");
        prop_assert!(error.at <= place as u64);
    }

    /// Whoever makes up a trace can also compute its checksums. Nothing may
    /// panic or go on for ever, and what is read has ranges that there can be.
    #[test]
    fn no_entries_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 1..300)) {
        let mut file = trace_of(&[]);
        file.truncate(HEADER_BYTES);
        let mut chunk = Chunk::new();
        chunk.entries().extend(&bytes);
        file.extend(chunk.seal(0));
        let (entries, error) = read_all(&file);
        prop_assert!(entries.len() <= bytes.len());
        prop_assert!(error.is_some_and(|error| error.at <= file.len() as u64));
    }
}
