//! Requests of remote read.

use prometheus_postgresql_adapter::wire::read::messages::{LabelMatcher, MatcherType, Query, ReadHints, ReadRequest};
use prometheus_postgresql_adapter::wire::read::{MATCHERS_MAX, QUERIES_MAX, decode_request, negotiate};
use prost::Message;

use crate::seeds::Captures;

pub fn run(body: &[u8]) {
    let Ok(request) = decode_request(body) else { return };
    assert!(request.queries.len() <= QUERIES_MAX);
    assert!(request.queries.iter().all(|query| query.matchers.len() <= MATCHERS_MAX));
    assert_eq!(decode_request(&request.encode_to_vec()).as_ref(), Ok(&request));
    let _ = negotiate(&request.accepted_response_types);
    let Ok(compiled) = request.compile_matchers() else { return };
    assert_eq!(compiled.len(), request.queries.len());
    for (matchers, query) in compiled.iter().zip(&request.queries) {
        assert_eq!(matchers.len(), query.matchers.len());
        for (matcher, message) in matchers.iter().zip(&query.matchers) {
            assert_eq!((matcher.name(), matcher.value()), (&message.name[..], &message.value[..]));
            assert_eq!(matcher.matches_empty(), matcher.matches_value(""));
        }
    }
}

pub fn seeds(captures: &Captures) -> Vec<Vec<u8>> {
    let mut seeds =
        captures.messages(&["prometheus-3.14/read", "prometheus-3.14/read-asked"], ".request.bin", usize::MAX);
    let matcher = |kind: MatcherType, name: &str, value: &str| LabelMatcher {
        kind: kind.into(),
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let matchers = vec![
        matcher(MatcherType::Equal, "__name__", "up"),
        matcher(MatcherType::NotEqual, "job", ""),
        matcher(MatcherType::Regex, "instance", "a.*|b[0-9]{2}"),
        matcher(MatcherType::NotRegex, "mode", "idle"),
    ];
    let hints = ReadHints { step_ms: 15_000, func: "rate".to_owned(), ..ReadHints::default() };
    let query = Query { start_timestamp_ms: 0, end_timestamp_ms: 1_700_000_000_000, matchers, hints: Some(hints) };
    seeds.push(ReadRequest { queries: vec![query; 2], accepted_response_types: vec![1, 0] }.encode_to_vec());
    seeds
}
