//! A real Prometheus as a process.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::exposition;
use crate::guard::Directory;
use crate::http::{Client, percent_encode};
use crate::port;
use crate::process::Process;

/// Deadline for a Prometheus to be ready. Includes the replay of its WAL.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Returns the program of the current Prometheus that tests/prometheus/build builds, with promtool beside it; `None` if it
/// is not built. Debian's is years older.
#[must_use]
pub fn current() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let built = || {
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        let required = include_str!("../../prometheus/go.mod").lines();
        let version =
            required.filter_map(|line| line.trim().strip_prefix("github.com/prometheus/prometheus v")).next()?;
        let version = version.split_whitespace().next()?;
        Some(cache.join(format!("prometheus-postgresql-adapter/prometheus-v{version}")))
    };
    let program = variable("CURRENT_PROMETHEUS_BIN").or_else(built)?.join("prometheus");
    program.is_file().then_some(program)
}

/// Options to start a Prometheus.
#[derive(Clone, Debug)]
pub struct Options {
    program: PathBuf,
    name: String,
    port: u16,
    config: String,
    files: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Options {
    /// A Prometheus on a free port. `config` is the text of prometheus.yml.
    pub fn new(config: impl Into<String>) -> Self {
        let (program, name, port) = ("prometheus".into(), "prometheus".to_owned(), port::free());
        Self { program, name, port, config: config.into(), files: Vec::new(), arguments: Vec::new() }
    }

    /// Sets the program, in place of the `prometheus` in `PATH`.
    #[must_use]
    pub fn program(mut self, program: PathBuf) -> Self {
        self.program = program;
        self
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

    /// Adds a file beside prometheus.yml, for example rules.
    #[must_use]
    pub fn file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), text.into()));
        self
    }

    /// Adds an argument, such as `--web.enable-remote-write-receiver`.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }
}

/// A Prometheus with its own data directory. A kill and a restart keep the data.
#[derive(Debug)]
pub struct Prometheus {
    // Declared before the directory, so that the process ends before the directory is removed.
    process: Option<Process>,
    directory: Directory,
    options: Options,
    client: Client,
}

/// Remote-write metrics of a Prometheus, summed over all queues.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sender {
    /// Samples sent, retries included.
    pub sent: f64,
    /// Samples dropped after a response that forbids a retry.
    pub failed: f64,
    /// Samples dropped before they were sent.
    pub dropped: f64,
    /// Samples sent again after a response that asks for a retry.
    pub retried: f64,
    /// Samples that wait in shards.
    pub pending: f64,
}

impl Prometheus {
    /// Starts a Prometheus and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If there is no such program, or if it is not ready within a minute.
    pub async fn start(options: Options) -> Self {
        let directory = Directory::new("prometheus");
        let config = [("prometheus.yml".to_owned(), options.config.clone())];
        for (name, text) in config.iter().chain(&options.files) {
            std::fs::write(directory.path().join(name), text).unwrap_or_else(|e| panic!("cannot write {name}: {e}"));
        }
        let mut prometheus = Self { process: None, directory, options, client: Client::default() };
        prometheus.start_again().await;
        prometheus
    }

    /// Starts the Prometheus again on the same port and data after a kill or a stop, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// As [`Prometheus::start`].
    pub async fn start_again(&mut self) {
        if self.process.is_some() {
            return;
        }
        let mut command = Command::new(&self.options.program);
        let directory = self.directory.path().display();
        command
            .current_dir(self.directory.path())
            .arg(format!("--config.file={directory}/prometheus.yml"))
            .arg(format!("--storage.tsdb.path={directory}/data"))
            .arg(format!("--web.listen-address=127.0.0.1:{}", self.options.port))
            .args(&self.options.arguments);
        let process = Process::spawn(&self.options.name, command);
        let url = self.url("/-/ready");
        let ready = async || self.client.is_ok(&url).await.then_some(());
        process.wait_until("it is ready", START_DEADLINE, ready).await;
        self.process = Some(process);
    }

    /// Kills the Prometheus (SIGKILL). Samples that it had not sent are lost.
    pub async fn kill9(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill9().await;
        }
    }

    /// Asks the Prometheus to end (SIGTERM). It continues to send its pending samples for up to a minute.
    ///
    /// # Panics
    ///
    /// If the Prometheus has not ended within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) {
        if let Some(process) = self.process.take() {
            process.terminate(deadline).await;
        }
    }

    /// The process: log, signals, exit.
    ///
    /// # Panics
    ///
    /// If the Prometheus is stopped.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("this Prometheus is stopped")
    }

    /// Port that the Prometheus listens on.
    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// Returns the URL of `path`. `path` begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.options.port)
    }

    /// Runs an instant query and returns the API's JSON response unchanged.
    ///
    /// # Panics
    ///
    /// If the Prometheus does not respond.
    pub async fn query(&self, expression: &str) -> String {
        self.ask("/api/v1/query", &[("query", expression)]).await
    }

    /// Runs an instant query at a Unix time in seconds and returns the API's JSON response unchanged.
    ///
    /// # Panics
    ///
    /// If the Prometheus does not respond.
    pub async fn query_at(&self, expression: &str, time: f64) -> String {
        self.ask("/api/v1/query", &[("query", expression), ("time", &format!("{time:.3}"))]).await
    }

    /// Runs a range query and returns the API's JSON response unchanged. `start` and `end` are Unix times in seconds,
    /// with one value every `step` seconds.
    ///
    /// # Panics
    ///
    /// If the Prometheus does not respond.
    pub async fn query_range(&self, expression: &str, start: f64, end: f64, step: f64) -> String {
        let [start, end, step] = [start, end, step].map(|number| format!("{number:.3}"));
        let parameters = [("query", expression), ("start", &start), ("end", &end), ("step", &step)];
        self.ask("/api/v1/query_range", &parameters).await
    }

    /// Returns the exemplars of series between two Unix times in seconds, both included: the API's JSON response
    /// unchanged.
    ///
    /// # Panics
    ///
    /// If the Prometheus does not respond.
    pub async fn exemplars(&self, selector: &str, start: f64, end: f64) -> String {
        let [start, end] = [start, end].map(|number| format!("{number:.3}"));
        self.ask("/api/v1/query_exemplars", &[("query", selector), ("start", &start), ("end", &end)]).await
    }

    /// Returns the sum of one of its own metrics over the label sets that contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.client.get(&self.url("/metrics")).await.ok()?.text();
        exposition::sum(&text, name, label)
    }

    /// Returns its remote-write metrics. The counters restart at zero with each start.
    ///
    /// # Panics
    ///
    /// If the Prometheus does not respond.
    pub async fn sender(&self) -> Sender {
        let answer = self.client.get(&self.url("/metrics")).await;
        let text = answer.unwrap_or_else(|error| self.process().fail(&error.to_string())).text();
        let sum = |name: &str| exposition::sum(&text, &format!("prometheus_remote_storage_{name}"), "").unwrap_or(0.0);
        Sender {
            sent: sum("samples_total"),
            failed: sum("samples_failed_total"),
            dropped: sum("samples_dropped_total"),
            retried: sum("samples_retried_total"),
            pending: sum("samples_pending"),
        }
    }

    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> String {
        let pairs = parameters.iter().map(|(name, value)| format!("{name}={}", percent_encode(value)));
        let form = pairs.collect::<Vec<_>>().join("&");
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let answer = self.client.post(&self.url(path), &headers, form).await;
        answer.unwrap_or_else(|error| self.process().fail(&error.to_string())).text()
    }
}
