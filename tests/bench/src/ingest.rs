//! Samples a second: the adapter, with few series and with many, beside bare COPY and Prometheus as a receiver.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::postgres::{Postgres, copy_in};
use rig::prometheus::{self, Prometheus};
use tokio::task::JoinSet;

use crate::load::{Load, Requests, Version, size};
use crate::sender::{Sender, Sent, together};
use crate::store::{Hot, Setup, Store, drop_database};
use crate::verdict::{Verdicts, mebibytes, number};

/// Memory for requests that are built ahead.
const BODIES_BYTES: usize = 6 << 30;

/// Requests are built ahead for this many samples a second, until it is known better.
const RATE_GUESS: f64 = 1_200_000.0;

/// Samples of each series that are built for those who take the same again and again, or less than the adapter.
const SCRAPES: usize = 500;

/// Samples a second that are wanted with few series; half of it with many.
const WANTED: f64 = 1e6;

/// `-pg-seal-samples` as it is shipped.
const SEAL_SAMPLES: f64 = 2_000_000.0;

/// What one contender did.
#[derive(Debug)]
struct Outcome {
    name: String,
    sent: Sent,
    /// CPU time the receiving process spent meanwhile, pauses included.
    cpu: Option<Duration>,
    /// The most memory it had resident.
    memory_bytes: Option<u64>,
}

impl Outcome {
    #[expect(clippy::cast_precision_loss, reason = "as for the rate")]
    fn cpu_per_million(&self) -> Option<f64> {
        Some(self.cpu?.as_secs_f64() / (self.sent.samples as f64 / 1e6))
    }
}

/// Measures the adapter, COPY and Prometheus; returns the adapter's rate.
pub(crate) async fn few_series(
    setup: &Setup,
    load: Load,
    limit: Duration,
    others: &[String],
    verdicts: &mut Verdicts,
) -> f64 {
    let (adapter, lag) = adapter(setup.store(&[]).await, load, f64::INFINITY, limit, verdicts).await;
    let rate = adapter.sent.rate();
    let cpu = adapter.cpu_per_million().unwrap_or_default();
    let mut outcomes = vec![adapter];
    if others.iter().any(|other| other == "copy") {
        outcomes.push(copy(&setup.postgres, load, limit).await);
        outcomes.push(copy(&setup.postgres, Load { batch: 10 * load.batch, ..load }, limit / 4).await);
    }
    if others.iter().any(|other| other == "prometheus") {
        outcomes.push(prometheus(load, limit / 4).await);
    }
    table(&outcomes);
    verdicts.at_least(&format!("samples/s committed, {} series", number_of(load.series)), WANTED, rate);
    for outcome in outcomes.iter().skip(1) {
        let bar = if outcome.name.starts_with("Prometheus") { Some(1.0) } else { None };
        let bar = if outcome.name == copy_name(load.batch) { Some(0.5) } else { bar };
        let (what, ratio) = (format!("... as a ratio to {}", outcome.name), rate / outcome.sent.rate());
        match bar {
            Some(bar) => verdicts.at_least(&what, bar, ratio),
            None => verdicts.note(&what, ratio),
        }
    }
    lag.note(verdicts);
    verdicts.below("... adapter's CPU seconds per million samples", 0.4, cpu);
    keeps_up(setup, load, WANTED, limit / 4, verdicts).await;
    rate
}

/// Measures the adapter with many series, and what it remembers of them. `few_rate` is what it did with few.
pub(crate) async fn many_series(
    setup: &Setup,
    load: Load,
    limit: Duration,
    few_rate: Option<f64>,
    verdicts: &mut Verdicts,
) {
    let (adapter, lag) = adapter(setup.store(&[]).await, load, f64::INFINITY, limit, verdicts).await;
    let rate = adapter.sent.rate();
    table(&[adapter]);
    let what = format!("samples/s committed, {} series", number_of(load.series));
    verdicts.note(&what, rate);
    match few_rate {
        Some(few_rate) => verdicts.at_least("... as a ratio to that with few", 0.5, rate / few_rate),
        None => verdicts.skip("... as a ratio to that with few", "that was not measured"),
    }
    lag.note(verdicts);
    keeps_up(setup, load, WANTED / 2.0, limit, verdicts).await;
}

/// Whether sealing keeps up at the rate that is wanted, without a pause.
async fn keeps_up(setup: &Setup, load: Load, rate: f64, limit: Duration, verdicts: &mut Verdicts) {
    let (adapter, lag) = adapter(setup.store(&[]).await, load, rate, limit, verdicts).await;
    table(&[adapter]);
    let what = format!("hot samples at most, at {} a second, {} series", number(rate), number_of(load.series));
    verdicts.below(&what, 3.0 * SEAL_SAMPLES, lag.most);
}

