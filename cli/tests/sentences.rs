//! What goes wrong at the start ends with one sentence that says what to do,
//! and an exit code that is not 0.

mod stand;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use link::frame::{Header, Kind};
use stand::{Stand, vrio};

/// The one line that a command prints when it fails.
fn sentence(command: &mut Command) -> String {
    let output = command.output().expect("vrio runs");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("vrio: ")).collect();
    assert_eq!(lines.len(), 1, "one sentence: {text}");
    lines[0].to_owned()
}

fn with_config(command: &str, text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("config.toml");
    fs::write(&file, text).expect("write");
    sentence(vrio().arg(command).arg("--config").arg(&file))
}

fn names(sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "{sentence:?} should say {word:?}");
    }
}

#[test]
fn a_wrong_configuration_is_named() {
    for command in ["server", "front", "local"] {
        let missing = sentence(vrio().args([command, "--config", "/nowhere/x.toml"]));
        names(&missing, &["/nowhere/x.toml"]);
    }
    names(&with_config("server", "listen = 3"), &["listen"]);
    names(&with_config("server", "speed = 3"), &["speed"]);
    names(&with_config("server", ""), &["no device"]);
    names(&with_config("front", "state = '/tmp'\nspeed = 3"), &["speed"]);
    names(&with_config("front", "state = '/tmp'"), &["no disk"]);
}

#[test]
fn a_device_that_is_too_small_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("small.img");
    fs::write(&image, vec![0; 1 << 20]).expect("write");
    let text = format!(
        "control = '{0}/c.sock'\nstate = '{0}/s'\nlisten = 'udp://127.0.0.1:0'\n[[device]]\nname = 'tiny'\n\
         path = 'soft:{0}/small.img'\n",
        folder.path().display()
    );
    names(&with_config("server", &text), &["tiny", "1M"]);
}

#[test]
fn a_missing_server_is_named() {
    let stand = Stand::start(64);
    let config = stand.configure_front("front", "disk", "");
    let text = fs::read_to_string(&config).expect("read");
    // A port where nobody listens: bound here, and answering nothing.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = format!("udp://{}", silent.local_addr().expect("it"));
    let text =
        text.replace(&stand.server_address(), &address).replace("seconds = 5", "seconds = 1");
    fs::write(&config, text).expect("write");
    let said = sentence(vrio().arg("front").arg("--config").arg(&config));
    names(&said, &["no answer from", &address, "vrio server"]);

    let nobody = sentence(vrio().args(["volume", "list", "--control", "/nowhere/c.sock"]));
    names(&nobody, &["/nowhere/c.sock", "vrio server"]);
}

#[test]
fn a_server_of_another_version_is_named() {
    let stand = Stand::start(64);
    let other = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = format!("udp://{}", other.local_addr().expect("it"));
    let config = stand.configure_front("front", "disk", "");
    let text = fs::read_to_string(&config).expect("read");
    fs::write(&config, text.replace(&stand.server_address(), &address)).expect("write");
    let answering = std::thread::spawn(move || {
        let mut refuse = Header::default().encode(Kind::Refuse, &[]);
        refuse[2] = 77;
        let (_, from) = other.recv_from(&mut [0; 9000]).expect("a hello");
        other.send_to(&refuse, from).expect("an answer");
    });
    let said = sentence(vrio().arg("front").arg("--config").arg(&config));
    names(&said, &["speaks versions 77", "install the same release"]);
    answering.join().expect("answered");
}

#[test]
fn what_a_server_refuses_is_named() {
    let mut stand = Stand::start(64);
    let config = stand.configure_front("front", "nothing", "");
    let said = sentence(vrio().arg("front").arg("--config").arg(&config));
    names(&said, &["nothing", "no such volume", "vrio volume list"]);

    stand.create("disk", "16M");
    stand.front("first", "disk", "");
    let config = stand.configure_front("second", "disk", "");
    let said = sentence(vrio().arg("front").arg("--config").arg(&config));
    names(&said, &["attached for writing by front", "vrio volume detach"]);

    // The same socket, the same state directory, the same control socket.
    let config = stand.configure_front("first", "disk", "");
    let said = sentence(vrio().arg("front").arg("--config").arg(&config));
    names(&said, &["another vrio front", "state directory"]);
    let config = stand.path("server.toml");
    let said = sentence(vrio().arg("server").arg("--config").arg(&config));
    names(&said, &["in use"]);

    for (words, says) in [
        (&["create", "disk", "--size", "1M"][..], &["there is a volume 'disk'"][..]),
        (&["create", "big", "--size", "1T"], &["1T", "free"]),
        (&["create", "a/b", "--size", "1M"], &["not a volume name"]),
        (&["show", "nothing"], &["no volume 'nothing'"]),
        (&["delete", "disk"], &["attached by writer"]),
        (&["resize", "disk", "--size", "1M"], &["disk"]),
    ] {
        let output = stand.volume(words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        names(&String::from_utf8_lossy(&output.stderr), says);
    }
}

#[test]
fn a_busy_socket_is_named() {
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    stand.create("other", "16M");
    stand.front("first", "disk", "");
    let config = stand.configure_front("second", "other", "");
    let (first, second) = (stand.socket("first"), stand.socket("second"));
    let text = fs::read_to_string(&config).expect("read");
    let text = text.replace(&second.display().to_string(), &first.display().to_string());
    fs::write(&config, text).expect("write");
    let said = sentence(vrio().arg("front").arg("--config").arg(&config));
    names(&said, &["first.sock", "other"]);
    // And it has not kept the volume.
    let shown = stand.volume(&["show", "other"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("attached    no"));
}
