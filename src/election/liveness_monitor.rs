//! A [`Liveness`] that the write path feeds and the election reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::election::PrometheusTimeout;
use crate::election::liveness::Liveness;

/// A [`Liveness`] that the write path feeds and the election reads.
#[derive(Debug)]
pub struct LivenessMonitor {
    liveness: Mutex<Liveness>,
    begun: Notify,
    closed: Notify,
    unsupported: Mutex<Option<String>>,
}

/// A connection that may carry write requests.
#[derive(Debug)]
pub struct ConnectionTracker {
    heard: Arc<LivenessMonitor>,
    requests: AtomicUsize,
}

/// A request under way; tells when it is over, also when it is dropped.
#[derive(Debug)]
pub struct InFlight {
    heard: Arc<LivenessMonitor>,
    refused: bool,
}

impl LivenessMonitor {
    /// Before the first request.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self {
            liveness: Mutex::new(Liveness::new(timeout)),
            begun: Notify::new(),
            closed: Notify::new(),
            unsupported: Mutex::default(),
        }
    }

    /// Notes a write request.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.with(|liveness| liveness.begin(Instant::now()));
        self.begun.notify_one();
        InFlight { heard: Arc::clone(self), refused: false }
    }

    /// A request was refused for its message or encoding, as `why` says, and the next of its kind will be too. Its
    /// sender is there, but counts as silent: another Prometheus may send what can be stored.
    pub fn unsupported(&self, why: String) {
        *self.why_unsupported() = Some(why);
    }

    /// A request could be read. Returns whether the one before was [`LivenessMonitor::unsupported`].
    pub fn supported(&self) -> bool {
        self.why_unsupported().take().is_some()
    }

    /// Why the latest request was [`LivenessMonitor::unsupported`]; `None` if one could be read since.
    #[must_use]
    pub fn only_unsupported(&self) -> Option<String> {
        self.why_unsupported().clone()
    }

    /// Waits for a request to begin, one that began since the last wait included.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// A connection is open; dropped when it is closed.
    #[must_use]
    pub fn line(self: &Arc<Self>) -> ConnectionTracker {
        ConnectionTracker { heard: Arc::clone(self), requests: AtomicUsize::new(0) }
    }

    /// Waits for the last connection to be closed, one that was since the last wait included.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }

    /// See [`Liveness::discount_pause`].
    pub fn discount_pause(&self, since: Instant, now: Instant) {
        self.with(|liveness| liveness.discount_pause(since, now));
    }

    /// A copy to decide by.
    #[must_use]
    pub fn read(&self) -> Liveness {
        self.with(|liveness| liveness.clone())
    }

    fn why_unsupported(&self) -> MutexGuard<'_, Option<String>> {
        self.unsupported.lock()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Liveness) -> T) -> T {
        work(&mut self.liveness.lock())
    }
}

impl ConnectionTracker {
    /// It has carried a write request.
    pub fn wrote(&self) {
        if self.requests.fetch_add(1, Ordering::Relaxed) == 0 {
            self.heard.with(Liveness::connected);
        }
    }
}

impl Drop for ConnectionTracker {
    fn drop(&mut self) {
        let requests = *self.requests.get_mut();
        if requests > 0 && self.heard.with(|liveness| liveness.closed(requests > 1, Instant::now())) {
            self.heard.closed.notify_one();
        }
    }
}

impl InFlight {
    /// The request was answered by a 5xx. One whose sender has gone before the answer was not refused: nobody pauses.
    pub fn refused(mut self) {
        self.refused = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.heard.with(|liveness| liveness.end(Instant::now(), self.refused));
    }
}
