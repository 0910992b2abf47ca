//! Remote read. The queries are answered in order, as samples or as a stream of chunks.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::http::answer::{Answer, method_not_allowed, text, unavailable, with_type};
use crate::http::body::{check_encoding, discard, receive};
use crate::http::service::Service;
use crate::model::histogram::Corrupt;
use crate::model::labels::Labels;
use crate::model::matcher::Matcher;
use crate::model::sample::Point;
use crate::postgres::error::Error;
use crate::storage::query::{Reading, Samples, SeriesIds};
use crate::telemetry::metrics::Metrics;
use crate::wire::read::messages::{QueryResult, ReadResponse, ResponseType};
use crate::wire::read::series::{SeriesEncoder, time_series};
use crate::wire::read::{self, negotiate};
use crate::wire::snappy;

/// A query that is ready to run.
struct Query {
    matchers: Vec<Matcher>,
    start_ms: i64,
    end_ms: i64,
    labels_only: bool,
}

/// The reason why a read was not answered.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The server failed, or its result exceeded a limit of the adapter.
    #[error("the database failed: {0}")]
    Database(#[from] Error),
    /// The result has more samples than `-read-sample-limit`.
    #[error("exceeded sample limit ({0}): narrow the query, or raise -read-sample-limit")]
    SampleLimit(u64),
    /// The client stopped reading the answer.
    #[error("the client took nothing for {SLOW_CLIENT_TIMEOUT:?}")]
    SlowClient,
}

impl From<Corrupt> for Failure {
    fn from(why: Corrupt) -> Self {
        Self::Database(Error::Corrupt(why.to_string()))
    }
}

/// A message from the database task to the answer.
enum Piece {
    Frames(Bytes),
    /// The answer is complete. Without this message the client must see a broken connection.
    End,
    Broken(Failure),
}

/// Time after which a client that reads nothing counts as gone.
const SLOW_CLIENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Frames are sent once they have this size together, so that many small series share a packet.
const FLUSH_BYTES: usize = 64 * 1024;

/// Largest number of pieces that wait for a slow client, each of at least [`FLUSH_BYTES`]. This limits the memory of a
/// stream.
const PIECES_MAX: usize = 4;

pub(super) async fn answer(service: Arc<Service>, request: Request<Incoming>) -> Answer {
    if request.method() != Method::POST {
        discard(request).await;
        return method_not_allowed("POST");
    }
    if let Err(why) = check_encoding(request.headers()) {
        discard(request).await;
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
    }
    let received = match receive(request, &service.bodies, service.config.send_timeout).await {
        Ok(received) => received,
        Err(answer) => return *answer,
    };
    let Some(store) = service.store.get() else {
        return unavailable("the database has not been reached yet");
    };
    let Ok(permit) = Arc::clone(&service.reads).acquire_owned().await else {
        return unavailable("the adapter is stopping");
    };
    // Compiling expressions takes too long for a thread that serves others.
    let replica_labels = service.replica_labels.clone();
    let planning = move || plan(&received.plain, &replica_labels).map(|plan| (plan, permit));
    let planned = tokio::task::spawn_blocking(planning).await;
    let ((queries, response_type), permit) = match planned {
        Ok(Ok(planned)) => planned,
        Ok(Err(why)) => return text(StatusCode::BAD_REQUEST, why),
        Err(error) => {
            log::error!(err:% = error; "a read failed");
            return text(StatusCode::INTERNAL_SERVER_ERROR, "the read failed inside the adapter; its log says why");
        }
    };
    let reading = match store.read().await {
        Ok(reading) => reading,
        Err(error) => return failed(&Failure::Database(error)),
    };
    let answered = match response_type {
        ResponseType::Samples => samples(reading, &queries, service.config.read_sample_limit, &service.metrics).await,
        ResponseType::StreamedXorChunks => streamed(&service, reading, queries, permit).await,
    };
    answered.unwrap_or_else(|failure| failed(&failure))
}

