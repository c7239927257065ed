//! Snapshots that go from one pool to another through a file, as a user does
//! it: whole, in parts, cut off, changed since; and what goes wrong, in
//! sentences.

mod stand;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use stand::{Stand, bench};

/// A server with two devices that become pools.
fn stand() -> Stand {
    let stand = Stand::start_with(256, |path| {
        let key = path("key");
        secret(&key, &[7; 32]);
        let unlock = format!("unlock = \"key-file:{}\"\n", key.display());
        let other = path("other.img").display().to_string();
        format!(
            "{unlock}[[device]]\nname = \"other\"\npath = \"soft:{other}\"\nsize = \"256M\"\n{unlock}"
        )
    });
    secret(&stand.path("stream-key"), &[8; 40]);
    secret(&stand.path("passphrase"), b"of the stream\n");
    done(&stand, "pool create soft");
    done(&stand, "pool create other");
    stand
}

fn secret(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("a mode");
}

/// Runs a command, in which a word that begins with `:` is a file of the
/// stand; what it says on both outputs, and whether it works.
fn run(stand: &Stand, words: &str) -> (bool, String) {
    let words: Vec<String> = words
        .split(' ')
        .map(|word| match word.strip_prefix(':') {
            Some(file) => stand.path(file).display().to_string(),
            None => word.to_owned(),
        })
        .collect();
    let output = stand.run(&words.join(" "));
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    (output.status.success(), said.concat())
}

fn done(stand: &Stand, words: &str) -> String {
    let (worked, said) = run(stand, words);
    assert!(worked, "{words}: {said}\n{}", stand.logs());
    said
}

fn refused(stand: &Stand, words: &str, say: &[&str]) {
    let (worked, said) = run(stand, words);
    assert!(!worked, "{words}: {said}");
    for word in say {
        assert!(said.contains(word), "{words}: {said:?} should say {word:?}");
    }
}

fn write(socket: &Path, options: &str) {
    bench(socket, &format!("--rw write --bs 64k --overwrite --verify {options}")).expect("written");
}

/// The volume holds what was written with these seeds, to the byte.
fn verify(stand: &mut Stand, front: &str, volume: &str, options: &[&str]) {
    let socket = stand.front(front, volume, "");
    for options in options {
        bench(&socket, &format!("--rw read --bs 64k --verify {options}"))
            .unwrap_or_else(|error| panic!("{volume}: {error}\n{}", stand.logs()));
    }
    assert_eq!(stand.front_process(front).stop(), Some(0));
}

#[test]
fn a_volume_goes_to_another_pool_and_what_changed_follows() {
    let mut stand = stand();
    done(&stand, "volume create disk --size 24M --device soft");
    let socket = stand.front("writer", "disk", "");
    write(&socket, "--bytes 16M --size 16M --seed 5");
    done(&stand, "snapshot create disk@a");
    let key = "--key-file :stream-key";
    let said = done(&stand, &format!("snapshot export disk@a {key} --output :whole"));
    assert!(said.contains("16.0M"), "{said}");
    let whole = fs::read(stand.path("whole")).expect("written");
    assert!(!whole.windows(64).any(|bytes| bytes == [0; 64]), "it is sealed");
    refused(&stand, &format!("snapshot export disk@a {key} --output :whole"), &["--resume"]);
    let said = done(&stand, &format!("snapshot export disk@a {key} --output :whole --resume"));
    assert!(said.contains("has all of it"), "{said}");

    // Cut off: what has come is kept, the volume is nobody's, and the rest
    // comes after the server died, from a file that was gone on with.
    let torn = [&whole[..9 << 20], &[1; 300_000]].concat();
    fs::write(stand.path("part"), &torn[..9 << 20]).expect("write");
    fs::write(stand.path("torn"), &torn).expect("write");
    let import = |file: &str| format!("snapshot import :{file} copy {key} --device other");
    refused(&stand, &import("part"), &["cut off", "is kept", "byte"]);
    assert!(done(&stand, "volume list").contains("importing"));
    refused(&stand, "snapshot create copy@early", &["being imported"]);
    refused(&stand, "volume resize copy --size 48M", &["being imported"]);
    let said = done(&stand, "snapshot list copy");
    assert!(said.contains("no snapshots"), "{said}");
    stand.server().kill();
    stand.start_server();
    let (worked, said) =
        run(&stand, &format!("snapshot export disk@a {key} --output :torn --resume"));
    assert!(worked, "{said}");
    let gone_on = fs::read(stand.path("torn")).expect("written");
    assert!(gone_on[..8 << 20] == whole[..8 << 20] && gone_on.len() < whole.len() + 1000);
    let said = done(&stand, &import("torn"));
    assert!(said.contains("copy@a"), "{said}");

    // What changed since is small, and becomes a snapshot of another name.
    assert_eq!(stand.front_process("writer").stop(), Some(0));
    let socket = stand.front("again", "disk", "");
    write(&socket, "--bytes 1M --offset 2M --size 1M --seed 9");
    done(&stand, "snapshot create disk@b");
    let pass = "--passphrase-file :passphrase";
    done(&stand, &format!("snapshot export disk@b --from disk@a {pass} --output :changed"));
    let bytes = fs::metadata(stand.path("changed")).expect("there").len();
    assert!((1 << 20..1_100_000).contains(&bytes), "{bytes} bytes for a mebibyte");
    let said = done(&stand, &format!("snapshot import :changed copy@monday {pass}"));
    assert!(said.contains("copy@monday"), "{said}");
    let parts = [
        "--size 2M --bytes 2M --seed 5",
        "--offset 2M --size 1M --bytes 1M --seed 9",
        "--offset 3M --size 13M --bytes 13M --seed 5",
    ];
    verify(&mut stand, "reader", "copy", &parts);
    assert!(done(&stand, "pool check other").contains("nothing is wrong"));

    // What the volume is not, nothing is put onto.
    refused(&stand, &format!("snapshot import :changed copy {pass}"), &["not imported up to"]);
    done(&stand, "snapshot create disk@c");
    done(&stand, &format!("snapshot export disk@c --from disk@b {pass} --output :next"));
    let socket = stand.front("spoiler", "copy", "");
    write(&socket, "--bytes 64k --size 64k --seed 1");
    refused(&stand, &format!("snapshot import :next copy {pass}"), &["attached by writer"]);
    assert_eq!(stand.front_process("spoiler").stop(), Some(0));
    refused(&stand, &format!("snapshot import :next copy {pass}"), &["was changed", "'monday'"]);
    done(&stand, "snapshot restore copy@monday");
    done(&stand, &format!("snapshot import :next copy {pass}"));
}

