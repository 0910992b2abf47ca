//! Bytes a sample, over all relations and indexes: what a real Prometheus sent, and the generator's own values.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rig::guard::Directory;
use rig::http::{Client, WRITE_HEADERS};

use crate::load::{Batch, Load, Version};
use crate::sender::Sender;
use crate::store::{Relation, Setup, Store};
use crate::verdict::{Verdicts, number};

/// The tables that hold samples.
const SAMPLES: [&str; 2] = ["metrics_hot", "metrics_sealed"];

/// Sealing is asked for, so that what is sealed together does not depend on how fast it was sent.
pub(crate) const SEAL_WHEN_ASKED: [&str; 2] = ["-pg-seal-samples=100000000", "-pg-seal-after=24h"];

/// What a real Prometheus sent, stored and sealed.
pub(crate) struct Capture<'a> {
    store: Store<'a>,
    samples: usize,
    /// Bytes a sample while the keys of all its requests are there, which came within seconds.
    with_keys: f64,
}

const CAPTURE: &str = "bytes/sample, the 28-minute capture";

/// Keys are forgotten after 5 minutes and a half, within a minute.
const FORGET_DEADLINE: Duration = Duration::from_secs(480);

impl<'a> Capture<'a> {
    /// Stores the requests in `archive` one by one as they came, and seals them.
    pub(crate) async fn store(setup: &'a Setup, archive: &Path, verdicts: &mut Verdicts) -> Option<Self> {
        println!("\n{CAPTURE} ...");
        let requests = match unpack(archive) {
            Ok(requests) => std::sync::Arc::new(vec![requests]),
            Err(why) => {
                verdicts.skip(CAPTURE, &why);
                return None;
            }
        };
        let store = setup.store(&SEAL_WHEN_ASKED).await;
        let count = requests[0].len();
        // As one shard would: in the order of arrival.
        store.sender(1).warm_up(store.adapter.process(), &requests).await;
        let sealing = store.seal().await;
        let (samples, hot) = store.counts().await;
        let metric = async |name, label| store.adapter.metric_with(name, label).await.unwrap_or_default();
        let twice = metric("samples_duplicate_total", "reason=\"sealed\"").await;
        let stored = metric("samples_stored_total", "").await - twice;
        assert_eq!((samples as f64, hot), (stored, 0), "samples sealed, and what was stored");
        println!(
            "  {count} requests with {} samples, sealed in {:.1} s",
            number(samples as f64),
            sealing.as_secs_f64()
        );
        println!("  {}", store.columns().await);
        let with_keys = sum(&store.sizes().await, |_| true) as f64 / samples as f64;
        Some(Self { store, samples, with_keys })
    }

