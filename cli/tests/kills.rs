//! `vrio server` is killed with -9, again and again, while a guest writes and
//! checks what it reads. The guest sees pauses and nothing else.
//!
//! Each test kills 3 times; `VRIO_KILLS=200` (or 2000) makes it more. How long
//! the guest waited is printed: `--no-capture` shows it.

mod stand;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stand::{Stand, bench};

fn kills() -> u32 {
    std::env::var("VRIO_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

/// Kills the server under load; what is said about the wait goes to the log.
fn kill_under_load(stand: &mut Stand, socket: &Path, options: &str) {
    let kills = kills();
    let seconds = kills;
    let options = format!("{options} --seconds {seconds} --overwrite --verify --timeout 60");
    let load = {
        let socket = socket.to_owned();
        std::thread::spawn(move || bench(&socket, &options))
    };
    let end = Instant::now() + Duration::from_secs(u64::from(seconds));
    let mut killed = 0;
    // The server dies at any moment of its life, also while it is being sent
    // again what it lost.
    while killed < kills && Instant::now() < end && !load.is_finished() {
        let alive = [30, 170, 350, 520][killed as usize % 4];
        std::thread::sleep(Duration::from_millis(alive));
        stand.server().kill();
        stand.start_server();
        killed += 1;
    }
    let report = load.join().expect("no panic").unwrap_or_else(|error| {
        panic!("{error}\n{}", stand.logs());
    });
    assert_eq!(report["verify"]["mismatched_sectors"], 0, "{}", stand.logs());
    assert_eq!(report["verify"]["read_back_blocks"], report["verify"]["known_blocks"]);
    assert!(killed * 2 >= kills, "only {killed} kills in {seconds} s");
    let length = &report["stalls"]["length_ns"];
    let ms = |what: &str| length[what].as_u64().unwrap_or(0) / 1_000_000;
    eprintln!(
        "{killed} kills, {} requests: stalls p50 {} ms, p99 {} ms, longest {} ms",
        report["ios"],
        ms("p50"),
        ms("p99"),
        ms("max")
    );
}

#[test]
fn a_killed_server_of_a_raw_volume_is_a_pause() {
    let mut stand = Stand::start(256);
    stand.create("disk", "64M");
    let socket = stand.front("front", "disk", "");
    let shape = "--rw randrw --bs 4k-64k --depth 16 --discard-percent 3 --zero-percent 3";
    kill_under_load(&mut stand, &socket, shape);
}

/// What a pool had not flushed is in its server's memory, and gone: here the
/// front has to send it again. Flushes and a small kept set make that short.
#[test]
fn a_killed_server_of_a_pool_is_a_pause() {
    let (mut stand, socket) = pool("");
    kill_under_load(&mut stand, &socket, "--rw randrw --bs 4k-64k --depth 16 --flush-every 500");
}

/// The guest never flushes: the front does when half of what it keeps is
/// used, and what is left comes again.
#[test]
fn a_guest_of_a_pool_that_never_flushes_loses_nothing() {
    let (mut stand, socket) = pool("kept = \"2M\"");
    kill_under_load(&mut stand, &socket, "--rw randrw --bs 512-16k --depth 8 --read-percent 30");
}

fn pool(front: &str) -> (Stand, PathBuf) {
    let unlock = |path: &dyn Fn(&str) -> PathBuf| {
        let key = path("key");
        fs::write(&key, [7; 32]).expect("write");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        format!("unlock = \"key-file:{}\"\n", key.display())
    };
    let mut stand = Stand::start_with(512, unlock);
    let made = stand.run("pool create soft");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    stand.create("disk", "64M");
    let socket = stand.front_with("front", "disk", front, "");
    (stand, socket)
}
