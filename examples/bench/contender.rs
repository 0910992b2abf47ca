//! Who is measured, and how: every connection sends its next body as soon as the previous one is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::adapter;
use rig::http::{Client, WRITE_HEADERS};
use rig::postgres::{Postgres, copy_in};
use rig::process::Process;
use rig::prometheus::{self, Prometheus};
use tokio::task::JoinSet;

use crate::load::{Batch, Load};

/// How long a receiver may take until it takes the first scrape: an election included.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(30);

/// What one contender did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Who.
    pub(crate) name: String,
    /// Samples acknowledged.
    pub(crate) samples: usize,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// From a request to its answer, ascending.
    pub(crate) latencies: Vec<Duration>,
    /// Requests sent again after an answer that asks for it.
    pub(crate) retries: usize,
    /// CPU time the receiving process spent meanwhile.
    pub(crate) cpu: Option<Duration>,
    /// The most memory it had resident.
    pub(crate) memory_bytes: Option<u64>,
}

impl Outcome {
    /// Samples acknowledged a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with three digits")]
    pub(crate) fn rate(&self) -> f64 {
        self.samples as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `share` of the requests did not exceed.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn latency(&self, share: f64) -> Duration {
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index.min(self.latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// CPU seconds the receiver spent on a million samples.
    #[expect(clippy::cast_precision_loss, reason = "as for the rate")]
    pub(crate) fn cpu_per_million(&self) -> Option<f64> {
        Some(self.cpu?.as_secs_f64() / (self.samples as f64 / 1e6))
    }
}

/// The requests of every connection.
pub(crate) type Requests = Arc<Vec<Vec<Batch>>>;

/// Builds the batches of all connections side by side.
pub(crate) async fn build(load: Load, one: impl Fn(Load, usize) -> Vec<Batch> + Clone + Send + 'static) -> Requests {
    let mut built = JoinSet::new();
    for connection in 0..load.connections {
        let one = one.clone();
        built.spawn_blocking(move || (connection, one(load, connection)));
    }
    let mut all = built.join_all().await;
    all.sort_by_key(|(connection, _)| *connection);
    Arc::new(all.into_iter().map(|(_, batches)| batches).collect())
}

/// The adapter, leading, over an empty database. Its table must hold exactly what it has acknowledged.
pub(crate) async fn adapter(
    postgres: &Postgres,
    options: adapter::Options,
    warm_up: &Requests,
    requests: &Requests,
    limit: Duration,
) -> Outcome {
    let database = postgres.create_database().await;
    let options = options
        .arg(format!("-pg-uri={}", postgres.uri(&database)))
        .arg("-leader-election-pg-advisory-lock-id=1")
        .arg("-leader-election-pg-advisory-lock-prometheus-timeout=1m")
        .arg("-log-level=warn");
    let adapter = options.start().await;
    let url = adapter.url("/write");
    let warm = first_scrape(adapter.process(), &url, warm_up).await;
    let outcome = receiver("adapter", adapter.process(), &url, requests, limit).await;
    let client = postgres.connect(&database).await;
    let row = client.query_one("SELECT count(*) FROM metrics_values", &[]).await.expect("cannot count what is stored");
    let stored = usize::try_from(row.get::<_, i64>(0)).expect("a count is not negative");
    assert_eq!(stored, outcome.samples + warm, "samples stored (left) and acknowledged (right) differ");
    drop(adapter);
    drop_database(postgres, &database).await;
    outcome
}

/// Prometheus as a receiver of remote writes.
pub(crate) async fn prometheus(warm_up: &Requests, requests: &Requests, limit: Duration) -> Outcome {
    let options = prometheus::Options::new("global: {scrape_interval: 1h}\n").arg("--web.enable-remote-write-receiver");
    let prometheus = Prometheus::start(options).await;
    let url = prometheus.url("/api/v1/write");
    first_scrape(prometheus.process(), &url, warm_up).await;
    receiver("Prometheus as receiver", prometheus.process(), &url, requests, limit).await
}

/// Binary COPY of the same rows into a bare table, each batch committed by itself.
pub(crate) async fn copy(postgres: &Postgres, name: &str, copies: Requests, limit: Duration) -> Outcome {
    let database = postgres.create_database().await;
    let owner = postgres.connect(&database).await;
    let table = "CREATE TABLE bare (time timestamptz NOT NULL, series bigint NOT NULL, value float8 NOT NULL)";
    owner.batch_execute(table).await.expect("cannot create a table");
    let mut clients = Vec::new();
    for _ in 0..copies.len() {
        clients.push(postgres.connect(&database).await);
    }
    let started = Instant::now();
    let mut connections = JoinSet::new();
    for (connection, client) in clients.into_iter().enumerate() {
        let copies = Arc::clone(&copies);
        connections.spawn(async move {
            let mut done = Done::default();
            for batch in &copies[connection] {
                let sent = Instant::now();
                let copied = copy_in(&client, "COPY bare FROM STDIN BINARY", batch.body.clone()).await;
                copied.unwrap_or_else(|e| panic!("COPY failed: {e}"));
                done.note(batch.samples, sent.elapsed());
                if started.elapsed() >= limit {
                    break;
                }
            }
            done
        });
    }
    let outcome = sum(name, started, connections.join_all().await);
    drop(owner);
    drop_database(postgres, &database).await;
    outcome
}

/// What one connection did.
#[derive(Default)]
struct Done {
    samples: usize,
    latencies: Vec<Duration>,
    retries: usize,
}

impl Done {
    fn note(&mut self, samples: usize, latency: Duration) {
        self.samples += samples;
        self.latencies.push(latency);
    }
}

fn sum(name: &str, started: Instant, done: Vec<Done>) -> Outcome {
    let elapsed = started.elapsed();
    let samples = done.iter().map(|done| done.samples).sum();
    let retries = done.iter().map(|done| done.retries).sum();
    let mut latencies: Vec<Duration> = done.into_iter().flat_map(|done| done.latencies).collect();
    latencies.sort_unstable();
    Outcome { name: name.to_owned(), samples, elapsed, latencies, retries, cpu: None, memory_bytes: None }
}

/// Sends the requests over as many connections as there are lists of them, and watches the receiver meanwhile.
async fn receiver(name: &str, process: &Process, url: &str, requests: &Requests, limit: Duration) -> Outcome {
    let cpu_before = process.cpu();
    let started = Instant::now();
    let mut connections = JoinSet::new();
    for connection in 0..requests.len() {
        let (requests, url) = (Arc::clone(requests), url.to_owned());
        connections.spawn(async move {
            let client = Client::default();
            let mut done = Done::default();
            for batch in &requests[connection] {
                let sent = Instant::now();
                done.retries += send(&client, &url, batch, None).await;
                done.note(batch.samples, sent.elapsed());
                if started.elapsed() >= limit {
                    break;
                }
            }
            done
        });
    }
    let mut outcome = sum(name, started, connections.join_all().await);
    outcome.cpu = Some(process.cpu().saturating_sub(cpu_before));
    outcome.memory_bytes = Some(process.peak_memory_bytes());
    outcome
}

/// Sends scrape 0, so that every series is known and the receiver leads before the clock starts; returns its samples.
async fn first_scrape(process: &Process, url: &str, warm_up: &Requests) -> usize {
    let client = Client::default();
    let deadline = Instant::now() + WARM_UP_DEADLINE;
    let mut samples = 0;
    for batch in warm_up.iter().flatten() {
        send(&client, url, batch, Some((process, deadline))).await;
        samples += batch.samples;
    }
    samples
}

/// Sends until it is taken, as Prometheus does: again after 5xx, more and more slowly. Returns how often again.
async fn send(client: &Client, url: &str, batch: &Batch, until: Option<(&Process, Instant)>) -> usize {
    let mut backoff = Duration::from_millis(30);
    let mut retries = 0;
    loop {
        let answer = client.post(url, &WRITE_HEADERS, batch.body.clone()).await;
        let why = match answer {
            Ok(response) if response.status / 100 == 2 => return retries,
            Ok(response) if response.status / 100 == 4 => {
                panic!("{url}: {}: {}", response.status, response.text())
            }
            Ok(response) => format!("{}: {}", response.status, response.text()),
            Err(error) => error.to_string(),
        };
        if let Some((process, deadline)) = until
            && Instant::now() >= deadline
        {
            process.fail(&format!("takes nothing within {WARM_UP_DEADLINE:?}: {why}"));
        }
        retries += 1;
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(Duration::from_secs(5));
    }
}

/// Gives the room back, and leaves no work of this contender to the next.
async fn drop_database(postgres: &Postgres, database: &str) {
    let client = postgres.connect("postgres").await;
    client.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.expect("cannot drop a database");
    client.batch_execute("CHECKPOINT").await.expect("cannot write a checkpoint");
}
