//! A [`Liveness`] that the write path updates and the election reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::election::PrometheusTimeout;
use crate::election::liveness::Liveness;

/// A [`Liveness`] that the write path updates and the election reads.
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

/// A request in flight. Dropping it notes the end of the request.
#[derive(Debug)]
pub struct InFlight {
    heard: Arc<LivenessMonitor>,
    refused: bool,
}

impl LivenessMonitor {
    /// Returns a monitor that has seen no request.
    #[must_use]
    pub fn new(timeout: PrometheusTimeout) -> Self {
        Self {
            liveness: Mutex::new(Liveness::new(timeout)),
            begun: Notify::new(),
            closed: Notify::new(),
            unsupported: Mutex::default(),
        }
    }

    /// Notes that a write request has begun.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.with(|liveness| liveness.begin(Instant::now()));
        self.begun.notify_one();
        InFlight { heard: Arc::clone(self), refused: false }
    }

    /// Notes that a request was refused for its message or encoding, with the reason `why`. Further requests of this
    /// kind will be refused too. Their sender is alive, but counts as silent: another Prometheus may send samples that
    /// can be stored.
    pub fn unsupported(&self, why: String) {
        *self.unsupported.lock() = Some(why);
    }

    /// Notes that a request could be read. Returns `true` if a request since the last such note was
    /// [`LivenessMonitor::unsupported`].
    pub fn supported(&self) -> bool {
        self.unsupported.lock().take().is_some()
    }

    /// Returns why the latest request was [`LivenessMonitor::unsupported`]; `None` if a request could be read since.
    #[must_use]
    pub fn only_unsupported(&self) -> Option<String> {
        self.unsupported.lock().clone()
    }

    /// Waits until a request begins. A request that began since the last wait counts too.
    pub async fn begun(&self) {
        self.begun.notified().await;
    }

    /// Notes a new connection. The returned tracker is dropped when the connection is closed.
    #[must_use]
    pub fn line(self: &Arc<Self>) -> ConnectionTracker {
        ConnectionTracker { heard: Arc::clone(self), requests: AtomicUsize::new(0) }
    }

    /// Waits until the last connection is closed. A close since the last wait counts too.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }

    /// See [`Liveness::discount_pause`].
    pub fn discount_pause(&self, since: Instant, now: Instant) {
        self.with(|liveness| liveness.discount_pause(since, now));
    }

    /// Returns a copy.
    #[must_use]
    pub fn read(&self) -> Liveness {
        self.with(|liveness| liveness.clone())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Liveness) -> T) -> T {
        work(&mut self.liveness.lock())
    }
}

impl ConnectionTracker {
    /// Notes that the connection has carried a write request.
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
    /// Notes that the request was answered by a 5xx. A request whose sender disconnected before the answer was not
    /// refused: its sender does not back off.
    pub fn refused(mut self) {
        self.refused = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.heard.with(|liveness| liveness.end(Instant::now(), self.refused));
    }
}
