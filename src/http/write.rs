//! Remote write: negotiates the message, then calls the receiver.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, Request, StatusCode};

use crate::election::liveness_monitor::InFlight;
use crate::http::answer::{Answer, empty, method_not_allowed, text, unavailable};
use crate::http::body::{Received, check_encoding, discard, quoted, receive};
use crate::http::service::{Connection, Service};
use crate::receiver::{Accepted, Receiver};
use crate::storage::Counts;
use crate::wire::write::{self, v1, v2};

/// Versions of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// `prometheus.WriteRequest`.
    V1,
    /// `io.prometheus.write.v2.Request`.
    V2,
}

/// The log line after requests were refused for their message or encoding.
const SUPPORTED_AGAIN: &str = "a write request can be read again: the latest ones were answered 415";

/// Headers that tell how much of a request was written. Each answer to a request of version 2.0 must have them. If none
/// of them is in a 400, a sender of version 1.0 counts all samples of the request as failed; if any of them is in a 2xx,
/// it counts what the headers omit as failed.
const SAMPLES_WRITTEN: &str = "x-prometheus-remote-write-samples-written";
const HISTOGRAMS_WRITTEN: &str = "x-prometheus-remote-write-histograms-written";
const EXEMPLARS_WRITTEN: &str = "x-prometheus-remote-write-exemplars-written";

pub(super) async fn answer(service: Arc<Service>, request: Request<Incoming>, line: Arc<Connection>) -> Answer {
    if request.method() != Method::POST {
        discard(request).await;
        return method_not_allowed("POST");
    }
    let headers = request.headers();
    let message = match negotiate(headers).and_then(|message| check_encoding(headers).map(|()| message)) {
        Ok(message) => message,
        Err(why) => {
            discard(request).await;
            return unsupported(&service, why);
        }
    };
    let mut answer = receive_message(service, request, line, message).await;
    if message == Message::V2 && !answer.headers().contains_key(SAMPLES_WRITTEN) {
        add_written(&mut answer, Counts::default());
    }
    answer
}

async fn receive_message(
    service: Arc<Service>,
    request: Request<Incoming>,
    line: Arc<Connection>,
    message: Message,
) -> Answer {
    let in_flight = service.heard.begin();
    let received = match receive(request, &service.bodies, service.config.send_timeout).await {
        Ok(received) => received,
        Err(answer) => {
            if answer.status().is_server_error() {
                in_flight.refused();
            }
            return *answer;
        }
    };
    if service.stopping.is_cancelled() {
        return unavailable("the adapter is stopping");
    }
    if service.read_only {
        return unavailable("this adapter only reads (-pg-read-only): send to one that writes");
    }
    let Some(receiver) = service.receiver.get().cloned() else {
        in_flight.refused();
        return unavailable("the database has not been reached yet");
    };
    // The write runs in a task of its own. Once begun, it is finished or rolled back, even if its sender disconnects.
    let tracker = service.tracker.clone();
    let task = tracker.spawn(take(service, receiver, message, received, line, in_flight));
    task.await.unwrap_or_else(|error| {
        log::error!(err:% = error; "a write request failed");
        unavailable("the request failed inside the adapter; its log says why")
    })
}

/// Refuses a request that cannot be read, for the reason `why`. The sender drops the request's samples and goes on, so
/// the reason is shown in every place.
fn unsupported(service: &Service, why: String) -> Answer {
    service.metrics.write_requests_unsupported_total.inc();
    if service.should_log(&why) {
        log::warn!(reason = why.as_str(); "write requests are answered 415, and their senders drop what they carry");
    }
    let answer = text(StatusCode::UNSUPPORTED_MEDIA_TYPE, why.as_str());
    service.heard.unsupported(why);
    answer
}

async fn take(
    service: Arc<Service>,
    receiver: Arc<Receiver>,
    message: Message,
    received: Received,
    line: Arc<Connection>,
    in_flight: InFlight,
) -> Answer {
    let (message, request) = match decode(message, &received.plain) {
        Ok(decoded) => decoded,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("the body is no remote-write request: {why}")),
    };
    if service.heard.supported() && service.should_log(SUPPORTED_AGAIN) {
        log::info!("{SUPPORTED_AGAIN}");
    }
    match receiver.receive(&request, &received.compressed, line.by_labels.as_ref()).await {
        Ok(taken) => answer_to(message, &taken),
        Err(refused) => {
            in_flight.refused();
            log::debug!(err:% = refused; "write request refused");
            unavailable(refused.to_string())
        }
    }
}

