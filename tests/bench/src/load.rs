//! The load: what a Prometheus with so many series would send, built before any clock starts.

use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use rig::http::{WRITE_2_HEADERS, WRITE_HEADERS};
use rig::random::mixed;
use rig::remote_write::{self, V2, add_series, compress};
use tokio::task::JoinSet;

/// Series that one target exposes.
const SERIES_PER_TARGET: usize = 200;

/// Seconds from 1970, when Unix time begins, to 2000, when PostgreSQL's does.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// What every binary COPY begins with: signature, no flags, no extension.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// Versions of remote write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// The shape of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// The label `cluster` of its series, which tells loads apart.
    pub(crate) cluster: &'static str,
    /// Number of series.
    pub(crate) series: usize,
    /// Samples in a request.
    pub(crate) batch: usize,
    /// Samples of a series in a message: 1, as Prometheus writes them, or more where only what is stored counts.
    pub(crate) run: usize,
    /// Connections; each carries the series whose number modulo this is its own, as Prometheus' shards do.
    pub(crate) connections: usize,
    /// Milliseconds between scrapes.
    pub(crate) interval_ms: i64,
    /// When scrape 0 was, in milliseconds of Unix time.
    pub(crate) start_ms: i64,
    /// Version of its requests.
    pub(crate) version: Version,
}

/// One request: its body, and how many samples are in it.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Ready to send.
    pub(crate) body: Bytes,
    /// Samples in it.
    pub(crate) samples: usize,
    /// Version of the message.
    pub(crate) version: Version,
}

impl Batch {
    /// Headers of the request.
    pub(crate) fn headers(&self) -> &'static [(&'static str, &'static str)] {
        match self.version {
            Version::V1 => &WRITE_HEADERS,
            Version::V2 => &WRITE_2_HEADERS,
        }
    }
}

/// The requests of every connection.
pub(crate) type Requests = Arc<Vec<Vec<Batch>>>;

/// Bytes and samples of `requests`, all connections together.
pub(crate) fn size(requests: &Requests) -> (usize, usize) {
    let add = |sum: (usize, usize), batch: &Batch| (sum.0 + batch.body.len(), sum.1 + batch.samples);
    requests.iter().flatten().fold((0, 0), add)
}

/// Some scrapes in a row of one series.
type Run = (usize, Range<usize>);

impl Load {
    /// The requests of `scrapes`, of all connections, built side by side.
    pub(crate) async fn requests(self, scrapes: Range<usize>) -> Requests {
        self.build(move |connection| self.requests_of(connection, scrapes.clone())).await
    }

    /// The same samples as complete binary COPYs of (time, series, value), `batch` rows each.
    pub(crate) async fn copies(self, scrapes: Range<usize>) -> Requests {
        self.build(move |connection| self.copies_of(connection, scrapes.clone())).await
    }

    async fn build(self, one: impl Fn(usize) -> Vec<Batch> + Clone + Send + 'static) -> Requests {
        let mut built = JoinSet::new();
        for connection in 0..self.connections {
            let one = one.clone();
            built.spawn_blocking(move || (connection, one(connection)));
        }
        let mut all = built.join_all().await;
        all.sort_by_key(|(connection, _)| *connection);
        Arc::new(all.into_iter().map(|(_, batches)| batches).collect())
    }

    fn requests_of(&self, connection: usize, scrapes: Range<usize>) -> Vec<Batch> {
        if self.version == Version::V2 {
            return self.requests_of_version_2(connection, scrapes);
        }
        let encode_labels = |series| remote_write::labels(labels(self.cluster, series));
        // The series of this connection are every so many-th of all.
        let label_bytes: Vec<Vec<u8>> = self.series_of(connection).map(encode_labels).collect();
        let mut request = Vec::new();
        let encode = |runs: &[Run]| {
            request.clear();
            for (series, scrapes) in runs {
                let sample = |scrape| (self.time_ms(*series, scrape), value(*series, scrape));
                add_series(&mut request, &label_bytes[series / self.connections], scrapes.clone().map(sample));
            }
            compress(&request).into()
        };
        self.batches(connection, scrapes, encode)
    }

    fn requests_of_version_2(&self, connection: usize, scrapes: Range<usize>) -> Vec<Batch> {
        let all: Vec<_> = self.series_of(connection).map(|series| labels(self.cluster, series)).collect();
        let encode = |runs: &[Run]| {
            let mut request = V2::default();
            for (series, scrapes) in runs {
                let sample = |scrape| (self.time_ms(*series, scrape), value(*series, scrape));
                let labels = all[series / self.connections].iter().map(|(name, value)| (*name, value.as_str()));
                request.add(labels, scrapes.clone().map(sample), b"");
            }
            compress(&request.message()).into()
        };
        self.batches(connection, scrapes, encode)
    }