    /// Measures what that takes, once the keys of its requests are forgotten.
    pub(crate) async fn measure(self, verdicts: &mut Verdicts) {
        println!("\n{CAPTURE}, once the keys of its requests are forgotten ...");
        let Self { store, samples, with_keys } = self;
        // An adapter whose Prometheus is silent does not lead, and forgets nothing.
        let client = Client::new(Duration::from_secs(30));
        let started = Instant::now();
        while !store.is("SELECT NOT EXISTS (SELECT FROM metrics_requests)").await {
            assert!(started.elapsed() < FORGET_DEADLINE, "keys are not forgotten within {FORGET_DEADLINE:?}");
            let empty = client.post(&store.adapter.url("/write"), &WRITE_HEADERS, vec![0]).await;
            assert_eq!(empty.map(|answer| answer.status).ok(), Some(204), "a request without series");
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let relations = store.sizes().await;
        table(&relations, samples);
        let per_sample = |bytes: i64| bytes as f64 / samples as f64;
        let of_samples_and_series = sum(&relations, |table| table != "metrics_metadata_history");
        verdicts.at_most(CAPTURE, 0.6, per_sample(of_samples_and_series));
        verdicts.note("... with the metadata of its metrics", per_sample(sum(&relations, |_| true)));
        verdicts.note("... of samples alone", per_sample(sum(&relations, is_samples)));
        verdicts.note("... before the keys of its requests are forgotten, after minutes", with_keys);
        store.drop().await;
    }
}

/// Measures what the generator's values take, after so many scrapes.
pub(crate) async fn generated<'a>(
    setup: &'a Setup,
    load: Load,
    scrapes: usize,
    verdicts: &mut Verdicts,
) -> (Store<'a>, Sender) {
    let what = format!("bytes/sample, the generator's, {scrapes} samples a series");
    println!("\n{what} ...");
    let store = setup.store(&SEAL_WHEN_ASKED).await;
    let sender = store.sender(load.connections);
    sender.warm_up(store.adapter.process(), &load.requests(0..1).await).await;
    add(&store, &sender, load, 1..scrapes).await;
    let (samples, hot) = store.counts().await;
    assert_eq!((samples, hot), (load.series * scrapes, 0), "all is sealed");
    let relations = store.sizes().await;
    table(&relations, samples);
    println!("  {}", store.columns().await);
    let per_sample = |bytes: i64| bytes as f64 / samples as f64;
    verdicts.at_most(&format!("{what}, of samples alone"), 1.5, per_sample(sum(&relations, is_samples)));
    verdicts.note("... with series, their indexes and all else", per_sample(sum(&relations, |_| true)));
    let without = sum(&relations, |table| table != "metrics_requests");
    verdicts.note("... without the keys of requests, which are forgotten in minutes", per_sample(without));
    (store, sender)
}

/// Stores more scrapes, and seals them.
pub(crate) async fn add(store: &Store<'_>, sender: &Sender, load: Load, scrapes: std::ops::Range<usize>) {
    let requests = load.requests(scrapes).await;
    let sent = sender.send_all(&requests, Duration::MAX).await;
    let sealing = store.seal().await;
    println!(
        "  {} samples stored at {}/s and sealed in {:.1} s",
        number(sent.samples as f64),
        number(sent.rate()),
        sealing.as_secs_f64()
    );
}

fn is_samples(table: &str) -> bool {
    SAMPLES.contains(&table)
}

fn sum(relations: &[Relation], counts: impl Fn(&str) -> bool) -> i64 {
    relations.iter().filter(|relation| counts(&relation.table)).map(Relation::total).sum()
}

fn table(relations: &[Relation], samples: usize) {
    println!("  {:<24} {:>12} {:>12} {:>12} {:>12} {:>8}", "bytes", "heap", "toast", "indexes", "together", "/sample");
    for relation in relations {
        let Relation { table, heap, toast, indexes } = relation;
        let [heap, toast, indexes, total] =
            [*heap, *toast, *indexes, relation.total()].map(|bytes| number(bytes as f64));
        let share = relation.total() as f64 / samples as f64;
        println!("  {table:<24} {heap:>12} {toast:>12} {indexes:>12} {total:>12} {share:>8.3}");
    }
}

/// The bodies in a compressed archive, in the order of their names.
fn unpack(archive: &Path) -> Result<Vec<Batch>, String> {
    if !archive.is_file() {
        return Err(format!("there is no {}", archive.display()));
    }
    let directory = Directory::new("capture");
    let output = Command::new("tar")
        .args(["--extract", "--use-compress-program", "zstd -d --long=27", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(directory.path())
        .output();
    let output = output.map_err(|error| format!("cannot run tar: {error}"))?;
    if !output.status.success() {
        return Err(format!("tar and zstd: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let mut paths = Vec::new();
    let mut pending = vec![directory.path().to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).map_err(|error| error.to_string())? {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.is_dir() { pending.push(path) } else { paths.push(path) }
        }
    }
    paths.sort();
    // How many samples a body holds is the adapter's to say.
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path)
            .map(|body| Batch { body: body.into(), samples: 0, version: Version::V1 })
            .map_err(|error| error.to_string())
    };
    paths.iter().map(read).collect()
}
