//! Traces and devices that fit each other, and such that do not.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use block_core::{BlockCount, BlockError, Op as Recorded, SectorRange, Time};
use clap::Parser;
use interpose::hooks::trace::{Header, pipe};
use interpose::hooks::{Recorder, RequestFacts};
use tempfile::TempDir;

use super::*;
use crate::bench::driver::TrimLimits;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    args: ReplayArgs,
}

/// When in milliseconds, how long in milliseconds, what, where.
type Made = (u64, u64, Recorded, u64, u32, Result<(), BlockError>);

const USUAL: [Made; 4] = [
    (1010, 30, Recorded::Read, 64, 8, Ok(())),
    (1000, 50, Recorded::Write, 8, 16, Ok(())),
    (1060, 1, Recorded::Flush, 0, 0, Ok(())),
    (1070, 1, Recorded::Read, 1 << 40, 8, Err(BlockError::OutOfRange)),
];

fn trace(folder: &TempDir, made: &[Made]) -> PathBuf {
    let (sink, writer) = pipe();
    let header =
        Header { volume: [1; 16], name: "db".to_owned(), blocks: BlockCount(1 << 20), began: 0 };
    let recorder = Recorder::new(header, sink, Time::ZERO);
    for &(arrival, latency, op, first, count, outcome) in made {
        let arrived = Time::ZERO + Duration::from_millis(arrival);
        let facts = RequestFacts { op, range: SectorRange::new(first, count) };
        recorder.done(facts, arrived, arrived + Duration::from_millis(latency), outcome);
    }
    drop(recorder);
    let path = folder.path().join("trace");
    let mut file = File::create(&path).expect("a file");
    writer.run(&mut file).expect("written");
    path
}

fn args(trace: &Path, options: &str) -> ReplayArgs {
    let trace = trace.to_str().expect("UTF-8");
    let words = ["replay", trace, "disk.sock"].into_iter().chain(options.split_whitespace());
    Line::try_parse_from(words).expect("options").args
}

fn disk() -> Facts {
    Facts {
        capacity: 1 << 32,
        logical_block: 512,
        read_only: false,
        flush: true,
        discard: Some(TrimLimits { most: 1 << 20, alignment: 4096 }),
        zero: None,
        most_queues: 1,
        largest_segment: u32::MAX,
    }
}

fn fitted(trace: &Path, options: &str, facts: &Facts) -> anyhow::Result<Loaded> {
    let args = args(trace, options);
    let mut loaded = load(&args)?;
    loaded.fit(&args, facts)?;
    Ok(loaded)
}

/// Somebody replays a customer's trace against a disk that is in use: unless
/// it is said, nothing changes what the disk holds.
#[test]
fn nothing_changes_data_without_permission() {
    let folder = TempDir::new().expect("a folder");
    let path = trace(&folder, &USUAL);
    let reads = fitted(&path, "", &disk()).expect("fits");
    assert!(reads.requests.iter().all(|(_, op)| !op.kind.changes_data()));
    assert_eq!(reads.left_out, LeftOut { changes: 1, failed: 1, gaps: 0 });
    let kinds = |loaded: &Loaded| loaded.requests.iter().map(|(_, op)| op.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&reads), [Kind::Read, Kind::Flush]);
    let all = fitted(&path, "--write-data", &disk()).expect("fits");
    assert_eq!(kinds(&all), [Kind::Read, Kind::Write, Kind::Flush]);
}

#[test]
fn requests_keep_their_distance_and_their_latencies() {
    let folder = TempDir::new().expect("a folder");
    let path = trace(&folder, &USUAL);
    let loaded = fitted(&path, "--write-data", &disk()).expect("fits");
    let due: Vec<u64> = loaded.requests.iter().map(|(due, _)| due.as_millis() as u64).collect();
    assert_eq!(due, [10, 0, 60], "from the first arrival on, in the order of the ends");
    assert_eq!(loaded.took, Duration::from_millis(71));
    assert_eq!(loaded.largest, 16 * 512);
    let write = loaded.recorded.kind(Kind::Write);
    assert_eq!((write.latency.len(), write.bytes), (1, 16 * 512));
    assert!(write.latency.max().abs_diff(50_000_000) < 100_000);
    let one = fitted(&path, "--requests 1", &disk()).expect("fits");
    assert_eq!(one.requests.len(), 1);
}

#[test]
fn what_the_device_takes_in_pieces_is_cut() {
    let folder = TempDir::new().expect("a folder");
    let path = trace(&folder, &[(0, 1, Recorded::Discard, 100, 5000, Ok(()))]);
    let loaded = fitted(&path, "--write-data", &disk()).expect("fits");
    let spans: Vec<(u64, u32)> =
        loaded.requests.iter().map(|(_, op)| (op.span.first, op.span.count)).collect();
    assert_eq!(spans, [(100, 2048), (2148, 2048), (4196, 904)]);
}

#[test]
fn what_cannot_be_made_is_refused_in_words() {
    let folder = TempDir::new().expect("a folder");
    let read_only = Facts { read_only: true, ..disk() };
    let small = Facts { capacity: 71 * 512, ..disk() };
    let large_blocks = Facts { logical_block: 8192, ..disk() };
    let zero = (0, 1, Recorded::WriteZeroes, 0, 8, Ok(()));
    let huge = (0, 1, Recorded::Read, 0, u32::MAX, Ok(()));
    let cases: [(&[Made], &str, &Facts, &str); 7] = [
        (&USUAL, "--write-data", &read_only, "is read-only"),
        (&USUAL, "", &small, "reaches sector 72 and disk.sock has 71"),
        (&USUAL, "", &large_blocks, "blocks of 8192 bytes"),
        (&[zero], "--write-data", &disk(), "has a write zeroes and disk.sock does not offer it"),
        (&[zero], "", &disk(), "no request to make: 1 would change data"),
        (&[huge], "", &disk(), "damaged"),
        (&[], "", &disk(), "no request to make"),
    ];
    for (made, options, facts, words) in cases {
        let path = trace(&folder, made);
        let sentence = match fitted(&path, options, facts) {
            Ok(_) => panic!("{words}: accepted"),
            Err(error) => format!("{error:#}"),
        };
        assert!(sentence.contains(words), "{sentence}");
    }
    let missing = folder.path().join("none");
    let sentence = load(&args(&missing, "")).err().expect("none").to_string();
    assert!(sentence.contains("cannot open the trace"), "{sentence}");
}

/// The server was killed while it recorded: what came into the file is still
/// of use, but only to somebody who knows that the rest is missing.
#[test]
fn a_trace_that_was_cut_off_is_used_only_when_that_was_said() {
    let folder = TempDir::new().expect("a folder");
    let path = trace(&folder, &USUAL);
    let bytes = std::fs::read(&path).expect("it is there");
    // The end is a chunk of its own: 12 bytes and an entry of 3.
    let mut file = File::create(&path).expect("a file");
    file.write_all(&bytes[..bytes.len() - 15]).expect("written");
    let sentence = load(&args(&path, "")).err().expect("cut off").to_string();
    assert!(sentence.contains("cut off") && sentence.contains("--partial"), "{sentence}");
    assert_eq!(load(&args(&path, "--partial")).expect("whole").requests.len(), 2);
}
