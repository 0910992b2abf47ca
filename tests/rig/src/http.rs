//! An HTTP/1.1 client on plain TCP with keep-alive.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// Headers of a remote-write 1.0 request.
pub const WRITE_HEADERS: [(&str, &str); 3] = [
    ("content-type", "application/x-protobuf"),
    ("content-encoding", "snappy"),
    ("x-prometheus-remote-write-version", "0.1.0"),
];

/// Headers of a remote-write 2.0 request.
pub const WRITE_2_HEADERS: [(&str, &str); 3] = [
    ("content-type", "application/x-protobuf;proto=io.prometheus.write.v2.Request"),
    ("content-encoding", "snappy"),
    ("x-prometheus-remote-write-version", "2.0.0"),
];

/// Headers of a remote-read request.
pub const READ_HEADERS: [(&str, &str); 3] = [
    ("content-type", "application/x-protobuf"),
    ("content-encoding", "snappy"),
    ("x-prometheus-remote-read-version", "0.1.0"),
];

/// Reason why no complete response arrived, as text.
#[derive(Debug)]
pub struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A complete response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as received.
    pub body: Bytes,
}

impl Response {
    /// Returns the body as text. Invalid UTF-8 is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns a header as text; `None` if it is absent or not printable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A client. Clones share their connections. Use a client in one tokio runtime only.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Legacy<HttpConnector, Full<Bytes>>,
    timeout: Duration,
}

impl Default for Client {
    /// A client with a timeout of 30 s, like Prometheus' remote write.
    fn default() -> Self {
        Self::new(Duration::from_secs(30))
    }
}

impl Client {
    /// A client that gives up on a response after `timeout`.
    pub fn new(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { inner: Legacy::builder(TokioExecutor::new()).build(connector), timeout }
    }

    /// Sends a GET request to `url`.
    ///
    /// # Errors
    ///
    /// If no complete response arrived in time. A response with any status is not an error.
    pub async fn get(&self, url: &str) -> Result<Response, Error> {
        self.request(Method::GET, url, &[], Bytes::new()).await
    }

    /// Sends a POST request with `body` to `url`.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn post(&self, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Response, Error> {
        self.request(Method::POST, url, headers, body.into()).await
    }

    /// Sends any request.
    ///
    /// # Errors
    ///
    /// As [`Client::get`], and if HTTP does not allow a header or the URL.
    pub async fn request(
        &self,
        method: Method,
        url: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response, Error> {
        let failed = |why: &dyn std::fmt::Display| Error(format!("{method} {url}: {why}"));
        let mut request = Request::builder().method(&method).uri(url);
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| failed(&e))?;
            request = request.header(name, HeaderValue::from_bytes(value.as_bytes()).map_err(|e| failed(&e))?);
        }
        let request = request.body(Full::new(body)).map_err(|e| failed(&e))?;
        let exchange = async {
            let response = self.inner.request(request).await.map_err(|e| failed(&chain(&e)))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|e| failed(&chain(&e)))?.to_bytes();
            Ok(Response { status: head.status.as_u16(), headers: head.headers, body })
        };
        let waited = tokio::time::timeout(self.timeout, exchange).await;
        waited.unwrap_or_else(|_| Err(failed(&format!("no answer within {:?}", self.timeout))))
    }

    /// True if `url` responds with status 200.
    pub async fn is_ok(&self, url: &str) -> bool {
        self.get(url).await.is_ok_and(|response| response.status == StatusCode::OK)
    }
}

/// Encodes `text` for a query string or a form.
pub fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Formats an error with its causes on one line. hyper's own messages omit the causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
