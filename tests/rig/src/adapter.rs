//! An adapter as a process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;

use crate::exposition;
use crate::http::{Client, Error, READ_HEADERS, Response, WRITE_HEADERS};
use crate::port;
use crate::process::Process;

/// Prefix of the names of all metrics of the adapter.
const METRICS_PREFIX: &str = "prometheus_postgresql_adapter_";

/// Deadline for an adapter to listen.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// Options to start an adapter. A clone starts another adapter with the same options.
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
    /// An adapter from `binary` on a free port of 127.0.0.1. In tests and benchmarks the binary is
    /// `env!("CARGO_BIN_EXE_prometheus-postgresql-adapter")`, elsewhere [`binary_beside_this`].
    pub fn new(binary: impl AsRef<Path>) -> Self {
        let binary = binary.as_ref().to_owned();
        let (name, address, port) = ("adapter".to_owned(), "127.0.0.1".to_owned(), port::free());
        Self { binary, name, address, port, arguments: Vec::new(), environment: Vec::new(), namespace: None }
    }

    /// Sets the name for messages.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Sets the port to listen on.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Sets the address of the host to listen on.
    #[must_use]
    pub fn address(mut self, address: &str) -> Self {
        self.address = address.to_owned();
        self
    }

    /// Adds an argument in command-line form: `-pg-table=metrics`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the adapter on a separate host. [`Adapter::client`] cannot reach the loopback address of that host.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Starts the adapter and returns immediately.
    ///
    /// # Panics
    ///
    /// If the program cannot be started.
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
        // Variables of the caller's shell must not reach the adapter.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TS_PROM_") || name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let process = Process::spawn(&self.name, command);
        Adapter { process, address: self.address.clone(), port: self.port, client: Client::default() }
    }

    /// Starts the adapter and waits until it listens.
    ///
    /// # Panics
    ///
    /// If the adapter does not listen within 20 s, or if it ends before.
    pub async fn start(&self) -> Adapter {
        let adapter = self.spawn();
        let url = adapter.url("/healthz");
        let answers = async || adapter.client.get(&url).await.ok().map(drop);
        adapter.process.wait_until("it listens", START_DEADLINE, answers).await;
        adapter
    }
}

/// A running adapter. Killed on drop.
#[derive(Debug)]
pub struct Adapter {
    process: Process,
    address: String,
    port: u16,
    client: Client,
}

impl Adapter {
    /// The process: log, signals, exit.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Port that the adapter listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL of `path`. `path` begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", self.address, self.port)
    }

    /// HTTP client for requests to this adapter.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a GET request for `path`.
    ///
    /// # Errors
    ///
    /// If no complete response arrived.
    pub async fn get(&self, path: &str) -> Result<Response, Error> {
        self.client.get(&self.url(path)).await
    }

    /// Sends a remote-write 1.0 request and returns the response, whatever its status. `body` is already compressed.
    ///
    /// # Errors
    ///
    /// If no complete response arrived.
    pub async fn try_write(&self, body: impl Into<Bytes>) -> Result<Response, Error> {
        self.client.post(&self.url("/write"), &WRITE_HEADERS, body).await
    }

    /// The same as `Adapter::try_write`, for a test in which the adapter must respond.
    ///
    /// # Panics
    ///
    /// If no complete response arrived.
    pub async fn write(&self, body: impl Into<Bytes>) -> Response {
        self.try_write(body).await.unwrap_or_else(|error| self.process.fail(&error.to_string()))
    }

    /// Sends a remote-read request. `body` is already compressed.
    ///
    /// # Panics
    ///
    /// If no complete response arrived.
    pub async fn read(&self, body: impl Into<Bytes>) -> Response {
        let answer = self.client.post(&self.url("/read"), &READ_HEADERS, body).await;
        answer.unwrap_or_else(|error| self.process.fail(&error.to_string()))
    }

    /// Returns `/status.json` as text; `None` if there is no response with status 200.
    pub async fn status(&self) -> Option<String> {
        let response = self.get("/status.json").await.ok()?;
        (response.status == 200).then(|| response.text())
    }

    /// Returns the role in `/status.json`: `leader`, `standby`, `unknown`, `taking_over`, `resigned` or `by_labels`.
    pub async fn role(&self) -> Option<String> {
        string_field(&self.status().await?, "role")
    }

    /// Waits until the adapter has `role`.
    ///
    /// # Panics
    ///
    /// If the adapter does not have the role within `deadline`, or if it ends.
    pub async fn wait_role(&self, role: &str, deadline: Duration) {
        let has_role = async || (self.role().await.as_deref() == Some(role)).then_some(());
        self.process.wait_until(&format!("its role is {role}"), deadline, has_role).await;
    }

    /// Returns the sum of a metric over all its label sets; `None` if the metric does not exist. `name` may omit the
    /// adapter's own prefix.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        self.metric_with(name, "").await
    }

    /// Returns the sum over the label sets that contain `label`, such as `role="leader"`.
    pub async fn metric_with(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.get("/metrics").await.ok()?.text();
        let full = format!("{METRICS_PREFIX}{name}");
        exposition::sum(&text, &full, label).or_else(|| exposition::sum(&text, name, label))
    }
}

/// Path of the adapter that cargo built beside the running program. The program may be an example, a test or a member of the workspace.
///
/// # Panics
///
/// If the binary does not exist.
pub fn binary_beside_this() -> PathBuf {
    let this = std::env::current_exe().expect("the running program has no path");
    let candidates = this.ancestors().skip(1).take(2).map(|d| d.join("prometheus-postgresql-adapter"));
    let found = candidates.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no adapter beside {}: run cargo build first", this.display()))
}

/// Returns the string value of `key` in a flat JSON object. This is enough for a status and avoids a dependency on a
/// parser.
fn string_field(json: &str, key: &str) -> Option<String> {
    let after = json.split_once(&format!("\"{key}\""))?.1.trim_start().strip_prefix(':')?;
    let value = after.trim_start().strip_prefix('"')?;
    Some(value.split_once('"')?.0.to_owned())
}
