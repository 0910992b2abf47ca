//! Routes and statuses. This is the only module that answers with an HTTP status code.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::election::by_labels::clusters::Clusters;
use crate::http::answer::{Answer, method_not_allowed, text, with_type};
use crate::http::service::Connection;
use crate::telemetry::metrics;

pub use self::admin_token::AdminToken;
pub use self::body::Bodies;
pub use self::service::{Config, Service};

mod admin;
mod admin_token;
mod answer;
mod body;
mod election;
mod read;
mod service;
mod status;
mod write;

/// Reads at the same time; further reads wait. Prometheus' own default.
pub const READS_MAX: usize = 10;

/// Connections at the same time; further connections wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;

/// Time limit for a client to send the headers of its next request. It is longer than Prometheus keeps an idle
/// connection (5 m), so that the adapter never closes a connection that Prometheus is about to use.
const HEADER_TIMEOUT: Duration = Duration::from_secs(330);

/// Accepts connections until `stop`, then lets requests in flight end, for at most `grace`.
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
        let line = Arc::new(Connection {
            any: service.heard.line(),
            by_labels: service.clusters.as_ref().map(Clusters::line),
        });
        let handler = service_fn(move |request| {
            let (service, line) = (Arc::clone(&service), Arc::clone(&line));
            async move { Ok::<_, Infallible>(answer(service, request, line, is_local).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), handler);
        let connection = graceful.watch(connection);
        tracker.spawn(async move {
            if let Err(error) = connection.await {
                log::debug!(err:% = error; "a connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        log::warn!(grace:? = grace; "requests still under way after the grace period are cut off");
    }
}

/// Returns the next connection, or `None` if accepting it failed. If the process has no file descriptors left, the
/// pause lets some become free.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            if let Err(error) = stream.set_nodelay(true) {
                log::debug!(err:% = error; "setting TCP_NODELAY failed");
            }
            Some((stream, permit))
        }
        Err(error) => {
            log::warn!(err:% = error; "accepting a connection failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Answers a request according to its path.
async fn answer(service: Arc<Service>, request: Request<Incoming>, line: Arc<Connection>, is_local: bool) -> Answer {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/write" | "/api/v1/write" => {
            line.any.wrote();
            let started = Instant::now();
            let metrics = Arc::clone(&service.metrics);
            let answer = write::answer(service, request, line).await;
            metrics.write_requests_total.with_label_values(&[answer.status().as_str()]).inc();
            metrics.write_duration_seconds.observe(started.elapsed().as_secs_f64());
            answer
        }
        "/read" | "/api/v1/read" => {
            let started = Instant::now();
            let metrics = Arc::clone(&service.metrics);
            let answer = read::answer(service, request).await;
            metrics.read_requests_total.with_label_values(&[answer.status().as_str()]).inc();
            metrics.read_duration_seconds.observe(started.elapsed().as_secs_f64());
            answer
        }
        path if path.starts_with("/admin/") => admin::answer(&service, request, is_local).await,
        _ if request.method() != Method::GET && request.method() != Method::HEAD => method_not_allowed("GET, HEAD"),
        path if path == service.config.telemetry_path => {
            status::refresh(&service);
            with_type(StatusCode::OK, metrics::CONTENT_TYPE, service.metrics.render())
        }
        "/healthz" | "/-/healthy" => {
            if service.stopping.is_cancelled() {
                text(StatusCode::SERVICE_UNAVAILABLE, "stopping")
            } else {
                text(StatusCode::OK, "prometheus-postgresql-adapter is healthy")
            }
        }
        "/-/ready" => match status::not_ready(&service) {
            None => text(StatusCode::OK, "prometheus-postgresql-adapter is ready"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/status.json" => with_type(StatusCode::OK, "application/json", status::json(&service)),
        "/" => with_type(StatusCode::OK, "text/html; charset=utf-8", status::page(&service)),
        _ => text(StatusCode::NOT_FOUND, format!("no such path: {path}; / lists those there are")),
    }
}
