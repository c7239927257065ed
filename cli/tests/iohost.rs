//! The whole system with PCI devices: `demo/iohost` shows it, and this looks at what it
//! shows.

use std::path::Path;
use std::process::Command;

/// The server runs in a guest, on two NVMe devices behind an IOMMU, which the kernel gave
/// up only when nobody used them; fronts are here. Every block is verified. An idle server
/// with VFIO devices sleeps. When one device is pulled out under load its disk fails and
/// says why, the other disk does not notice, and the server ends in order.
#[test]
fn a_server_drives_pci_devices_in_a_guest() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if !repository.join("target/guest/qemu").exists() {
        let missing = "SKIPPED a_server_drives_pci_devices_in_a_guest: there is no guest; make one \
                       with demo/guest-image (`make test` does)";
        println!("{missing}");
        eprintln!("{missing}");
        return;
    }
    let output = Command::new(repository.join("demo/iohost"))
        .args(["--vrio", env!("CARGO_BIN_EXE_vrio")])
        .output()
        .expect("demo/iohost runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{said}{complained}");
    assert!(output.status.success(), "it failed");
    for part in ["step bind ok", "step idle ok", "step give-back ok", "dmesg clean"] {
        assert!(said.contains(part), "{part} is missing");
    }
    assert_eq!(said.matches("all as written").count(), 2, "both disks are verified");
    assert!(said.contains("the device is given up") && said.contains("device=two"), "no cause");
}
