//! `election VERB`: a word to a running adapter, and what it answers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpStream;

/// What is asked of which adapter.
#[derive(Clone)]
pub struct Command {
    /// Where it listens: `http://HOST:PORT`.
    pub url: Uri,
    /// Its `-web-admin-token`.
    pub token: Option<String>,
    /// What it is to do.
    pub verb: Verb,
    /// Of which cluster, where replicas lead.
    pub cluster: Option<String>,
    /// Which replica is to be held or released.
    pub replica: Option<String>,
}

/// What an adapter may be asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Say what it is.
    Status,
    /// Lead, where leaders are told.
    Lead,
    /// Give the lead up.
    Resign,
    /// Give the lead up to this one.
    HandOver(String),
    /// Stay out of elections.
    Hold,
    /// Take part again.
    Release,
}

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was asked.
    #[error("cannot reach an adapter at {url}: {why}; is it running? -url says where")]
    Unreachable {
        /// Where.
        url: Uri,
        /// What failed.
        why: String,
    },
    /// The adapter said no.
    #[error("{0}")]
    Refused(String),
}

/// Longer than the longest lease, which is how long an adapter tries.
const TIMEOUT: Duration = Duration::from_secs(310);

/// An answer is a line, or a status with every cluster there is.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {}", self.verb, self.url)
    }
}

impl Command {
    /// Asks, and returns the lines to show.
    ///
    /// # Errors
    ///
    /// When the adapter cannot be reached, or refuses.
    pub async fn run(&self) -> Result<String, Error> {
        let (method, path, to, body) = match &self.verb {
            Verb::Status => (Method::GET, "/status.json", None, ""),
            Verb::Lead => (Method::PUT, "/admin/election/leader", None, "1"),
            Verb::Resign => (Method::POST, "/admin/election/resign", None, ""),
            Verb::HandOver(to) => (Method::POST, "/admin/election/hand-over", Some(to), ""),
            Verb::Hold => (Method::POST, "/admin/election/hold", None, ""),
            Verb::Release => (Method::POST, "/admin/election/release", None, ""),
        };
        let parameters = [("cluster", self.cluster.as_ref()), ("replica", self.replica.as_ref()), ("to", to)];
        let parameters = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let parameters =
            parameters.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        let path = format!("{path}?{}", parameters.collect::<Vec<_>>().join("&"));
        let path = path.trim_end_matches('?');
        let asked = tokio::time::timeout(TIMEOUT, self.ask(method, path, body)).await;
        let answered = asked.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}").into()));
        let unreachable = |error| Error::Unreachable { url: self.url.clone(), why: chain(error) };
        let (status, text) = answered.map_err(unreachable)?;
        match (&self.verb, status) {
            (Verb::Status, StatusCode::OK) => Ok(lines(&text)),
            (Verb::Lead, StatusCode::OK) => Ok("leads".to_owned()),
            (_, StatusCode::OK) => Ok(text.trim_end().to_owned()),
            _ => Err(Error::Refused(text.trim_end().to_owned())),
        }
    }

    async fn ask(&self, method: Method, path: &str, body: &'static str) -> Result<(StatusCode, String), Boxed> {
        let host = self.url.host().ok_or("no host")?;
        // Without the brackets of an IPv6 address.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let port = self.url.port_u16().unwrap_or(80);
        let stream = TcpStream::connect((name, port)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, format!("{host}:{port}"));
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from_static(body.as_bytes())))?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?.to_bytes();
            Ok((head.status, String::from_utf8_lossy(&body).into_owned()))
        };
        tokio::pin!(exchange);
        // The connection is driven here, and ends with the answer.
        tokio::select! {
            answer = &mut exchange => answer,
            ended = connection => {
                ended?;
                exchange.await
            }
        }
    }
}

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// An error with its causes: hyper's own messages leave them out.
fn chain(error: Boxed) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A status as lines of `name: value`.
fn lines(json: &str) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(json) else { return json.to_owned() };
    let shown = fields.iter().filter(|(_, value)| !value.is_null());
    let line = |(name, value): (&String, &serde_json::Value)| match value.as_str() {
        Some(text) => format!("{name}: {text}"),
        None => format!("{name}: {value}"),
    };
    shown.map(line).collect::<Vec<_>>().join("\n")
}
