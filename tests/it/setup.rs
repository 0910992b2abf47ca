//! Setup of every test: a private database, adapters on it, and request bodies.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_postgresql_adapter::model::sample::Sample;
use prometheus_postgresql_adapter::wire::read::messages::Histogram;
use rig::adapter::{Adapter, Options};
use rig::http::{Response, WRITE_2_HEADERS};
use rig::postgres::Postgres;
use rig::remote_write::{self, add_series, compress};
use tokio_postgres::Client;
use tokio_postgres::types::FromSqlOwned;

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_prometheus-postgresql-adapter");

/// Deadline for an event that should happen soon, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A private database on the server that all tests share, and a superuser session in it.
pub(crate) struct Database {
    pub(crate) server: &'static Postgres,
    pub(crate) name: String,
    pub(crate) client: Client,
}

impl Database {
    pub(crate) async fn new() -> Self {
        Self::on(Postgres::shared().await).await
    }

    /// The same on another server.
    pub(crate) async fn on(server: &'static Postgres) -> Self {
        let name = server.create_database().await;
        let client = server.connect(&name).await;
        Self { server, name, client }
    }

    /// Options of an adapter on this database without an election. Add more arguments with `arg`.
    pub(crate) fn adapter(&self) -> Options {
        adapter_at(&self.server.uri(&self.name))
    }

    /// Starts an adapter that stores everything that it is sent.
    pub(crate) async fn leader(&self) -> Adapter {
        start(&self.adapter()).await
    }

    /// Opens another session as superuser.
    pub(crate) async fn session(&self) -> Client {
        self.server.connect(&self.name).await
    }

    /// Returns the only column of the only row.
    #[track_caller]
    pub(crate) fn one<T: FromSqlOwned>(&self, sql: &str) -> impl Future<Output = T> {
        one(&self.client, sql)
    }

    /// Returns the first column of every row.
    pub(crate) async fn column<T: FromSqlOwned>(&self, sql: &str) -> Vec<T> {
        let rows = self.client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Runs statements.
    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Waits until a query of one boolean returns true.
    pub(crate) async fn wait(&self, sql: &str) {
        let poll = async {
            while !self.one::<bool>(sql).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, poll).await.unwrap_or_else(|_| panic!("never true: {sql}"));
    }

    /// Returns the number of rows of the view.
    pub(crate) async fn samples(&self) -> i64 {
        self.one("SELECT count(*) FROM metrics").await
    }
}

/// Returns the only column of the only row.
pub(crate) async fn one<T: FromSqlOwned>(client: &Client, sql: &str) -> T {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// Options of an adapter that stores at `uri`.
pub(crate) fn adapter_at(uri: &str) -> Options {
    Options::new(BINARY).arg(format!("-pg-uri={uri}")).arg("-log-level=debug")
}

/// The same options with a clock that is `ahead_ms` ahead, or behind if negative.
pub(crate) fn with_clock(options: Options, ahead_ms: i64) -> Options {
    let environment = rig::clock::wrong_by(ahead_ms).expect("libfaketime is installed: make install-deps");
    environment.iter().fold(options, |options, (name, value)| options.env(name, value))
}

/// Starts an adapter and waits until it accepts writes.
pub(crate) async fn start(options: &Options) -> Adapter {
    let adapter = options.start().await;
    wait_ready(&adapter).await;
    adapter
}

/// Waits until an adapter accepts writes.
pub(crate) async fn wait_ready(adapter: &Adapter) {
    let ready = async || adapter.client().is_ok(&adapter.url("/-/ready")).await.then_some(());
    adapter.process().wait_until("it is ready", SOON, ready).await;
}

/// Reports that the calling test is skipped, and the reason. Bypasses the capture of the output of passing tests.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "{test} is skipped: {why}");
}

/// Current time in ms since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_millis()).expect("the clock is before the year 292 million")
}

/// A sample.
pub(crate) fn at(timestamp_ms: i64, value: f64) -> Sample {
    Sample { timestamp_ms, value }
}

/// A remote-write 1.0 request under construction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Body(Vec<u8>);

impl Body {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a series with the labels in the given order. Labels may have any bytes.
    #[must_use]
    pub(crate) fn series<N: AsRef<[u8]>, V: AsRef<[u8]>>(mut self, labels: &[(N, V)], samples: &[Sample]) -> Self {
        let labels = remote_write::labels(labels.iter().map(|(name, value)| (name, value)));
        add_series(&mut self.0, &labels, samples.iter().map(|sample| (sample.timestamp_ms, sample.value)));
        self
    }

    /// Adds a series with only a name and one sample.
    #[must_use]
    pub(crate) fn sample(self, name: &str, timestamp_ms: i64, value: f64) -> Self {
        self.series(&[("__name__", name)], &[at(timestamp_ms, value)])
    }

    /// Adds a series with native histograms, given by their times and sums, that have no other observations.
    #[must_use]
    pub(crate) fn histograms<N: AsRef<[u8]>, V: AsRef<[u8]>>(self, labels: &[(N, V)], sums: &[Sample]) -> Self {
        let mut series = remote_write::labels(labels.iter().map(|(name, value)| (name, value)));
        for Sample { timestamp_ms: timestamp, value } in sums.iter().copied() {
            let message = Histogram { count_int: Some(0), sum: Some(value), timestamp, ..Histogram::default() };
            prost::encoding::message::encode(4, &message, &mut series);
        }
        let mut request = Vec::new();
        prost::encoding::bytes::encode(1, &series, &mut request);
        self.raw(&request)
    }

    /// Appends `fields` in wire format.
    #[must_use]
    pub(crate) fn raw(mut self, fields: &[u8]) -> Self {
        self.0.extend_from_slice(fields);
        self
    }

    /// Returns the uncompressed message.
    pub(crate) fn plain(self) -> Vec<u8> {
        self.0
    }

    /// Returns the compressed body of the request.
    pub(crate) fn compressed(self) -> Vec<u8> {
        compress(&self.0)
    }
}

/// Sends one sample in an encoding that the adapter cannot read.
pub(crate) async fn send_unreadable(adapter: &Adapter) -> Response {
    let headers = [("content-type", "application/x-protobuf"), ("content-encoding", "zstd")];
    let body = Body::new().sample("up", now_ms(), 1.0).compressed();
    let answer = adapter.client().post(&adapter.url("/write"), &headers, body).await;
    answer.unwrap_or_else(|error| adapter.process().fail(&error.to_string()))
}

/// Sends a message of remote write 2.0.
pub(crate) async fn send_v2(adapter: &Adapter, message: &[u8]) -> Response {
    let answer = adapter.client().post(&adapter.url("/write"), &WRITE_2_HEADERS, compress(message)).await;
    answer.unwrap_or_else(|error| adapter.process().fail(&error.to_string()))
}

/// Sends a body that must be stored completely.
pub(crate) async fn store(adapter: &Adapter, body: Body) {
    let answer = adapter.write(body.compressed()).await;
    assert_eq!(answer.status, 204, "{}", answer.text());
}
