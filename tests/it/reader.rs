//! A remote-read client for both response types.

use std::collections::BTreeMap;

use prometheus_postgresql_adapter::model::histogram::Histogram;
use prometheus_postgresql_adapter::model::sample::{Point, Sample, Value};
use prometheus_postgresql_adapter::wire::read::messages::{
    self, Chunk, ChunkEncoding, ChunkedReadResponse, Label, LabelMatcher, MatcherType, Query, QueryResult, ReadHints,
    ReadRequest, ReadResponse, ResponseType, TimeSeries,
};
use prometheus_postgresql_adapter::wire::write::v1;
use prometheus_postgresql_adapter::wire::{frame, histogram_chunk, snappy, xor};
use prost::Message;
use rig::adapter::Adapter;
use rig::http::Response;

/// A series of a response: its labels in the order in which they came, and its samples.
pub(crate) type Series = (Vec<(String, String)>, Vec<Sample>);

/// A query between two times, both included.
pub(crate) fn query(start_ms: i64, end_ms: i64, matchers: &[(&str, &str, &str)]) -> Query {
    let matchers = matchers.iter().map(|(name, op, value)| {
        let kind = match *op {
            "=" => MatcherType::Equal,
            "!=" => MatcherType::NotEqual,
            "=~" => MatcherType::Regex,
            "!~" => MatcherType::NotRegex,
            _ => panic!("no such operator: {op}"),
        };
        LabelMatcher { kind: kind.into(), name: (*name).to_owned(), value: (*value).to_owned() }
    });
    Query { start_timestamp_ms: start_ms, end_timestamp_ms: end_ms, matchers: matchers.collect(), hints: None }
}

/// The same query with the hint that only labels are needed.
pub(crate) fn labels_only(query: Query) -> Query {
    Query { hints: Some(ReadHints { func: "series".to_owned(), ..ReadHints::default() }), ..query }
}

/// Body of a request.
pub(crate) fn body(queries: &[Query], accepted: &[i32]) -> Vec<u8> {
    let request = ReadRequest { queries: queries.to_vec(), accepted_response_types: accepted.to_vec() };
    snappy::compress(&request.encode_to_vec()).expect("a test's body fits a block")
}

/// Sends a request and returns the response, whatever its status.
pub(crate) async fn ask(adapter: &Adapter, queries: &[Query], accepted: &[i32]) -> Response {
    adapter.read(body(queries, accepted)).await
}

