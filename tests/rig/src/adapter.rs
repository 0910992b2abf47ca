//! An adapter as a process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;

use crate::exposition;
use crate::http::{Client, Error, READ_HEADERS, Response, WRITE_HEADERS};
use crate::port;
use crate::process::Process;

/// What every metric's name begins with.
const METRICS_PREFIX: &str = "prometheus_postgresql_adapter_";

/// How long an adapter may take to listen.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How to start an adapter; clone it to start the same again.
#[derive(Clone, Debug)]
pub struct Options {
    binary: PathBuf,
    name: String,
    address: String,
    port: u16,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    namespace: Option<String>,
}

impl Options {
    /// An adapter from `binary` on a free port of 127.0.0.1. In tests and benches the binary is
    /// `env!("CARGO_BIN_EXE_prometheus-postgresql-adapter")`, elsewhere [`binary_beside_this`].
    pub fn new(binary: impl AsRef<Path>) -> Self {
        let binary = binary.as_ref().to_owned();
        let (name, address, port) = ("adapter".to_owned(), "127.0.0.1".to_owned(), port::free());
        Self { binary, name, address, port, arguments: Vec::new(), environment: Vec::new(), namespace: None }
    }

    /// What to call it in messages.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Listen on this port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Listen on this address of its host.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.address = address.to_owned();
        self
    }

    /// One more argument, as on a command line: `-pg-table=metrics`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Run on a host of its own: on that host's loopback it is out of reach of [`Adapter::client`].
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Starts it and returns at once.
    ///
    /// # Panics
    ///
    /// When the program cannot be started.
    pub fn spawn(&self) -> Adapter {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        command.arg(format!("-web-listen-address={}:{}", self.address, self.port)).args(&self.arguments);
        // What the caller's shell says must not reach it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TS_PROM_") || name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let process = Process::spawn(&self.name, command);
        Adapter { process, address: self.address.clone(), port: self.port, client: Client::default() }
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    ///
    /// When it does not within 20 s, or ends before.
    pub async fn start(&self) -> Adapter {
        let adapter = self.spawn();
        let url = adapter.url("/healthz");
        let answers = async || adapter.client.get(&url).await.ok().map(drop);
        adapter.process.wait_until("it listens", START_DEADLINE, answers).await;
        adapter
    }
}

/// A running adapter, killed when dropped.
#[derive(Debug)]
pub struct Adapter {
    process: Process,
    address: String,
    port: u16,
    client: Client,
}

impl Adapter {
    /// The process: log, signals, end.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of `path`, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.address, self.port)
    }

    /// The client that talks to it.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// GETs `path`.
    ///
    /// # Errors
    ///
    /// When no whole answer came.
    pub async fn get(&self, path: &str) -> Result<Response, Error> {
        self.client.get(&self.url(path)).await
    }

    /// Sends a remote-write 1.0 request, compressed already, and returns whatever is answered.
    ///
    /// # Errors
    ///
    /// When no whole answer came.
    pub async fn try_write(&self, body: impl Into<Bytes>) -> Result<Response, Error> {
        self.client.post(&self.url("/write"), &WRITE_HEADERS, body).await
    }

    /// The same where it must answer.
    ///
    /// # Panics
    ///
    /// When no whole answer came.
    pub async fn write(&self, body: impl Into<Bytes>) -> Response {
        self.try_write(body).await.unwrap_or_else(|error| self.process.fail(&error.to_string()))
    }

    /// Sends a remote-read request, compressed already.
    ///
    /// # Panics
    ///
    /// When no whole answer came.
    pub async fn read(&self, body: impl Into<Bytes>) -> Response {
        let answer = self.client.post(&self.url("/read"), &READ_HEADERS, body).await;
        answer.unwrap_or_else(|error| self.process.fail(&error.to_string()))
    }

    /// `/status.json` as text; `None` when it does not answer.
    pub async fn status(&self) -> Option<String> {
        let response = self.get("/status.json").await.ok()?;
        (response.status == 200).then(|| response.text())
    }

    /// The role by `/status.json`: `leader`, `standby`, `unknown`, `taking_over` or `resigned`.
    pub async fn role(&self) -> Option<String> {
        string_field(&self.status().await?, "role")
    }

    /// Waits until it has `role`.
    ///
    /// # Panics
    ///
    /// When it has not within `deadline`, or ends.
    pub async fn wait_role(&self, role: &str, deadline: Duration) {
        let has_role = async || (self.role().await.as_deref() == Some(role)).then_some(());
        self.process.wait_until(&format!("its role is {role}"), deadline, has_role).await;
    }

    /// The sum of a metric over all its label sets; `None` when there is no such metric. The adapter's own prefix may
    /// be left out.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        self.metric_with(name, "").await
    }

    /// The sum over the label sets that contain `label`, such as `role="leader"`.
    pub async fn metric_with(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.get("/metrics").await.ok()?.text();
        let full = format!("{METRICS_PREFIX}{name}");
        exposition::sum(&text, &full, label).or_else(|| exposition::sum(&text, name, label))
    }
}

/// The adapter that cargo built beside the running program, which may be an example or a test.
///
/// # Panics
///
/// When there is none.
pub fn binary_beside_this() -> PathBuf {
    let this = std::env::current_exe().expect("the running program has no path");
    let candidates = this.ancestors().skip(1).take(2).map(|d| d.join("prometheus-postgresql-adapter"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no adapter beside {}: run cargo build first", this.display()))
}

/// The string that `key` has in a flat JSON object; enough for a status, and no reason to take a parser in.
fn string_field(json: &str, key: &str) -> Option<String> {
    let after = json.split_once(&format!("\"{key}\""))?.1.trim_start().strip_prefix(':')?;
    let value = after.trim_start().strip_prefix('"')?;
    Some(value.split_once('"')?.0.to_owned())
}
