//! The whole system with PCI devices: `demo/iohost` shows it, and this looks at what it
//! shows.

use std::path::Path;
use std::process::Command;

/// What `demo/iohost` says, or nothing when there is no guest to be the IOhost.
fn shown(test: &str, options: &[&str]) -> Option<String> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if !repository.join("target/guest/qemu").exists() {
        let missing = format!(
            "SKIPPED {test}: there is no guest; make one with demo/guest-image (`make test` does)"
        );
        println!("{missing}");
        eprintln!("{missing}");
        return None;
    }
    let output = Command::new(repository.join("demo/iohost"))
        .args(options)
        .args(["--vrio", env!("CARGO_BIN_EXE_vrio")])
        .output()
        .expect("demo/iohost runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}{complained}");
    assert!(output.status.success(), "it failed");
    Some(said)
}

/// The server runs in a guest, on two NVMe devices behind an IOMMU, which the kernel gave
/// up only when nobody used them; fronts are here. Every block is verified. An idle server
/// with VFIO devices sleeps. When one device is pulled out under load its disk fails and
/// says why, the other disk does not notice, and the server ends in order.
#[test]
fn a_server_drives_pci_devices_in_a_guest() {
    let Some(said) = shown("a_server_drives_pci_devices_in_a_guest", &[]) else { return };
    for part in ["step bind ok", "step idle ok", "step give-back ok", "dmesg clean"] {
        assert!(said.contains(part), "{part} is missing");
    }
    assert_eq!(said.matches("all as written").count(), 2, "both disks are verified");
    assert!(said.contains("the device is given up") && said.contains("device=two"), "no cause");
}

/// Two devices that the IOMMU cannot tell apart: one alone is refused, naming the other and
/// its driver, and so are two workers; one worker has both.
#[test]
fn a_server_drives_the_devices_of_an_iommu_group() {
    let test = "a_server_drives_the_devices_of_an_iommu_group";
    let Some(said) = shown(test, &["--group"]) else { return };
    let steps = ["half", "workers", "group"];
    for part in steps.map(|step| format!("step {step} ok")).iter().map(String::as_str) {
        assert!(said.contains(part), "{part} is missing");
    }
    assert!(said.contains("dmesg clean"), "the guest's kernel complains");
    assert_eq!(said.matches("all as written").count(), 2, "both disks are verified");
}

/// Without an IOMMU a device is given physical addresses. Of the huge pages that are free
/// no two are neighbours: with too few of them it is refused, with enough a server works,
/// and the next one too.
#[test]
fn a_server_drives_pci_devices_without_an_iommu() {
    let test = "a_server_drives_pci_devices_without_an_iommu";
    let Some(said) = shown(test, &["--no-iommu"]) else { return };
    for step in ["bind", "scatter", "bench", "server", "again", "end"] {
        assert!(said.contains(&format!("step {step} ok")), "{step} is missing");
    }
    assert!(said.contains("dmesg clean"), "the guest's kernel complains");
    assert_eq!(said.matches("all as written").count(), 2, "both disks are verified");
}
