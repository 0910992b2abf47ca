//! A child process. Its output is read as it is written, and the child never outlives its owner.

use std::io::{BufRead, BufReader, PipeReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use rustix::process::Signal;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

use crate::guard::Guard;

/// Number of log lines that a failure message shows.
const TAIL_LINES: usize = 25;

/// Kills process group `$1` immediately.
const KILL_GROUP: &str = r#"kill -s KILL -- "-$1""#;

/// Path of libfaketime, for `LD_PRELOAD`, in the directory that Debian uses. The library shows a process a different
/// time.
pub fn libfaketime() -> Option<String> {
    let directories = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let library =
        directories.map(|entry| entry.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())?;
    Some(library.to_string_lossy().into_owned())
}

/// Way in which a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Exit status.
    Status(i32),
    /// Number of the signal that ended the process.
    Signal(i32),
}

/// A running or ended child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Log,
    exit: watch::Receiver<Option<Exit>>,
    guard: Option<Guard>,
}

impl Process {
    /// Starts `command` in its own process group. The output goes to [`Process::log`]. If this process dies, the child
    /// is killed.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
    pub fn spawn(name: &str, command: Command) -> Self {
        Self::spawn_guarded(name, command, KILL_GROUP)
    }

    /// The same as `Process::spawn` with a different cleanup: the shell script `orphaned` runs if this process dies,
    /// with the child's process id as `$1`.
    pub fn spawn_guarded(name: &str, mut command: Command, orphaned: &str) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let (reader, writer) = std::io::pipe().expect("cannot make a pipe");
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().expect("cannot share a pipe"))
            .stderr(writer)
            // Ctrl-C at the terminal is meant for the owner. The owner decides when the children end.
            .process_group(0);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {program} as {name}: {e}"));
        // The command holds the write ends of the pipe. As long as it exists, the log does not end.
        drop(command);
        let guard = Guard::new(orphaned, &[&child.id().to_string()]);
        let log = Log::follow(name, reader);
        let exit = watch_exit(name, pid_of(&child));
        Self { name: name.to_owned(), child, log, exit, guard: Some(guard) }
    }

    /// Name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id. No other process gets it while this value exists.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Output so far, standard output and standard error together.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Way in which the process ended; `None` while the process runs.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Sends a signal. Does nothing if the process has ended.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(pid_of(&self.child), signal);
    }

    /// Freezes the process (SIGSTOP).
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the process (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the process (SIGKILL), also if it is frozen, and waits until it has ended.
    pub async fn kill9(&self) {
        self.signal(Signal::KILL);
        self.wait_exit(Duration::from_secs(10)).await;
    }

    /// Asks the process to end (SIGTERM) and waits for its end.
    ///
    /// # Panics
    ///
    /// If the process has not ended within `deadline`.
    pub async fn terminate(&self, deadline: Duration) -> Exit {
        self.signal(Signal::TERM);
        self.wait_exit(deadline).await
    }

    /// Waits until the process ends.
    ///
    /// # Panics
    ///
    /// If the process has not ended within `deadline`.
    pub async fn wait_exit(&self, deadline: Duration) -> Exit {
        let mut exit = self.exit.clone();
        let ended = tokio::time::timeout(deadline, exit.wait_for(Option::is_some)).await;
        match ended {
            Ok(Ok(status)) => status.expect("waited until it is some"),
            Ok(Err(_)) => panic!("nobody watches {} any more", self.name),
            Err(_) => self.fail(&format!("did not end within {deadline:?}")),
        }
    }

    /// Waits for a log line that contains `text` and returns the line. Lines that are already written count.
    ///
    /// # Panics
    ///
    /// If no such line is written within `deadline`, or if the output ends before.
    pub async fn wait_for_log(&self, text: &str, deadline: Duration) -> String {
        self.wait_for_log_after(0, text, deadline).await
    }

    /// The same as `wait_for_log`, but ignores the first `seen` lines. Take `seen` from [`Log::len`] before
    /// the action.
    ///
    /// # Panics
    ///
    /// As [`Process::wait_for_log`].
    pub async fn wait_for_log_after(&self, seen: usize, text: &str, deadline: Duration) -> String {
        match self.log.wait_for(seen, text, deadline).await {
            Ok(line) => line,
            Err(why) => self.fail(&format!("wrote no line with {text:?}: {why}")),
        }
    }

    /// Polls `condition` until it returns a value: for a state that can only be queried, not listened to.
    ///
    /// # Panics
    ///
    /// If `condition` returns no value within `deadline`, or if the process ends.
    pub async fn wait_until<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut condition: impl AsyncFnMut() -> Option<T>,
    ) -> T {
        let poll = async {
            loop {
                if let Some(value) = condition().await {
                    return Some(value);
                }
                if self.exit().is_some() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        match tokio::time::timeout(deadline, poll).await {
            Ok(Some(value)) => value,
            Ok(None) => self.fail(&format!("ended ({:?}) before: {what}", self.exit())),
            Err(_) => self.fail(&format!("not within {deadline:?}: {what}")),
        }
    }

    /// CPU time used so far, user and system together, of all threads.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the process has ended");
        // The name in parentheses may contain any character. Fields 14 and 15 are counted from after the name.
        let after_name = stat.rsplit_once(')').expect("/proc/pid/stat holds a name").1;
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        // USER_HZ is 100 on every Linux architecture that Rust has a standard library for.
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory, bytes.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub fn memory_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Maximum of the resident memory so far, bytes.
    ///
    /// # Panics
    ///
    /// If the process has ended.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process has ended");
        let line = status.lines().find_map(|l| l.strip_prefix(field)).expect("the process has ended");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("memory is a number") * 1024
    }

    /// Panics with the name of the process, the failure `what`, and the last log lines.
    ///
    /// # Panics
    ///
    /// Always.
    #[track_caller]
    pub fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}\nits last lines:\n{}", self.name, self.log.tail());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }
}

