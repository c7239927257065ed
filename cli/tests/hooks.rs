//! What an operator does to a volume in use: limit it, record it, and make its
//! requests again.

mod stand;

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use stand::{Stand, bench, vrio};

fn set(stand: &Stand, settings: &[&str]) -> Result<String, String> {
    let output = stand.volume(&[&["set", "disk"], settings].concat());
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn show(stand: &Stand) -> Value {
    let output = stand.volume(&["show", "disk", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn replay(trace: &Path, socket: &Path, options: &str) -> Result<Value, String> {
    let mut command = vrio();
    command.arg("replay").arg(trace).arg(socket).arg("--json");
    let output = command.args(options.split_whitespace()).output().expect("vrio runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&output.stdout).expect("JSON and nothing else"))
}

/// A guest that asks too much is slowed down while it runs, stays so after the
/// server was restarted, and is let go again.
#[test]
fn a_limit_holds_at_once_and_after_a_restart() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let seconds = |stand: &Stand, ios: u32| {
        let begin = Instant::now();
        let options = format!("--rw randread --bs 4k --depth 8 --ios {ios}");
        bench(&socket, &options).unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
        begin.elapsed().as_secs_f64()
    };
    let said = set(&stand, &["throttle.iops=100", "throttle.burst=off"]).expect("set");
    assert!(said.contains("throttle    100 requests a second"), "{said}");
    assert!(seconds(&stand, 60) > 0.55);
    let shown = show(&stand);
    let throttle = &shown["hooks"]["throttle"];
    assert!(throttle["delayed"].as_u64() >= Some(50), "{throttle}");
    let read = &shown["hooks"]["kinds"][0];
    assert_eq!((&read["kind"], &read["requests"]), (&"read".into(), &60.into()), "{shown}");
    assert_eq!(read["bytes"], 60 * 4096);
    assert!(read["latency"]["p50"].as_u64() > Some(10_000_000), "its waiting counts: {read}");

    assert_eq!(stand.server().stop(), Some(0));
    stand.start_server();
    assert!(seconds(&stand, 60) > 0.55);
    set(&stand, &["throttle=off"]).expect("set");
    assert!(seconds(&stand, 60) < 0.5);
    assert_eq!(show(&stand)["hooks"]["throttle"], Value::Null);
}

/// A front is restarted while a limit holds a minute's worth of requests: it
/// does not wait for them, and neither do its other volumes' guests.
#[test]
fn a_front_comes_back_while_a_limit_holds_its_requests() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    set(&stand, &["throttle.iops=1", "throttle.burst=off"]).expect("set");
    let guest = std::thread::spawn(move || bench(&socket, "--depth 64 --ios 64"));
    let begin = Instant::now();
    while show(&stand)["hooks"]["throttle"]["waiting"].as_u64() < Some(60) {
        assert!(begin.elapsed().as_secs() < 30, "{}\n{}", show(&stand), stand.logs());
        std::thread::sleep(Duration::from_millis(20));
    }
    stand.front_process("front").kill();
    guest.join().expect("no panic").expect_err("its device is gone");
    std::fs::remove_file(stand.socket("front")).expect("what a killed front leaves");
    // A front gives up when no session is opened for 5 s.
    let again = stand.front("front", "disk", "");
    let hooks = &show(&stand)["hooks"];
    assert_eq!((&hooks["throttle"]["waiting"], &hooks["in_flight"]), (&0.into(), &0.into()));
    set(&stand, &["throttle=off"]).expect("set");
    bench(&again, "--ios 50").unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
}

/// Three guests ask for much more than their limits let pass. What waits there
/// must not take the server's memory from a fourth one.
#[test]
fn limited_guests_do_not_stop_the_others() {
    let mut stand = Stand::start(64);
    let guests: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            stand.create(name, "8M");
            let set = stand.volume(&["set", name, "throttle.iops=1"]);
            assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
            let socket = stand.front(name, name, "");
            std::thread::spawn(move || bench(&socket, "--bs 64k --depth 128 --seconds 60"))
        })
        .collect();
    stand.create("disk", "8M");
    let socket = stand.front("disk", "disk", "");
    std::thread::sleep(Duration::from_secs(1));
    bench(&socket, "--bs 64k --depth 16 --ios 500 --timeout 5")
        .unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
    for front in ["a", "b", "c"] {
        stand.front_process(front).kill();
    }
    guests.into_iter().for_each(|guest| drop(guest.join().expect("no panic")));
}

/// A customer's complaint is recorded, and made again: first what changes
/// nothing, then all of it, as fast as it goes.
#[test]
fn what_was_recorded_is_made_again() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let trace = stand.path("disk.trace");
    let record = format!("record={}", trace.display());
    bench(&socket, "--rw randwrite --ios 50 --overwrite").expect("before the recording");
    set(&stand, &[&record]).expect("recording");
    bench(&socket, "--rw randrw --bs 4k-64k --ios 300 --depth 4 --overwrite --flush-every 20")
        .expect("recorded");
    let shown = show(&stand);
    assert!(shown["hooks"]["record"]["requests"].as_u64() >= Some(300), "{shown}");
    set(&stand, &["record=off"]).expect("ended");
    bench(&socket, "--rw randread --ios 50").expect("after the recording");
    let again = set(&stand, &[&record]).expect_err("it exists");
    assert!(again.contains("exists already"), "{again}");

    let count = |report: &Value, kind: &str, when: &str| {
        let kinds = report["kinds"].as_array().expect("kinds");
        let found = kinds.iter().find(|each| each["kind"] == kind);
        found.map_or(0, |found| found[when]["requests"].as_u64().expect("a number"))
    };
    let reads = replay(&trace, &socket, "").expect("replayed");
    let all = replay(&trace, &socket, "--write-data --speed max").expect("replayed");
    let writes = reads["left_out"]["changes"].as_u64().expect("a number");
    assert_eq!(count(&reads, "read", "recorded") + writes, 300, "{reads}");
    assert_eq!(count(&reads, "write", "replayed"), 0);
    assert_eq!(count(&all, "write", "replayed"), writes);
    for kind in ["read", "write", "flush"] {
        assert_eq!(count(&all, kind, "replayed"), count(&all, kind, "recorded"), "{all}");
        assert!(count(&all, kind, "replayed") > 0, "{all}");
    }
    assert!(
        reads["replayed_seconds"].as_f64() >= reads["recorded_seconds"].as_f64().map(|s| s / 2.0)
    );
}