/// Measures the adapter under the same load by 2.0, between two runs by 1.0.
pub(crate) async fn both_versions(setup: &Setup, load: Load, limit: Duration, verdicts: &mut Verdicts) {
    let newer = Load { version: Version::V2, ..load };
    let (before, _) = adapter(setup.store(&[]).await, load, f64::INFINITY, limit, verdicts).await;
    let (two, _) = adapter(setup.store(&[]).await, newer, f64::INFINITY, limit, verdicts).await;
    let (after, _) = adapter(setup.store(&[]).await, load, f64::INFINITY, limit, verdicts).await;
    let ratio = two.sent.rate() / before.sent.rate().midpoint(after.sent.rate());
    let two = Outcome { name: "by 2.0".to_owned(), ..two };
    table(&[before, two, after]);
    verdicts.at_least("ingest by remote write 2.0, as a ratio to 1.0", 1.0, ratio);
}

/// Measures the adapter with leaders by labels between two runs as a sidecar, under the same load.
pub(crate) async fn by_labels(setup: &Setup, load: Load, limit: Duration, verdicts: &mut Verdicts) {
    // Older samples are looked for among what the adapter has not observed yet, before each COMMIT.
    let (old, _) = adapter(setup.store_by_labels().await, load, f64::INFINITY, limit, verdicts).await;
    // Young ones, as a Prometheus sends them: ahead of the clock by less than is refused.
    let load = Load { interval_ms: 15, start_ms: load.start_ms + 24 * 3_600_000 + 180_000, ..load };
    let (before, _) = adapter(setup.store(&[]).await, load, f64::INFINITY, limit, verdicts).await;
    let (labels, _) = adapter(setup.store_by_labels().await, load, f64::INFINITY, limit, verdicts).await;
    let (after, _) = adapter(setup.store(&[]).await, load, f64::INFINITY, limit, verdicts).await;
    let ratio = labels.sent.rate() / before.sent.rate().midpoint(after.sent.rate());
    let labels = Outcome { name: "by labels".to_owned(), ..labels };
    table(&[before, labels, after]);
    verdicts.at_least("ingest with leaders by labels, as a ratio to the sidecar's", 0.9, ratio);
    verdicts.note("... samples/s of yesterday's samples", old.sent.rate());
}

/// The adapter, leading, over an empty database, sent at most `pace` samples a second. Its tables must hold exactly what it
/// has acknowledged.
async fn adapter(store: Store<'_>, load: Load, pace: f64, limit: Duration, verdicts: &mut Verdicts) -> (Outcome, Lag) {
    println!("\nadapter, {} series ...", number_of(load.series));
    let (process, sender) = (store.adapter.process(), store.sender(load.connections));
    // It leads then, and has its connections.
    let first = load.requests(0..1).await;
    let mut stored = sender.warm_up(process, &Arc::new(vec![first[0][..1].to_vec()])).await;
    let before = process.memory_bytes();
    let started = Instant::now();
    stored += sender.warm_up(process, &first).await - first[0][0].samples;
    let (bytes, samples) = size(&first);
    println!(
        "  {:.1} s for the first scrape, which makes the series; a sample takes {:.1} bytes of a request",
        started.elapsed().as_secs_f64(),
        ratio(bytes, samples)
    );
    if load.series >= 100_000 && pace.is_infinite() {
        cache(&store, load, before, verdicts).await;
    }
    drop(first);
    let cpu_before = process.cpu();
    let mut lag = Lag::default();
    let mut sent = Sent::default();
    let mut next = 1;
    while sent.elapsed < limit {
        let left = limit - sent.elapsed;
        let rate = if sent.samples == 0 { RATE_GUESS.min(pace) } else { sent.rate() } * 1.1;
        let scrapes = scrapes(load, (left.as_secs_f64() * rate).min(BODIES_BYTES as f64 / ratio(bytes, samples)));
        let began = Instant::now();
        let requests = load.requests(next..next + scrapes).await;
        println!(
            "  {scrapes} scrapes built in {:.1} s, {:.0} MiB",
            began.elapsed().as_secs_f64(),
            mebibytes(size(&requests).0 as u64)
        );
        next += scrapes;
        // The lag of a round is its own: sealing catches up while the next one is built.
        sent += tokio::select! {
            sent = sender.send_at(pace, &requests, left) => sent,
            never = lag.watch(&store) => match never {},
        };
    }
    stored += sent.samples;
    lag.left = store.counts().await.1;
    let (cpu, memory) = (process.cpu().saturating_sub(cpu_before), process.peak_memory_bytes());
    lag.sealing = store.seal().await;
    store.check(stored).await;
    let metrics = [("seal rounds", "seal_duration_seconds_count"), ("seconds sealing", "seal_duration_seconds_sum")];
    for (what, name) in metrics {
        println!("  {what}: {}", number(store.adapter.metric(name).await.unwrap_or_default()));
    }
    for line in store.adapter.process().log().lines() {
        println!("  it said: {line}");
    }
    store.drop().await;
    let outcome = Outcome { name: "adapter".to_owned(), sent, cpu: Some(cpu), memory_bytes: Some(memory) };
    (outcome, lag)
}

