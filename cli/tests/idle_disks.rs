//! What disks cost that nobody uses, or hardly: 64 of them, attached to guests, of
//! one front and one server. `cargo nextest run -p vrio --no-capture idle_disks`
//! shows the figures; `VRIO_IDLE_SECONDS=20` measures for longer.

mod stand;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stand::{Process, Stand, bench, vrio};

const DISKS: usize = 64;

fn seconds() -> f64 {
    let asked = std::env::var("VRIO_IDLE_SECONDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(1.0)
}

/// A guest that does what the words say until it is dropped.
struct Guest(Child);

impl Guest {
    fn start(socket: &Path, words: &str) -> Self {
        let mut command = vrio();
        command.arg("bench").arg(socket).args(words.split_whitespace());
        command.args(["--wait", "sleep"]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("vrio starts"))
    }
}

impl Guest {
    /// Lets it do nothing more: a guest that is there and asks for nothing.
    fn pause(&self) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-STOP", &id]).status().is_ok_and(|s| s.success()));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a process has used, over all its threads.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    cpu: Duration,
    /// How often a thread went to sleep.
    sleeps: u64,
}

fn usage(process: u32) -> Usage {
    let mut all = Usage::default();
    for task in fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let nanos = read("schedstat").split(' ').next().and_then(|word| word.parse().ok());
        all.cpu += Duration::from_nanos(nanos.unwrap_or(0));
        let status = read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        all.sleeps += line.and_then(|word| word.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    all
}

/// What both used in a while: per cent of a core, and sleeps a second.
fn use_over(processes: [u32; 2], time: Duration) -> (f64, f64) {
    let before = processes.map(usage);
    let start = Instant::now();
    std::thread::sleep(time);
    let (elapsed, after) = (start.elapsed().as_secs_f64(), processes.map(usage));
    let (mut cpu, mut sleeps) = (0.0, 0);
    for (before, after) in before.iter().zip(after) {
        cpu += (after.cpu - before.cpu).as_secs_f64();
        sleeps += after.sleeps - before.sleeps;
    }
    (100.0 * cpu / elapsed, sleeps as f64 / elapsed)
}

/// Keeps both on one core, as far as this machine lets us.
fn pin(processes: [u32; 2]) {
    for process in processes {
        let words = ["-a", "-c", "-p", "0", &process.to_string()];
        let _ = Command::new("taskset").args(words).stdout(Stdio::null()).status();
    }
}

fn front_with_all_disks(stand: &Stand) -> (Process, Vec<PathBuf>) {
    let config = stand.path("front.toml");
    let mut text = format!(
        "state = \"{}\"\nserver = \"{}\"\nclear = true\nkept = \"1M\"\n",
        stand.path("front").display(),
        stand.server_address()
    );
    let sockets: Vec<PathBuf> =
        (0..DISKS).map(|disk| stand.path(&format!("disk{disk}.sock"))).collect();
    for (disk, socket) in sockets.iter().enumerate() {
        stand.create(&format!("disk{disk}"), "1M");
        let socket = socket.display();
        text += &format!("[[disk]]\nvolume = \"disk{disk}\"\nsocket = \"{socket}\"\n");
    }
    fs::write(&config, text).expect("write");
    let mut front = stand.spawn_front("front", &config);
    sockets.iter().for_each(|socket| front.await_path(socket));
    (front, sockets)
}

/// Guests on all disks, whose requests are spread over each second.
fn guests(sockets: &[PathBuf], words: &str) -> Vec<Guest> {
    let start = |socket: &PathBuf| {
        std::thread::sleep(Duration::from_secs(1) / DISKS as u32);
        Guest::start(socket, words)
    };
    sockets.iter().map(start).collect()
}

/// Nothing ticks: while no guest asks for anything, no thread of front or server
/// wakes up. With a request a second on each disk they wake up for those.
#[test]
fn disks_that_nobody_uses_cost_nothing() {
    let mut stand = Stand::start(256);
    let (front, sockets) = front_with_all_disks(&stand);
    let both = [stand.server().id(), front.id()];
    pin(both);
    let silent = guests(&sockets, "--rw randread --bs 4k --rate 0.001 --seconds 600");
    std::thread::sleep(Duration::from_millis(500));
    silent.iter().for_each(Guest::pause);
    let time = Duration::from_secs_f64(seconds());
    let mut quiet = use_over(both, time);
    // Guests may have been slow to come: the last of them is no tick.
    if quiet.1 > 0.0 {
        quiet = use_over(both, time);
    }
    println!("{DISKS} idle disks: {:.3}% of a core, {:.1} sleeps/s", quiet.0, quiet.1);
    drop(silent);
    let words = "--rw randwrite --overwrite --bs 4k --rate 1 --seconds 600";
    let working = guests(&sockets, words);
    std::thread::sleep(Duration::from_millis(500));
    let (cpu, sleeps) = use_over(both, time);
    println!("one write a second on each: {cpu:.2}% of a core, {sleeps:.1} sleeps/s");
    drop(working);
    assert_eq!(quiet.1, 0.0, "something ticks\n{}", stand.logs());
}

/// After load the threads go to sleep; at a rate far below what they can do, an
/// adaptive thread answers about as soon as a spinning one.
#[test]
fn a_steady_rate_beside_a_spinning_server() {
    let measure = |idle: &str| {
        let mut stand = Stand::start_idling(idle);
        stand.create("disk", "4M");
        let socket = stand.front_with("front", "disk", &format!("idle = \"{idle}\""), "");
        let rate = format!("--rw randread --bs 4k --depth 8 --rate 10000 --seconds {}", seconds());
        let report = bench(&socket, &rate);
        let report = report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
        let both = [stand.server().id(), stand.front_process("front").id()];
        let start = Instant::now();
        while idle != "yield" && use_over(both, Duration::from_millis(2)).0 > 0.0 {
            assert!(start.elapsed() < Duration::from_secs(30), "it does not sleep");
        }
        let asleep = start.elapsed();
        (report["kinds"][0]["latency_ns"]["p50"].as_f64().expect("a figure") / 1e3, asleep)
    };
    let (yielding, _) = measure("yield");
    let (adaptive, asleep) = measure("adaptive");
    println!(
        "10,000 reads/s: p50 {adaptive:.0} us adaptive, {yielding:.0} us yielding (ratio {:.2}); \
         asleep {} ms after the guest left",
        adaptive / yielding,
        asleep.as_millis()
    );
}
