use std::path::Path;

use proptest::prelude::*;
use prost::Message;
use prost::encoding::encode_varint;
use rig::remote_write::{add_series, labels};

use super::*;
use crate::model::sample::{Kind, STALE_NAN_BITS, Value};
use crate::wire::snappy;
use crate::wire::write::histogram::tests::{ProstHistogram, any_histogram, check};
use crate::wire::write::{EXEMPLARS_MAX, HistogramSample, METADATA_MAX};

/// The same message for an independent decoder. Labels are bytes, because one bad label must not make the request fail.
#[derive(Clone, PartialEq, Message)]
struct ProstRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<ProstSeries>,
    #[prost(message, repeated, tag = "3")]
    metadata: Vec<ProstMetadata>,
}

#[derive(Clone, PartialEq, Message)]
struct ProstMetadata {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(bytes = "vec", tag = "2")]
    metric_family_name: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    help: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    unit: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ProstSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<ProstLabel>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<ProstSample>,
    #[prost(message, repeated, tag = "3")]
    exemplars: Vec<ProstExemplar>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<ProstHistogram>,
}

#[derive(Clone, PartialEq, Message)]
struct ProstExemplar {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<ProstLabel>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ProstLabel {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ProstSample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

/// Labels and samples of one series, and its numbers of exemplars and histograms, as both decoders must return them.
type Seen = (Vec<(Vec<u8>, Vec<u8>)>, Vec<Sample>, usize, usize);

fn seen(request: &Request<'_>) -> Vec<Seen> {
    let series = |series: &Series<'_>| {
        let labels = request.label_pairs(series).map(|pair| pair.unwrap()).map(|(n, v)| (n.to_vec(), v.to_vec()));
        let samples = request.samples_of(series).to_vec();
        (labels.collect(), samples, series.exemplars as usize, request.histograms_of(series).len())
    };
    request.series.iter().map(series).collect()
}

fn seen_by_prost(request: &ProstRequest) -> Vec<Seen> {
    let sample = |s: &ProstSample| Sample { timestamp_ms: s.timestamp, value: s.value };
    let series = |series: &ProstSeries| {
        let labels: Vec<_> = series.labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect();
        let samples: Vec<_> = series.samples.iter().map(sample).collect();
        let (exemplars, histograms) = (series.exemplars.len(), series.histograms.len());
        if samples.is_empty() || histograms == 0 {
            return vec![(labels, samples, exemplars, histograms)];
        }
        vec![(labels.clone(), samples, exemplars, 0), (labels, vec![], 0, histograms)]
    };
    request.timeseries.iter().flat_map(series).collect()
}

/// Place of the series, labels and sample of each exemplar.
type SeenExemplar = (usize, Vec<(Vec<u8>, Vec<u8>)>, Sample);

fn seen_exemplars(request: &Request<'_>) -> Vec<SeenExemplar> {
    let exemplar = |exemplar: &Exemplar<'_>| {
        let labels = request.pairs(&exemplar.labels).map(|pair| pair.unwrap()).map(|(n, v)| (n.to_vec(), v.to_vec()));
        (exemplar.series as usize, labels.collect(), exemplar.sample)
    };
    request.exemplars.iter().map(exemplar).collect()
}

fn exemplars_seen_by_prost(request: &ProstRequest) -> Vec<SeenExemplar> {
    let has_both = |series: &ProstSeries| !series.samples.is_empty() && !series.histograms.is_empty();
    let places = request.timeseries.iter().scan(0, |next, series| {
        let place = *next;
        *next += if has_both(series) { 2 } else { 1 };
        Some((place, series))
    });
    let all = places.flat_map(|(place, series)| series.exemplars.iter().map(move |exemplar| (place, exemplar)));
    let seen = |(place, ProstExemplar { labels, value, timestamp }): (usize, &ProstExemplar)| {
        let labels = labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect();
        (place, labels, Sample { timestamp_ms: *timestamp, value: *value })
    };
    all.map(seen).collect()
}

fn seen_metadata(request: &ProstRequest) -> Vec<Metadata<'_>> {
    fn metadata(ProstMetadata { kind, metric_family_name: name, help, unit }: &ProstMetadata) -> Metadata<'_> {
        Metadata { name, kind: *kind, help, unit }
    }
    request.metadata.iter().map(metadata).filter(Metadata::says_something).collect()
}

