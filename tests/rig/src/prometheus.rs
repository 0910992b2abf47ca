//! A real Prometheus as a process.

use std::process::Command;
use std::time::Duration;

use crate::exposition;
use crate::guard::Directory;
use crate::http::{Client, percent_encode};
use crate::port;
use crate::process::Process;

/// How long a Prometheus may take to be ready: replay of its log included.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// What kind of Prometheus to start.
#[derive(Clone, Debug)]
pub struct Options {
    name: String,
    port: u16,
    config: String,
    files: Vec<(String, String)>,
    arguments: Vec<String>,
}

impl Options {
    /// A Prometheus on a free port with the text of a prometheus.yml.
    pub fn new(config: impl Into<String>) -> Self {
        let (name, port) = ("prometheus".to_owned(), port::free());
        Self { name, port, config: config.into(), files: Vec::new(), arguments: Vec::new() }
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

    /// A file beside prometheus.yml: rules, for one.
    #[must_use]
    pub fn file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), text.into()));
        self
    }

    /// One more argument, such as `--web.enable-remote-write-receiver`.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }
}

/// A Prometheus with a data directory of its own, which a kill and a new start leave as it is.
#[derive(Debug)]
pub struct Prometheus {
    // Declared before the directory, so that the process ends before the directory goes.
    process: Option<Process>,
    directory: Directory,
    options: Options,
    client: Client,
}

/// What a Prometheus says of its remote writes, all queues together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sender {
    /// Samples sent, retries included.
    pub sent: f64,
    /// Samples given up after an answer that forbids retrying.
    pub failed: f64,
    /// Samples given up before they were sent.
    pub dropped: f64,
    /// Samples sent again after an answer that asks for it.
    pub retried: f64,
    /// Samples waiting in shards.
    pub pending: f64,
}

impl Prometheus {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When there is no `prometheus` in `PATH`, or it is not ready within a minute.
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

    /// Starts it again on the same port and data after it was killed or stopped, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// As [`Prometheus::start`].
    pub async fn start_again(&mut self) {
        if self.process.is_some() {
            return;
        }
        let mut command = Command::new("prometheus");
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

    /// Kills it (SIGKILL): what it had not sent is lost with it.
    pub async fn kill9(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill9().await;
        }
    }

    /// Asks it to end (SIGTERM): it sends what it still has for up to a minute.
    ///
    /// # Panics
    ///
    /// When it has not ended within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) {
        if let Some(process) = self.process.take() {
            process.terminate(deadline).await;
        }
    }

    /// The process: log, signals, end.
    ///
    /// # Panics
    ///
    /// When it is stopped.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("this Prometheus is stopped")
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.options.port
    }

    /// The URL of `path`, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.options.port)
    }

    /// An instant query; the API's JSON answer, as it came.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub async fn query(&self, expression: &str) -> String {
        self.ask("/api/v1/query", &[("query", expression)]).await
    }

    /// An instant query at a Unix time in seconds; the API's JSON answer, as it came.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub async fn query_at(&self, expression: &str, time: f64) -> String {
        self.ask("/api/v1/query", &[("query", expression), ("time", &format!("{time:.3}"))]).await
    }

    /// A range query from `start` to `end`, Unix times in seconds, a value every `step` seconds; the API's JSON
    /// answer, as it came.
    ///
    /// # Panics
    ///
    /// When it does not answer.
    pub async fn query_range(&self, expression: &str, start: f64, end: f64, step: f64) -> String {
        let [start, end, step] = [start, end, step].map(|number| format!("{number:.3}"));
        let parameters = [("query", expression), ("start", &start), ("end", &end), ("step", &step)];
        self.ask("/api/v1/query_range", &parameters).await
    }

    /// The sum of one of its own metrics over the label sets that contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.client.get(&self.url("/metrics")).await.ok()?.text();
        exposition::sum(&text, name, label)
    }

    /// What it says of its remote writes; counters begin anew with each start.
    ///
    /// # Panics
    ///
    /// When it does not answer.
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
