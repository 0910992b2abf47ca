//! A scrape target in the protobuf exposition format, with exemplars and native histograms. What it serves depends only on
//! how often it was scraped, so that a test knows what a Prometheus was told.

pub mod messages;

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use messages::{
    Bucket, BucketSpan, Counter, Exemplar, Gauge, Histogram, Kind, LabelPair, Metric, MetricFamily, Timestamp,
};

/// A gauge: the number of the scrape. By its samples a test finds the scrapes that a Prometheus has ingested.
pub const SCRAPES: &str = "target_scrapes";
/// A counter with an exemplar that has no time.
pub const EVENTS: &str = "target_events_total";
/// A classic histogram, with an exemplar with a time in one of its buckets. Prometheus can convert it to a native one with
/// custom buckets (`convert_classic_histograms_to_nhcb`); the format itself has no custom buckets.
pub const CLASSIC: &str = "target_classic_seconds";
/// A native histogram of integers with exemplars. All its counts grow, and there are more buckets at each scrape.
pub const NATIVE: &str = "target_native_seconds";
/// A native histogram of floats, which rise and fall.
pub const NATIVE_GAUGE: &str = "target_native_gauge_celsius";

/// Bounds of [`CLASSIC`] below infinity, and the labels that Prometheus gives them.
const BOUNDS: [(f64, &str); 6] =
    [(0.05, "0.05"), (0.1, "0.1"), (0.5, "0.5"), (1.0, "1.0"), (2.5, "2.5"), (10.0, "10.0")];
/// Number of positive buckets that [`NATIVE`] has before the first scrape.
const BUCKETS: u32 = 20;
/// Number of buckets that may be added to them.
const MORE_BUCKETS: u32 = 100;

/// A scrape that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrape {
    /// Number of the scrape, from 1.
    pub number: u32,
    /// Time of the answer, ms since 1970.
    pub time_ms: i64,
    /// Time at which all counters were 0, ms since 1970.
    pub created_ms: i64,
}

/// A float sample that Prometheus makes of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Float {
    /// Name of the series.
    pub name: String,
    /// Value of the label `le`, if it has one.
    pub le: Option<&'static str>,
    /// Value.
    pub value: f64,
}

impl Scrape {
    /// Returns what was served.
    #[must_use]
    pub fn families(&self) -> Vec<MetricFamily> {
        let number = f64::from(self.number);
        let (created, metric) = (Some(timestamp(self.created_ms)), Metric::default);
        let exemplar = Some(self.exemplar(1, number, None));
        let counter = Counter { value: number * (number + 1.0) / 2.0 + 0.1, exemplar, created };
        let labels = [("path", "/ä \"quoted\""), ("zone", "b")]
            .map(|(name, value)| LabelPair { name: name.to_owned(), value: value.to_owned() });
        vec![
            family(SCRAPES, "", Kind::Gauge, Metric { gauge: Some(Gauge { value: number }), ..metric() }),
            family(EVENTS, "", Kind::Counter, Metric { counter: Some(counter), labels: labels.to_vec(), ..metric() }),
            family(CLASSIC, "seconds", Kind::Histogram, Metric { histogram: Some(self.classic()), ..metric() }),
            family(NATIVE, "seconds", Kind::Histogram, Metric { histogram: Some(self.native()), ..metric() }),
            family(
                NATIVE_GAUGE,
                "celsius",
                Kind::GaugeHistogram,
                Metric { histogram: Some(self.native_gauge()), ..metric() },
            ),
        ]
    }

    fn classic(&self) -> Histogram {
        let number = u64::from(self.number);
        let with_exemplar = self.number as usize % BOUNDS.len();
        let bucket = |(index, (bound, _)): (usize, &(f64, &str))| Bucket {
            cumulative_count: (number + 3) * (index as u64 + 1),
            bound: *bound,
            exemplar: (index == with_exemplar).then(|| self.exemplar(2, *bound, Some(self.time_ms))),
        };
        Histogram {
            count: (number + 3) * 10,
            sum: f64::from(self.number) * 12.3,
            buckets: BOUNDS.iter().enumerate().map(bucket).collect(),
            created: Some(timestamp(self.created_ms)),
            ..Histogram::default()
        }
    }

