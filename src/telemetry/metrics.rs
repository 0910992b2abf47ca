//! All metrics of the adapter as one value: built once, passed on, never a global.
//!
//! This module owns names, help texts and buckets. Each module decides when its numbers change.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Media type of the text of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Arguments of [`Metrics::set_role`]: the values of the label `role`.
pub const ROLES: [&str; 6] = ["unknown", "standby", "taking_over", "leader", "resigned", "by_labels"];

/// Prefix of the name of every metric except `process_*`.
const PREFIX: &str = "prometheus_postgresql_adapter";

/// Buckets from half a millisecond (a commit on a fast disk) to twice the default `-adapter-send-timeout`.
const SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Buckets of samples per transaction: from a single request of one sample to many requests of 10,000.
const SAMPLES: &[f64] = &[1.0, 10.0, 100.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];

/// All metrics of one adapter. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    lock_checked_at: Arc<Mutex<Option<Instant>>>,
    role: IntGaugeVec,
    /// 1 on the leader, else 0.
    pub leader: IntGauge,
    /// 1 if this adapter is excluded from elections by an order (`hold`), else 0.
    pub held: IntGauge,
    /// The number of our own term while we lead, else the last one known.
    pub term: IntGauge,
    /// Changes of role, by the role entered (`to`) and the cause (`reason`).
    pub transitions_total: IntCounterVec,
    /// Clusters that send to this adapter, where leaders are found by labels.
    pub clusters: IntGauge,
    /// Clusters in which no replica leads, or the leading replica is silent.
    pub clusters_silent: IntGauge,
    /// Changes of a cluster's leading replica that this adapter made.
    pub cluster_leader_changes_total: IntCounter,
    /// Seconds since the last successful heartbeat on the lock session was sent.
    pub lock_check_age_seconds: Gauge,
    /// Samples in write requests that could be decoded, whether or not they were stored.
    pub samples_received_total: IntCounter,
    /// Samples committed.
    pub samples_stored_total: IntCounter,
    /// Samples acknowledged as standby.
    pub samples_standby_total: IntCounter,
    /// Samples that were buffered as standby and stored at a take-over.
    pub samples_replayed_total: IntCounter,
    /// Samples that were compared with what is stored around them, found missing, and stored.
    pub samples_filled_total: IntCounter,
    /// Samples acknowledged and not stored, because their slot was observed to be taken; `from` tells where the samples
    /// were.
    pub samples_covered_total: IntCounterVec,
    /// Samples acknowledged and lost, because the database server was replaced by one that lacks their series.
    pub samples_lost_total: IntCounter,
    /// Samples acknowledged and not stored, because they are older than the retention.
    pub samples_expired_total: IntCounter,
    /// Samples buffered now.
    pub standby_held_samples: IntGauge,
    /// Bytes that the buffered samples take.
    pub standby_held_bytes: IntGauge,
    /// Samples acknowledged but not stored again, by `reason`.
    pub samples_duplicate_total: IntCounterVec,
    /// Samples, native histograms and exemplars that can never be stored, by `kind`.
    pub samples_rejected_total: IntCounterVec,
    /// Exemplars received.
    pub exemplars_received_total: IntCounter,
    /// Exemplars that were stored by this adapter; the other one of a pair stores some of the same.
    pub exemplars_stored_total: IntCounter,
    /// Native histograms received.
    pub histograms_received_total: IntCounter,
    /// Metadata entries received.
    pub metadata_received_total: IntCounter,
    /// Write requests, by the status of the answer (`code`).
    pub write_requests_total: IntCounterVec,
    /// Write requests answered 415 because of their message or encoding.
    pub write_requests_unsupported_total: IntCounter,
    /// Seconds from the head of a write request to its answer.
    pub write_duration_seconds: Histogram,
    /// Unix time of the last write request, in seconds; 0 before the first.
    pub last_write_request_timestamp_seconds: Gauge,
    /// Read requests, by the status of the answer (`code`).
    pub read_requests_total: IntCounterVec,
    /// Seconds from the head of a read request to the end of its answer.
    pub read_duration_seconds: Histogram,
    /// Samples returned to readers.
    pub read_samples_total: IntCounter,
    /// Samples in one write transaction.
    pub batch_samples: Histogram,
    /// Seconds from BEGIN to the end of a write transaction.
    pub transaction_duration_seconds: Histogram,
    /// Seconds that COMMIT of a write transaction took.
    pub commit_duration_seconds: Histogram,
    /// Errors of the database, by `class`; see [`Metrics::postgres_error`].
    pub postgres_errors_total: IntCounterVec,
    /// Series whose id is in the cache.
    pub series_cached: IntGauge,
    /// Series this adapter added to the database.
    pub series_created_total: IntCounter,
    /// Samples not sealed yet.
    pub hot_samples: IntGauge,
    /// Bytes of the hot table.
    pub hot_bytes: IntGauge,
    /// Age of the oldest hot sample, in seconds.
    pub hot_oldest_seconds: Gauge,
    /// Samples this adapter has sealed.
    pub sealed_samples_total: IntCounter,
    /// Seconds that a round of sealing took.
    pub seal_duration_seconds: Histogram,
    /// Rounds of sealing that failed.
    pub seal_failures_total: IntCounter,
    /// Rounds of upkeep (retention and other deletion) that failed.
    pub upkeep_failures_total: IntCounter,
    /// Segments of sealed samples in the database.
    pub segments: IntGauge,
    /// Samples in the segments.
    pub sealed_samples: IntGauge,
    /// Bytes of the segments, indexes included.
    pub sealed_bytes: IntGauge,
}