/// The server ends, in whichever way, while it records: an orderly end leaves a
/// whole trace, a kill one that says that it was cut off.
#[test]
fn a_recording_survives_its_server() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let (whole, cut) = (stand.path("whole.trace"), stand.path("cut.trace"));
    set(&stand, &[&format!("record={}", whole.display())]).expect("recording");
    bench(&socket, "--rw randread --ios 100").expect("recorded");
    assert_eq!(stand.server().stop(), Some(0));
    stand.start_server();
    set(&stand, &[&format!("record={}", cut.display())]).expect("recording");
    bench(&socket, "--rw randread --ios 100").expect("recorded");
    stand.server().kill();
    stand.start_server();
    let report = replay(&whole, &socket, "--speed max").expect("it is whole");
    assert_eq!(report["kinds"][0]["replayed"]["requests"], 100);
    let refused = replay(&cut, &socket, "").expect_err("it is cut off");
    assert!(refused.contains("cut off") && refused.contains("--partial"), "{refused}");
}

#[test]
fn nonsense_is_refused_in_words() {
    let stand = Stand::start(64);
    stand.create("disk", "16M");
    for (setting, words) in [
        ("throttle.bytes=1K", "at least 4096 bytes a second"),
        ("throttle.burst=1s", "throttle.iops"),
        ("throttle.burst=2h", "at most 3600 seconds"),
        ("record=/nowhere/at/all", "/nowhere/at/all cannot be made"),
        ("speed=3", "no setting 'speed'"),
    ] {
        let sentence = set(&stand, &[setting]).expect_err(setting);
        assert!(sentence.contains(words), "{setting}: {sentence}");
    }
    let no_trace = replay(&stand.path("server.toml"), &stand.path("x.sock"), "");
    assert!(no_trace.expect_err("refused").contains("no trace of a volume"));
}
