//! Sending: every connection sends its next request as soon as the previous one is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::http::Client;
use rig::process::Process;
use tokio::task::JoinSet;

use crate::load::{Batch, Requests};

/// How long a receiver may take until it takes its first request: an election included.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(30);

/// What was sent, and answered.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Samples acknowledged.
    pub(crate) samples: usize,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// From a request to its answer, in no order.
    pub(crate) latencies: Vec<Duration>,
    /// Requests sent again after an answer that asks for it.
    pub(crate) retries: usize,
}

impl Sent {
    /// Samples acknowledged a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate is shown with three digits")]
    pub(crate) fn rate(&self) -> f64 {
        self.samples as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `share` of the requests did not exceed.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn latency(&self, share: f64) -> Duration {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    pub(crate) fn note(&mut self, samples: usize, latency: Duration) {
        self.samples += samples;
        self.latencies.push(latency);
    }
}

impl std::ops::AddAssign for Sent {
    /// For what was sent one after the other.
    fn add_assign(&mut self, more: Self) {
        self.samples += more.samples;
        self.elapsed += more.elapsed;
        self.latencies.extend(more.latencies);
        self.retries += more.retries;
    }
}

/// A sender with connections that stay open between what it sends: an adapter takes it for gone otherwise, and resigns.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    url: String,
    clients: Vec<Client>,
}

impl Sender {
    /// A sender to `url`.
    pub(crate) fn new(url: String, connections: usize) -> Self {
        Self { url, clients: (0..connections).map(|_| Client::default()).collect() }
    }

    /// Sends the first scrape, so that the receiver leads and knows every series before the clock starts; returns its
    /// samples.
    pub(crate) async fn warm_up(&self, process: &Process, requests: &Requests) -> usize {
        if let Some(first) = requests.iter().flatten().next() {
            let until = Some((process, Instant::now() + WARM_UP_DEADLINE));
            send(&self.clients[0], &self.url, first, until).await;
        }
        // The first request again is a retry, and stored once.
        self.send_all(requests, Duration::MAX).await.samples
    }

    /// Sends `requests`, each connection its own, until all are answered or `limit` is over.
    pub(crate) async fn send_all(&self, requests: &Requests, limit: Duration) -> Sent {
        self.send_at(f64::INFINITY, requests, limit).await
    }

    /// The same, no more than `rate` samples a second.
    pub(crate) async fn send_at(&self, rate: f64, requests: &Requests, limit: Duration) -> Sent {
        let started = Instant::now();
        let each = rate / requests.len() as f64;
        let mut connections = JoinSet::new();
        for (connection, client) in self.clients.iter().cloned().enumerate().take(requests.len()) {
            let (requests, url) = (Arc::clone(requests), self.url.clone());
            connections.spawn(async move {
                let mut sent = Sent::default();
                for batch in &requests[connection] {
                    let due = Duration::from_secs_f64(sent.samples as f64 / each);
                    tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
                    let began = Instant::now();
                    sent.retries += send(&client, &url, batch, None).await;
                    sent.note(batch.samples, began.elapsed());
                    if started.elapsed() >= limit {
                        break;
                    }
                }
                sent
            });
        }
        together(started, connections.join_all().await)
    }
}

/// What connections sent side by side since `started`.
pub(crate) fn together(started: Instant, connections: Vec<Sent>) -> Sent {
    let elapsed = started.elapsed();
    let mut all = Sent::default();
    for sent in connections {
        all += sent;
    }
    Sent { elapsed, ..all }
}

/// Sends until it is taken, as Prometheus does: again after 5xx, more and more slowly. Returns how often again.
async fn send(client: &Client, url: &str, batch: &Batch, until: Option<(&Process, Instant)>) -> usize {
    let mut backoff = Duration::from_millis(30);
    let mut retries = 0;
    loop {
        let answer = client.post(url, batch.headers(), batch.body.clone()).await;
        let why = match answer {
            Ok(response) if response.status / 100 == 2 => return retries,
            Ok(response) if response.status / 100 == 4 => {
                panic!("{url}: {}: {}", response.status, response.text())
            }
            Ok(response) => format!("{}: {}", response.status, response.text()),
            Err(error) => error.to_string(),
        };
        if let Some((process, deadline)) = until
            && Instant::now() >= deadline
        {
            process.fail(&format!("takes nothing within {WARM_UP_DEADLINE:?}: {why}"));
        }
        retries += 1;
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(Duration::from_secs(5));
    }
}
