//! A real guest on a real disk: Debian's kernel under QEMU, its disks in
//! `vrio server`, reached over UDP. `demo/guest-image` makes the guest.

mod stand;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use stand::Stand;

/// The guests take turns: two at a time on two cores help nobody.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder with the guest, or nothing, loudly.
fn image(test: &str) -> Option<PathBuf> {
    let image = repository().join("target/guest");
    let made = image.join("initramfs.cpio").exists() && image.join("qemu").exists();
    if !made {
        println!(
            "SKIPPED {test}: there is no guest; make one with demo/guest-image (`make test` does)"
        );
        eprintln!(
            "SKIPPED {test}: there is no guest; make one with demo/guest-image (`make test` does)"
        );
    }
    made.then_some(image)
}

/// Boots the guest once; what it said.
fn boot(stand: &Stand, image: &Path, disks: &[String], script: &str, more: &[&str]) -> String {
    let mut command = boot_command(stand, image, disks, script);
    let output = command.args(more).output().expect("demo/boot runs");
    check(stand, script, &output)
}

fn boot_command(stand: &Stand, image: &Path, disks: &[String], script: &str) -> Command {
    let mut command = Command::new(repository().join("demo/boot"));
    command.arg("--image").arg(image).args(["--script", script, "--timeout", "900"]);
    command.arg("--log").arg(stand.path("console.log"));
    for disk in disks {
        command.args(["--disk", disk]);
    }
    command
}

/// What a guest said, which must have found no fault.
fn check(stand: &Stand, script: &str, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}:\n{said}\n{}", stand.logs());
    assert!(said.contains("VRIO dmesg clean"), "{said}");
    assert!(!said.contains("VRIO fail"), "{said}");
    print!("{said}");
    said
}

/// Everything that a guest does to a disk: 1 GiB verified with mixed sizes,
/// 64 MiB at depth 1 and 32 on one and on two queues, 512-byte writers in the
/// same blocks, zeroes and trims that reach exactly what they name, ext4 and
/// xfs made, filled, trimmed and checked. No error in the guest's log.
#[test]
fn a_guest_works_its_disks() {
    let Some(image) = image("a_guest_works_its_disks") else { return };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stand = Stand::start(2048);
    stand.create("one", "1300M");
    stand.create("two", "256M");
    let one = stand.front("one", "one", "");
    let two = stand.front("two", "two", "");
    let disks = [format!("{}", one.display()), format!("{},queues=2", two.display())];
    let said = boot(&stand, &image, &disks, "stress", &[]);
    for step in [
        "verify-mixed-sizes",
        "verify-depths-vda",
        "verify-two-cpus-vdb",
        "verify-unaligned",
        "shared-blocks",
        "zeroes",
        "trim",
        "fstrim-ext4",
        "check-structure-ext4",
        "fstrim-xfs",
        "check-structure-xfs",
    ] {
        assert!(said.contains(&format!("VRIO step {step} ok")), "{step}:\n{said}");
    }
}

/// What a guest wrote is there after it has booted anew, and after the server
/// and the front have too.
#[test]
fn files_survive_reboots_of_everything() {
    let Some(image) = image("files_survive_reboots_of_everything") else { return };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stand = Stand::start(1024);
    stand.create("disk", "768M");
    let socket = stand.front("front", "disk", "");
    let disks = [format!("{}", socket.display())];
    boot(&stand, &image, &disks, "write-files", &[]);
    boot(&stand, &image, &disks, "check-files", &[]);
    assert_eq!(stand.front_process("front").stop(), Some(0));
    assert_eq!(stand.server().stop(), Some(0));
    stand.start_server();
    let socket = stand.front("again", "disk", "");
    boot(&stand, &image, &[format!("{}", socket.display())], "check-files", &[]);
}

/// The front and then the server are killed and started again, several times, while
/// fio writes and verifies. QEMU connects again, and what the server had not flushed
/// is sent again: the guest sees a disk that is slow for a moment, no error in its
/// log, and every block as it was written.
#[test]
fn a_guest_does_not_notice_that_its_front_or_its_server_is_killed() {
    let test = "a_guest_does_not_notice_that_its_front_or_its_server_is_killed";
    let Some(image) = image(test) else { return };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stand = Stand::start(512);
    stand.create("disk", "256M");
    let socket = stand.front("front", "disk", "");
    let disks = [format!("{},queues=2,reconnect=1", socket.display())];
    let mut command = boot_command(&stand, &image, &disks, "stress");
    command.args(["--args", "depths"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut guest = command.spawn().expect("demo/boot runs");
    let console = stand.path("console.log");
    let (mut fronts, mut servers) = (0, 0);
    let mut next = None;
    while guest.try_wait().expect("wait").is_none() {
        std::thread::sleep(Duration::from_millis(20));
        let works = || std::fs::read_to_string(&console).is_ok_and(|it| it.contains("VRIO script"));
        let due = next.map_or_else(works, |next| Instant::now() >= next);
        // Who is killed has to be back before the other: what both lose is lost.
        let is_back = stand.front_process("front").log().matches(" ready ").count() > fronts;
        if !due || !is_back {
            continue;
        }
        if fronts < 3 {
            stand.front_process("front").kill();
            stand.restart_front("front");
            fronts += 1;
        } else {
            stand.server().kill();
            stand.start_server();
            servers += 1;
        }
        // QEMU looks once a second: there is work in between.
        next = Some(Instant::now() + Duration::from_millis(1300 + (servers * 97) % 800));
    }
    let output = guest.wait_with_output().expect("demo/boot ran");
    let said = check(&stand, "stress depths", &output);
    assert!(said.contains("VRIO step verify-two-cpus-vda ok"), "{said}");
    assert!(fronts == 3 && servers >= 1, "{fronts} fronts and {servers} servers were killed");
    println!("{fronts} fronts and {servers} servers were killed");
}

/// A guest whose memory is not shared cannot be served: the front says which
/// option is missing, and goes on serving others.
#[test]
fn memory_without_share_is_named() {
    let Some(image) = image("memory_without_share_is_named") else { return };
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut stand = Stand::start(64);
    stand.create("disk", "16M");
    let socket = stand.front("front", "disk", "");
    let mut qemu = Command::new(image.join("qemu"));
    qemu.args([
        "-M",
        "q35",
        "-m",
        "128",
        "-nodefaults",
        "-nographic",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    qemu.arg("-kernel").arg(image.join("vmlinux"));
    qemu.arg("-initrd").arg(image.join("initramfs.cpio"));
    qemu.args(["-append", "console=ttyS0 panic=-1 vrio.script=none"]);
    qemu.arg("-chardev").arg(format!("socket,id=d,path={}", socket.display()));
    qemu.args(["-device", "vhost-user-blk-pci,chardev=d,num-queues=1"]);
    let mut guest = stand::Process::spawn(&mut qemu, stand.path("qemu.log"));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !stand.front_process("front").log().contains("share=on") {
        assert!(std::time::Instant::now() < end, "{}", stand.logs());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    guest.kill();
    stand::bench(&socket, "--rw randread --bs 4k --ios 100").expect("the front lives on");
}
