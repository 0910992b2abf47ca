//! What a real Prometheus sent, and what its receiver made of it. These run only where the captures are available.

use super::*;
use crate::model::sample::Kind;

fn captures() -> Option<PathBuf> {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-3.14");
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    if !captures.is_dir() {
        eprintln!("skipped: no captures in {}", captures.display());
        return None;
    }
    Some(captures)
}

fn lines(file: &Path) -> Vec<Json> {
    let lines = std::fs::read_to_string(file).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn list<'j>(of: &'j Json, key: &str) -> impl Iterator<Item = &'j Json> {
    of[key].as_array().into_iter().flatten()
}

/// A float as its bits in hexadecimal.
fn float(json: &Json) -> Option<f64> {
    Some(f64::from_bits(u64::from_str_radix(json.as_str()?, 16).unwrap()))
}

fn parse(json: &Json) -> ProstHistogram {
    let whole = |json: &Json| json.as_i64().unwrap();
    let span = |span: &Json| ProstSpan { offset: whole(&span[0]) as i32, length: whole(&span[1]) as u32 };
    let floats = |key: &str| list(json, key).map(|number| float(number).unwrap()).collect();
    let count = json["count_int"].as_u64().map(ProstCount::Whole);
    let zero_count = json["zero_count_int"].as_u64().map(ProstZeroCount::Whole);
    ProstHistogram {
        count: count.or_else(|| float(&json["count_float"]).map(ProstCount::Float)),
        sum: float(&json["sum"]).unwrap(),
        schema: whole(&json["schema"]) as i32,
        zero_threshold: float(&json["zero_threshold"]).unwrap(),
        zero_count: zero_count.or_else(|| float(&json["zero_count_float"]).map(ProstZeroCount::Float)),
        negative_spans: list(json, "negative_spans").map(span).collect(),
        negative_deltas: list(json, "negative_deltas").map(whole).collect(),
        negative_counts: floats("negative_counts"),
        positive_spans: list(json, "positive_spans").map(span).collect(),
        positive_deltas: list(json, "positive_deltas").map(whole).collect(),
        positive_counts: floats("positive_counts"),
        reset_hint: match json["reset_hint"].as_str().unwrap() {
            "UNKNOWN" | "RESET_HINT_UNSPECIFIED" => 0,
            "YES" | "RESET_HINT_YES" => 1,
            "NO" | "RESET_HINT_NO" => 2,
            "GAUGE" | "RESET_HINT_GAUGE" => 3,
            number => number.parse().unwrap(),
        },
        timestamp: whole(&json["t"]),
        custom_values: floats("custom_values"),
        start_timestamp: json["start_t"].as_i64().unwrap_or(0),
    }
}