/// A request as the other tests send it.
fn encode<L, S, N, V>(series: impl IntoIterator<Item = (L, S)>) -> Vec<u8>
where
    L: IntoIterator<Item = (N, V)>,
    S: AsRef<[Sample]>,
    N: AsRef<[u8]>,
    V: AsRef<[u8]>,
{
    let mut body = Vec::new();
    for (of_series, samples) in series {
        let samples = samples.as_ref().iter().map(|sample| (sample.timestamp_ms, sample.value));
        add_series(&mut body, &labels(of_series), samples);
    }
    body
}

#[track_caller]
fn check_agreement(body: &[u8]) {
    let ours = decode(body).unwrap();
    let prost = ProstRequest::decode(body).unwrap();
    assert_eq!(seen(&ours), seen_by_prost(&prost));
    assert_eq!(ours.metadata, seen_metadata(&prost));
    assert_eq!(seen_exemplars(&ours), exemplars_seen_by_prost(&prost));
    let mut histograms = ours.histograms.iter();
    for message in prost.timeseries.iter().flat_map(|series| &series.histograms) {
        // Version 1.0 has no start.
        check(histograms.next().unwrap(), &message.without_start());
    }
    assert_eq!(histograms.next(), None);
    assert_eq!(ours.samples.len(), prost.timeseries.iter().map(|series| series.samples.len()).sum::<usize>());
}

#[track_caller]
fn check_error(body: &[u8], offset: usize, what: &'static str) {
    assert_eq!(decode(body), Err(DecodeError { offset, what }));
}

fn sample(timestamp_ms: i64, value: f64) -> Sample {
    Sample { timestamp_ms, value }
}

#[test]
fn known_bytes() {
    let body = [
        &b"\x0a\x1a"[..],                                // timeseries, 26 bytes
        b"\x0a\x06\x0a\x01a\x12\x01b",                   // a="b"
        b"\x12\x0c\x09\0\0\0\0\0\0\xf8\x3f\x10\xd2\x09", // 1.5 at 1234
        b"\x22\x00\x1a\x00",                             // a histogram and an exemplar
        b"\x1a\x00",                                     // metadata
    ]
    .concat();
    let request = decode(&body).unwrap();
    let empty = Value::Histogram(crate::model::histogram::Histogram::default().to_numbers());
    let labels = Cow::Borrowed(&body[2..10]);
    assert_eq!(
        request,
        Request {
            symbols: None,
            series: vec![
                Series {
                    labels: labels.clone(),
                    kind: Kind::Float,
                    samples: 0..1,
                    exemplars: 1,
                    histograms: 1..1,
                    fault: None,
                },
                Series { labels, kind: Kind::Histogram, samples: 1..1, exemplars: 0, histograms: 0..1, fault: None },
            ],
            samples: vec![sample(1234, 1.5)],
            exemplars: vec![Exemplar { series: 0, labels: Cow::Borrowed(&[]), sample: sample(0, 0.0) }],
            histograms: vec![HistogramSample { timestamp_ms: 0, value: Ok(empty) }],
            histogram_numbers: 10,
            metadata: vec![],
        }
    );
    assert_eq!(encode([([("a", "b")], [sample(1234, 1.5)])]), [b"\x0a\x16", &body[2..24]].concat());
    check_agreement(&body);
    assert_eq!(decode(b""), Ok(Request::default()));
}

#[test]
fn labels_are_borrowed_while_they_are_contiguous() {
    let [a, b, s] = [&b"\x0a\x02\x0a\x00"[..], b"\x0a\x03\x12\x01b", b"\x12\x00"];
    let borrowed = |parts: &[&[u8]], expected: &[&[u8]]| {
        let series = parts.concat();
        let body = [&[0x0a, series.len() as u8], &series[..]].concat();
        let request = decode(&body).unwrap();
        assert_eq!(request.series[0].labels, expected.concat());
        check_agreement(&body);
        matches!(request.series[0].labels, Cow::Borrowed(_))
    };
    assert!(borrowed(&[a, b, s], &[a, b]));
    assert!(borrowed(&[s, a, b], &[a, b]));
    assert!(borrowed(&[s, s], &[]));
    assert!(!borrowed(&[a, s, b], &[a, b]));
    assert!(!borrowed(&[s, a, s, b, s, a, s], &[a, b, a]));
}

#[test]
fn absent_fields_are_zero_and_the_last_of_several_counts() {
    check_agreement(b"\x0a\x02\x12\x00");
    assert_eq!(decode(b"\x0a\x02\x12\x00").unwrap().samples, [sample(0, 0.0)]);
    assert_eq!(decode(b"\x0a\x06\x12\x04\x10\x01\x10\x02").unwrap().samples, [sample(2, 0.0)]);
    let name_twice = b"\x0a\x08\x0a\x06\x0a\x01a\x0a\x01b";
    check_agreement(name_twice);
    let request = decode(name_twice).unwrap();
    assert_eq!(request.label_pairs(&request.series[0]).collect::<Vec<_>>(), [Ok((&b"b"[..], &b""[..]))]);
}

