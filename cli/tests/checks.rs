//! Checks that a server makes by itself: begun, remembered, and what they
//! find, as an operator sees it.

mod stand;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use serde_json::Value;
use stand::{Stand, bench};

const BLOCK: usize = 4096;

/// Where the journal of a small pool ends; what changes behind it between two
/// checkpoints is guests' blocks.
const JOURNAL_END: usize = 1024 + 2048;

fn stand() -> Stand {
    Stand::start_with(128, |path| {
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

/// Runs a command that does not work; what it prints and its sentence.
fn refused(stand: &Stand, words: &str) -> String {
    let output = stand.run(words);
    assert_eq!(output.status.code(), Some(1), "{words}");
    [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8")).concat()
}

fn checks(stand: &Stand) -> Value {
    let shown: Value = serde_json::from_str(&done(stand, "pool show soft --json")).expect("JSON");
    shown[0]["checks"].clone()
}

/// Waits until a check has ended, and says what came of it.
fn last_check(stand: &Stand) -> Value {
    let begin = Instant::now();
    loop {
        let checks = checks(stand);
        if checks["last"] != Value::Null {
            return checks;
        }
        assert!(begin.elapsed().as_secs() < 60, "no check ends\n{}", stand.logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A pool that nobody looks at rots: the server notices, says so where
/// operators look, and still knows it after a restart.
#[test]
fn a_schedule_finds_what_rots_and_outlives_the_server() {
    let mut stand = stand();
    done(&stand, "pool create soft");
    done(&stand, "volume create disk --size 8M");
    assert!(done(&stand, "pool show").contains("checked      never"));
    let socket = stand.front("front", "disk", "");
    let image = stand.path("device.img");
    let before = fs::read(&image).expect("the device");
    bench(&socket, "--rw write --bs 4k --bytes 1M --overwrite --seed 5").expect("written");
    let after = fs::read(&image).expect("the device");
    let changed = |at: &usize| {
        let bytes = at * BLOCK..(at + 1) * BLOCK;
        before[bytes.clone()] != after[bytes]
    };
    let rotten =
        (JOURNAL_END..after.len() / BLOCK).rfind(changed).expect("what was written is there");
    let file = File::options().write(true).open(&image).expect("the device");
    file.write_all_at(&[!after[rotten * BLOCK]], (rotten * BLOCK) as u64).expect("rot");

    let said = done(&stand, "pool check --schedule 7d --rate 100M");
    assert!(said.contains("next check") && said.contains("every 7d at 100M a second"), "{said}");
    let found = last_check(&stand);
    assert_eq!(found["last"]["check"]["wrong"], 1, "{found}");
    assert!(stand.server().log().contains("the check found something"), "{}", stand.logs());
    for restarts in 0..2 {
        let status = refused(&stand, "pool check --status");
        for words in [&format!("block {rotten} "), "volume disk block", "one thing is wrong"] {
            assert!(status.contains(words), "after {restarts} restarts: {status}");
        }
        assert!(done(&stand, "pool show").contains("SOMETHING IS WRONG"));
        assert_eq!(checks(&stand), found);
        assert_eq!(stand.server().stop(), Some(0));
        stand.start_server();
    }

    let said = done(&stand, "pool check --schedule off");
    assert!(!said.contains("next check") && said.contains("SOMETHING IS WRONG"), "{said}");
    assert!(refused(&stand, "pool check --schedule 5s").contains("at most once a minute"));
    assert!(refused(&stand, "pool check --schedule 1d --rate 1K").contains("at least 4K"));
}
