//! Routes and statuses: the only room that names an HTTP status code.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::election::by_labels::clusters::{self, Clusters};
use crate::election::desk::Orders;
use crate::election::liveness::{self, Heard};
use crate::election::role::{LockHolder, Role};
use crate::receiver::Receiver;
use crate::storage::Store;
use crate::telemetry::metrics::{self, Metrics};
use crate::telemetry::trouble::Trouble;

pub use self::admin::AdminToken;
pub use self::body::Bodies;

mod admin;
mod body;
mod election;
mod read;
mod status;
mod write;

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
    pub heard: Arc<Heard>,
    /// What was said of requests that are refused for their message or encoding.
    pub unsupported: Mutex<Trouble>,
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
    pub orders: Option<Orders>,
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
struct Line {
    any: liveness::Line,
    by_labels: Option<clusters::Line>,
}

/// Reads at a time; more wait. Prometheus' own default.
pub const READS_MAX: usize = 10;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// A client must have sent the headers of its next request by then. Longer than Prometheus keeps a connection idle (5 m),
/// so that it is never we who close one that it is about to use.
const HEADER_TIMEOUT: Duration = Duration::from_secs(330);

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Answer = Response<Body>;

/// Accepts connections until `stop`, then lets requests in flight end, at most `grace` long.
pub async fn serve(listener: TcpListener, service: Arc<Service>, stop: CancellationToken, grace: Duration) {
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = stop.cancelled() => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        let is_local = stream.peer_addr().is_ok_and(|peer| peer.ip().to_canonical().is_loopback());
        let service = Arc::clone(&service);
        let tracker = service.tracker.clone();
        let line =
            Arc::new(Line { any: service.heard.line(), by_labels: service.clusters.as_ref().map(Clusters::line) });
        let handler = service_fn(move |request| {
            let (service, line) = (Arc::clone(&service), Arc::clone(&line));
            async move { Ok::<_, Infallible>(service.answer(request, line, is_local).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), handler);
        let connection = graceful.watch(connection);
        tracker.spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("a connection ended: {error}");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        log::warn!("requests still under way after {grace:?} are cut off");
    }
}

/// The next connection. One that fails to be accepted is skipped; when the process has no file descriptors left, the
/// pause lets some come free.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            if let Err(error) = stream.set_nodelay(true) {
                log::debug!("TCP_NODELAY: {error}");
            }
            Some((stream, permit))
        }
        Err(error) => {
            log::warn!("accepting a connection failed: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

impl Service {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, line: Arc<Line>, is_local: bool) -> Answer {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/write" | "/api/v1/write" => {
                line.any.wrote();
                let started = Instant::now();
                let metrics = Arc::clone(&self.metrics);
                let answer = write::answer(self, request, line).await;
                metrics.write_requests_total.with_label_values(&[answer.status().as_str()]).inc();
                metrics.write_duration_seconds.observe(started.elapsed().as_secs_f64());
                answer
            }
            "/read" | "/api/v1/read" => {
                let started = Instant::now();
                let metrics = Arc::clone(&self.metrics);
                let answer = read::answer(self, request).await;
                metrics.read_requests_total.with_label_values(&[answer.status().as_str()]).inc();
                metrics.read_duration_seconds.observe(started.elapsed().as_secs_f64());
                answer
            }
            path if path.starts_with("/admin/") => admin::answer(&self, request, is_local).await,
            _ if request.method() != Method::GET && request.method() != Method::HEAD => method_not_allowed("GET, HEAD"),
            path if path == self.config.telemetry_path => {
                status::refresh(&self);
                with_type(StatusCode::OK, metrics::CONTENT_TYPE, self.metrics.render())
            }
            "/healthz" | "/-/healthy" => {
                if self.stopping.is_cancelled() {
                    text(StatusCode::SERVICE_UNAVAILABLE, "stopping")
                } else {
                    text(StatusCode::OK, "prometheus-postgresql-adapter is healthy")
                }
            }
            "/-/ready" => match status::not_ready(&self) {
                None => text(StatusCode::OK, "prometheus-postgresql-adapter is ready"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/status.json" => with_type(StatusCode::OK, "application/json", status::json(&self)),
            "/" => with_type(StatusCode::OK, "text/html; charset=utf-8", status::page(&self)),
            _ => text(StatusCode::NOT_FOUND, format!("no such path: {path}; / lists those there are")),
        }
    }

    /// Whether it is held out of elections.
    fn is_held(&self) -> bool {
        self.orders.as_ref().is_some_and(Orders::is_held)
    }

    /// Whether `text`, of requests that are refused for their message or encoding, is worth a line in the log.
    fn is_news(&self, text: &str) -> bool {
        self.unsupported.lock().unwrap_or_else(PoisonError::into_inner).is_news(text, Instant::now())
    }

    /// The role at this moment.
    fn role_now(&self) -> Role {
        self.role.borrow().at(Instant::now())
    }
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// A line for a person; Prometheus logs the first KiB of it.
fn text(status: StatusCode, line: impl Into<String>) -> Answer {
    let mut line = line.into();
    line.push('\n');
    with_type(status, "text/plain; charset=utf-8", line)
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default().map_err(|never: Infallible| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// Our trouble, not the sender's: it is to come again.
fn unavailable(line: impl Into<String>) -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, line);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn method_not_allowed(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}