impl Metrics {
    /// Creates all metrics, those of the process included, in a new registry.
    ///
    /// # Panics
    ///
    /// Panics if two metrics have one name, or a name is malformed: an error in this file, which its tests find.
    #[must_use]
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let r = &registry;
        expect(r.register(Box::new(ProcessCollector::for_self())));
        let metrics = Metrics {
            role: gauges(r, "role", "The state of this adapter in its group: 1 for the current one.", "role"),
            leader: gauge(r, "leader", "1 if this adapter leads its group, else 0."),
            held: gauge(r, "held", "1 if this adapter is held out of elections, else 0."),
            term: gauge(r, "term", "The last term this adapter led or saw."),
            transitions_total: counters(
                r,
                "transitions_total",
                "Changes of state, by new state and cause.",
                &["to", "reason"],
            ),
            clusters: gauge(r, "clusters", "Clusters that send to this adapter."),
            clusters_silent: gauge(
                r,
                "clusters_silent",
                "Clusters in which no replica leads, or the leading one is silent.",
            ),
            cluster_leader_changes_total: counter(
                r,
                "cluster_leader_changes_total",
                "Changes of a cluster's leading replica made by this adapter.",
            ),
            lock_check_age_seconds: seconds(
                r,
                "lock_check_age_seconds",
                "Time since the last successful check of the lock session.",
            ),
            samples_received_total: counter(r, "samples_received_total", "Samples received in write requests."),
            samples_stored_total: counter(r, "samples_stored_total", "Samples committed to the database."),
            samples_standby_total: counter(r, "samples_standby_total", "Samples acknowledged as standby."),
            samples_replayed_total: counter(
                r,
                "samples_replayed_total",
                "Samples held as standby and stored on taking over.",
            ),
            samples_filled_total: counter(
                r,
                "samples_filled_total",
                "Samples stored after a comparison with what was stored around them: late ones, and ones the leader had missed.",
            ),
            samples_covered_total: counters(
                r,
                "samples_covered_total",
                "Samples acknowledged and not stored, their slot in the series being taken, by where they were: buffer, late, leader.",
                &["from"],
            ),
            samples_lost_total: counter(
                r,
                "samples_lost_total",
                "Samples acknowledged and lost: the database server was replaced by one that lacks their series.",
            ),
            samples_expired_total: counter(
                r,
                "samples_expired_total",
                "Samples acknowledged and not stored, being older than the retention.",
            ),
            standby_held_samples: gauge(r, "standby_held_samples", "Samples held as standby at the moment."),
            standby_held_bytes: gauge(r, "standby_held_bytes", "Memory of the samples held as standby."),
            samples_duplicate_total: counters(
                r,
                "samples_duplicate_total",
                "Samples acknowledged that were stored already, by reason.",
                &["reason"],
            ),
            samples_rejected_total: counters(
                r,
                "samples_rejected_total",
                "Samples (float), native histograms (histogram) and exemplars (exemplar) that can never be stored.",
                &["kind"],
            ),
            exemplars_received_total: counter(r, "exemplars_received_total", "Exemplars received."),
            exemplars_stored_total: counter(
                r,
                "exemplars_stored_total",
                "Exemplars stored that nobody had stored before.",
            ),
            histograms_received_total: counter(r, "histograms_received_total", "Native histograms received."),
            metadata_received_total: counter(r, "metadata_received_total", "Metadata entries received."),
            write_requests_total: counters(
                r,
                "write_requests_total",
                "Write requests, by status of the answer.",
                &["code"],
            ),
            write_requests_unsupported_total: counter(
                r,
                "write_requests_unsupported_total",
                "Write requests answered 415, for their message or encoding: their senders drop what they carry.",
            ),
            write_duration_seconds: histogram(
                r,
                "write_duration_seconds",
                "Time from the head of a write request to its answer.",
                SECONDS,
            ),
            last_write_request_timestamp_seconds: seconds(
                r,
                "last_write_request_timestamp_seconds",
                "Unix time of the last write request.",
            ),
            read_requests_total: counters(
                r,
                "read_requests_total",
                "Read requests, by status of the answer.",
                &["code"],
            ),
            read_duration_seconds: histogram(
                r,
                "read_duration_seconds",
                "Time from the head of a read request to the end of its answer.",
                SECONDS,
            ),
            read_samples_total: counter(r, "read_samples_total", "Samples returned to readers."),
            batch_samples: histogram(r, "batch_samples", "Samples in one write transaction.", SAMPLES),
            transaction_duration_seconds: histogram(
                r,
                "transaction_duration_seconds",
                "Time from BEGIN to the end of a write transaction.",
                SECONDS,
            ),
            commit_duration_seconds: histogram(
                r,
                "commit_duration_seconds",
                "Time from the end of COPY to that of COMMIT in a write transaction.",
                SECONDS,
            ),
            postgres_errors_total: counters(
                r,
                "postgres_errors_total",
                "Errors of the database, by class of SQLSTATE, or connection.",
                &["class"],
            ),
            series_cached: gauge(r, "series_cached", "Series in the cache of ids."),
            series_created_total: counter(r, "series_created_total", "Series this adapter added to the database."),
            hot_samples: gauge(
                r,
                "hot_samples",
                "Samples in the database that are not sealed yet, as the leader last saw them.",
            ),
            hot_bytes: gauge(r, "hot_bytes", "Bytes of the table of hot samples."),
            hot_oldest_seconds: seconds(r, "hot_oldest_seconds", "Age of the oldest sample that is not sealed yet."),
            sealed_samples_total: counter(r, "sealed_samples_total", "Samples this adapter has sealed."),
            seal_duration_seconds: histogram(r, "seal_duration_seconds", "Time a round of sealing took.", SECONDS),
            seal_failures_total: counter(r, "seal_failures_total", "Rounds of sealing that failed."),
            upkeep_failures_total: counter(
                r,
                "upkeep_failures_total",
                "Rounds of retention, and of deleting what is over, that failed.",
            ),
            segments: gauge(r, "segments", "Segments of sealed samples in the database."),
            sealed_samples: gauge(r, "sealed_samples", "Sealed samples in the database."),
            sealed_bytes: gauge(r, "sealed_bytes", "Bytes of the segments, indexes included."),
            registry: registry.clone(),
            lock_checked_at: Arc::default(),
        };
        let build = IntGaugeVec::new(
            opts("build_info", "The build of this adapter; always 1."),
            &["version", "revision", "rustversion"],
        );
        let build = register(r, expect(build));
        let revision = option_env!("GIT_REVISION").unwrap_or("unknown");
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision, env!("CARGO_PKG_RUST_VERSION")]).set(1);
        metrics.set_role("unknown");
        metrics
    }

    /// Sets `role`, one of [`ROLES`], as the current one, and `leader` with it.
    pub fn set_role(&self, role: &str) {
        debug_assert!(ROLES.contains(&role), "{role} is no role");
        for known in ROLES {
            self.role.with_label_values(&[known]).set(i64::from(known == role));
        }
        self.leader.set(i64::from(role == "leader"));
    }

    /// Counts an error of the database by the first two characters of its SQLSTATE. `None` is a connection that failed
    /// or broke.
    pub fn postgres_error(&self, sqlstate: Option<&str>) {
        let class = sqlstate.and_then(|code| code.get(..2)).unwrap_or("connection");
        self.postgres_errors_total.with_label_values(&[class]).inc();
    }

    /// Notes that the lock session answered a statement that was sent at `sent_at`.
    pub fn lock_checked(&self, sent_at: Instant) {
        *self.lock_checked_at.lock() = Some(sent_at);
    }

    /// Returns all metrics in Prometheus' text format 0.0.4, to be served as [`CONTENT_TYPE`].
    #[must_use]
    pub fn render(&self) -> String {
        if let Some(at) = *self.lock_checked_at.lock() {
            self.lock_check_age_seconds.set(at.elapsed().as_secs_f64());
        }
        let mut text = Vec::new();
        // This fails only for a family without a name or metrics, and a registry returns none.
        expect(TextEncoder::new().encode(&self.registry.gather(), &mut text));
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

fn expect<T>(result: prometheus::Result<T>) -> T {
    result.expect("metrics are named once and well")
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    expect(registry.register(Box::new(metric.clone())));
    metric
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(PREFIX)
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, expect(IntCounter::with_opts(opts(name, help))))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, expect(IntCounterVec::new(opts(name, help), labels)))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, expect(IntGauge::with_opts(opts(name, help))))
}

fn seconds(registry: &Registry, name: &str, help: &str) -> Gauge {
    register(registry, expect(Gauge::with_opts(opts(name, help))))
}

fn gauges(registry: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    register(registry, expect(IntGaugeVec::new(opts(name, help), &[label])))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
    register(registry, expect(Histogram::with_opts(opts)))
}

#[cfg(test)]
mod tests;
