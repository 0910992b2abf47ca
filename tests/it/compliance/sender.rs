//! Sends a case as different senders do.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use rig::adapter::Adapter;
use rig::http::{Response, WRITE_2_HEADERS, WRITE_HEADERS};
use tokio::net::TcpStream;

use super::case::Case;
use super::message::Version;

type Headers = Vec<(&'static str, &'static str)>;

fn headers(case: &Case, version: Version, further: &[(&'static str, &'static str)]) -> Headers {
    let of_version = match version {
        Version::One => WRITE_HEADERS,
        Version::Two => WRITE_2_HEADERS,
    };
    let mut headers: BTreeMap<_, _> = of_version.into_iter().chain(further.iter().copied()).collect();
    for (name, value) in &case.headers {
        match value {
            Some(value) => headers.insert(name, value),
            None => headers.remove(name),
        };
    }
    headers.into_iter().collect()
}

/// Sends a request like the suite: in chunks, as Go does with a body whose length it does not know, and by 1.0 without
/// the version's header.
pub(super) async fn like_the_suite(adapter: &Adapter, case: &Case, version: Version, body: Vec<u8>) -> Response {
    let mut headers = headers(case, version, &[("user-agent", "Go-http-client/1.1")]);
    if version == Version::One {
        headers.retain(|(name, _)| *name != "x-prometheus-remote-write-version");
    }
    let mut request = Request::post("/write").header("host", "it");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let (first, rest) = body.split_at(1);
    let (second, third) = rest.split_at(rest.len() / 2);
    let chunks = [first, second, third].map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(chunk))));
    let body = StreamBody::new(futures_util::stream::iter(chunks));
    let request = request.body(body).expect("the headers are valid");
    let stream = TcpStream::connect(("127.0.0.1", adapter.port())).await.expect("the adapter listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("nothing is sent yet");
    let exchange = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
    };
    // The connection ends when the exchange has dropped its sender.
    let (exchange, _) = tokio::join!(exchange, connection);
    let (head, body) = exchange.unwrap_or_else(|error| adapter.process().fail(&error.to_string()));
    Response { status: head.status.as_u16(), headers: head.headers, body }
}

/// Sends a request like a Prometheus that has not got the answer to its first attempt.
pub(super) async fn like_prometheus(adapter: &Adapter, case: &Case, version: Version, body: Vec<u8>) -> Response {
    let headers = headers(case, version, &[("user-agent", "Prometheus/3.14.0"), ("retry-attempt", "1")]);
    let answer = adapter.client().post(&adapter.url("/api/v1/write"), &headers, body).await;
    answer.unwrap_or_else(|error| adapter.process().fail(&error.to_string()))
}
