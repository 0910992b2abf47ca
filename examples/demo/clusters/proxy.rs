//! A load balancer as plain as they come: each request goes to the next adapter in turn, whoever sends it. It looks at no
//! label and checks no health; what an adapter does not answer it passes on to the next, and answers 502 when none does.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rig::http::Client;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What is of one connection, not of the request.
const OF_THE_CONNECTION: [HeaderName; 4] = [CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING];

/// A running proxy, gone when dropped.
pub(crate) struct Proxy {
    turns: Arc<Turns>,
    port: u16,
    _serving: JoinSet<()>,
}

/// Whose turn it is, and what came of the turns before.
struct Turns {
    adapters: Vec<u16>,
    taken: AtomicUsize,
    answered: Vec<AtomicUsize>,
    unanswered: AtomicUsize,
    client: Client,
}

impl Proxy {
    /// Listens on a free port of loopback, for adapters on these.
    pub(crate) async fn start(adapters: Vec<u16>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", rig::port::free())).await.expect("the proxy cannot listen");
        let port = listener.local_addr().expect("a listener has an address").port();
        let answered = adapters.iter().map(|_| AtomicUsize::new(0)).collect();
        let (taken, unanswered, client) = (AtomicUsize::new(0), AtomicUsize::new(0), Client::default());
        let turns = Arc::new(Turns { adapters, taken, answered, unanswered, client });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&turns)));
        Self { turns, port, _serving: serving }
    }

    /// The port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many requests each adapter has answered, and how many were passed on because one did not.
    pub(crate) fn counts(&self) -> (Vec<usize>, usize) {
        let answered = self.turns.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        (answered, self.turns.unanswered.load(Ordering::Relaxed))
    }
}

async fn serve(listener: TcpListener, turns: Arc<Turns>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let turns = Arc::clone(&turns);
        let pass = service_fn(move |request| {
            let turns = Arc::clone(&turns);
            async move { Ok::<_, Infallible>(turns.pass(request).await) }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), pass));
        while connections.try_join_next().is_some() {}
    }
}

impl Turns {
    async fn pass(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let first = self.taken.fetch_add(1, Ordering::Relaxed);
        let (head, body) = request.into_parts();
        if let Ok(body) = body.collect().await {
            let body = body.to_bytes();
            for turn in (first..).take(self.adapters.len()).map(|turn| turn % self.adapters.len()) {
                if let Some(answer) = self.ask(self.adapters[turn], &head, body.clone()).await {
                    self.answered[turn].fetch_add(1, Ordering::Relaxed);
                    return answer;
                }
                self.unanswered.fetch_add(1, Ordering::Relaxed);
            }
        }
        let mut unanswered = Response::default();
        *unanswered.status_mut() = StatusCode::BAD_GATEWAY;
        unanswered
    }

    /// What the adapter on `port` answers, if it does.
    async fn ask(&self, port: u16, head: &Parts, body: Bytes) -> Option<Response<Full<Bytes>>> {
        let passed = head.headers.iter().filter(|(name, _)| !OF_THE_CONNECTION.contains(name));
        let headers: Vec<_> = passed.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))).collect();
        let url = format!("http://127.0.0.1:{port}{}", head.uri);
        let answer = self.client.request(head.method.clone(), &url, &headers, body).await.ok()?;
        let mut response = Response::new(Full::new(answer.body));
        *response.status_mut() = StatusCode::from_u16(answer.status).ok()?;
        let passed = answer.headers.iter().filter(|(name, _)| !OF_THE_CONNECTION.contains(name));
        response.headers_mut().extend(passed.map(|(name, value)| (name.clone(), value.clone())));
        Some(response)
    }
}
