//! The load: what a Prometheus with so many series would send, built before any clock starts.

use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::task::JoinSet;

/// A series of a remote-write 1.0 request. The generator has its own messages, so that it also judges the adapter's.
///
/// Labels and samples are encoded apart and put together: either half alone is a valid message.
#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp_ms: i64,
}

/// The number of the field of a series that holds a sample.
const SAMPLES_TAG: u32 = 2;

/// Series that one target exposes.
const SERIES_PER_TARGET: usize = 200;

/// Seconds from 1970, when Unix time begins, to 2000, when PostgreSQL's does.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// What every binary COPY begins with: signature, no flags, no extension.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

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
}

/// One request: its body, and how many samples are in it.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Ready to send.
    pub(crate) body: Bytes,
    /// Samples in it.
    pub(crate) samples: usize,
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
        let encode_labels = |series| TimeSeries { labels: labels(self.cluster, series) }.encode_to_vec();
        // The series of this connection are every so many-th of all.
        let label_bytes: Vec<Vec<u8>> = self.series_of(connection).map(encode_labels).collect();
        let mut compressor = snap::raw::Encoder::new();
        let (mut request, mut samples) = (Vec::new(), Vec::new());
        let encode = |runs: &[Run]| {
            request.clear();
            for (series, scrapes) in runs {
                samples.clear();
                for scrape in scrapes.clone() {
                    let sample = Sample { value: value(*series, scrape), timestamp_ms: self.time_ms(*series, scrape) };
                    encode_key(SAMPLES_TAG, WireType::LengthDelimited, &mut samples);
                    sample.encode_length_delimited(&mut samples).expect("a vector grows");
                }
                let labels = &label_bytes[series / self.connections];
                encode_key(1, WireType::LengthDelimited, &mut request);
                encode_varint((labels.len() + samples.len()) as u64, &mut request);
                request.extend_from_slice(labels);
                request.extend_from_slice(&samples);
            }
            compressor.compress_vec(&request).expect("a request is far below 4 GiB").into()
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
            batches.push(Batch { body: encode(&batch), samples: batch.iter().map(|(_, run)| run.len()).sum() });
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
        labels.retain(|label| !["__replica__", "handler", "job", "namespace", "pod"].contains(&label.name.as_str()));
        let name = labels.remove(0).value;
        let pairs: Vec<String> = labels.iter().map(|label| format!("\"{}\":\"{}\"", label.name, label.value)).collect();
        (name, format!("{{{}}}", pairs.join(",")))
    }
}

/// A request with one sample of `replica`'s, of the only series of a small cluster.
pub(crate) fn one_sample(cluster: &str, replica: &str, time_ms: i64) -> Bytes {
    let mut labels = labels(cluster, 0);
    labels[1].value = replica.to_owned();
    let mut series = TimeSeries { labels }.encode_to_vec();
    let sample = Sample { value: time_ms as f64, timestamp_ms: time_ms };
    encode_key(SAMPLES_TAG, WireType::LengthDelimited, &mut series);
    sample.encode_length_delimited(&mut series).expect("a vector grows");
    let mut request = Vec::new();
    encode_key(1, WireType::LengthDelimited, &mut request);
    encode_varint(series.len() as u64, &mut request);
    request.extend_from_slice(&series);
    snap::raw::Encoder::new().compress_vec(&request).expect("a request is far below 4 GiB").into()
}

/// Ten labels, sorted, as of a service behind a replica label.
fn labels(cluster: &str, series: usize) -> Vec<Label> {
    let (target, metric) = (series / SERIES_PER_TARGET, series % SERIES_PER_TARGET);
    let label = |name: &str, value: String| Label { name: name.to_owned(), value };
    vec![
        label("__name__", format!("bench_requests_{:02}_total", metric % 20)),
        label("__replica__", "a".to_owned()),
        label("cluster", cluster.to_owned()),
        label("code", ["200", "204", "400", "404", "500"][metric / 20 % 5].to_owned()),
        label("handler", "/api/v1/query_range".to_owned()),
        label("instance", format!("10.{}.{}.{}:9090", target / 62_500, target / 250 % 250, target % 250)),
        label("job", format!("service-{}", target % 10)),
        label("method", ["GET", "POST"][metric / 100].to_owned()),
        label("namespace", "production".to_owned()),
        label("pod", format!("service-{}-{target:05}", target % 10)),
    ]
}

/// A quarter constant, a quarter counters, a quarter decimals of six digits, a quarter small integers.
#[expect(clippy::cast_precision_loss, reason = "all numbers here are far below 2^53")]
fn value(series: usize, scrape: usize) -> f64 {
    let (series, scrape) = (series as u64, scrape as u64);
    let noise = mix(series << 32 | scrape);
    match series % 4 {
        0 => (mix(series) % 1000) as f64,
        1 => {
            let rate = 1 + mix(series) % 500;
            (mix(!series) % 1_000_000 + scrape * rate + noise % rate) as f64
        }
        2 => (100_000 + noise % 900_000) as f64 / 1000.0,
        _ => (noise % 16) as f64,
    }
}

/// Spreads bits (the finaliser of splitmix64): the same load each time, without a generator's state.
fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
