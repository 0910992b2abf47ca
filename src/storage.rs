//! The store: schema, series, ingest, query, retention.

use std::time::Duration;

/// What is stored, where, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-pg-schema`: the schema that holds everything; `None` is the first of the session's `search_path`.
    pub schema: Option<String>,
    /// `-pg-table`: the name of the view, and the first part of the name of everything else.
    pub table: String,
    /// `-pg-prometheus-chunk-interval`: the span of time of one segment of samples.
    pub chunk_interval: Duration,
    /// `-pg-retention`: samples older than this are dropped, segment by segment; `None` keeps them.
    pub retention: Option<Duration>,
    /// `-pg-write-connections`: writers, each committing many requests in one transaction; 1 to 64.
    pub write_connections: usize,
    /// `-pg-prometheus-log-samples`: log each sample at info before it is stored.
    pub log_samples: bool,
    /// `-pg-read-only`: nothing is stored and no schema is made; reads only.
    pub read_only: bool,
    /// `-replica-labels`: names of labels that tell the replicas of a group apart, dropped before storing.
    pub replica_labels: Vec<String>,
    /// `-adapter-send-timeout`, as the bound of one transaction.
    pub send_timeout: Duration,
}
