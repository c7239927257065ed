//! A disk that lives in another process: `vrio bench` on `vrio front` on
//! `vrio server`, over UDP, each a real process.

mod stand;

use std::time::Duration;

use stand::{Stand, bench, vrio};

fn verified(stand: &Stand, socket: &std::path::Path, options: &str) {
    let report = bench(socket, &format!("{options} --overwrite --verify"))
        .unwrap_or_else(|error| panic!("'{options}': {error}\n{}", stand.logs()));
    let verify = &report["verify"];
    assert_eq!(verify["mismatched_sectors"], 0, "{options}");
    assert!(verify["known_blocks"].as_u64() > Some(0), "{options}");
    assert_eq!(verify["read_back_blocks"], verify["known_blocks"], "{options}");
}

/// What was written is read, at every depth and number of queues, for every
/// kind of block a guest may send.
#[test]
fn what_is_written_is_read() {
    let mut stand = Stand::start(256);
    stand.create("disk", "128M");
    // The front would flush every 32 MiB, which says more of the disk below.
    let socket = stand.front_with("front", "disk", "kept = \"1G\"", "queues = 2");
    for shape in [
        "--depth 1 --queues 1",
        "--depth 32 --queues 1",
        "--depth 1 --queues 2",
        "--depth 32 --queues 2",
    ] {
        verified(&stand, &socket, &format!("--rw randwrite --bs 4k --bytes 32M {shape}"));
        verified(&stand, &socket, &format!("--rw randrw --bs 4k-1M --bytes 128M {shape}"));
        verified(&stand, &socket, &format!("--rw randrw --bs 512-64k --bytes 16M {shape}"));
    }
    verified(&stand, &socket, "--rw randrw --bs 4k --bytes 16M --depth 8 --write-through");
    verified(
        &stand,
        &socket,
        "--rw randrw --bs 4k-64k --bytes 32M --depth 16 --discard-percent 5 --zero-percent 5",
    );
}

/// A front that stops gives its volume back, and another can have it. One that
/// was killed keeps it until it is taken away by force.
#[test]
fn a_stopped_front_gives_back_and_a_killed_one_keeps() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    stand.front("one", "disk", "");
    assert_eq!(stand.front_process("one").stop(), Some(0), "{}", stand.logs());
    let socket = stand.front("two", "disk", "");
    bench(&socket, "--rw randwrite --bs 4k --bytes 1M --overwrite").expect("served");
    stand.front_process("two").kill();

    let config = stand.configure_front("three", "disk", "");
    let mut third = stand.spawn_front("three", &config);
    assert_eq!(third.wait(), Some(1));
    assert!(third.log().contains("attached for writing by front"), "{}", third.log());

    let forced = stand.volume(&["detach", "disk", "--force"]);
    assert!(forced.status.success(), "{}", String::from_utf8_lossy(&forced.stderr));
    stand.front("four", "disk", "");
}

/// Two fronts may read one volume, and a third may not write it meanwhile.
#[test]
fn many_read_or_one_writes() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let one = stand.front("one", "disk", "read_only = true");
    let two = stand.front("two", "disk", "read_only = true");
    for socket in [one, two] {
        bench(&socket, "--rw randread --bs 4k --ios 500").expect("readable");
        let refused = bench(&socket, "--rw randwrite --bs 4k --ios 500 --overwrite");
        assert!(refused.expect_err("refused").contains("read-only"));
    }
    let config = stand.configure_front("writer", "disk", "");
    let mut writer = stand.spawn_front("writer", &config);
    assert_eq!(writer.wait(), Some(1));
    assert!(writer.log().contains("2 other fronts have it"), "{}", writer.log());
}

/// A volume grows while a guest has it: the guest is told with its next
/// request, and the new space is zero and can be used.
#[test]
fn a_volume_grows_under_its_guest() {
    let mut stand = Stand::start(128);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let past_the_end =
        "--rw randrw --bs 4k --offset 16M --size 16M --bytes 8M --overwrite --verify";
    let refused = bench(&socket, past_the_end).expect_err("there is no such space");
    assert!(refused.contains("16"), "{refused}");
    let resized = stand.volume(&["resize", "disk", "--size", "32M"]);
    assert!(resized.status.success(), "{}", String::from_utf8_lossy(&resized.stderr));
    bench(&socket, "--rw randread --bs 4k --ios 10").expect("served");
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while let Err(error) = bench(&socket, past_the_end) {
        assert!(std::time::Instant::now() < end, "{error}\n{}", stand.logs());
    }
}

/// `vrio local` serves the same volumes without a link, and gives them back.
#[test]
fn local_serves_the_same_volume_without_a_link() {
    let mut stand = Stand::start(256);
    stand.create("disk", "64M");
    let socket = stand.front("front", "disk", "");
    bench(&socket, "--rw write --bs 64k --bytes 64M --overwrite --verify --seed 5")
        .expect("written");
    assert_eq!(stand.front_process("front").stop(), Some(0));
    assert_eq!(stand.server().stop(), Some(0));

    let socket = stand.path("local.sock");
    let mut command = vrio();
    command.arg("local").arg("--config").arg(stand.path("server.toml"));
    command.arg("--disk").arg(format!("disk={}", socket.display()));
    let mut local = stand::Process::spawn(&mut command, stand.path("local.log"));
    local.await_path(&socket);
    bench(&socket, "--rw read --bs 64k --bytes 64M --verify --seed 5").expect("the same data");
    verified(&stand, &socket, "--rw randrw --bs 512-1M --bytes 64M --depth 32");
    assert_eq!(local.stop(), Some(0), "{}", local.log());
    stand.start_server();
    stand.front("again", "disk", "");
}