/// What the adapter's memory has grown by with its series, all of which it has just met.
async fn cache(store: &Store<'_>, load: Load, before: u64, verdicts: &mut Verdicts) {
    let process = store.adapter.process();
    let known = store.adapter.metric("series_cached").await.unwrap_or_default();
    assert!(known >= load.series as f64, "{known} series cached of {}", load.series);
    // What the requests and the sealing of the first scrape took is given back late, or kept for the next.
    store.seal().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = mebibytes(process.memory_bytes()) - mebibytes(before);
    let what = format!("MiB of cache at {} series, what malloc keeps included", number_of(load.series));
    verdicts.below(&what, 150.0, grown);
}

/// How far sealing lags behind.
#[derive(Debug, Default)]
struct Lag {
    /// The most that was hot when the adapter looked.
    most: f64,
    /// The most that was stored and not sealed, the round under way not counted as sealed.
    most_exact: f64,
    /// What was hot at the end.
    left: usize,
    /// How long sealing that took.
    sealing: Duration,
}

impl Lag {
    /// Looks again and again.
    async fn watch(&mut self, store: &Store<'_>) -> Infallible {
        loop {
            let Hot { gauge, stored_less_sealed } = store.hot().await;
            self.most = self.most.max(gauge);
            self.most_exact = self.most_exact.max(stored_less_sealed);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn note(&self, verdicts: &mut Verdicts) {
        verdicts.note("... hot samples at most, as the adapter saw them", self.most);
        verdicts.note("... hot samples at most, counted until a round of sealing ends", self.most_exact);
        verdicts.note("... hot samples left at the end", self.left as f64);
        verdicts.note("... seconds to seal those", self.sealing.as_secs_f64());
    }
}

/// Prometheus as a receiver of remote writes.
async fn prometheus(load: Load, limit: Duration) -> Outcome {
    println!("\nPrometheus ...");
    let options = prometheus::Options::new("global: {scrape_interval: 1h}\n").arg("--web.enable-remote-write-receiver");
    let prometheus = Prometheus::start(options).await;
    let process = prometheus.process();
    let sender = Sender::new(prometheus.url("/api/v1/write"), load.connections);
    sender.warm_up(process, &load.requests(0..1).await).await;
    let requests = load.requests(1..scrapes(load, limit.as_secs_f64() * RATE_GUESS / 2.0).min(SCRAPES) + 1).await;
    let cpu_before = process.cpu();
    let sent = sender.send_all(&requests, limit).await;
    let (cpu, memory) = (process.cpu().saturating_sub(cpu_before), process.peak_memory_bytes());
    Outcome { name: "Prometheus as receiver".to_owned(), sent, cpu: Some(cpu), memory_bytes: Some(memory) }
}

fn copy_name(batch: usize) -> String {
    format!("bare COPY, {} rows", number_of(batch))
}

/// Binary COPY into a bare table, each batch committed by itself; the same rows again and again.
async fn copy(postgres: &Postgres, load: Load, limit: Duration) -> Outcome {
    let name = copy_name(load.batch);
    println!("\n{name} ...");
    let copies: Requests = load.copies(1..scrapes(load, limit.as_secs_f64() * RATE_GUESS).min(SCRAPES) + 1).await;
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
            let mut sent = Sent::default();
            for batch in copies[connection].iter().cycle() {
                let began = Instant::now();
                let copied = copy_in(&client, "COPY bare FROM STDIN BINARY", batch.body.clone()).await;
                copied.unwrap_or_else(|e| panic!("COPY failed: {e}"));
                sent.note(batch.samples, began.elapsed());
                if started.elapsed() >= limit {
                    break;
                }
            }
            sent
        });
    }
    let sent = together(started, connections.join_all().await);
    drop(owner);
    drop_database(postgres, &database).await;
    Outcome { name, sent, cpu: None, memory_bytes: None }
}

/// Scrapes that have so many samples, one at least.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn scrapes(load: Load, samples: f64) -> usize {
    ((samples / load.series as f64) as usize).max(1)
}

#[expect(clippy::cast_precision_loss, reason = "sizes and counts are far below 2^53")]
fn ratio(bytes: usize, samples: usize) -> f64 {
    bytes as f64 / samples as f64
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn number_of(count: usize) -> String {
    number(count as f64)
}

fn table(outcomes: &[Outcome]) {
    println!(
        "\n{:<24} {:>12} {:>8} {:>9} {:>9} {:>11} {:>9} {:>8}",
        "", "samples/s", "seconds", "p50 ms", "p99 ms", "CPU s/mill.", "peak MiB", "retries"
    );
    for outcome in outcomes {
        let or_dash = |value: Option<f64>, digits| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
        println!(
            "{:<24} {:>12} {:>8.1} {:>9.2} {:>9.2} {:>11} {:>9} {:>8}",
            outcome.name,
            number(outcome.sent.rate()),
            outcome.sent.elapsed.as_secs_f64(),
            outcome.sent.latency(0.5).as_secs_f64() * 1e3,
            outcome.sent.latency(0.99).as_secs_f64() * 1e3,
            or_dash(outcome.cpu_per_million(), 2),
            or_dash(outcome.memory_bytes.map(mebibytes), 1),
            outcome.sent.retries,
        );
    }
}
