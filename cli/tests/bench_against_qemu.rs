//! `vrio bench` against a device that is not ours.

mod storage_daemon;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use storage_daemon::StorageDaemon;

const MIB: u64 = 1 << 20;

fn bench(socket: &Path, options: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vrio"));
    command.arg("bench").arg(socket).args(options.split_whitespace());
    // The tests share few cores with each other and with the daemons.
    if !options.contains("--wait") {
        command.args(["--wait", "yield"]);
    }
    command
}

fn output(socket: &Path, options: &str) -> Output {
    bench(socket, options).output().expect("vrio runs")
}

fn passes(socket: &Path, options: &str) -> Value {
    let output = output(socket, &format!("{options} --json"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "'{options}' failed: {complaint}");
    assert_eq!(complaint, "", "off a terminal a short run is silent");
    serde_json::from_slice(&output.stdout).expect("JSON and nothing else")
}

/// The sentence of a run that fails.
fn fails(socket: &Path, options: &str) -> String {
    let output = output(socket, options);
    assert_eq!(output.status.code(), Some(1), "'{options}' passed");
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn of_kind<'a>(report: &'a Value, kind: &str) -> &'a Value {
    let kinds = report["kinds"].as_array().expect("a list");
    kinds.iter().find(|report| report["kind"] == kind).unwrap_or(&Value::Null)
}

fn verifies(test: &str, shape: &str) {
    let Some(daemon) = StorageDaemon::start(test, 16 * MIB, "writable=on") else { return };
    let options = format!("{shape} --overwrite --verify");
    for run in [
        "--rw randwrite --bs 4k --bytes 16M",
        "--rw write --bs 512 --size 2M --bytes 2M --wait sleep",
        "--rw randrw --bs 4k-1M --bytes 32M --flush-every 7",
        "--rw randrw --bs 512-64k --bytes 16M --segment 4k",
        "--rw rw --bs 64k --bytes 32M --no-event-idx",
    ] {
        let report = passes(&daemon.socket(), &format!("{run} {options}"));
        let verify = &report["verify"];
        assert_eq!(verify["mismatched_sectors"], 0, "{run}");
        assert!(verify["known_blocks"].as_u64() > Some(0), "{run}: {report}");
        assert_eq!(verify["read_back_blocks"], verify["known_blocks"], "{run}");
        if run.contains("--flush-every 7") {
            let count = |kind| of_kind(&report, kind)["ios"].as_u64().unwrap_or(0);
            assert_eq!(count("flush"), count("write") / 7);
        }
        if run.contains("randwrite") {
            assert_eq!(verify["known_blocks"], 16 * MIB / 4096, "one pass writes every block");
        }
    }
}

#[test]
fn verifies_at_depth_1_on_1_queue() {
    verifies("verifies_at_depth_1_on_1_queue", "--depth 1 --queues 1");
}

#[test]
fn verifies_at_depth_32_on_1_queue() {
    verifies("verifies_at_depth_32_on_1_queue", "--depth 32 --queues 1");
}

#[test]
fn verifies_at_depth_1_on_2_queues() {
    verifies("verifies_at_depth_1_on_2_queues", "--depth 1 --queues 2");
}

#[test]
fn verifies_at_depth_32_on_2_queues() {
    verifies("verifies_at_depth_32_on_2_queues", "--depth 32 --queues 2");
}

