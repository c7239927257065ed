//! Who may speak: fronts and servers with keys, as their keepers use them.

mod stand;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use stand::{Stand, bench, vrio};

/// A server that asks for keys, with a volume.
fn keyed() -> Stand {
    let mut stand = Stand::start(64);
    rewrite(&stand.path("server.toml"), "clear = true", "clear = false");
    restart(&mut stand);
    stand.create("disk", "16M");
    stand
}

fn restart(stand: &mut Stand) {
    assert_eq!(stand.server().stop(), Some(0), "{}", stand.logs());
    stand.start_server();
}

fn rewrite(file: &PathBuf, old: &str, new: &str) {
    let text = fs::read_to_string(file).expect("a configuration");
    assert!(text.contains(old), "{text}");
    fs::write(file, text.replace(old, new)).expect("written");
}

fn rights(stand: &Stand, words: &str) -> Value {
    let output = stand.run(&format!("server {words} --json"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn server_key(stand: &Stand) -> String {
    rights(stand, "list")["server_keys"][0].as_str().expect("a key").to_owned()
}

/// A front's configuration for this server's key.
fn configure(stand: &Stand, front: &str, key: &str, more: &str) -> PathBuf {
    let config = stand.configure_front(front, "disk", more);
    rewrite(&config, "clear = true", &format!("server_key = \"{key}\""));
    config
}

/// The last line that a front says which is refused.
fn refused(config: &PathBuf) -> String {
    let output = vrio().arg("front").arg("--config").arg(config).output().expect("vrio runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.lines().last().expect("a sentence").to_owned()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The front that nobody knows says what to type; typed, it is served, behind
/// seals. Its right taken away ends its session; given back, its guest goes on.
#[test]
fn a_front_is_served_as_long_as_its_key_is_authorized() {
    let mut stand = keyed();
    let config = configure(&stand, "front", &server_key(&stand), "");
    let sentence = refused(&config);
    let words = sentence.split('`').find(|words| words.contains("authorize vrio-key-"));
    let key = words.and_then(|words| words.split(' ').nth(3)).expect(&sentence).to_owned();

    rights(&stand, &format!("authorize {key} --volumes d*"));
    let socket = stand.front_of("front", &config);
    let shape = "--rw randrw --bs 4k-64k --depth 8 --seconds 0.3 --overwrite --verify";
    let report = bench(&socket, shape).unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
    assert_eq!(report["verify"]["mismatched_sectors"], 0);
    let attached =
        |stand: &Stand| String::from_utf8(stand.volume(&["show", "disk"]).stdout).expect("text");
    assert!(attached(&stand).contains(&format!("sealed by {key}")), "{}", attached(&stand));

    let load = std::thread::spawn(move || {
        bench(&socket, "--rw randrw --bs 4k --depth 8 --seconds 3 --overwrite --verify")
    });
    std::thread::sleep(Duration::from_millis(500));
    rights(&stand, &format!("revoke {key}"));
    until("the front is away", || attached(&stand).contains("(away)"));
    rights(&stand, &format!("authorize {key} --volumes disk"));
    let report = load.join().expect("no panic");
    let report = report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
    assert_eq!(report["verify"]["mismatched_sectors"], 0);
    assert_eq!(report["verify"]["read_back_blocks"], report["verify"]["known_blocks"]);
}

#[test]
fn a_key_to_read_with_does_not_write() {
    let mut stand = keyed();
    let key_file = stand.path("front.key");
    let made = vrio().args(["key", "generate"]).arg(&key_file).output().expect("vrio runs");
    let key = String::from_utf8(made.stdout).expect("a key").trim().to_owned();
    let shown = vrio().args(["key", "show"]).arg(&key_file).output().expect("vrio runs");
    assert_eq!(String::from_utf8(shown.stdout).expect("a key").trim(), key);
    rights(&stand, &format!("authorize {key} --volumes disk --read-only"));

    let own = format!("key = \"{}\"\n", key_file.display());
    let server = server_key(&stand);
    let config = configure(&stand, "front", &server, "");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, own.clone() + &text).expect("written");
    let sentence = refused(&config);
    assert!(sentence.contains("read the volume only") && sentence.contains(&key), "{sentence}");

    let config = configure(&stand, "front", &server, "read_only = true");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, own + &text).expect("written");
    let socket = stand.front_of("front", &config);
    bench(&socket, "--rw randread --bs 4k --depth 4 --seconds 0.1").expect("it reads");
}

/// The server gets another key. Fronts that know the old one are told, unless
/// the server has that one too; so keys are changed without a moment at which
/// all know the new one.
#[test]
fn another_key_is_noticed_and_an_older_one_still_good() {
    let mut stand = keyed();
    let old = server_key(&stand);
    let config = configure(&stand, "front", &old, "");
    let sentence = refused(&config);
    let key = sentence.split(' ').find(|word| word.starts_with("vrio-key-")).expect("its key");
    rights(&stand, &format!("authorize {key} --volumes *"));

    let new_key = stand.path("new.key");
    let said = format!("key = \"{}\"\nclear = false", new_key.display());
    rewrite(&stand.path("server.toml"), "clear = false", &said);
    restart(&mut stand);
    let new = server_key(&stand);
    assert_ne!(new, old);
    let sentence = refused(&config);
    assert!(sentence.contains("another key than this front knows"), "{sentence}");

    let old_key = stand.path("server").join("server.key");
    let said = format!("old_keys = [\"{}\"]\nclear = false", old_key.display());
    rewrite(&stand.path("server.toml"), "clear = false", &said);
    restart(&mut stand);
    for key in [old, new] {
        let config = configure(&stand, "front", &key, "");
        let socket = stand.front_of("front", &config);
        bench(&socket, "--rw randread --bs 4k --depth 4 --seconds 0.1").expect("it is served");
        assert_eq!(stand.front_process("front").stop(), Some(0));
    }
}

#[test]
fn a_front_in_the_clear_is_told_that_it_needs_a_key() {
    let stand = keyed();
    let config = stand.configure_front("front", "disk", "");
    let sentence = refused(&config);
    assert!(sentence.contains("speaks only with fronts that it knows"), "{sentence}");
}

/// The members of a group may look at the server. What changes something is
/// refused to them, whatever the socket's mode.
#[test]
fn others_look_at_the_control_socket_and_change_nothing() {
    let probe = Command::new("setpriv").arg("--version").stdout(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("no setpriv here: not tested");
        return;
    }
    const GROUP: &str = "64999";
    let mut stand = Stand::start(64);
    let group = format!("control_group = {GROUP}\nclear = true");
    rewrite(&stand.path("server.toml"), "clear = true", &group);
    restart(&mut stand);
    stand.create("disk", "16M");
    fs::set_permissions(stand.path(""), fs::Permissions::from_mode(0o755)).expect("a mode");
    let binary = stand.path("vrio");
    fs::copy(vrio().get_program(), &binary).expect("a copy that others reach");
    let run = |group: &str, words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=64998", "--clear-groups", &format!("--regid={group}")]);
        command.arg(&binary).args(words).arg("--control").arg(stand.path("control.sock"));
        let output = command.output().expect("setpriv runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said + &String::from_utf8_lossy(&output.stdout))
    };
    let (may, said) = run(GROUP, &["volume", "list"]);
    assert!(may && said.contains("disk"), "{said}");
    let (may, said) = run(GROUP, &["volume", "delete", "disk"]);
    assert!(!may && said.contains("may look and change nothing"), "{said}");
    let (may, said) = run("64997", &["volume", "list"]);
    assert!(!may && said.contains("may not be used by this user"), "{said}");
}