#[test]
fn what_goes_wrong_with_a_stream_is_named() {
    let mut stand = stand();
    done(&stand, "volume create disk --size 2M --device soft");
    let socket = stand.front("writer", "disk", "");
    write(&socket, "--bytes 1M --size 1M");
    assert_eq!(stand.front_process("writer").stop(), Some(0));
    done(&stand, "snapshot create disk@a");
    let pass = "--passphrase-file :passphrase";
    done(&stand, &format!("snapshot export disk@a {pass} --output :whole"));
    let whole = fs::read(stand.path("whole")).expect("written");
    let mut flipped = whole.clone();
    flipped[600_000] ^= 4;
    fs::write(stand.path("flipped"), flipped).expect("write");
    fs::write(stand.path("more"), [&whole[..], b"more"].concat()).expect("write");
    fs::write(stand.path("text"), "no stream").expect("write");
    secret(&stand.path("wrong"), b"of something else\n");
    for (words, say) in [
        ("snapshot import :whole copy --passphrase-file :wrong", &["passphrase does not open"][..]),
        ("snapshot import :whole copy --key-file :stream-key", &["use the passphrase"]),
        ("snapshot import :text copy --passphrase-file :passphrase", &["no stream of vRIO"]),
        ("snapshot import :nothing copy --passphrase-file :passphrase", &["nothing"]),
        ("snapshot import :whole copy --passphrase-file :passphrase", &["say which one"]),
        ("snapshot import :whole disk --passphrase-file :passphrase", &["another name"]),
        ("snapshot export disk@b --key-file :stream-key --output :b", &["no snapshot disk@b"]),
        ("snapshot export disk@a --from other@b --key-file :stream-key", &["different volumes"]),
        (
            "snapshot export disk@a --key-file :stream-key --output :whole --resume",
            &["use the passphrase", "cannot go on"],
        ),
        (
            "snapshot export disk@a --key-file :stream-key --output :text --resume",
            &["no stream of vRIO"],
        ),
    ] {
        refused(&stand, words, say);
    }
    assert_eq!(fs::read(stand.path("text")).expect("there"), b"no stream");
    assert!(fs::read(stand.path("whole")).expect("there") == whole);
    assert!(!stand.path("b").exists());
    for (file, say) in [("flipped", "damaged"), ("more", "follows the end")] {
        let words = format!("snapshot import :{file} copy {pass} --device other");
        refused(&stand, &words, &[say, "byte"]);
        assert!(done(&stand, "volume list").contains("importing"));
        assert!(done(&stand, "snapshot list copy").contains("no snapshots"));
    }
    let front = stand.configure_front("early", "copy", "");
    let mut front = stand.spawn_front("early", &front);
    assert_eq!(front.wait(), Some(1));
    assert!(front.log().contains("being imported"), "{}", front.log());
    done(&stand, "volume delete copy");
    done(&stand, &format!("snapshot import :whole copy {pass} --device other --domain tenant"));
    verify(&mut stand, "reader", "copy", &["--bytes 1M --size 1M"]);
}
