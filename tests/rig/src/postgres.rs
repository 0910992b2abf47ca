//! A private PostgreSQL on a loopback port, removed together with its owner.

mod replica;

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use crate::guard::Directory;
use crate::port;
use crate::process::{Log, Process};

/// Deadline for the start of a server. Includes crash recovery of a large benchmark.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Deadline for the stop of a server.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Ends server `$1` as a crash does. Frozen children cannot react to SIGQUIT, so children that remain after 3 s are
/// killed.
const ORPHANED: &str = r#"
children=$(cat "/proc/$1/task/$1/children" 2>/dev/null)
kill -CONT "$1" $children 2>/dev/null
kill -QUIT "$1" 2>/dev/null || exit 0
n=0
while [ -e "/proc/$1/exe" ] && [ $n -lt 150 ]; do sleep 0.02; n=$((n+1)); done
kill -KILL "$1" $children 2>/dev/null
"#;

/// Options to start a server.
#[derive(Clone, Debug)]
pub struct Options {
    settings: Vec<(String, String)>,
    access: String,
}

impl Default for Options {
    /// A server for tests: nothing is flushed to disk, so a crash of the *machine* loses all data. A crash of the
    /// server loses nothing that was committed, as long as `synchronous_commit` is on.
    fn default() -> Self {
        Self::shipped().with("fsync", "off").with("full_page_writes", "off").with("max_connections", "300")
    }
}

impl Options {
    /// A server for benchmarks: durable. Memory and WAL have the sizes that a server of this size usually has; all
    /// other settings are the shipped defaults.
    pub fn durable() -> Self {
        Self::shipped().with("shared_buffers", "1GB").with("max_wal_size", "8GB")
    }

    fn shipped() -> Self {
        let access = "local all all trust\nhost all all all trust\nlocal replication all trust\nhost replication all all trust\n";
        Self { settings: Vec::new(), access: access.to_owned() }
    }

    /// Sets a parameter of postgresql.conf. The last value of a parameter wins.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Replaces pg_hba.conf. The default pg_hba.conf accepts every user without a password.
    #[must_use]
    pub fn access(mut self, lines: &str) -> Self {
        self.access = lines.to_owned();
        self
    }
}

/// Shutdown mode of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT: sessions are terminated, and everything is written to disk.
    Fast,
    /// SIGQUIT: like a crash; the next start recovers from the WAL.
    Immediate,
}

/// A server with its own data directory. The superuser is `postgres`, without a password.
#[derive(Debug)]
pub struct Postgres {
    // Declared before the directory, so that the server ends before the directory is removed.
    server: Option<Server>,
    directory: Directory,
    programs: PathBuf,
    account: Option<(u32, u32)>,
    port: u16,
}

#[derive(Debug)]
struct Server(Process);

impl Drop for Server {
    /// Ends the server as a crash does, but releases shared memory. SIGKILL would not release it.
    fn drop(&mut self) {
        for pid in children(self.0.pid()) {
            let _ = kill_process(pid, Signal::CONT);
        }
        self.0.resume();
        self.0.signal(Signal::QUIT);
        let started = std::time::Instant::now();
        while self.0.exit().is_none() && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Postgres {
    /// Creates a database cluster and starts a server on it.
    ///
    /// # Panics
    ///
    /// If the server programs are missing or fail. The message contains the reason.
    pub async fn start(options: Options) -> Self {
        let programs = programs();
        let account = server_account();
        let directory = Directory::new("pg");
        if let Some((uid, gid)) = account {
            chown(directory.path(), Some(uid), Some(gid)).expect("cannot give the directory to the server's account");
        }
        let mut postgres = Self { server: None, directory, programs, account, port: port::free() };
        let data = postgres.data_directory();
        let arguments = ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"];
        postgres.run("initdb", &arguments, &["-D", text(&data)]).await;
        let mut settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nlogging_collector = off\n",
            postgres.socket_directory().display()
        );
        for (name, value) in options.settings {
            settings.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        std::fs::write(data.join("rig.conf"), settings).expect("cannot write the server's settings");
        let main = data.join("postgresql.conf");
        let defaults = std::fs::read_to_string(&main).expect("initdb made no postgresql.conf");
        std::fs::write(&main, defaults + "\ninclude 'rig.conf'\n").expect("cannot write postgresql.conf");
        std::fs::write(data.join("pg_hba.conf"), options.access).expect("cannot write pg_hba.conf");
        for file in ["rig.conf", "postgresql.conf", "pg_hba.conf"] {
            if let Some((uid, gid)) = postgres.account {
                chown(data.join(file), Some(uid), Some(gid)).expect("cannot give a file to the server's account");
            }
        }
        postgres.start_again().await;
        postgres
    }

    /// The server that all tests of this process share. The first call starts it. Create a separate database with
    /// [`Postgres::create_database`], and never stop this server.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(|| Self::start(Options::default())).await
    }

    /// Port on 127.0.0.1. Never changes.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Directory of the Unix socket, as a `host` for libpq and similar clients.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    /// Data directory.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// URI of `database` as superuser, for `-pg-uri` and [`tokio_postgres::connect`].
    pub fn uri(&self, database: &str) -> String {
        self.uri_as("postgres", database)
    }

    /// The same as `Postgres::uri` for another user.
    pub fn uri_as(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Process id of the postmaster.
    ///
    /// # Panics
    ///
    /// If the server is stopped.
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// Log of the server since its last start.
    ///
    /// # Panics
    ///
    /// If the server is stopped.
    pub fn log(&self) -> &Log {
        self.process().log()
    }

    /// The server as a process, for example to wait for a log line.
    ///
    /// # Panics
    ///
    /// If the server is stopped.
    pub fn process(&self) -> &Process {
        &self.server.as_ref().expect("the server is stopped").0
    }

    /// Opens a session as superuser. The connection runs in a task of the current runtime.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub async fn try_connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(&self.uri(database), NoTls).await?;
        // Nobody awaits this task. It ends when the client is dropped or the server is gone.
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(connection);
        Ok(client)
    }

    /// The same as `Postgres::try_connect`, for a test that cannot continue without a session.
    ///
    /// # Panics
    ///
    /// If no session is open within 10 s.
    pub async fn connect(&self, database: &str) -> Client {
        match tokio::time::timeout(Duration::from_secs(10), self.try_connect(database)).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => self.process().fail(&format!("cannot connect to {database}: {error:?}")),
            Err(_) => self.process().fail(&format!("no session with {database} within 10 s")),
        }
    }

