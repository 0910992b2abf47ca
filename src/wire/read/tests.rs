use std::error::Error as _;

use proptest::prelude::*;

use super::messages::ReadHints;
use super::*;

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

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in any::<Vec<u8>>()) {
        let _ = decode_request(&body).map(|request| request.compile_matchers());
    }
}
