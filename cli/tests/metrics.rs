//! What Prometheus reads of a server: over the control socket and over TCP, while a front
//! works.

mod stand;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use stand::{Stand, bench};

/// A server with one pool, and metrics at a port.
fn start() -> (Stand, u16) {
    let mut stand = Stand::start_with(256, |path| {
        let key = path("key");
        fs::write(&key, [7; 32]).expect("write");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        format!("unlock = \"key-file:{}\"\n", key.display())
    });
    assert!(stand.run("pool create soft").status.success(), "{}", stand.logs());
    stand.create("disk", "32M");
    assert_eq!(stand.server().stop(), Some(0));
    let port = free_port();
    stand.say_to_server(&format!("metrics = \"127.0.0.1:{port}\""));
    stand.start_server();
    (stand, port)
}

/// The kernel picks it; nobody else is given it soon.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it").port()
}

/// Head and body of the answer.
fn ask(mut stream: impl Read + Write, request: &str) -> (String, String) {
    let text = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

fn by_tcp(port: u16, request: &str) -> (String, String) {
    ask(TcpStream::connect(("127.0.0.1", port)).expect("it listens"), request)
}

fn by_socket(stand: &Stand, request: &str) -> (String, String) {
    ask(UnixStream::connect(stand.path("control.sock")).expect("it listens"), request)
}

fn page((head, body): (String, String)) -> String {
    assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    body
}

/// The figure of one sample.
fn value(page: &str, sample: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    let figure = line.unwrap_or_else(|| panic!("{sample} is not in\n{page}"));
    figure.parse().unwrap_or_else(|_| panic!("{sample} is {figure}"))
}

/// Each name is explained and typed once, before its samples, which stand together; a name
/// says whether it is a counter.
fn check_form(page: &str) {
    let mut families: Vec<(&str, &str)> = Vec::new();
    for line in page.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').expect("name and kind");
            assert!(families.iter().all(|(other, _)| *other != name), "{name} comes twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            families.push((name, kind));
            continue;
        }
        if line.starts_with("# HELP vrio_") {
            continue;
        }
        let (name, kind) = families.last().expect("a type first");
        let rest = line.strip_prefix(name).unwrap_or_else(|| panic!("{line} is below {name}"));
        let of_histogram = |end| *kind == "histogram" && rest.starts_with(end);
        let plain = *kind != "histogram" && (rest.starts_with('{') || rest.starts_with(' '));
        assert!(plain || ["_bucket{", "_sum{", "_count{"].into_iter().any(of_histogram), "{line}");
        let figure = line.rsplit(' ').next().expect("a figure");
        assert!(figure.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn what_a_guest_does_is_scraped_over_both_ways() {
    let (mut stand, port) = start();
    let socket = stand.front("front", "disk", "");
    let before = page(by_socket(&stand, "GET /metrics"));
    check_form(&before);
    let writes = |of| format!("vrio_volume_{of}{{volume=\"disk\",device=\"soft\",kind=\"write\"}}");
    assert_eq!(value(&before, &writes("requests_total")), 0.0, "nothing was written");
    assert_eq!(value(&before, "vrio_device_up{device=\"soft\"}"), 1.0);
    assert_eq!(value(&before, "vrio_device_late_commands_total{device=\"soft\"}"), 0.0);
    assert_eq!(
        value(&before, "vrio_volume_size_bytes{volume=\"disk\",device=\"soft\"}"),
        33554432.0
    );
    assert_eq!(value(&before, "vrio_volume_sessions{volume=\"disk\",device=\"soft\"}"), 1.0);
    assert_eq!(value(&before, "vrio_pool_state{device=\"soft\",state=\"open\"}"), 1.0);

    bench(&socket, "--rw randwrite --bs 4k --ios 300 --overwrite").expect("written");
    let after = page(by_socket(&stand, "GET /metrics"));
    check_form(&after);
    assert_eq!(value(&after, &writes("requests_total")), 300.0);
    assert_eq!(value(&after, &writes("bytes_total")), 300.0 * 4096.0);
    assert_eq!(value(&after, &writes("errors_total")), 0.0);
    let duration = writes("request_duration_seconds_bucket").replace('}', ",le=\"+Inf\"}");
    assert_eq!(value(&after, &duration), 300.0);
    assert!(value(&after, &writes("request_duration_seconds_sum")) > 0.0);
    let written = "vrio_pool_written_bytes_total{device=\"soft\"}";
    assert!(value(&after, written) > value(&before, written));
    assert_eq!(value(&after, "vrio_device_temperature_celsius{device=\"soft\"}"), 27.0);

    // Over TCP the page may be a second old.
    let end = Instant::now() + Duration::from_secs(60);
    while value(&page(by_tcp(port, "GET /metrics")), &writes("requests_total")) != 300.0 {
        assert!(Instant::now() < end, "it does not change over TCP");
    }
}

/// Over TCP there is the page and nothing else, and nobody can keep others from it by
/// saying nothing.
#[test]
fn over_tcp_there_are_metrics_and_nothing_else() {
    let (stand, port) = start();
    let _silent: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("it listens")).collect();
    page(by_tcp(port, "GET /metrics"));
    let refused = [("POST /metrics", "405"), ("DELETE /metrics", "405"), ("GET /server", "404")];
    for (request, status) in refused.into_iter().chain([("POST /volumes", "404")]) {
        let (head, body) = by_tcp(port, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {head}\n{body}");
    }
    let (head, _) = by_socket(&stand, "POST /metrics");
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
    assert!(String::from_utf8_lossy(&stand.volume(&["list"]).stdout).contains("disk"));
}

/// The server says which line is wrong, and does not run without what it was asked for.
#[test]
fn an_address_that_cannot_be_is_named() {
    let (mut stand, _) = start();
    assert_eq!(stand.server().stop(), Some(0));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = taken.local_addr().expect("its address");
    let file = stand.path("server.toml");
    let text = fs::read_to_string(&file).expect("written");
    let (_, rest) = text.split_once('\n').expect("the first line is of metrics");
    for (address, complaint) in [(place.to_string(), "free"), ("9464".to_owned(), "127.0.0.1:9464")]
    {
        fs::write(&file, format!("metrics = \"{address}\"\n{rest}")).expect("write");
        let mut command = stand::vrio();
        command.arg("server").arg("--config").arg(&file);
        let mut server = stand::Process::spawn(&mut command, stand.path("refused.log"));
        assert_eq!(server.wait(), Some(1), "{}", server.log());
        let log = server.log();
        let named = log.contains(&format!("`metrics = \"{address}\"`")) && log.contains(complaint);
        assert!(named, "{log}");
    }
}
