//! `election VERB`: sends an order or a query to a running adapter and prints the answer.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpStream;

/// A command to an adapter.
#[derive(Clone)]
pub struct Command {
    /// The adapter's address: `http://HOST:PORT`.
    pub url: Uri,
    /// Its `-web-admin-token`.
    pub token: Option<String>,
    /// The action.
    pub verb: Verb,
    /// The cluster, where replicas lead.
    pub cluster: Option<String>,
    /// The replica to be excluded or released.
    pub replica: Option<String>,
}

/// The action that an adapter is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Show the status.
    Status,
    /// Lead. Only where leaders are appointed.
    Lead,
    /// Give up the lead.
    Resign,
    /// Give up the lead to this adapter or replica.
    HandOver(String),
    /// Stay out of elections.
    Hold,
    /// Take part in elections again.
    Release,
}

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The adapter could not be asked.
    #[error("cannot reach an adapter at {url}: {why}; is it running? -url says where")]
    Unreachable {
        /// The address.
        url: Uri,
        /// The error.
        why: String,
    },
    /// The adapter refused.
    #[error("{0}")]
    Refused(String),
}

/// Time limit of a command. Longer than the longest lease, which is the time that an adapter tries to carry out an
/// order.
const TIMEOUT: Duration = Duration::from_secs(310);

/// Largest answer. An answer is a line, or a status with all clusters.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {}", self.verb, self.url)
    }
}

impl Command {
    /// Sends the command, and returns the lines to show.
    ///
    /// # Errors
    ///
    /// The adapter cannot be reached, or refuses.
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
        // The host name without the brackets of an IPv6 address.
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

/// Returns an error with its causes, because hyper's own messages omit them.
fn chain(error: Boxed) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Returns a status as lines of `name: value`.
fn lines(json: &str) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::from_str(json) else { return json.to_owned() };
    let shown = fields.iter().filter(|(_, value)| !value.is_null());
    let line = |(name, value): (&String, &serde_json::Value)| match value.as_str() {
        Some(text) => format!("{name}: {text}"),
        None => format!("{name}: {value}"),
    };
    shown.map(line).collect::<Vec<_>>().join("\n")
}
