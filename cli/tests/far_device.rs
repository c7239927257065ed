//! A device in another process: `vrio nvme serve` has the controller, `vrio server`
//! is its driver.

mod stand;

use std::path::Path;

use stand::{Process, Stand, bench, vrio};

fn served(folder: &Path) -> Process {
    let socket = folder.join("nvme.sock");
    let mut command = vrio();
    command.args(["nvme", "serve", "--create", "256M", "--serial", "FAR"]);
    command.arg(&socket).arg(folder.join("one.img")).arg(folder.join("two.img"));
    let mut process = Process::spawn(&mut command, folder.join("serve.log"));
    process.await_path(&socket);
    process
}

/// A worker has one device in its own thread and one in another process: what is
/// written to both is read, through buffers that both reach. After the server has
/// gone, another driver gets its turn, and after a restart of both the data is there.
#[test]
fn a_server_drives_a_controller_in_another_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = served(folder.path());
    let address = format!("vfio-user:{}", folder.path().join("nvme.sock").display());
    let ask = |what: &str| {
        let output = vrio().args(["nvme", what, &address]).output().expect("vrio runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let identity = ask("identify");
    assert!(identity.contains("FAR") && identity.contains("vRIO soft controller"), "{identity}");

    let device = format!("[[device]]\nname = \"far\"\npath = \"{address}\"\nnamespace = 2\n");
    let mut stand = Stand::start_with(64, |_| device);
    for device in ["soft", "far"] {
        let output = stand.volume(&["create", device, "--size", "32M", "--device", device]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let socket = stand.front(device, device, "");
        let report = bench(&socket, "--rw randrw --bs 4k-256k --bytes 32M --overwrite --verify");
        let report = report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
        assert_eq!(report["verify"]["mismatched_sectors"], 0);
    }
    assert_eq!(stand.server().stop(), Some(0), "{}", stand.logs());
    let health = ask("health");
    assert!(health.contains("temperature       27 C"), "{health}");

    assert_eq!(process.stop(), Some(0), "{}", process.log());
    assert!(!folder.path().join("nvme.sock").exists(), "the socket goes with its process");
    let _process = served(folder.path());
    stand.start_server();
    let list = stand.volume(&["list"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("far"), "{list}\n{}", stand.logs());
}

/// A server that sleeps while its device in another process has commands under way, and is
/// woken for their ends: with `interrupt` it looks at them only then, or ten times a second.
#[test]
fn a_server_sleeps_until_a_controller_in_another_process_interrupts() {
    let folder = tempfile::tempdir().expect("a folder");
    let _process = served(folder.path());
    let address = format!("vfio-user:{}", folder.path().join("nvme.sock").display());
    let mut stand =
        Stand::start_with(64, |_| format!("[[device]]\nname = \"far\"\npath = \"{address}\"\n"));
    assert_eq!(stand.server().stop(), Some(0), "{}", stand.logs());
    stand.say_to_server("idle = \"interrupt\"");
    stand.start_server();
    let output = stand.volume(&["create", "far", "--size", "32M", "--device", "far"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let socket = stand.front("far", "far", "");
    for depth in [1, 32] {
        let options =
            format!("--rw randrw --bs 4k-64k --bytes 32M --overwrite --verify --depth {depth}");
        let report = bench(&socket, &options);
        let report = report.unwrap_or_else(|error| panic!("{error}\n{}", stand.logs()));
        assert_eq!(report["verify"]["mismatched_sectors"], 0);
    }
    assert!(!stand.server().log().contains("it is polled all the time"), "{}", stand.logs());
}

/// Each sentence names the address and the way out.
#[test]
fn what_is_no_controller_is_said_so() {
    for (words, named) in [
        (&["nvme", "identify", "/dev/nvme0"][..], "vfio-user:SOCKET or pci:"),
        (&["nvme", "identify", "vfio-user:/nowhere"][..], "start the controller's process first"),
        (&["nvme", "serve", "/tmp", "/dev/null", "--lba", "520"][..], "neither 512 nor 4096"),
    ] {
        let output = vrio().args(words).output().expect("vrio runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(named), "{words:?}: {said}");
    }
}
