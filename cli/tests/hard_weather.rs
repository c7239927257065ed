//! A front and a server in two network namespaces: frames are lost, doubled and
//! overtaken, and the path becomes narrower.
//!
//! `cargo nextest run -p vrio --no-capture hard_weather` shows the figures;
//! `VRIO_WEATHER_ROUNDS=10` repeats the measurement, for longer.

mod stand;

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use stand::bench;
use stand::cable::{ADDRESSES, Cable};

/// The MTU shrinks at one end, then at the other, while a guest works: what was
/// under way in large frames comes in smaller ones, each change once.
#[test]
fn a_narrower_path_is_a_pause() {
    let Some(cable) = Cable::lay("mtu") else { return };
    let mut stand = cable.stand(&udp(), "");
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let load = std::thread::spawn(move || {
        bench(&socket, "--rw randrw --bs 4k-64k --depth 8 --seconds 1.5 --overwrite --verify")
    });
    std::thread::sleep(Duration::from_millis(500));
    cable.narrow(0, 4500);
    std::thread::sleep(Duration::from_millis(500));
    cable.narrow(1, 1500);
    let report = load.join().expect("no panic").unwrap_or_else(|error| {
        panic!("{error}\n{}", stand.logs());
    });
    assert_verified(&report);
    let log = stand.front_process("front").log();
    for segment in ["segment=8192", "segment=4096", "segment=1368"] {
        assert!(log.contains(segment), "{segment} is missing:\n{log}");
    }
    println!(
        "{} requests, the longest stall {} ms",
        report["ios"],
        report["stalls"]["length_ns"]["max"].as_u64().unwrap_or(0) / 1_000_000
    );
}

fn udp() -> String {
    format!("udp://{}:7700", ADDRESSES[0])
}

fn assert_verified(report: &Value) {
    assert_eq!(report["verify"]["mismatched_sectors"], 0);
    assert_eq!(report["verify"]["read_back_blocks"], report["verify"]["known_blocks"]);
}

fn rounds() -> Option<u32> {
    std::env::var("VRIO_WEATHER_ROUNDS").ok().and_then(|text| text.parse().ok())
}

/// Of the frames that either end sends one in a hundred is lost, one is sent
/// twice, one is overtaken. What is read is what was written. The figures:
/// requests a second at depth 32 beside those of a clean path (through the same
/// code, with nothing to do), and the slowest request.
#[test]
fn one_lost_frame_in_a_hundred_costs_little() {
    let Some(cable) = Cable::lay("loss") else { return };
    let weather = "--wire-faults loss=1%,reorder=1%,duplicate=1%,seed=7";
    let (rounds, seconds) = rounds().map_or((1, 0.3), |rounds| (rounds, 2.0));
    for rw in ["randread", "randwrite"] {
        let (mut clean, mut foul) = (Vec::new(), Vec::new());
        let mut slowest = 0.0_f64;
        for _ in 0..rounds {
            let options = format!("--rw {rw} --bs 4k --depth 32 --seconds {seconds} --overwrite");
            clean.push(measure(&cable, "--wire-faults seed=7", &options).0);
            let (iops, worst) = measure(&cable, weather, &options);
            foul.push(iops);
            slowest = slowest.max(worst);
        }
        let (clean, foul) = (median(&mut clean), median(&mut foul));
        println!(
            "{rw}: clean {clean:.0}/s, under loss {foul:.0}/s ({:.1}%), slowest {slowest:.1} ms",
            100.0 * foul / clean
        );
    }
    let mut stand = cable.stand(&udp(), weather);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let shape = "--rw randrw --bs 512-64k --depth 16 --seconds 0.5 --overwrite --verify";
    let report = bench(&socket, shape).unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
    assert_verified(&report);
}

/// Requests a second, and milliseconds of the slowest.
fn measure(cable: &Cable, words: &str, options: &str) -> (f64, f64) {
    let mut stand = cable.stand(&udp(), words);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let run = |socket: &Path, options: &str| {
        bench(socket, options).unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()))
    };
    run(&socket, "--rw write --bs 128k --bytes 16M --depth 8 --overwrite");
    let report = run(&socket, options);
    let worst = report["kinds"][0]["latency_ns"]["max"].as_f64().expect("a figure");
    (report["iops"].as_f64().expect("a figure"), worst / 1e6)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