#[test]
fn unknown_fields_are_skipped() {
    // Fields 15 and 2000 of every wire type except groups, on every level.
    let unknown = b"\x78\x80\x01\x79\0\0\0\0\0\0\0\0\x7a\x01x\x7d\0\0\0\0\x80\x7d\x01";
    let nest = |tag: u8, parts: &[&[u8]]| {
        let payload = [unknown, &parts.concat()[..], unknown].concat();
        [&[tag, payload.len() as u8], &payload[..]].concat()
    };
    let series = [nest(0x0a, &[b"\x0a\x01a\x12\x01b"]), nest(0x12, &[b"\x10\x05"])].concat();
    let len = (series.len() + 2 * unknown.len()) as u64;
    let mut body = [unknown, &b"\x0a"[..]].concat();
    encode_varint(len, &mut body);
    body.extend([unknown, &series[..], unknown, unknown].concat());
    check_agreement(&body);
    assert_eq!(decode(&body).unwrap().samples, [sample(5, 0.0)]);
}

#[test]
fn errors_say_what_and_where() {
    check_error(b"\xff", 0, "truncated or overlong tag");
    check_error(b"\x0a", 1, "truncated or overlong length");
    check_error(b"\x0a\x05\x0a", 2, "field longer than its message");
    check_error(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, "field longer than its message");
    check_error(b"\x78\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 1, "truncated or overlong varint");
    check_error(b"\x0b\x0c", 0, "group, which no message here has");
    check_error(b"\x0c", 0, "group, which no message here has");
    check_error(b"\x0f", 0, "unknown wire type");
    check_error(b"\x02\x00", 0, "field number out of range");
    check_error(b"\xfa\xff\xff\xff\x7f\x00", 0, "field number out of range");
    check_error(b"\x08\x00", 0, "known field of the wrong wire type");
    check_error(b"\x18\x00", 0, "known field of the wrong wire type");
    check_error(b"\x0a\x02\x08\x00", 2, "known field of the wrong wire type");
    check_error(b"\x0a\x04\x12\x02\x08\x00", 4, "known field of the wrong wire type");
    check_error(b"\x0a\x00\x0a\x05\x12\x03\x09\x00\x00", 7, "truncated fixed-width value");
    check_error(b"\x0a\x05\x12\x03\x15\x00\x00", 5, "truncated fixed-width value");
}

#[test]
fn a_bad_label_waits_for_its_reader() {
    let body = b"\x0a\x08\x0a\x02\x0a\x05\x12\x02\x10\x01\x0a\x08\x0a\x06\x0a\x01a\x12\x01b";
    let request = decode(body).unwrap();
    assert_eq!(
        request.label_pairs(&request.series[0]).collect::<Vec<_>>(),
        [Err(DecodeError { offset: 4, what: "field longer than its message" })]
    );
    assert_eq!(request.label_pairs(&request.series[1]).collect::<Vec<_>>(), [Ok((&b"a"[..], &b"b"[..]))]);
}

#[test]
fn nan_bits_survive() {
    for bits in [STALE_NAN_BITS, 0x7ff8_0000_0000_0001, 0xfff0_dead_beef_0001, f64::INFINITY.to_bits(), 1 << 63] {
        let body = encode([([("a", "b")], [sample(i64::MIN, f64::from_bits(bits))])]);
        assert_eq!(decode(&body).unwrap().samples[0].value.to_bits(), bits);
    }
}

/// Runs only where the captures are available; they are too large for the repository.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn what_a_real_pair_sent_decodes() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-2.42-pair");
    let mut files: Vec<_> = ["a", "b"]
        .into_iter()
        .filter_map(|replica| captures.join(replica).read_dir().ok())
        .flat_map(|entries| entries.map(|entry| entry.unwrap().path()))
        .collect();
    files.sort();
    if files.is_empty() {
        eprintln!("skipped: no captures in {}", captures.display());
        return;
    }
    let (mut samples, mut metadata) = (0, 0);
    for file in &files {
        let body = snappy::decompress(&std::fs::read(file).unwrap(), 32 << 20, vec![]).unwrap();
        check_agreement(&body);
        let request = decode(&body).unwrap();
        assert!(request.series.iter().all(|series| matches!(series.labels, Cow::Borrowed(_))));
        samples += request.samples.len();
        metadata += request.metadata.len();
    }
    assert!(samples > 100_000 && metadata > 0, "{samples} samples, {metadata} of metadata");
}

