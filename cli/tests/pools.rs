//! A pool in real processes: made, written over the link, snapshotted, served
//! again after its server was killed; and what goes wrong, in sentences.

mod stand;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use stand::{Stand, bench};

/// A server whose device `soft` can become a pool.
fn stand(device_mib: u64) -> Stand {
    Stand::start_with(device_mib, |path| {
        let key = path("key");
        fs::write(&key, [7; 32]).expect("write");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a mode");
        format!("unlock = \"key-file:{}\"\n", key.display())
    })
}

/// Runs a command that works; what it prints.
fn done(stand: &Stand, words: &str) -> String {
    let output = stand.run(words);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}: {errors}\n{}", stand.logs());
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs a command that does not work; its sentence.
fn refused(stand: &Stand, words: &str) -> String {
    let output = stand.run(words);
    assert_eq!(output.status.code(), Some(1), "{words}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().filter(|line| line.starts_with("vrio: ")).count(), 1, "{text}");
    text
}

fn says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "{said:?} should say {word:?}");
    }
}

#[test]
fn a_pool_is_used_from_its_making_to_a_restored_snapshot() {
    let mut stand = stand(256);
    says(&done(&stand, "pool show"), &["no pools", "vrio pool create"]);
    says(&done(&stand, "pool create soft"), &["state        open"]);
    done(&stand, "volume create disk --size 64M --domain tenant");
    says(&done(&stand, "volume list"), &["tenant"]);
    let socket = stand.front("front", "disk", "");
    let work = "--rw randrw --bs 512-64k --bytes 16M --depth 16 --overwrite --verify";
    bench(&socket, work).unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
    bench(&socket, "--rw write --bs 64k --bytes 64M --overwrite --verify --seed 5")
        .expect("written");
    says(&done(&stand, "snapshot create disk@a"), &["disk@a"]);
    says(&done(&stand, "snapshot list"), &["disk@a", "64M"]);
    bench(&socket, "--rw write --bs 64k --offset 1M --size 1M --bytes 1M --overwrite --seed 9")
        .expect("written");
    assert_eq!(done(&stand, "snapshot diff disk@a"), "1048576+1048576\n");

    says(&refused(&stand, "snapshot restore disk@a"), &["attached by writer", "--force"]);
    assert_eq!(stand.front_process("front").stop(), Some(0));
    done(&stand, "snapshot restore disk@a");
    done(&stand, "snapshot clone disk@a copy");
    for volume in ["disk", "copy"] {
        let socket = stand.front(&format!("again-{volume}"), volume, "");
        bench(&socket, "--rw read --bs 64k --bytes 64M --verify --seed 5")
            .unwrap_or_else(|error| panic!("{volume}: {error}\n{}", stand.logs()));
    }
    done(&stand, "snapshot delete disk@a --wait");
    let shown = done(&stand, "pool show soft");
    says(&shown, &["volumes      2", "snapshots    0", "saved"]);
    says(&done(&stand, "pool check soft"), &["nothing is wrong"]);
    says(&done(&stand, "key list"), &["first", "a key file", "tenant", "copy, disk"]);
}

/// What a guest was told is durable is there when the server was killed. A
/// pool's memory of the last changes dies with the process, so that what was
/// not flushed is lost, as in a power cut.
#[test]
fn what_was_written_through_is_there_after_a_pools_server_was_killed() {
    let mut stand = stand(256);
    done(&stand, "pool create soft");
    done(&stand, "volume create disk --size 64M");
    let socket = stand.front("front", "disk", "");
    let worker = {
        let socket = socket.clone();
        std::thread::spawn(move || {
            let options = "--rw randrw --bs 4k-64k --depth 16 --seconds 4 --overwrite --verify";
            bench(&socket, &format!("{options} --write-through"))
        })
    };
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(1200));
        stand.server().kill();
        stand.start_server();
    }
    let report = worker.join().expect("no panic");
    let report = report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
    assert_eq!(report["verify"]["mismatched_sectors"], 0);
}

#[test]
fn what_goes_wrong_with_a_pool_is_named() {
    let mut stand = stand(64);
    done(&stand, "volume create raw --size 1M");
    says(&refused(&stand, "snapshot create raw@a"), &["'soft' is none", "vrio pool create"]);
    says(&refused(&stand, "pool create soft"), &["raw", "delete them"]);
    says(&refused(&stand, "pool create nowhere"), &["no device 'nowhere'"]);
    says(&refused(&stand, "pool show soft"), &["'soft' is none"]);
    says(&refused(&stand, "key list"), &["no pool"]);
    says(&refused(&stand, "volume create x --size 1M --domain d"), &["--domain"]);
    done(&stand, "volume delete raw");
    says(&refused(&stand, "pool create soft --journal 1G"), &["journal"]);
    done(&stand, "volume create raw --size 1M");
    done(&stand, "volume delete raw");
    done(&stand, "pool create soft");
    says(&refused(&stand, "pool create soft"), &["already"]);
    done(&stand, "volume create disk --size 1M");
    for (words, said) in [
        ("snapshot create disk@a other@b", &["one name", "other@a"][..]),
        ("snapshot create nothing@a", &["no volume 'nothing'"]),
        ("snapshot create disk@..", &["not a snapshot's name"]),
        ("snapshot show disk@b", &["no snapshot disk@b", "snapshot list disk"]),
        ("snapshot restore disk@b", &["no snapshot disk@b"]),
        ("snapshot diff disk@a other@a", &["different volumes"]),
        ("key rotate nobody", &["no domain 'nobody'"]),
        ("key erase default", &["--yes", "disk"]),
        ("key remove first", &["last way"]),
        ("key remove second", &["second"]),
        ("key add second --key-file /nowhere/key", &["/nowhere/key"]),
        ("pool grow", &["larger"]),
    ] {
        says(&refused(&stand, words), said);
    }
    done(&stand, "snapshot create disk@a");
    says(&refused(&stand, "snapshot create disk@a"), &["disk@a already"]);
    says(&refused(&stand, "volume delete disk"), &["1 snapshots", "--snapshots"]);
    // Another key file, and a server that cannot open its pool.
    let second = stand.path("second");
    fs::write(&second, [8; 40]).expect("write");
    says(
        &refused(&stand, &format!("key add second --key-file {}", second.display())),
        &["chmod 600"],
    );
    fs::write(stand.path("key"), [9; 32]).expect("write");
    assert_eq!(stand.server().stop(), Some(0), "{}", stand.logs());
    stand.start_server();
    says(&done(&stand, "pool show"), &["locked", "does not open"]);
    says(&refused(&stand, "pool create soft"), &["--overwrite", "does not open"]);
    says(&refused(&stand, "volume create new --size 1M"), &["does not open"]);
}