fn plan(body: &[u8], replica_labels: &[String]) -> Result<(Vec<Query>, ResponseType), String> {
    let request = read::decode_request(body).map_err(|error| format!("the body is no remote-read request: {error}"))?;
    let response_type = negotiate(&request.accepted_response_types)
        .ok_or("none of the accepted response types is known here: accept SAMPLES or STREAMED_XOR_CHUNKS")?;
    let matchers = request.compile_matchers().map_err(|error| error.to_string())?;
    let queries = request.queries.iter().zip(matchers).map(|(query, mut matchers)| {
        // Stored series have no replica label, but each Prometheus of a pair queries with its own.
        matchers.retain(|matcher| !replica_labels.iter().any(|label| label == matcher.name()));
        Query {
            matchers,
            start_ms: query.start_timestamp_ms,
            end_ms: query.end_timestamp_ms,
            labels_only: query.wants_labels_only(),
        }
    });
    Ok((queries.collect(), response_type))
}

/// Answers all results in one snappy block. The block must be complete before its first byte is sent, so the sample
/// limit applies.
async fn samples(reading: Reading, queries: &[Query], limit: u64, metrics: &Metrics) -> Result<Answer, Failure> {
    let mut response = ReadResponse { results: Vec::with_capacity(queries.len()) };
    for query in queries {
        let mut result = QueryResult::default();
        let mut walk = Walk::begin(&reading, query).await?;
        let mut count = 0;
        while let Some((labels, first)) = walk.next_series().await? {
            let labels = labels.clone();
            let mut points: Vec<Point> = first.into_iter().collect();
            // A native histogram counts as much as it has numbers.
            let mut numbers = points.iter().map(|point| point.value.count() as u64).sum::<u64>();
            while count + numbers <= limit
                && let Some(point) = walk.next_point().await?
            {
                numbers += point.value.count() as u64;
                points.push(point);
            }
            if count + numbers > limit {
                return Err(Failure::SampleLimit(limit));
            }
            count += numbers;
            metrics.read_samples_total.inc_by(points.len() as u64);
            result.timeseries.push(time_series(&labels, points)?);
        }
        response.results.push(result);
    }
    reading.end().await?;
    let body = snappy::compress(&response.encode_to_vec()).map_err(|error| {
        Failure::Database(Error::TooLarge(format!("the answer is too large for one block: {error}")))
    })?;
    let mut answer = with_type(StatusCode::OK, "application/x-protobuf", body);
    answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
    Ok(answer)
}

/// Answers one frame per series, sent while the database still delivers. The first series decides the status: later
/// errors can only break the connection.
async fn streamed(
    service: &Arc<Service>,
    reading: Reading,
    queries: Vec<Query>,
    permit: OwnedSemaphorePermit,
) -> Result<Answer, Failure> {
    let (pieces, mut receiver) = mpsc::channel(PIECES_MAX);
    let metrics = Arc::clone(&service.metrics);
    service.tracker.spawn(async move {
        let _permit = permit;
        let outcome = tokio::select! {
            outcome = stream(&reading, &queries, &pieces, &metrics) => outcome,
            // The client has gone. Dropping the other branch cancels the query.
            () = pieces.closed() => return,
        };
        let last = match outcome {
            Ok(()) => {
                if let Err(error) = reading.end().await {
                    log::debug!(err:% = error; "ending a read failed");
                }
                Piece::End
            }
            Err(failure) => {
                log::warn!(err:% = failure; "a read broke off");
                Piece::Broken(failure)
            }
        };
        // If even this message cannot be sent, the missing end tells the client.
        let _ = tokio::time::timeout(SLOW_CLIENT_TIMEOUT, pieces.send(last)).await;
    });
    // An error before the first byte still gets a status.
    let first = receiver.recv().await;
    if let Some(Piece::Broken(failure)) = first {
        return Err(failure);
    }
    let rest = futures_util::stream::unfold((first, receiver, false), |(first, mut receiver, over)| async move {
        if over {
            return None;
        }
        let piece = match first {
            Some(piece) => Some(piece),
            None => receiver.recv().await,
        };
        match piece {
            Some(Piece::Frames(bytes)) => Some((Ok(bytes), (None, receiver, false))),
            Some(Piece::End) => None,
            Some(Piece::Broken(_)) | None => {
                Some((Err(std::io::Error::other("the read broke off")), (None, receiver, true)))
            }
        }
    });
    let stream = rest.map(|piece| piece.map(Frame::data));
    let mut answer = Response::new(StreamBody::new(stream).boxed_unsync());
    let content_type = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(answer)
}

