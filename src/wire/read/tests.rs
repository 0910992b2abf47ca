use std::error::Error as _;

use proptest::prelude::*;

use super::messages::{QueryResult, ReadHints, ReadResponse};
use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Labels::from_stored(pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())))
}

fn matcher(kind: i32, name: &str, value: &str) -> LabelMatcher {
    LabelMatcher { kind, name: name.into(), value: value.into() }
}

fn query(matchers: Vec<LabelMatcher>) -> Query {
    Query { start_timestamp_ms: 0, end_timestamp_ms: 1, matchers, hints: None }
}

/// The field numbers are written by hand.
fn request(matchers: Vec<LabelMatcher>) -> ReadRequest {
    ReadRequest { queries: vec![query(matchers)], accepted_response_types: vec![] }
}

#[test]
fn a_known_request() {
    let body = [
        &b"\x0a\x26"[..],                                           // queries, 38 bytes
        b"\x08\xe8\x07\x10\xd0\x0f",                                // from 1000 to 2000
        b"\x1a\x0b\x08\x03\x12\x03job\x1a\x02.*",                   // job !~ ".*"
        b"\x22\x11\x12\x06series\x18\x01\x2a\x01a\x30\x01\x38\x05", // hints
        b"\x12\x02\x01\x00",                                        // streamed chunks, or else samples
    ]
    .concat();
    let hints = ReadHints {
        func: "series".into(),
        start_ms: 1,
        grouping: vec!["a".into()],
        by: true,
        range_ms: 5,
        ..ReadHints::default()
    };
    let query = Query {
        start_timestamp_ms: 1000,
        end_timestamp_ms: 2000,
        matchers: vec![matcher(3, "job", ".*")],
        hints: Some(hints),
    };
    assert!(query.wants_labels_only());
    let request = ReadRequest { queries: vec![query], accepted_response_types: vec![1, 0] };
    assert_eq!(decode_request(&body), Ok(request));
    assert!(decode_request(b"\xff").is_err());
    assert!(decode_request(b"\x0a\x05\x1a\x03\x12\x01\xff").is_err());
}

/// Go's encoder packs the accepted types; other encoders may not.
#[test]
fn types_may_be_packed_or_not() {
    for body in [&b"\x12\x02\x01\x00"[..], b"\x10\x01\x10\x00"] {
        assert_eq!(decode_request(body).unwrap().accepted_response_types, [1, 0]);
    }
}

#[test]
fn the_first_type_known_here_is_taken() {
    let check = |accepted: &[i32], expected| assert_eq!(negotiate(accepted), expected, "{accepted:?}");
    check(&[], Some(ResponseType::Samples));
    check(&[0], Some(ResponseType::Samples));
    check(&[1, 0], Some(ResponseType::StreamedXorChunks));
    check(&[0, 1], Some(ResponseType::Samples));
    check(&[7, -1, 1], Some(ResponseType::StreamedXorChunks));
    check(&[7], None);
}

