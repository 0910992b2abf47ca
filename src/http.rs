//! Routes and statuses: the only room that names an HTTP status code.

use std::net::SocketAddr;
use std::time::Duration;

/// Where and how the adapter listens.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-web-listen-address`; `:9201` means every address of the host, as in Go.
    pub listen_address: SocketAddr,
    /// `-web-telemetry-path`: the path of our own metrics, beginning with `/`.
    pub telemetry_path: String,
    /// `-adapter-send-timeout`: how long one write request may take from its first byte to its answer.
    pub send_timeout: Duration,
    /// `-read-sample-limit`: samples one query of a read in SAMPLES form may return, at least 1.
    pub read_sample_limit: u64,
}
