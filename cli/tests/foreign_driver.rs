//! `vrio nvme serve`, driven by what we did not write: the NVMe driver of a guest's kernel,
//! to which a QEMU of 10.1 or later shows the controller as a PCI device.

mod stand;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use stand::{Process, vrio};

/// Names the QEMU, if it is not the one on PATH.
const QEMU: &str = "VRIO_QEMU_VFIO_USER";

fn skip(why: &str) {
    let sentence = format!("SKIPPED a_guest_kernel_drives_a_served_controller_in_a_guest: {why}");
    println!("{sentence}");
    eprintln!("{sentence}");
}

/// A QEMU that speaks vfio-user, as a path: it is linked to.
fn qemu() -> Result<PathBuf, String> {
    let named = std::env::var_os(QEMU).map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join("qemu-system-x86_64"));
    let found = named.clone().or_else(|| found.into_iter().find(|path| path.exists()));
    let missing = || format!("no QEMU is on PATH; set {QEMU} to one of 10.1 or later");
    let qemu =
        found.ok_or_else(missing)?.canonicalize().map_err(|error| format!("{QEMU}: {error}"))?;
    let devices = Command::new(&qemu).args(["-device", "help"]).output();
    let devices = devices.map_err(|error| format!("{}: {error}", qemu.display()))?;
    if String::from_utf8_lossy(&devices.stdout).contains("\"vfio-user-pci\"") {
        return Ok(qemu);
    }
    let sentence =
        format!("{} has no vfio-user-pci; set {QEMU} to one of 10.1 or later", qemu.display());
    // Who names one means it.
    assert!(named.is_none(), "{sentence}");
    Err(sentence)
}

/// The guest finds the disk, writes and reads 1 GiB in all sizes, makes a file system and
/// checks it; its driver never had to look for a completion by itself.
#[test]
fn a_guest_kernel_drives_a_served_controller_in_a_guest() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let image = repository.join("target/guest");
    if !image.join("initramfs.cpio").exists() {
        return skip("there is no guest; make one with demo/guest-image (`make test` does)");
    }
    let qemu = match qemu() {
        Ok(qemu) => qemu,
        Err(why) => return skip(&why),
    };
    let folder = tempfile::tempdir().expect("a folder");
    let here = |name: &str| folder.path().join(name);
    let image = image.canonicalize().expect("it is there");
    for (name, target) in [
        ("vmlinux", image.join("vmlinux")),
        ("initramfs.cpio", image.join("initramfs.cpio")),
        ("qemu", qemu),
    ] {
        symlink(target, here(name)).expect("a link");
    }
    let socket = here("nvme.sock");
    let mut serve = vrio();
    serve.args(["nvme", "serve", "--create", "2G", "--lba", "512", "--serial", "FOREIGN"]);
    serve.arg(&socket).arg(here("disk.img"));
    let mut served = Process::spawn(&mut serve, here("serve.log"));
    served.await_path(&socket);
    let device = format!(
        "-device {{\"driver\":\"vfio-user-pci\",\"socket\":{{\"path\":\"{}\",\"type\":\"unix\"}}}}",
        socket.display()
    );
    let output = Command::new(repository.join("demo/boot"))
        .arg("--image")
        .arg(folder.path())
        .arg("--log")
        .arg(here("console.log"))
        .args(["--script", "nvme-disk", "--cpus", "2", "--timeout", "900", "--qemu", &device])
        .output()
        .expect("demo/boot runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let console = std::fs::read_to_string(here("console.log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{console}\n{}", served.log());
    assert!(said.contains("serial=FOREIGN") && said.contains("VRIO dmesg clean"), "{said}");
    for step in ["verify", "check-files", "check-structure", "interrupts"] {
        assert!(said.contains(&format!("step {step} ok")), "{step} is missing:\n{said}");
    }
    print!("{said}");
    assert_eq!(served.stop(), Some(0), "{}", served.log());
}