/// Requests samples. Returns one list of series per query.
pub(crate) async fn samples(adapter: &Adapter, queries: &[Query]) -> Vec<Vec<Series>> {
    let answer = ask(adapter, queries, &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/x-protobuf"));
    assert_eq!(answer.header("content-encoding"), Some("snappy"));
    let plain = snappy::decompress(&answer.body, usize::MAX, vec![]).expect("an answer is a snappy block");
    let response = ReadResponse::decode(&plain[..]).expect("an answer is a ReadResponse");
    let results = response.results.into_iter().map(|result| {
        let series = result.timeseries.into_iter().map(|series| {
            let samples =
                series.samples.iter().map(|s| Sample { timestamp_ms: s.timestamp, value: s.value.unwrap_or_default() });
            (pairs(&series.labels), samples.collect())
        });
        series.collect()
    });
    results.collect()
}

/// Requests a stream. Returns one list of series per query, in the order of the frames.
pub(crate) async fn streamed(adapter: &Adapter, queries: &[Query]) -> Vec<Vec<Series>> {
    let accepted = [ResponseType::StreamedXorChunks.into(), ResponseType::Samples.into()];
    let answer = ask(adapter, queries, &accepted).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let content_type = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse";
    assert_eq!(answer.header("content-type"), Some(content_type));
    assert_eq!(answer.header("content-encoding"), None);
    let mut results = vec![Vec::new(); queries.len()];
    let mut stream = &answer.body[..];
    let mut last_index = 0;
    while let Some(payload) = frame::read_frame(&mut stream, 50_000_000).expect("a frame with its checksum") {
        let response = ChunkedReadResponse::decode(payload).expect("a frame holds a ChunkedReadResponse");
        let [series] = &response.chunked_series[..] else { panic!("a frame has one series") };
        let mut samples = Vec::new();
        for chunk in &series.chunks {
            assert_eq!(chunk.encoding, i32::from(ChunkEncoding::Xor));
            let decoded = xor::decode(&chunk.data).expect("a chunk is encoded as XOR");
            assert_eq!(decoded.first().map(|s| s.timestamp_ms), Some(chunk.min_time_ms));
            assert_eq!(decoded.last().map(|s| s.timestamp_ms), Some(chunk.max_time_ms));
            samples.extend(decoded);
        }
        assert!(response.query_index >= last_index, "queries are answered in order");
        last_index = response.query_index;
        let index = usize::try_from(response.query_index).expect("an index is not negative");
        results[index].push((pairs(&series.labels), samples));
    }
    results
}

/// Requests both response types, which must agree, and returns the streamed one.
pub(crate) async fn both(adapter: &Adapter, queries: &[Query]) -> Vec<Vec<Series>> {
    let (plain, stream) = (samples(adapter, queries).await, streamed(adapter, queries).await);
    let sorted = |results: &[Vec<Series>]| -> Vec<BTreeMap<_, _>> {
        results.iter().map(|series| series.iter().cloned().collect()).collect()
    };
    assert_eq!(sorted(&plain), sorted(&stream), "the two forms of an answer agree");
    stream
}

/// Labels of a series of a response, and its floats and native histograms.
pub(crate) type Points = (Vec<(String, String)>, Vec<Point>);

/// Requests both response types for one query, which must agree, and returns the samples.
pub(crate) async fn points(adapter: &Adapter, query: Query) -> Vec<Points> {
    let queries = [query];
    let answer = ask(adapter, &queries, &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let plain = snappy::decompress(&answer.body, usize::MAX, vec![]).expect("an answer is a snappy block");
    let response = ReadResponse::decode(&plain[..]).expect("an answer is a ReadResponse");
    let series = response.results.into_iter().flat_map(|result| result.timeseries);
    let mut plain: Vec<Points> = series.map(|series| (pairs(&series.labels), points_of(&series))).collect();
    let answer = ask(adapter, &queries, &[ResponseType::StreamedXorChunks.into()]).await;
    let (mut stream, mut streamed) = (&answer.body[..], Vec::new());
    while let Some(payload) = frame::read_frame(&mut stream, 50_000_000).expect("a frame with its checksum") {
        let response = ChunkedReadResponse::decode(payload).expect("a frame holds a ChunkedReadResponse");
        let [series] = &response.chunked_series[..] else { panic!("a frame has one series") };
        streamed.push((pairs(&series.labels), series.chunks.iter().flat_map(points_in).collect()));
    }
    plain.sort_by(|one, other| one.0.cmp(&other.0));
    let without_details = |(labels, points): &Points| (labels.clone(), points.iter().map(without_details).collect());
    assert_eq!(plain.iter().map(without_details).collect::<Vec<Points>>(), streamed, "the two forms agree");
    plain
}

/// Leaves out what chunks do not have: starts, and hints about resets.
fn without_details(Point { timestamp_ms, value }: &Point) -> Point {
    let value = match value {
        Value::Float(value) => Value::Float(*value),
        Value::Histogram(numbers) => {
            let histogram = numbers.to_histogram().expect("it is one");
            Value::Histogram(Histogram { start_ms: 0, reset_hint: 0, ..histogram }.to_numbers())
        }
    };
    Point { timestamp_ms: *timestamp_ms, value }
}

/// Returns the points of a series of an answer with samples.
fn points_of(series: &TimeSeries) -> Vec<Point> {
    let float = |s: &messages::Sample| Point { timestamp_ms: s.timestamp, value: s.value.unwrap_or_default().into() };
    let mut points: Vec<Point> = series.samples.iter().map(float).collect();
    // A write request has histograms in the same form.
    let message = TimeSeries { samples: Vec::new(), ..series.clone() };
    let body = QueryResult { timeseries: vec![message] }.encode_to_vec();
    let request = v1::decode(&body).expect("it is a request too");
    let histograms = request.histograms.into_iter();
    points
        .extend(histograms.map(|one| Point { timestamp_ms: one.timestamp_ms, value: one.value.expect("it is valid") }));
    points.sort_by_key(|point| point.timestamp_ms);
    points
}

fn points_in(chunk: &Chunk) -> Vec<Point> {
    let encoding = ChunkEncoding::try_from(chunk.encoding).expect("it is known");
    let float = |s: Sample| Point { timestamp_ms: s.timestamp_ms, value: s.value.into() };
    if encoding == ChunkEncoding::Xor {
        return xor::decode(&chunk.data).expect("a chunk is encoded as XOR").into_iter().map(float).collect();
    }
    let is_float = encoding == ChunkEncoding::FloatHistogram;
    let decoded = histogram_chunk::decode(is_float, &chunk.data).expect("a chunk of histograms");
    decoded.points.iter().map(without_details).collect()
}

/// Returns the values of the label `label` in the response to one query, sorted.
pub(crate) fn values(results: &[Vec<Series>], label: &str) -> Vec<String> {
    let [series] = results else { panic!("one query has one result") };
    let value = |(labels, _): &Series| labels.iter().find(|(name, _)| name == label).map(|(_, value)| value.clone());
    let mut values: Vec<String> = series.iter().map(|series| value(series).unwrap_or_default()).collect();
    values.sort();
    values
}

fn pairs(labels: &[Label]) -> Vec<(String, String)> {
    labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect()
}
