//! What the routes work on.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::election::by_labels::clusters::{ClusterConnection, Clusters};
use crate::election::commands::CommandHandle;
use crate::election::liveness_monitor::{ConnectionTracker, LivenessMonitor};
use crate::election::role::{LockHolder, Role};
use crate::http::admin_token::AdminToken;
use crate::http::body::Bodies;
use crate::receiver::Receiver;
use crate::storage::Store;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// Where and how the adapter listens.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-web-listen-address`; `:9201` means every address of the host, as in Go.
    pub listen_address: SocketAddr,
    /// `-web-telemetry-path`: the path of our own metrics, beginning with `/`.
    pub telemetry_path: String,
    /// `-adapter-send-timeout`: how long one write request may take from its first byte to its answer.
    pub send_timeout: Duration,
    /// `-web-admin-token`: what a request that changes something must show; without one, it must come from this host.
    pub admin_token: Option<AdminToken>,
    /// `-read-sample-limit`: samples one query of a read in SAMPLES form may return, at least 1.
    pub read_sample_limit: u64,
}

/// What the routes work on.
pub struct Service {
    /// See [`Config`].
    pub config: Config,
    /// Names of labels whose matchers a read ignores.
    pub replica_labels: Vec<String>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Told of each write request.
    pub heard: Arc<LivenessMonitor>,
    /// What was said of requests that are refused for their message or encoding.
    pub unsupported: Mutex<LogThrottle>,
    /// Who leads, where that is found by labels.
    pub clusters: Option<Arc<Clusters>>,
    /// Who we are at the moment.
    pub role: watch::Receiver<Role>,
    /// Who holds the lock while nobody can be seen to lead.
    pub lock_holder: watch::Receiver<Option<LockHolder>>,
    /// What this adapter is called in its group.
    pub name: String,
    /// What the group is called; `None` without an election.
    pub group: Option<String>,
    /// Where the election is given orders; `None` without one, and where leaders are found by labels.
    pub orders: Option<CommandHandle>,
    /// Takes write requests, once the store is open; never with `-pg-read-only`.
    pub receiver: OnceLock<Arc<Receiver>>,
    /// Answers reads, once it is open.
    pub store: OnceLock<Arc<Store>>,
    /// Whether this adapter only reads.
    pub read_only: bool,
    /// Cancelled when the program begins to stop.
    pub stopping: CancellationToken,
    /// Owns what must go on when a client leaves.
    pub tracker: TaskTracker,
    /// The memory that bodies take.
    pub bodies: Arc<Bodies>,
    /// Reads at a time.
    pub reads: Arc<Semaphore>,
}

/// A connection, as the election knows it: who sends may be told by its being closed.
pub(super) struct Connection {
    pub(super) any: ConnectionTracker,
    pub(super) by_labels: Option<ClusterConnection>,
}

impl Service {
    /// Whether it is held out of elections.
    pub(super) fn is_held(&self) -> bool {
        self.orders.as_ref().is_some_and(CommandHandle::is_held)
    }

    /// Whether `text`, of requests that are refused for their message or encoding, is worth a line in the log.
    pub(super) fn should_log(&self, text: &str) -> bool {
        self.unsupported.lock().should_log(text, Instant::now())
    }

    /// The role at this moment.
    pub(super) fn role_now(&self) -> Role {
        self.role.borrow().at(Instant::now())
    }
}
