//! An HTTP/1.1 client on plain TCP, with connections kept alive.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How a remote-write 1.0 request introduces itself.
pub const WRITE_HEADERS: [(&str, &str); 3] = [
    ("content-type", "application/x-protobuf"),
    ("content-encoding", "snappy"),
    ("x-prometheus-remote-write-version", "0.1.0"),
];

/// How a remote-read request introduces itself.
pub const READ_HEADERS: [(&str, &str); 3] = [
    ("content-type", "application/x-protobuf"),
    ("content-encoding", "snappy"),
    ("x-prometheus-remote-read-version", "0.1.0"),
];

/// Why no whole answer came, in words.
#[derive(Debug)]
pub struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, as it came.
    pub body: Bytes,
}

impl Response {
    /// The body as text, what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text; `None` if absent or not printable.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A client; clones share their connections. Use one from one tokio runtime only.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Legacy<HttpConnector, Full<Bytes>>,
    timeout: Duration,
}

impl Default for Client {
    /// A client that gives up after 30 s, as Prometheus' remote write does.
    fn default() -> Self {
        Self::new(Duration::from_secs(30))
    }
}

impl Client {
    /// A client that gives up on an answer after `timeout`.
    pub fn new(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { inner: Legacy::builder(TokioExecutor::new()).build(connector), timeout }
    }

    /// GETs `url`.
    ///
    /// # Errors
    ///
    /// When no whole answer came in time; a status of any kind is an answer.
    pub async fn get(&self, url: &str) -> Result<Response, Error> {
        self.request(Method::GET, url, &[], Bytes::new()).await
    }

    /// POSTs `body` to `url`.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn post(&self, url: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Result<Response, Error> {
        self.request(Method::POST, url, headers, body.into()).await
    }

    /// Any request.
    ///
    /// # Errors
    ///
    /// As [`Client::get`], or a header or URL that HTTP does not allow.
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

    /// Whether `url` answers 200.
    pub async fn is_ok(&self, url: &str) -> bool {
        self.get(url).await.is_ok_and(|response| response.status == StatusCode::OK)
    }
}

/// `text` as it may stand in a query string or a form.
pub fn percent_encode(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// An error with its causes on one line: hyper's own messages leave them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
