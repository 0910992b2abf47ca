//! The state that the routes share.

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

/// Settings of the HTTP server.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-web-listen-address`; `:9201` means every address of the host, as in Go.
    pub listen_address: SocketAddr,
    /// `-web-telemetry-path`: the path of the adapter's own metrics, beginning with `/`.
    pub telemetry_path: String,
    /// `-adapter-send-timeout`: time limit of a write request from its first byte to its answer.
    pub send_timeout: Duration,
    /// `-web-admin-token`: the token that a request must carry to change something. Without a token, the request must
    /// come from this host.
    pub admin_token: Option<AdminToken>,
    /// `-read-sample-limit`: samples that one query of a read in SAMPLES form may return, at least 1.
    pub read_sample_limit: u64,
}

/// The state that the routes share.
pub struct Service {
    /// The settings of the HTTP server. See [`Config`].
    pub config: Config,
    /// Names of labels whose matchers a read ignores.
    pub replica_labels: Vec<String>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Notes each write request.
    pub heard: Arc<LivenessMonitor>,
    /// Limits the log lines about requests that are refused for their message or encoding.
    pub unsupported: Mutex<LogThrottle>,
    /// The clusters and their leaders, with an election by labels.
    pub clusters: Option<Arc<Clusters>>,
    /// This adapter's present role.
    pub role: watch::Receiver<Role>,
    /// The session that holds the lock, while no heartbeat shows a leader.
    pub lock_holder: watch::Receiver<Option<LockHolder>>,
    /// This adapter's name in its group.
    pub name: String,
    /// The group's name; `None` without an election.
    pub group: Option<String>,
    /// The handle by which orders are given; `None` without an election and with an election by labels.
    pub orders: Option<CommandHandle>,
    /// Takes write requests, once the store is open. Never set with `-pg-read-only`.
    pub receiver: OnceLock<Arc<Receiver>>,
    /// Answers reads, once it is open.
    pub store: OnceLock<Arc<Store>>,
    /// `true` if this adapter only reads.
    pub read_only: bool,
    /// Cancelled when the program begins to stop.
    pub stopping: CancellationToken,
    /// Owns tasks that must go on when a client disconnects.
    pub tracker: TaskTracker,
    /// The memory that bodies use.
    pub bodies: Arc<Bodies>,
    /// Limits the number of reads at the same time.
    pub reads: Arc<Semaphore>,
}

/// A connection, as the election sees it. Its close may tell that a sender is gone.
pub(super) struct Connection {
    pub(super) any: ConnectionTracker,
    pub(super) by_labels: Option<ClusterConnection>,
}

impl Service {
    /// Returns `true` if this adapter is excluded from elections.
    pub(super) fn is_held(&self) -> bool {
        self.orders.as_ref().is_some_and(CommandHandle::is_held)
    }

    /// Returns `true` if `text`, about requests refused for their message or encoding, is to be logged now.
    pub(super) fn should_log(&self, text: &str) -> bool {
        self.unsupported.lock().should_log(text, Instant::now())
    }

    /// Returns the role at this moment.
    pub(super) fn role_now(&self) -> Role {
        self.role.borrow().at(Instant::now())
    }
}