async fn stream(
    reading: &Reading,
    queries: &[Query],
    pieces: &mpsc::Sender<Piece>,
    metrics: &Metrics,
) -> Result<(), Failure> {
    let mut out = BytesMut::new();
    for (index, query) in queries.iter().enumerate() {
        let mut walk = Walk::begin(reading, query).await?;
        while let Some((labels, first)) = walk.next_series().await? {
            let mut encoder = SeriesEncoder::new(labels, i64::try_from(index).unwrap_or_default());
            let mut count = u64::from(first.is_some());
            if let Some(point) = first {
                encoder.push(point)?;
            }
            while let Some(point) = walk.next_point().await? {
                encoder.push(point)?;
                count += 1;
                if encoder.is_full() {
                    encoder.write_frame(&mut out);
                    send(pieces, &mut out).await?;
                }
            }
            metrics.read_samples_total.inc_by(count);
            encoder.write_frame(&mut out);
            if out.len() >= FLUSH_BYTES {
                send(pieces, &mut out).await?;
            }
        }
    }
    send(pieces, &mut out).await?;
    Ok(())
}

async fn send(pieces: &mpsc::Sender<Piece>, out: &mut BytesMut) -> Result<(), Failure> {
    if out.is_empty() {
        return Ok(());
    }
    // The caller notices a client that has gone. A client that only stops reading would occupy a connection and a
    // snapshot.
    match tokio::time::timeout(SLOW_CLIENT_TIMEOUT, pieces.send(Piece::Frames(out.split().freeze()))).await {
        Ok(_) => Ok(()),
        Err(_) => Err(Failure::SlowClient),
    }
}

/// The series of a query, each with its points. Series without a point in the range are skipped, unless only labels
/// are requested.
struct Walk<'a> {
    series: Vec<(Labels, SeriesIds)>,
    samples: Option<Samples<'a>>,
    /// The index of the current series; without samples, of the next one.
    place: usize,
    /// A point that was read already, but belongs to a later series.
    ahead: Option<(usize, Point)>,
}

impl<'a> Walk<'a> {
    async fn begin(reading: &'a Reading, query: &Query) -> Result<Self, Failure> {
        let series = reading.series(&query.matchers).await?;
        let mut walk = Self { series, samples: None, place: 0, ahead: None };
        if !query.labels_only && !walk.series.is_empty() {
            let ids: Vec<SeriesIds> = walk.series.iter().map(|(_, id)| *id).collect();
            let mut samples = reading.samples(&ids, query.start_ms, query.end_ms).await?;
            walk.ahead = samples.next().await?;
            walk.samples = Some(samples);
        }
        Ok(walk)
    }

    /// Returns the next series and its first point. All points of the previous series must have been read.
    async fn next_series(&mut self) -> Result<Option<(&Labels, Option<Point>)>, Failure> {
        if self.samples.is_none() {
            let place = self.place;
            self.place += 1;
            return Ok(self.series.get(place).map(|(labels, _)| (labels, None)));
        }
        let Some((place, point)) = self.ahead.take() else { return Ok(None) };
        self.place = place;
        Ok(self.series.get(place).map(|(labels, _)| (labels, Some(point))))
    }

    async fn next_point(&mut self) -> Result<Option<Point>, Failure> {
        let Some(samples) = &mut self.samples else { return Ok(None) };
        if self.ahead.is_some() {
            return Ok(None);
        }
        match samples.next().await? {
            Some((place, point)) if place == self.place => Ok(Some(point)),
            other => {
                self.ahead = other;
                Ok(None)
            }
        }
    }
}

fn failed(failure: &Failure) -> Answer {
    match failure {
        Failure::SampleLimit(_) => text(StatusCode::BAD_REQUEST, failure.to_string()),
        Failure::Database(Error::TooLarge(why)) => text(StatusCode::BAD_REQUEST, why.clone()),
        Failure::Database(Error::Corrupt(why)) => {
            log::error!(err = why.as_str(); "a read failed");
            text(StatusCode::INTERNAL_SERVER_ERROR, why.clone())
        }
        Failure::Database(_) | Failure::SlowClient => {
            log::warn!(err:% = failure; "a read failed");
            unavailable(failure.to_string())
        }
    }
}
