//! Nothing outlives its owner: a small shell waits at a pipe and cleans up when the pipe closes.
//!
//! Only the owning process holds the write end of the pipe, so the kernel closes it however that process ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Removes directory `$1`. Servers that end at the same moment may still write into the directory for a while.
const REMOVE: &str = r#"
n=0
while [ -e "$1" ] && [ $n -lt 400 ]; do rm -rf -- "$1" 2>/dev/null || sleep 0.05; n=$((n+1)); done
"#;

/// A script that runs when the owning process is gone, unless it was [disarmed](Guard::disarm) before.
#[derive(Debug)]
pub struct Guard {
    shell: Child,
}

impl Guard {
    /// Starts to guard this process. `script` is POSIX shell; `arguments` are `$1` and so on.
    pub fn new(script: &str, arguments: &[&str]) -> Self {
        let shell = Command::new("sh")
            .arg("-c")
            // A line means that the guard is disarmed. End of file means that the owner is gone.
            .arg(format!("trap '' HUP INT TERM; read -r _ && exit 0\n{script}"))
            .arg("guard")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A separate process group, so that Ctrl-C at the terminal ends the owner and not its guard.
            .process_group(0)
            .spawn()
            .expect("cannot start sh as a guard");
        Self { shell }
    }

    /// Ends the guard without running its script.
    pub fn disarm(mut self) {
        if let Some(mut pipe) = self.shell.stdin.take() {
            let _ = pipe.write_all(b"leave\n");
        }
        let _ = self.shell.wait();
    }

    /// Runs the script now, and returns when the script has ended.
    pub fn fire(mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// A temporary directory. Removed on drop, and also if the owner is killed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    guard: Option<Guard>,
}

impl Directory {
    /// Creates an empty directory in the system's temporary directory. Its name begins with `rig-` and `name`.
    ///
    /// # Panics
    ///
    /// If the directory cannot be created.
    pub fn new(name: &str) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("rig-{name}-")).tempdir();
        let path = directory.unwrap_or_else(|e| panic!("cannot make a temporary directory: {e}")).keep();
        let guard = Guard::new(REMOVE, &[path.to_str().expect("temporary directories have UTF-8 names")]);
        Self { path, guard: Some(guard) }
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.fire();
        }
    }
}
