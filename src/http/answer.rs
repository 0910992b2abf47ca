//! The answers of routes.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

pub(super) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
pub(super) type Answer = Response<Body>;

pub(super) fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Returns an answer with one line of text. Prometheus logs its first KiB.
pub(super) fn text(status: StatusCode, line: impl Into<String>) -> Answer {
    let mut line = line.into();
    line.push('\n');
    with_type(status, "text/plain; charset=utf-8", line)
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default().map_err(|never: Infallible| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// Returns a 503: the failure is not the sender's fault, and the sender must retry.
pub(super) fn unavailable(line: impl Into<String>) -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, line);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

pub(super) fn method_not_allowed(allowed: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {allowed}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}