/// Decodes a body as the message that its Content-Type names, and returns the message that it is: a proxy may have
/// removed the name.
fn decode(message: Message, body: &[u8]) -> Result<(Message, write::Request<'_>), String> {
    let decoded = match message {
        Message::V1 => v1::decode(body),
        Message::V2 => v2::decode(body),
    };
    let request = decoded.map_err(|error| error.to_string())?;
    if !request.is_empty() {
        return Ok((message, request));
    }
    match message {
        Message::V1 if v2::is_version_2(body) => decode(Message::V2, body),
        Message::V2 if v2::is_version_1(body) => {
            Err("it is of version 1.0 (prometheus.WriteRequest), and its Content-Type names version 2.0".to_owned())
        }
        _ => Ok((message, request)),
    }
}

/// Adds the headers that tell how much was written.
fn add_written(answer: &mut Answer, written: Counts) {
    let Counts { samples, histograms, exemplars } = written;
    for (name, written) in
        [(SAMPLES_WRITTEN, samples), (HISTOGRAMS_WRITTEN, histograms), (EXEMPLARS_WRITTEN, exemplars)]
    {
        answer.headers_mut().insert(name, HeaderValue::from(written));
    }
}

fn answer_to(message: Message, taken: &Accepted) -> Answer {
    let rejected = &taken.rejected;
    if rejected.is_empty() {
        let mut answer = empty(StatusCode::NO_CONTENT);
        if message == Message::V2 {
            // What is accepted and too old to be kept counts as written: a sender takes anything else for lost.
            add_written(&mut answer, taken.written + taken.expired);
        }
        return answer;
    }
    let reasons = rejected.reasons.join("; ");
    log::warn!(
        samples = rejected.counts.samples, histograms = rejected.counts.histograms, reason = reasons.as_str();
        "samples of a request can never be stored, the rest of it is"
    );
    let part = match rejected.counts.samples + rejected.counts.histograms {
        0 => "a part".to_owned(),
        samples => format!("{samples} sample(s)"),
    };
    let why = format!("{part} of this request can never be stored, the rest is: {reasons}");
    let mut answer = text(StatusCode::BAD_REQUEST, why);
    add_written(&mut answer, taken.written);
    answer
}

/// Returns the message that the Content-Type names. A missing Content-Type means 1.0, as for Prometheus' own receiver.
/// The version header is ignored, as the specification demands.
fn negotiate(headers: &HeaderMap) -> Result<Message, String> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Message::V1) };
    let unsupported = || {
        let shown = quoted(value);
        format!(
            "the Content-Type {shown} is not supported: send application/x-protobuf;proto=prometheus.WriteRequest or \
             application/x-protobuf;proto=io.prometheus.write.v2.Request"
        )
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let mut parts = text.split(';').map(str::trim);
    if !parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/x-protobuf")) {
        return Err(unsupported());
    }
    let mut message = Message::V1;
    for parameter in parts.filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').ok_or_else(unsupported)?;
        if name.trim().eq_ignore_ascii_case("proto") {
            message = match value.trim().trim_matches('"') {
                "prometheus.WriteRequest" => Message::V1,
                "io.prometheus.write.v2.Request" => Message::V2,
                _ => return Err(unsupported()),
            };
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(content_type: Option<&str>, expected: impl Into<Option<Message>>) {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
        }
        assert_eq!(negotiate(&headers).ok(), expected.into(), "{content_type:?}");
    }

    #[test]
    fn content_type_chooses_the_message() {
        let (v1, v2) = (Message::V1, Message::V2);
        check(None, v1);
        check(Some("application/x-protobuf"), v1);
        check(Some("Application/X-Protobuf"), v1);
        check(Some("application/x-protobuf;proto=prometheus.WriteRequest"), v1);
        check(Some("application/x-protobuf; Proto=\"prometheus.WriteRequest\""), v1);
        check(Some("application/x-protobuf; charset=utf-8"), v1);
        check(Some("application/x-protobuf;proto=io.prometheus.write.v2.Request"), v2);
        check(Some("application/x-protobuf; proto=\"io.prometheus.write.v2.Request\""), v2);
        check(Some("application/x-protobuf;proto=nonsense"), None);
        check(Some("application/x-protobuf;proto"), None);
        check(Some("application/json"), None);
        check(Some(""), None);
    }
}