fn any_series() -> impl Strategy<Value = Vec<ProstSeries>> {
    let label = || any::<(Vec<u8>, Vec<u8>)>().prop_map(|(name, value)| ProstLabel { name, value });
    let exemplar = (prop::collection::vec(label(), 0..3), any::<u64>(), any::<i64>())
        .prop_map(|(labels, bits, timestamp)| ProstExemplar { labels, value: f64::from_bits(bits), timestamp });
    let sample =
        any::<(u64, i64)>().prop_map(|(bits, timestamp)| ProstSample { value: f64::from_bits(bits), timestamp });
    let histograms = prop::collection::vec(any_histogram(), 0..3);
    let exemplars = prop::collection::vec(exemplar, 0..3);
    let series = (prop::collection::vec(label(), 0..5), prop::collection::vec(sample, 0..5), exemplars, histograms);
    let series = series.prop_map(|(labels, samples, exemplars, histograms)| ProstSeries {
        labels,
        samples,
        exemplars,
        histograms,
    });
    prop::collection::vec(series, 0..4)
}

fn any_metadata() -> impl Strategy<Value = ProstMetadata> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..3);
    (0..3_u32, bytes(), bytes(), bytes()).prop_map(|(kind, metric_family_name, help, unit)| ProstMetadata {
        kind,
        metric_family_name,
        help,
        unit,
    })
}

proptest! {
    #[test]
    fn prost_and_we_agree_on_valid_bodies(timeseries in any_series(), metadata in prop::collection::vec(any_metadata(), 0..3)) {
        check_agreement(&ProstRequest { timeseries, metadata }.encode_to_vec());
    }

    #[test]
    fn what_is_encoded_is_decoded(timeseries in any_series()) {
        let request = ProstRequest { timeseries, metadata: vec![] };
        let ours = seen_by_prost(&request);
        let body = encode(ours.iter().map(|(labels, samples, ..)| (labels.iter().map(|(n, v)| (n, v)), samples)));
        let decoded = decode(&body).unwrap();
        let expected: Vec<Seen> = ours.into_iter().map(|(labels, samples, ..)| (labels, samples, 0, 0)).collect();
        prop_assert_eq!(seen(&decoded), expected);
        check_agreement(&body);
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in any::<Vec<u8>>()) {
        if let Ok(request) = decode(&body) {
            for series in &request.series {
                let pairs: Vec<_> = request.label_pairs(series).collect();
                prop_assert!(pairs.len() <= series.labels.len());
                prop_assert!(request.samples_of(series).len() <= body.len());
            }
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(timeseries in any_series(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = ProstRequest { timeseries, metadata: vec![] }.encode_to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(request) = decode(&body) {
            request.series.iter().for_each(|series| request.label_pairs(series).for_each(drop));
        }
    }

    #[test]
    fn every_truncation_is_an_error_or_a_prefix(timeseries in any_series()) {
        let body = ProstRequest { timeseries, metadata: vec![ProstMetadata { metric_family_name: b"up".to_vec(), kind: 1, ..ProstMetadata::default() }] }.encode_to_vec();
        let whole = decode(&body).unwrap();
        for len in 0..body.len() {
            if let Ok(prefix) = decode(&body[..len]) {
                prop_assert!(whole.series.starts_with(&prefix.series) && whole.samples.starts_with(&prefix.samples));
                prop_assert!(prefix.metadata.is_empty());
            }
        }
    }
}

#[test]
fn a_body_of_nothing_but_exemplars_is_bounded() {
    let body = |count: usize| {
        let exemplars = [0x1a, 0].repeat(count);
        let mut body = vec![0x0a];
        encode_varint(exemplars.len() as u64, &mut body);
        [body, exemplars].concat()
    };
    assert_eq!(decode(&body(EXEMPLARS_MAX)).unwrap().exemplars.len(), EXEMPLARS_MAX);
    assert_eq!(decode(&body(EXEMPLARS_MAX + 1)).unwrap_err().what, "more exemplars than one request may have");
}

#[test]
fn a_body_of_nothing_but_metadata_is_bounded() {
    let body = b"\x1a\x05\x08\x01\x12\x01a".repeat(METADATA_MAX + 1);
    assert_eq!(decode(&body[7..]).unwrap().metadata.len(), METADATA_MAX);
    assert_eq!(decode(&body).unwrap_err().what, "more metadata than one request may have");
}

#[test]
fn a_body_of_nothing_but_series_is_bounded() {
    let body = [10, 0].repeat(SERIES_MAX + 1);
    assert!(decode(&body[2..]).is_ok());
    assert_eq!(decode(&body).unwrap_err().what, "more series than one request may have");
}