#[test]
fn zeroes_and_discards_are_verified_too() {
    let test = "zeroes_and_discards_are_verified_too";
    let Some(daemon) = StorageDaemon::start(test, 4 * MIB, "writable=on") else { return };
    let report = passes(
        &daemon.socket(),
        "--rw randrw --overwrite --verify --depth 8 --bs 4k-64k --bytes 32M \
         --zero-percent 30 --discard-percent 20",
    );
    assert_eq!(report["verify"]["mismatched_sectors"], 0);
    let kinds: Vec<&str> = report["kinds"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|kind| kind["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["read", "write", "discard", "write zeroes"]);
}

/// The reason to verify at all: each way in which a store can be wrong is
/// planted in the file behind the daemon's back, and must be found and named.
#[test]
fn a_flipped_bit_a_lost_write_and_a_misplaced_block_are_found() {
    let test = "a_flipped_bit_a_lost_write_and_a_misplaced_block_are_found";
    let Some(daemon) = StorageDaemon::start(test, 4 * MIB, "writable=on") else { return };
    let socket = daemon.socket();
    let check = "--rw read --verify --seed 9 --bytes 4M --depth 8";
    passes(&socket, "--rw randwrite --overwrite --verify --seed 9 --bytes 4M --depth 8");
    passes(&socket, check);

    let file = OpenOptions::new().read(true).write(true).open(daemon.image()).expect("the image");
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 100 * 512).expect("in the image");
    file.write_all_at(&sector, 200 * 512).expect("in the image");
    sector[300] ^= 1;
    file.write_all_at(&sector, 100 * 512).expect("in the image");
    file.write_all_at(&[0; 4096], 1024 * 512).expect("in the image");

    let output = output(&socket, check);
    assert_eq!(output.status.code(), Some(1));
    let (text, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(complaint.contains("10 sectors hold wrong data"), "{complaint}");
    for line in [
        "sector 100: expected this sector's own pattern, found a damaged sector, headed sector 100",
        "sector 200: expected this sector's own pattern, found sector 100 of write",
        "sector 1024: expected this sector's own pattern, found zeroes",
    ] {
        assert!(text.contains(line), "no '{line}' in:\n{text}");
    }
    assert!(fails(&socket, "--rw read --verify --seed 8 --ios 8").contains("64 sectors"));
}

#[test]
fn a_read_only_run_changes_nothing() {
    let test = "a_read_only_run_changes_nothing";
    let Some(daemon) = StorageDaemon::start(test, MIB, "writable=on") else { return };
    let before: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
    std::fs::write(daemon.image(), &before).expect("the image");
    for options in ["--rw randread --depth 8 --ios 2000", "--rw read --bs 64k --ios 100"] {
        passes(&daemon.socket(), options);
    }
    assert!(fails(&daemon.socket(), "--rw randwrite --ios 1").contains("--overwrite"));
    assert!(std::fs::read(daemon.image()).expect("the image") == before, "the image changed");
}

/// Under overload a closed loop would offer less and hide the queueing.
#[test]
fn an_offered_rate_is_kept_and_an_impossible_one_shows_in_the_latency() {
    let test = "an_offered_rate_is_kept_and_an_impossible_one_shows_in_the_latency";
    let Some(daemon) = StorageDaemon::start(test, MIB, "writable=off") else { return };
    let offered = passes(&daemon.socket(), "--rate 500 --seconds 1 --wait sleep");
    let ios = offered["ios"].as_u64().expect("a count");
    assert!((450..=501).contains(&ios), "{ios} of 500 offered");

    let overload = passes(&daemon.socket(), "--rate 1e7 --seconds 0.5 --depth 4");
    let p99 = overload["kinds"][0]["latency_ns"]["p99"].as_u64().expect("a latency");
    assert!(p99 > 200_000_000, "p99 {p99} ns, though requests waited for half a second");
}

#[test]
fn the_cpu_time_of_others_is_reported() {
    let test = "the_cpu_time_of_others_is_reported";
    let Some(daemon) = StorageDaemon::start(test, MIB, "writable=off") else { return };
    let options = format!("--depth 16 --ios 20000 --pid daemon={}", daemon.pid());
    let report = passes(&daemon.socket(), &options);
    assert_eq!(report["cpu"][1]["name"], "daemon");
    for cpu in report["cpu"].as_array().expect("a list") {
        let seconds = cpu["seconds_per_million_ios"].as_f64().expect("a number");
        assert!((0.05..500.0).contains(&seconds), "{cpu}");
    }
    let absent = fails(&daemon.socket(), "--pid ghost=4194304");
    assert!(absent.contains("no process 4194304 (ghost)"), "{absent}");
}

#[test]
fn what_the_device_is_not_is_said_in_a_sentence() {
    let test = "what_the_device_is_not_is_said_in_a_sentence";
    let Some(daemon) = StorageDaemon::start(test, MIB, "writable=off,logical-block-size=4096")
    else {
        return;
    };
    for (options, words) in [
        ("--rw write --overwrite", "is read-only"),
        ("--size 2M", "too small for 2 MiB"),
        ("--bs 512", "blocks of 4096 bytes"),
        ("--queues 3", "has 2 queues"),
        ("--depth 64 --bs 1M --segment 4k", "ring entries"),
        ("--pin 4000", "4000"),
    ] {
        let sentence = fails(&daemon.socket(), options);
        assert!(sentence.contains(words), "'{options}' gave: {sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
    }
}

#[test]
fn a_socket_without_a_device_is_said_in_a_sentence() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let absent = directory.path().join("absent.sock");
    assert!(fails(&absent, "").contains("there is no socket"));

    let dead = directory.path().join("dead.sock");
    drop(UnixListener::bind(&dead).expect("a socket"));
    assert!(fails(&dead, "").contains("nobody listens"));

    let mute = directory.path().join("mute.sock");
    let _listener = UnixListener::bind(&mute).expect("a socket");
    let sentence = fails(&mute, "");
    assert!(sentence.contains("another client"), "{sentence}");
}

/// A polling client never hears of its device's death by itself and would
/// spin for ever.
#[test]
fn a_device_that_dies_ends_the_run() {
    let test = "a_device_that_dies_ends_the_run";
    for wait in ["yield", "sleep"] {
        let Some(mut daemon) = StorageDaemon::start(test, MIB, "writable=off") else { return };
        let run = bench(&daemon.socket(), &format!("--seconds 60 --wait {wait}"))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("vrio runs");
        std::thread::sleep(Duration::from_millis(700));
        daemon.kill();
        let killed = Instant::now();
        let output = run.wait_with_output().expect("vrio ends");
        let sentence = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(sentence.contains("closed the connection"), "{wait}: {sentence}");
        assert!(killed.elapsed() < Duration::from_secs(10));
    }
}