/// Output of a process, line by line. Clones share the output.
#[derive(Clone, Debug)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    /// Number of lines so far. The channel is closed when no more lines can follow.
    count: watch::Receiver<usize>,
}

impl Log {
    fn follow(name: &str, reader: PipeReader) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (sender, count) = watch::channel(0);
        let log = Self { lines: Arc::clone(&lines), count };
        let work = move || {
            for line in BufReader::new(reader).split(b'\n') {
                let Ok(line) = line else { return };
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push(String::from_utf8_lossy(&line).into_owned());
                sender.send_replace(lines.len());
            }
        };
        std::thread::Builder::new().name(format!("log of {name}")).spawn(work).expect("cannot start a thread");
        log
    }

    fn locked(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of lines so far.
    pub fn len(&self) -> usize {
        self.locked().len()
    }

    /// True if no line was written yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns all lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.locked().clone()
    }

    /// Returns the last lines, indented, for a message.
    pub fn tail(&self) -> String {
        let lines = self.locked();
        lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("    {line}\n")).collect()
    }

    /// True if any line so far contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        self.locked().iter().any(|line| line.contains(text))
    }

    async fn wait_for(&self, seen: usize, text: &str, deadline: Duration) -> Result<String, String> {
        let mut count = self.count.clone();
        let mut looked_at = seen;
        let search = async {
            loop {
                let upto = *count.borrow_and_update();
                let found = self.locked().iter().take(upto).skip(looked_at).find(|line| line.contains(text)).cloned();
                if let Some(line) = found {
                    return Ok(line);
                }
                looked_at = looked_at.max(upto);
                if count.changed().await.is_err() {
                    return Err("its output has ended".to_owned());
                }
            }
        };
        tokio::time::timeout(deadline, search).await.unwrap_or_else(|_| Err(format!("not within {deadline:?}")))
    }
}

/// Sends a signal to a process that this process did not start, such as a server's child. Does nothing if the process
/// has ended.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Observes the end of `pid` without reaping the process, so that the id is not reused while its [`Process`] exists.
fn watch_exit(name: &str, pid: Pid) -> watch::Receiver<Option<Exit>> {
    let (sender, receiver) = watch::channel(None);
    let work = move || {
        loop {
            match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(Some(status)) => {
                    let exit = status.exit_status().map(Exit::Status);
                    let exit = exit.or_else(|| status.terminating_signal().map(Exit::Signal));
                    sender.send_replace(Some(exit.unwrap_or(Exit::Status(-1))));
                    return;
                }
                // The owner's `drop` has reaped the process, so nobody needs the status any more.
                Err(rustix::io::Errno::CHILD) => return,
                Ok(None) | Err(_) => {}
            }
        }
    };
    std::thread::Builder::new().name(format!("end of {name}")).spawn(work).expect("cannot start a thread");
    receiver
}
