//! A small file system of its own, in memory.

use std::process::Command;

use rig::guard::{Directory, Guard};

/// Mounted, and gone with its owner.
pub(crate) struct Disk {
    directory: Directory,
    guard: Option<Guard>,
}

impl Disk {
    /// One of so many MiB, that PostgreSQL may use.
    pub(crate) fn new(mebibytes: usize) -> Self {
        let directory = Directory::new("disk");
        let path = directory.path().to_str().expect("temporary directories have UTF-8 names").to_owned();
        let guard = Guard::new("umount -l \"$1\"", &[&path]);
        let run = |program: &str, arguments: &[&str]| {
            let status = Command::new(program).args(arguments).status().expect("cannot run a program");
            assert!(status.success(), "{program} failed");
        };
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "chaos", &path]);
        run("chown", &["postgres:postgres", &path]);
        Self { directory, guard: Some(guard) }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> String {
        self.directory.path().display().to_string()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.fire();
        }
    }
}
