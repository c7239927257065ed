//! The suite once more, in a guest that has two PCI devices: one behind an IOMMU, one
//! without. This program is laid over the guest's image and runs there by itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::subject::{MAX_TRANSFER, NAMESPACE_BYTES, QUEUES, SERIAL};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// QEMU's words for a controller as [`subject`](crate::subject) describes it.
fn controller(folder: &Path, number: usize) -> String {
    let pages = (MAX_TRANSFER / 4096).trailing_zeros();
    let mut words = format!(
        " -device nvme-subsys,id=s{number},nqn=s{number} -device \
         nvme,id=nvme{number},subsys=s{number},serial={SERIAL},mdts={pages},max_ioqpairs={QUEUES},aerl=3"
    );
    for (id, size) in [(1, 4096), (2, 512)] {
        let image = folder.join(format!("disk{number}-{id}"));
        File::create(&image).and_then(|file| file.set_len(NAMESPACE_BYTES)).expect("a file");
        words += &format!(
            " -drive if=none,id=d{number}{id},file={},format=raw,discard=unmap -device \
             nvme-ns,bus=nvme{number},drive=d{number}{id},nsid={id},logical_block_size={size},\
             physical_block_size={size}",
            image.display()
        );
    }
    words
}

/// What qtest cannot show: registers and doorbells as a real machine's loads and stores,
/// memory through an IOMMU that refuses everything else, interrupts, physical addresses.
#[test]
fn every_case_passes_on_pci_devices_in_a_guest() {
    let image = repository().join("target/guest");
    if !image.join("qemu").exists() || !image.join("tree/bin/busybox").exists() {
        let missing = "SKIPPED on PCI devices: there is no guest; make one with demo/guest-image \
                       (`make test` does)";
        println!("{missing}");
        eprintln!("{missing}");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("conformance");
    std::fs::copy(std::env::current_exe().expect("this program"), &program).expect("a copy");
    let overlay = folder.path().join("overlay.cpio");
    let packed = Command::new(repository().join("demo/guest-overlay"))
        .args([&overlay, &program])
        .status()
        .expect("demo/guest-overlay runs");
    assert!(packed.success());
    let iommu = "-device intel-iommu,intremap=on,caching-mode=on";
    let resets = std::env::var("VRIO_RESETS").ok();
    let devices = controller(folder.path(), 0) + &controller(folder.path(), 1);
    let output = Command::new(repository().join("demo/boot"))
        .arg("--image")
        .arg(&image)
        .arg("--over")
        .arg(&overlay)
        .arg("--log")
        .arg(folder.path().join("console.log"))
        .args(["--script", "nvme-suite", "--cpus", "2", "--memory", "768", "--timeout", "300"])
        .args(["--kernel", "intel_iommu=on iommu=pt vrio.modules=devices"])
        .args(["--qemu", &format!("{iommu}{devices}")])
        .args(resets.iter().flat_map(|resets| ["--args", resets]))
        .output()
        .expect("demo/boot runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{}", said.replace("VRIO suite ", ""));
    assert!(output.status.success(), "the guest has failed");
    assert!(said.contains("VRIO suite test result: ok. 1 passed"), "the suite did not run");
    assert!(said.contains("VFIO  no IOMMU"), "a device is missing");
}
