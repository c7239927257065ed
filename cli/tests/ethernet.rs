//! A front and a server that speak Ethernet, in two network namespaces that a
//! cable joins. `cargo nextest run -p vrio --no-capture ethernet` shows the figures.

mod stand;

use std::time::Duration;

use serde_json::Value;
use stand::cable::Cable;
use stand::{bench, vrio};

fn assert_verified(report: &Value) {
    assert_eq!(report["verify"]["mismatched_sectors"], 0);
    assert_eq!(report["verify"]["read_back_blocks"], report["verify"]["known_blocks"]);
}

/// What is written is read, also after the cable was pulled for a while, the
/// server was killed, and the network became narrower.
#[test]
fn a_disk_is_served_over_ethernet() {
    let Some(cable) = Cable::lay("eth") else { return };
    let mut stand = cable.stand("eth://eth0", "");
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let load = std::thread::spawn(move || {
        bench(&socket, "--rw randrw --bs 512-64k --depth 16 --seconds 2 --overwrite --verify")
    });
    std::thread::sleep(Duration::from_millis(500));
    cable.ip(0, "link set eth0 down");
    std::thread::sleep(Duration::from_millis(200));
    cable.ip(0, "link set eth0 up");
    std::thread::sleep(Duration::from_millis(300));
    stand.server().kill();
    stand.start_server();
    cable.narrow(1, 1500);
    let report = load.join().expect("no panic").unwrap_or_else(|error| {
        panic!("{error}\n{}", stand.logs());
    });
    assert_verified(&report);
    let log = stand.front_process("front").log();
    for part in ["found a server", "segment=8192", "segment=1368"] {
        assert!(log.contains(part), "{part} is missing:\n{log}");
    }
    assert_eq!(stand.front_process("front").stop(), Some(0));
    assert_eq!(stand.server().stop(), Some(0));
}

/// Where several servers share a network, or none may be asked for, the front
/// names the one that it means.
#[test]
fn a_server_can_be_named_by_its_interface() {
    let Some(cable) = Cable::lay("mac") else { return };
    cable.ip(0, "link set eth0 address 02:00:00:00:00:0a");
    let mut stand = cable.stand("eth://eth0:7800", "");
    stand.create("disk", "16M");
    stand.fronts_look_at("eth://eth0:7800/02:00:00:00:00:0a");
    let socket = stand.front("front", "disk", "");
    let report = bench(&socket, "--rw randrw --bs 4k --ios 500 --overwrite --verify");
    assert_verified(&report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs())));
}

/// Sentences of a server that cannot speak there.
#[test]
fn who_may_not_or_cannot_is_told_why() {
    let Some(cable) = Cable::lay("not") else { return };
    let stand = cable.stand("eth://eth0", "");
    let folder = stand.path("");
    for (listen, words, named) in [
        ("eth://eth1", "", "there is no network interface eth1"),
        ("eth://eth0", "", "port 7700 of eth0 is taken"),
        ("eth://lo", "", "lo is no Ethernet interface"),
        ("eth://eth0/02:00:00:00:00:0a", "", "leave the hardware address out"),
        ("eth://eth0:1", "setpriv --bounding-set=-net_raw --inh-caps=-net_raw", "CAP_NET_RAW"),
    ] {
        let config = folder.join("other.toml");
        let text = format!(
            "clear = true\nlisten = '{listen}'\ncontrol = '{0}/o.sock'\nstate = '{0}/o'\n[[device]]\nname = 'd'\n\
             path = 'soft:{0}/o.img'\nsize = '64M'\n",
            folder.display()
        );
        std::fs::write(&config, text).expect("write");
        let mut command = cable.command(0, words, vrio().get_program());
        let output = command.arg("server").arg("--config").arg(&config).output().expect("runs");
        let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && sentence.contains(named), "{listen}: {sentence}");
    }
}

/// Latency at depth 1, over Ethernet and over UDP, in turns on the same cable.
#[test]
fn a_request_over_ethernet_beside_one_over_udp() {
    let Some(cable) = Cable::lay("p50") else { return };
    let rounds = std::env::var("VRIO_WEATHER_ROUNDS").ok().and_then(|text| text.parse().ok());
    let (rounds, seconds) = rounds.map_or((1, 0.2), |rounds: u32| (rounds, 2.0));
    let options = format!("--rw randread --bs 4k --depth 1 --seconds {seconds}");
    let median_of = |address: &str| {
        let mut stand = cable.stand(address, "");
        stand.create("disk", "16M");
        let socket = stand.front_with("front", "disk", "idle = \"yield\"", "");
        let report = bench(&socket, &options);
        let report = report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
        report["kinds"][0]["latency_ns"]["p50"].as_f64().expect("a figure") / 1e3
    };
    let mut ratios: Vec<f64> = Vec::new();
    for _ in 0..rounds {
        let udp = median_of(&format!("udp://{}:7700", stand::cable::ADDRESSES[0]));
        let ethernet = median_of("eth://eth0");
        println!("p50: {ethernet:.1} us over Ethernet, {udp:.1} us over UDP");
        ratios.push(ethernet / udp);
    }
    ratios.sort_by(f64::total_cmp);
    println!("the median of {rounds} ratios is {:.2}", ratios[ratios.len() / 2]);
}