/// Decodes a file and hands it to `check`, after checking what holds of every request.
fn decode_file(file: &Path, version: i64, check: impl FnOnce(&Request<'_>)) {
    let body = snappy::decompress(&std::fs::read(file).unwrap(), usize::MAX, Vec::new()).unwrap();
    let request = if version == 1 { v1::decode(&body) } else { v2::decode(&body) }.unwrap();
    for series in &request.series {
        let has = (request.samples_of(series).is_empty(), request.histograms_of(series).is_empty());
        assert!(
            matches!((series.kind, has), (Kind::Float, (_, true)) | (Kind::Histogram, (true, false))),
            "{series:?}"
        );
    }
    check(&request);
}

#[test]
fn what_a_real_prometheus_sent_is_read_as_by_its_own_types() {
    let Some(captures) = captures() else { return };
    for (folder, version) in [("write-1.0", 1), ("write-2.0", 2), ("write-2.0-reset", 2)] {
        let (mut histograms, mut custom, mut of_floats) = (0, 0, 0);
        for line in lines(&captures.join(folder).join("expected.jsonl")) {
            let file = captures.join(folder).join(line["file"].as_str().unwrap());
            decode_file(&file, version, |request| {
                let theirs: Vec<&Json> = list(&line, "series").collect();
                assert_eq!(request.series.len(), theirs.len(), "{}", file.display());
                for (series, theirs) in request.series.iter().zip(theirs) {
                    let theirs: Vec<ProstHistogram> = list(theirs, "histograms").map(parse).collect();
                    assert_eq!(request.histograms_of(series).len(), theirs.len());
                    for (ours, theirs) in request.histograms_of(series).iter().zip(theirs) {
                        assert!(check(ours, &theirs), "{ours:?}");
                        histograms += 1;
                        custom += usize::from(theirs.schema == -53);
                        of_floats += usize::from(matches!(theirs.count, Some(ProstCount::Float(_))));
                    }
                }
            });
        }
        assert!(histograms > 20, "{folder}: {histograms}");
        assert!(version == 1 || custom > 2, "{folder}: {custom}");
        assert!(folder != "write-1.0" || of_floats > 2, "{folder}: {of_floats}");
    }
}

/// What Prometheus takes and we refuse, and the reason.
const STRICTER: [(&str, &str); 4] = [
    ("h_span_huge_offset", "beyond 32 bits"),
    ("h_count_huge", "2^53"),
    ("h_count_2_64_minus_1", "2^53"),
    ("h_sum_of_buckets_overflows", "do not add up"),
];

#[test]
fn we_are_at_least_as_strict_as_prometheus_and_keep_what_it_keeps() {
    let Some(captures) = captures() else { return };
    let folder = captures.join("cases");
    let (mut stored, mut refused) = (0, 0);
    for case in lines(&folder.join("cases.jsonl")) {
        if !case["sent"].to_string().contains("\"histograms\"") {
            continue;
        }
        let name = case["case"].as_str().unwrap();
        let stricter = STRICTER.iter().find(|(stricter, _)| *stricter == name);
        let mut decoded = Vec::new();
        for (answer, sent) in list(&case, "answers").zip(list(&case, "sent")) {
            let file = folder.join(answer["file"].as_str().unwrap());
            decode_file(&file, case["version"].as_i64().unwrap(), |request| {
                let all = sent.as_array().unwrap().iter().flat_map(|series| list(series, "histograms")).map(parse);
                let all: Vec<ProstHistogram> = all.collect();
                assert_eq!(all.len(), request.histograms.len(), "{name}");
                for (ours, theirs) in request.histograms.iter().zip(all) {
                    // Version 1.0 has no start.
                    let is_stored = check(ours, &theirs);
                    decoded.push((theirs, is_stored));
                }
                let reasons = request.histograms.iter().filter_map(|sample| sample.value.as_ref().err());
                let reasons = reasons.copied().collect::<Vec<_>>().join(" ");
                match (answer["status"].as_u64().unwrap(), stricter) {
                    (204, None) => assert_eq!(reasons, "", "{name}"),
                    (204, Some((_, reason))) => assert!(reasons.contains(reason), "{name}: {reasons}"),
                    // Times are not judged here.
                    _ if answer["text"].as_str().unwrap().starts_with("out of bounds") => {}
                    _ => {
                        assert!(!reasons.is_empty(), "{name}");
                        refused += 1;
                    }
                }
            });
        }
        for theirs in list(&case, "stored").flat_map(|series| list(series, "histograms")).map(parse) {
            // The sender's stale marker came as a float.
            if stricter.is_some() || name == "h_then_float_stale" && theirs.sum.is_nan() {
                continue;
            }
            // It keeps no start, and of the hints only that of a gauge: the others it finds out by itself.
            let plain = |message: &ProstHistogram| {
                let histogram = reference(message)?;
                let reset_hint = if histogram.reset_hint == 3 { 3 } else { 0 };
                Some(Histogram { reset_hint, start_ms: 0, ..histogram })
            };
            let is_same = |(ours, is_stored): &(ProstHistogram, bool)| {
                let is_stale = ours.sum.to_bits() == STALE_NAN_BITS && theirs.sum.to_bits() == STALE_NAN_BITS;
                *is_stored && ours.timestamp == theirs.timestamp && (is_stale || plain(ours) == plain(&theirs))
            };
            assert!(decoded.iter().any(is_same), "{name}: {theirs:?}");
            stored += 1;
        }
    }
    assert!(stored > 70 && refused > 40, "{stored} stored, {refused} refused");
}