#[test]
fn matchers_compile_or_say_why_not() {
    let kinds = [(0, Op::Equal), (1, Op::NotEqual), (2, Op::Regex), (3, Op::NotRegex)];
    for (kind, op) in kinds {
        let matchers = request(vec![matcher(kind, "job", "a|b")]).compile_matchers().unwrap();
        assert_eq!((matchers[0][0].op(), matchers[0][0].name(), matchers[0][0].value()), (op, "job", "a|b"));
    }
    let error = |matchers| request(matchers).compile_matchers().unwrap_err();
    assert_eq!(
        error(vec![matcher(4, "job", "")]).to_string(),
        r#"the matcher of the label "job" has the unknown type 4"#
    );
    let regex = error(vec![matcher(0, "job", ""), matcher(2, "job", "[")]);
    assert!(regex.to_string().contains(r#""job"=~"[""#) && regex.source().is_some());
}

#[test]
fn a_request_has_bounds() {
    let queries = |count, matchers| {
        let queries = vec![query(vec![matcher(0, "job", "a"); matchers]); count];
        decode_request(&ReadRequest { queries, accepted_response_types: vec![] }.encode_to_vec()).map(drop)
    };
    assert_eq!(queries(QUERIES_MAX, MATCHERS_MAX), Ok(()));
    assert_eq!(queries(QUERIES_MAX + 1, 0), Err(RequestError::TooManyQueries));
    assert_eq!(queries(1, MATCHERS_MAX + 1), Err(RequestError::TooManyMatchers));
    assert_eq!(decode_request(&[0; REQUEST_BYTES_MAX + 1]), Err(RequestError::TooLarge(REQUEST_BYTES_MAX + 1)));
    let expressions =
        |count, len| request(vec![matcher(2, "job", &"a".repeat(len)); count]).compile_matchers().map(drop);
    assert!(expressions(4, EXPRESSION_BYTES_MAX / 4).is_ok());
    let error = expressions(4, EXPRESSION_BYTES_MAX / 4 + 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the regular expressions of the request have 65540 bytes, more than the 65536 allowed"
    );
}

#[test]
fn expressions_share_the_memory_they_may_take() {
    let large = |count| request(vec![matcher(2, "job", r"\pL{40}"); count]).compile_matchers().map(drop);
    assert!(large(1).is_ok());
    assert!(large(MATCHERS_MAX).is_err());
}

#[test]
fn a_known_answer() {
    let series = time_series(&labels(&[("a", "b")]), [Sample { timestamp_ms: 1234, value: 1.5 }]);
    let response = ReadResponse { results: vec![QueryResult { timeseries: vec![series] }, QueryResult::default()] };
    let bytes = b"\x0a\x18\x0a\x16\x0a\x06\x0a\x01a\x12\x01b\x12\x0c\x09\0\0\0\0\0\0\xf8\x3f\x10\xd2\x09\x0a\x00";
    assert_eq!(response.encode_to_vec(), bytes);
}

#[test]
fn a_known_frame() {
    let mut encoder = SeriesEncoder::new(&labels(&[("a", "b")]), 1);
    encoder.push(Sample { timestamp_ms: 5, value: 0.0 });
    let mut out = Vec::new();
    encoder.write_frame(&mut out);
    let payload = [
        &b"\x0a\x1d"[..],                      // chunked_series, 29 bytes
        b"\x0a\x06\x0a\x01a\x12\x01b",         // a="b"
        b"\x12\x13\x08\x05\x10\x05\x18\x01",   // a chunk from 5 to 5, XOR
        b"\x22\x0b\0\x01\x0a\0\0\0\0\0\0\0\0", // its data
        b"\x10\x01",                           // query_index
    ]
    .concat();
    assert_eq!(frame::read_frame(&mut &out[..], 1 << 20), Ok(Some(&payload[..])));
}

#[test]
fn a_series_goes_on_after_a_frame() {
    let labels = labels(&[("__name__", "up")]);
    let mut encoder = SeriesEncoder::new(&labels, 0);
    let mut out = Vec::new();
    for timestamp_ms in 0..150 {
        encoder.push(Sample { timestamp_ms, value: 0.0 });
        if timestamp_ms == 129 {
            encoder.write_frame(&mut out);
        }
    }
    assert!(!encoder.is_full());
    encoder.write_frame(&mut out);
    let mut stream = &out[..];
    let mut times = Vec::new();
    while let Some(payload) = frame::read_frame(&mut stream, 1 << 20).unwrap() {
        let response = ChunkedReadResponse::decode(payload).unwrap();
        assert_eq!(response.chunked_series.len(), 1);
        let series = &response.chunked_series[0];
        assert_eq!(series.labels, label_messages(&labels));
        times.push(series.chunks.iter().map(|chunk| (chunk.min_time_ms, chunk.max_time_ms)).collect::<Vec<_>>());
    }
    assert_eq!(times, [vec![(0, 119), (120, 129)], vec![(130, 149)]]);
}

proptest! {
    #[test]
    fn chunks_hold_every_sample_and_its_time(bits in prop::collection::vec(any::<u64>(), 0..500)) {
        let samples: Vec<_> =
            (0..).zip(bits).map(|(at, bits)| Sample { timestamp_ms: at * 15_000, value: f64::from_bits(bits) }).collect();
        let series = chunked_series(&Labels::default(), samples.iter().copied());
        prop_assert_eq!(series.chunks.len(), samples.len().div_ceil(CHUNK_SAMPLES));
        for (chunk, expected) in series.chunks.iter().zip(samples.chunks(CHUNK_SAMPLES)) {
            prop_assert_eq!(xor::decode(&chunk.data).unwrap(), expected);
            prop_assert_eq!(chunk.min_time_ms, expected[0].timestamp_ms);
            prop_assert_eq!(chunk.max_time_ms, expected[expected.len() - 1].timestamp_ms);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in any::<Vec<u8>>()) {
        let _ = decode_request(&body).map(|request| request.compile_matchers());
    }
}
