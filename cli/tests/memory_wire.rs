//! A front and a server that meet in memory: two processes of one machine.

mod stand;

use std::time::Duration;

use stand::{Stand, bench};

/// What is written is read, also when either process is killed meanwhile: the other
/// one notices, and they meet again.
#[test]
fn a_disk_is_served_through_memory() {
    let mut stand = Stand::start_in_memory();
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let load = std::thread::spawn(move || {
        bench(&socket, "--rw randrw --bs 512-128k --depth 16 --seconds 1.5 --overwrite --verify")
    });
    std::thread::sleep(Duration::from_millis(500));
    stand.server().kill();
    stand.start_server();
    let report = load.join().expect("no panic").unwrap_or_else(|error| {
        panic!("{error}\n{}", stand.logs());
    });
    assert_eq!(report["verify"]["mismatched_sectors"], 0);
    assert_eq!(report["verify"]["read_back_blocks"], report["verify"]["known_blocks"]);
    let front = stand.front_process("front").log();
    assert!(front.contains("the other process has ended"), "{front}");
    assert!(front.contains("segment=8192"), "{front}");

    stand.front_process("front").kill();
    std::fs::remove_file(stand.socket("front")).expect("a socket");
    stand.restart_front("front");
    let again = stand.socket("front");
    stand.front_process("front").await_path(&again);
    let report = bench(&again, "--rw randread --bs 4k --depth 4 --ios 2000");
    report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
    let server = stand.server().log();
    assert!(server.contains("the other process has ended"), "{server}");
}

/// Latency at depth 1 beside UDP on the same machine; reported, not asserted.
#[test]
fn a_request_through_memory_beside_one_over_udp() {
    let median_of = |mut stand: Stand| {
        stand.create("disk", "16M");
        let socket = stand.front_with("front", "disk", "idle = \"yield\"", "");
        let report = bench(&socket, "--rw randread --bs 4k --depth 1 --seconds 0.3");
        let report = report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
        report["kinds"][0]["latency_ns"]["p50"].as_f64().expect("a figure") / 1e3
    };
    let udp = median_of(Stand::start(256));
    let memory = median_of(Stand::start_in_memory());
    println!("p50: {memory:.1} us through memory, {udp:.1} us over UDP ({:.2})", memory / udp);
}
