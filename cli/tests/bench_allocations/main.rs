//! A bench that allocates per request would measure the allocator.

#[path = "../storage_daemon/mod.rs"]
mod storage_daemon;

#[allow(dead_code)] // `vrio replay` uses the rest.
#[path = "../../src/bench/mod.rs"]
mod bench;

use std::process::Command;

use allocations::{Counting, of_all_threads};
use clap::Parser;
use storage_daemon::StorageDaemon;

#[global_allocator]
static COUNTING: Counting = Counting;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: bench::BenchArgs,
}

/// Runs in a process of its own: other tests allocate as they please.
#[test]
#[ignore = "the counted half of the test below"]
fn counted_run() {
    let Ok(line) = std::env::var("COUNTED_BENCH") else { return };
    let args = Line::parse_from(line.split_whitespace()).args;
    let before = of_all_threads();
    bench::run(args).expect("a run without errors");
    println!("\nallocations {}", of_all_threads() - before);
}

fn allocations(daemon: &StorageDaemon, options: &str) -> u64 {
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--ignored", "--exact", "counted_run", "--nocapture"])
        .env("COUNTED_BENCH", format!("bench {} {options}", daemon.socket().display()))
        .output()
        .expect("this test runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let count = text.lines().find_map(|line| line.strip_prefix("allocations ")?.parse().ok());
    count.unwrap_or_else(|| panic!("'{options}' was not counted: {text}"))
}

#[test]
fn ten_times_the_requests_need_no_more_allocations() {
    let test = "ten_times_the_requests_need_no_more_allocations";
    let Some(daemon) = StorageDaemon::start(test, 1 << 20, "writable=on") else { return };
    for options in [
        "--depth 16 --wait yield",
        "--depth 4 --queues 2 --wait sleep",
        "--depth 16 --wait yield --rw randrw --overwrite --verify --flush-every 5",
    ] {
        let few = allocations(&daemon, &format!("{options} --ios 1000"));
        let many = allocations(&daemon, &format!("{options} --ios 10000"));
        // What is left is the progress display, by time and not by request.
        assert!(many < few + 200, "{options}: {few} for 1000 requests, {many} for 10000");
    }
}
