//! A disk that can be full.

#![allow(clippy::unwrap_used, reason = "test support")]

use std::fs;
use std::path::{Path, PathBuf};

/// A directory on a file system of its own that is small enough to fill; `None`, loudly, without
/// the rights.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                eprintln!("SKIPPED: no small file system can be mounted (needs root): {other:?}");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    pub fn fill(&self) {
        let chunk = vec![1u8; 4_096];
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(self.ballast())
            .unwrap();
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
    }

    pub fn empty(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}