    fn copies_of(&self, connection: usize, scrapes: Range<usize>) -> Vec<Batch> {
        let encode = |runs: &[Run]| {
            let mut body = BytesMut::with_capacity(COPY_HEADER.len() + self.batch * 38 + 2);
            body.put_slice(COPY_HEADER);
            for (series, scrape) in
                runs.iter().flat_map(|(series, run)| run.clone().map(move |scrape| (*series, scrape)))
            {
                let micros = self.time_ms(series, scrape) * 1000 - POSTGRES_EPOCH_SECONDS * 1_000_000;
                body.put_i16(3);
                body.put_i32(8);
                body.put_i64(micros);
                body.put_i32(8);
                body.put_i64(i64::try_from(series).expect("series are few"));
                body.put_i32(8);
                body.put_f64(value(series, scrape));
            }
            body.put_i16(-1);
            body.freeze()
        };
        self.batches(connection, scrapes, encode)
    }

    /// Scrape by scrape, series by series.
    fn batches(&self, connection: usize, scrapes: Range<usize>, mut encode: impl FnMut(&[Run]) -> Bytes) -> Vec<Batch> {
        let end = scrapes.end;
        let own = |first: usize| {
            let run = first..end.min(first + self.run);
            self.series_of(connection).map(move |series| (series, run.clone()))
        };
        let mut runs = scrapes.step_by(self.run).flat_map(own).peekable();
        let mut batches = Vec::new();
        let mut batch = Vec::new();
        while runs.peek().is_some() {
            batch.clear();
            batch.extend(runs.by_ref().take((self.batch / self.run).max(1)));
            let samples = batch.iter().map(|(_, run)| run.len()).sum();
            batches.push(Batch { body: encode(&batch), samples, version: self.version });
        }
        batches
    }

    fn series_of(&self, connection: usize) -> impl Iterator<Item = usize> + use<> {
        (connection..self.series).step_by(self.connections)
    }

    /// All series of a target share the time of its scrape; targets are scraped one after another.
    fn time_ms(&self, series: usize, scrape: usize) -> i64 {
        let index = |number: usize| i64::try_from(number).expect("counts are small");
        let phase = index(series / SERIES_PER_TARGET) * 137 % self.interval_ms;
        self.start_ms + index(scrape) * self.interval_ms + phase
    }

    /// The name of the metric of a series, and matchers as JSON that no other series of that name fits.
    pub(crate) fn selector(&self, series: usize) -> (String, String) {
        let mut labels = labels(self.cluster, series);
        labels.retain(|(name, _)| !["__replica__", "handler", "job", "namespace", "pod"].contains(name));
        let (_, name) = labels.remove(0);
        let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
        (name, format!("{{{}}}", pairs.join(",")))
    }
}

/// A request with one sample of `replica`'s, of the only series of a small cluster.
pub(crate) fn one_sample(cluster: &str, replica: &str, time_ms: i64) -> Bytes {
    let mut labels = labels(cluster, 0);
    labels[1].1 = replica.to_owned();
    let mut request = Vec::new();
    add_series(&mut request, &remote_write::labels(labels), [(time_ms, time_ms as f64)]);
    compress(&request).into()
}

/// Ten labels, sorted, as of a service behind a replica label.
fn labels(cluster: &str, series: usize) -> Vec<(&'static str, String)> {
    let (target, metric) = (series / SERIES_PER_TARGET, series % SERIES_PER_TARGET);
    vec![
        ("__name__", format!("bench_requests_{:02}_total", metric % 20)),
        ("__replica__", "a".to_owned()),
        ("cluster", cluster.to_owned()),
        ("code", ["200", "204", "400", "404", "500"][metric / 20 % 5].to_owned()),
        ("handler", "/api/v1/query_range".to_owned()),
        ("instance", format!("10.{}.{}.{}:9090", target / 62_500, target / 250 % 250, target % 250)),
        ("job", format!("service-{}", target % 10)),
        ("method", ["GET", "POST"][metric / 100].to_owned()),
        ("namespace", "production".to_owned()),
        ("pod", format!("service-{}-{target:05}", target % 10)),
    ]
}

/// A quarter constant, a quarter counters, a quarter decimals of six digits, a quarter small integers.
#[expect(clippy::cast_precision_loss, reason = "all numbers here are far below 2^53")]
fn value(series: usize, scrape: usize) -> f64 {
    let (series, scrape) = (series as u64, scrape as u64);
    let noise = mixed(series << 32 | scrape);
    match series % 4 {
        0 => (mixed(series) % 1000) as f64,
        1 => {
            let rate = 1 + mixed(series) % 500;
            (mixed(!series) % 1_000_000 + scrape * rate + noise % rate) as f64
        }
        2 => (100_000 + noise % 900_000) as f64 / 1000.0,
        _ => (noise % 16) as f64,
    }
}