    fn native(&self) -> Histogram {
        let number = i64::from(self.number);
        let more = self.number.min(MORE_BUCKETS);
        let count = |index: u32| number * (i64::from(index % 7) + 1) + i64::from(BUCKETS + MORE_BUCKETS - index);
        let positive: Vec<i64> = (0..BUCKETS + more).map(count).chain([number * 2, number * 3]).collect();
        let negative: Vec<i64> = (0..4).map(|index| number + index).collect();
        let zero_count = u64::from(self.number);
        let counted: i64 = positive.iter().chain(&negative).sum();
        let exemplars = [(3, 0.5), (4, 0.75), (5, 1.25)];
        // Of several exemplars of a histogram, Prometheus stores those that are later than the one before.
        let exemplars =
            exemplars.iter().zip(0..).map(|((of, v), after)| self.exemplar(*of, *v, Some(self.time_ms + after)));
        Histogram {
            count: counted.unsigned_abs() + zero_count,
            sum: f64::from(self.number) * 4.56 - 7.0,
            schema: 3,
            zero_threshold: 0.001,
            zero_count,
            negative_spans: vec![span(2, 4)],
            negative_deltas: deltas(&negative),
            // The second span stays where it is. Buckets that moved would look like a reset.
            positive_spans: vec![
                span(-9, BUCKETS + more),
                span(3 + MORE_BUCKETS.cast_signed() - more.cast_signed(), 2),
            ],
            positive_deltas: deltas(&positive),
            created: Some(timestamp(self.created_ms)),
            exemplars: exemplars.collect(),
            ..Histogram::default()
        }
    }

    fn native_gauge(&self) -> Histogram {
        let phase = self.number % 5;
        let counts: Vec<f64> = (0..8).map(|index| f64::from((phase + index) % 5) + 0.25).collect();
        Histogram {
            count_float: counts.iter().sum::<f64>() + 0.5,
            sum: 21.5 - f64::from(phase),
            schema: -1,
            zero_threshold: 0.001,
            zero_count_float: 0.5,
            positive_spans: vec![span(0, 3), span(1, 5)],
            positive_counts: counts,
            ..Histogram::default()
        }
    }

    fn exemplar(&self, of: u64, value: f64, time_ms: Option<i64>) -> Exemplar {
        let trace = format!("{of:016x}{:016x}", self.number);
        let label = LabelPair { name: "trace_id".to_owned(), value: trace };
        Exemplar { labels: vec![label], value, time: time_ms.map(timestamp) }
    }

    /// Returns the float samples that Prometheus makes of this scrape: of a classic histogram one for each part, and of a
    /// native one the same if it does not take it as a histogram.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub fn floats(&self, takes_native: bool) -> Vec<Float> {
        let mut floats = Vec::new();
        let mut add = |name: String, le, value| floats.push(Float { name, le, value });
        for family in self.families() {
            for metric in family.metrics {
                if let Some(gauge) = metric.gauge {
                    add(family.name.clone(), None, gauge.value);
                }
                if let Some(counter) = metric.counter {
                    add(family.name.clone(), None, counter.value);
                }
                let Some(histogram) = metric.histogram else { continue };
                if takes_native && histogram.buckets.is_empty() {
                    continue;
                }
                let count = histogram.count as f64 + histogram.count_float;
                let bucket = format!("{}_bucket", family.name);
                for (part, (_, le)) in histogram.buckets.iter().zip(BOUNDS) {
                    add(bucket.clone(), Some(le), part.cumulative_count as f64);
                }
                add(bucket, Some("+Inf"), count);
                add(format!("{}_sum", family.name), None, histogram.sum);
                add(format!("{}_count", family.name), None, count);
            }
        }
        floats
    }

    /// Returns the exemplars that Prometheus takes from this scrape, each with the name of its metric family. It ignores
    /// those of a native histogram if it does not take it as a histogram.
    #[must_use]
    pub fn exemplars(&self, takes_native: bool) -> Vec<(String, Exemplar)> {
        let mut exemplars = Vec::new();
        for family in self.families() {
            for metric in family.metrics {
                let of_counter = metric.counter.and_then(|counter| counter.exemplar);
                let histogram = metric.histogram.unwrap_or_default();
                let of_buckets = histogram.buckets.into_iter().filter_map(|bucket| bucket.exemplar);
                let of_native = histogram.exemplars.into_iter().filter(|_| takes_native);
                let all = of_counter.into_iter().chain(of_buckets).chain(of_native);
                exemplars.extend(all.map(|exemplar| (family.name.clone(), exemplar)));
            }
        }
        exemplars
    }
}

