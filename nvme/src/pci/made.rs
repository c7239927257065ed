//! A tree like the kernel's, for tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::sysfs::Sysfs;

pub(super) struct Made {
    folder: tempfile::TempDir,
}

impl Made {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = Self { folder };
        made.file("bus/pci/drivers_probe", "");
        fs::create_dir_all(made.path("bus/pci/devices")).expect("a folder");
        fs::create_dir_all(made.path("class/block")).expect("a folder");
        made
    }

    pub(super) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.folder.path())
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(super) fn file(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    pub(super) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).expect("a file")
    }

    pub(super) fn link(&self, path: &str, to: &Path) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        symlink(to, path).expect("a link");
    }

    pub(super) fn device(
        &self,
        address: &str,
        class: &str,
        driver: Option<&str>,
        group: Option<u32>,
    ) {
        let folder = format!("bus/pci/devices/{address}");
        self.file(&format!("{folder}/class"), &format!("{class}\n"));
        self.file(&format!("{folder}/vendor"), "0x1b36\n");
        self.file(&format!("{folder}/device"), "0x0010\n");
        self.file(&format!("{folder}/driver_override"), "(null)\n");
        if let Some(driver) = driver {
            self.driver(driver);
            let home = self.path(&format!("bus/pci/drivers/{driver}"));
            self.link(&format!("{folder}/driver"), &home);
        }
        if let Some(group) = group {
            let home = format!("kernel/iommu_groups/{group}");
            let device = self.path(&folder);
            self.link(&format!("{home}/devices/{address}"), &device);
            self.link(&format!("{folder}/iommu_group"), &self.path(&home));
        }
    }

    pub(super) fn driver(&self, name: &str) {
        self.file(&format!("bus/pci/drivers/{name}/unbind"), "");
    }

    /// A block device of the controller, as the kernel's driver makes them.
    pub(super) fn disk(&self, address: &str, name: &str, number: &str) {
        let home = format!("bus/pci/devices/{address}/nvme/nvme0/{name}");
        self.file(&format!("{home}/dev"), &format!("{number}\n"));
        fs::create_dir_all(self.path(&format!("{home}/holders"))).expect("a folder");
        self.link(&format!("class/block/{name}"), &self.path(&home));
    }
}