    /// Creates an empty database with a unique name.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub async fn create_database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("rig_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let client = self.connect("postgres").await;
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("cannot create a database");
        name
    }

    /// Stops the server and waits until it has ended. Does nothing if the server is already stopped.
    ///
    /// # Panics
    ///
    /// If the server does not stop within a minute.
    pub async fn stop(&mut self, how: Stop) {
        let Some(server) = self.server.take() else {
            return;
        };
        server.0.signal(match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        });
        server.0.wait_exit(STOP_DEADLINE).await;
    }

    /// Starts a stopped server on the same port and data, and waits until it accepts sessions.
    ///
    /// # Panics
    ///
    /// If the server does not accept sessions within a minute.
    pub async fn start_again(&mut self) {
        if self.server.is_some() {
            return;
        }
        let mut command = self.command("postgres");
        let port = self.port.to_string();
        command.args(["-D", text(&self.data_directory()), "-p", &port]);
        self.server = Some(Server(Process::spawn_guarded("postgres", command, ORPHANED)));
        let ready = async || self.try_connect("postgres").await.ok().map(drop);
        self.process().wait_until("the server takes sessions", START_DEADLINE, ready).await;
    }

    /// Stops and starts the server.
    ///
    /// # Panics
    ///
    /// As [`Postgres::stop`] and [`Postgres::start_again`].
    pub async fn restart(&mut self, how: Stop) {
        self.stop(how).await;
        self.start_again().await;
    }

    /// Freezes the postmaster and every backend (SIGSTOP): connections stay open, but nothing responds.
    pub fn pause(&self) {
        // The postmaster first, so that it does not start new children in the meantime.
        self.process().pause();
        for pid in children(self.pid()) {
            let _ = kill_process(pid, Signal::STOP);
        }
    }

    /// Resumes a frozen server.
    pub fn resume(&self) {
        for pid in children(self.pid()) {
            let _ = kill_process(pid, Signal::CONT);
        }
        self.process().resume();
    }

    /// Freezes (true) or resumes (false) the backend of one session, by its `pg_backend_pid()`.
    pub fn freeze_backend(&self, backend: i32, frozen: bool) {
        let pid = Pid::from_raw(backend).expect("a backend has a process id");
        let _ = kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT });
    }

    /// Runs one of the server's programs, such as `psql` or `pg_dump`, as the server's account. Waits for its end and
    /// returns its output.
    ///
    /// # Panics
    ///
    /// If the program fails.
    pub async fn run(&self, program: &str, arguments: &[&str], more: &[&str]) -> String {
        let mut command = self.command(program);
        command.args(arguments).args(more);
        let work = move || command.output();
        let output = tokio::task::spawn_blocking(work).await.expect("the program's thread panicked");
        let output = output.unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} failed: {}\n{said}{complained}", output.status);
        said
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // The server's account may have no access to the current directory of this process.
        command.current_dir(self.directory.path()).env_remove("PGDATA").env("LC_ALL", "C");
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }
}

/// Runs a `COPY … FROM STDIN`, sends all data at once, and returns the number of rows.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn copy_in(client: &Client, statement: &str, data: Bytes) -> Result<u64, tokio_postgres::Error> {
    let mut sink = std::pin::pin!(client.copy_in::<_, Bytes>(statement).await?);
    sink.send(data).await?;
    sink.finish().await
}

/// Directory of the server programs: `$PG_BIN`, or the newest of `/usr/lib/postgresql/*/bin`, or a directory of `PATH`.
fn programs() -> PathBuf {
    let has_server = |directory: &PathBuf| directory.join("postgres").exists() && directory.join("initdb").exists();
    if let Some(directory) = std::env::var_os("PG_BIN") {
        return PathBuf::from(directory);
    }
    let version = |directory: &PathBuf| -> Option<u32> { directory.parent()?.file_name()?.to_str()?.parse().ok() };
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed.map(|e| e.path().join("bin")).filter(has_server).max_by_key(version);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = newest.or_else(|| std::env::split_paths(&path).find(has_server));
    found.expect("no PostgreSQL server programs: install them (make install-deps) or set PG_BIN to their directory")
}

/// User and group to run the server as if this process is root. PostgreSQL refuses to run as root.
fn server_account() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let id = |flag| {
        let output = Command::new("id").args([flag, "postgres"]).output().expect("cannot run id");
        let number = String::from_utf8_lossy(&output.stdout).trim().parse().ok();
        number.expect("root cannot run PostgreSQL, and there is no user postgres to run it as")
    };
    Some((id("-u"), id("-g")))
}

/// Returns the processes whose parent is `pid`.
fn children(pid: u32) -> Vec<Pid> {
    let of_parent = |path: PathBuf| -> Option<Pid> {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let child = path.file_name()?.to_str()?.parse().ok()?;
        (parent == pid).then(|| Pid::from_raw(child))?
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| of_parent(entry.path())).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have UTF-8 names")
}