/// A running target on a port of 127.0.0.1. Ends on drop.
#[derive(Debug)]
pub struct Target {
    port: u16,
    scrapes: watch::Receiver<Vec<Scrape>>,
    // Ends the tasks when it is dropped.
    _server: JoinSet<()>,
}

impl Target {
    /// Starts a target. It serves the same at every path.
    ///
    /// # Panics
    ///
    /// If no port is free.
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("no free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (sender, scrapes) = watch::channel(Vec::new());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, sender, now_ms()));
        Self { port, scrapes, _server: server }
    }

    /// Returns the address for `static_configs`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the scrapes that were answered, in their order. A Prometheus may have given up on some of them.
    #[must_use]
    pub fn scrapes(&self) -> Vec<Scrape> {
        self.scrapes.borrow().clone()
    }

    /// Waits until `count` scrapes were answered, counted from the start.
    ///
    /// # Panics
    ///
    /// If there are fewer within `deadline`.
    pub async fn wait_scrapes(&self, count: usize, deadline: Duration) {
        let mut scrapes = self.scrapes.clone();
        let waited = tokio::time::timeout(deadline, scrapes.wait_for(|scrapes| scrapes.len() >= count)).await;
        let so_far = self.scrapes.borrow().len();
        assert!(waited.is_ok_and(|scrapes| scrapes.is_ok()), "{so_far} of {count} scrapes within {deadline:?}");
    }
}

async fn serve(listener: TcpListener, scrapes: watch::Sender<Vec<Scrape>>, created_ms: i64) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let scrapes = scrapes.clone();
        let answer = service_fn(move |_| {
            let number = u32::try_from(scrapes.borrow().len() + 1).expect("a test has fewer scrapes");
            let scrape = Scrape { number, time_ms: now_ms(), created_ms };
            scrapes.send_modify(|scrapes| scrapes.push(scrape));
            let body: Vec<u8> = scrape.families().iter().flat_map(Message::encode_length_delimited_to_vec).collect();
            let response = Response::builder().header(CONTENT_TYPE, messages::CONTENT_TYPE);
            let response = response.body(Full::new(Bytes::from(body))).expect("the header is allowed");
            async { Ok::<_, Infallible>(response) }
        });
        connections.spawn(async move {
            // A Prometheus that is killed cuts its connection.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

fn family(name: &str, unit: &str, kind: Kind, metric: Metric) -> MetricFamily {
    let (name, help, unit) = (name.to_owned(), format!("Help of {name}."), unit.to_owned());
    MetricFamily { name, help, kind: kind.into(), metrics: vec![metric], unit }
}

fn span(offset: i32, length: u32) -> BucketSpan {
    BucketSpan { offset, length }
}

/// Returns the difference of each count from the one before.
fn deltas(counts: &[i64]) -> Vec<i64> {
    let before = std::iter::once(&0).chain(counts);
    counts.iter().zip(before).map(|(count, before)| count - before).collect()
}

fn timestamp(ms: i64) -> Timestamp {
    let nanos = i32::try_from(ms.rem_euclid(1_000) * 1_000_000).expect("below a second");
    Timestamp { seconds: ms.div_euclid(1_000), nanos }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    i64::try_from(since.as_millis()).expect("the clock is before the year 292 million")
}

#[cfg(test)]
mod tests {
    use super::{NATIVE, Scrape};

    #[test]
    fn every_count_of_the_native_histogram_grows() {
        let buckets = |number| {
            let scrape = Scrape { number, time_ms: 5, created_ms: 1 };
            let family = scrape.families().into_iter().find(|family| family.name == NATIVE).unwrap();
            let histogram = family.metrics[0].histogram.clone().unwrap();
            let sum = |deltas: &[i64]| {
                deltas
                    .iter()
                    .scan(0, |sum, d| {
                        *sum += d;
                        Some(*sum)
                    })
                    .collect::<Vec<i64>>()
            };
            (sum(&histogram.positive_deltas), sum(&histogram.negative_deltas), histogram.count)
        };
        for number in 1..200 {
            let (one, next) = (buckets(number), buckets(number + 1));
            let last = one.0.len() - 2;
            assert!(last > 20, "{number}");
            assert!(one.0[..last].iter().zip(&next.0).all(|(one, next)| one < next), "{number}");
            assert!(one.1.iter().zip(&next.1).all(|(one, next)| one < next), "{number}");
            assert!(one.2 < next.2, "{number}");
        }
    }
}
