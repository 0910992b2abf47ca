use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use prost::Message;
use rig::remote_write::V2;
use serde_json::Value as Json;

use super::*;
use crate::wire::snappy;
use crate::wire::write::histogram::tests::{ProstHistogram, any_histogram, check};
use crate::wire::write::next_ref;

/// The same message for an independent decoder. Symbols are bytes, because one bad label must not make the request
/// fail.
#[derive(Clone, PartialEq, Message)]
struct ProstRequest {
    #[prost(bytes = "vec", repeated, tag = "4")]
    symbols: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<ProstSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct ProstSeries {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<ProstSample>,
    #[prost(message, repeated, tag = "3")]
    histograms: Vec<ProstHistogram>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<ProstExemplar>,
    #[prost(message, optional, tag = "5")]
    metadata: Option<ProstMetadata>,
    #[prost(int64, tag = "6")]
    created_timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ProstSample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
    #[prost(int64, tag = "3")]
    start_timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ProstExemplar {
    #[prost(uint32, repeated, tag = "1")]
    labels_refs: Vec<u32>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ProstMetadata {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint32, tag = "3")]
    help_ref: u32,
    #[prost(uint32, tag = "4")]
    unit_ref: u32,
}

/// Labels and samples of one series, as both decoders must return them; no labels if they refer to no symbol.
type Seen = (Option<Vec<(Vec<u8>, Vec<u8>)>>, Vec<Sample>, usize, usize, bool);

fn seen(request: &Request<'_>) -> Vec<Seen> {
    let series = |series: &Series<'_>| {
        let labels = request.label_pairs(series).collect::<Result<Vec<_>, _>>().ok();
        let labels = labels.map(|labels| labels.into_iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect());
        let samples = request.samples_of(series).to_vec();
        (labels, samples, series.exemplars as usize, request.histograms_of(series).len(), series.fault.is_some())
    };
    request.series.iter().map(series).collect()
}

fn seen_by_prost(request: &ProstRequest) -> Vec<Seen> {
    let symbol = |at: &u32| request.symbols.get(*at as usize).cloned();
    let sample = |s: &ProstSample| Sample { timestamp_ms: s.timestamp, value: s.value };
    let series = |series: &ProstSeries| {
        let pair = |pair: &[u32]| Some((symbol(&pair[0])?, symbol(pair.get(1)?)?));
        let is_fit = |at: u32| at == 0 || (at as usize) < request.symbols.len();
        let has_data = !(series.samples.is_empty() && series.histograms.is_empty() && series.exemplars.is_empty());
        let fault =
            !has_data || series.metadata.as_ref().is_some_and(|of| !is_fit(of.help_ref) || !is_fit(of.unit_ref));
        let labels: Option<Vec<_>> = series.labels_refs.chunks(2).map(pair).collect();
        let samples: Vec<Sample> = series.samples.iter().map(sample).collect();
        let (exemplars, histograms) = (series.exemplars.len(), series.histograms.len());
        if samples.is_empty() || histograms == 0 {
            return vec![(labels, samples, exemplars, histograms, fault)];
        }
        vec![(labels.clone(), samples, exemplars, 0, fault), (labels, vec![], 0, histograms, fault)]
    };
    request.timeseries.iter().flat_map(series).collect()
}

/// Place of the series, labels and sample of each exemplar; no labels if they refer to no symbol.
type SeenExemplar = (usize, Option<Vec<(Vec<u8>, Vec<u8>)>>, Sample);

fn seen_exemplars(request: &Request<'_>) -> Vec<SeenExemplar> {
    let exemplar = |exemplar: &Exemplar<'_>| {
        let labels = request.pairs(&exemplar.labels).collect::<Result<Vec<_>, _>>().ok();
        let labels = labels.map(|labels| labels.into_iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect());
        (exemplar.series as usize, labels, exemplar.sample)
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
    let symbol = |at: &u32| request.symbols.get(*at as usize).cloned();
    let pair = |pair: &[u32]| Some((symbol(&pair[0])?, symbol(pair.get(1)?)?));
    let seen = |(place, ProstExemplar { labels_refs, value, timestamp }): (usize, &ProstExemplar)| {
        (place, labels_refs.chunks(2).map(pair).collect(), Sample { timestamp_ms: *timestamp, value: *value })
    };
    all.map(seen).collect()
}

/// Name, type, help and unit.
type Said = (Vec<u8>, u32, Vec<u8>, Vec<u8>);

fn said_by_prost(request: &ProstRequest) -> BTreeSet<Said> {
    let symbol = |at: u32| request.symbols.get(at as usize).cloned();
    let text = |at: u32| if at == 0 { Some(Vec::new()) } else { symbol(at) };
    let said = |series: &ProstSeries| -> Option<Said> {
        let metadata = series.metadata.as_ref()?;
        let (help, unit) = (text(metadata.help_ref)?, text(metadata.unit_ref)?);
        let pairs = series.labels_refs.chunks_exact(2).map(|pair| (symbol(pair[0]), symbol(pair[1])));
        let mut pairs = pairs.take_while(|(name, _)| name.is_some());
        let name = pairs.find(|(name, _)| name.as_deref() == Some(b"__name__"))?.1?;
        Some((name, metadata.kind.cast_unsigned(), help, unit))
    };
    let says_something =
        |(name, kind, help, unit): &Said| !name.is_empty() && (*kind > 0 || !help.is_empty() || !unit.is_empty());
    request.timeseries.iter().filter_map(said).filter(says_something).collect()
}

#[track_caller]
fn check_agreement(body: &[u8]) {
    let ours = decode(body).unwrap();
    let prost = ProstRequest::decode(body).unwrap();
    assert_eq!(seen(&ours), seen_by_prost(&prost));
    let said = ours.metadata.iter().map(|of| (of.name.to_vec(), of.kind, of.help.to_vec(), of.unit.to_vec()));
    assert_eq!(said.collect::<BTreeSet<Said>>(), said_by_prost(&prost));
    assert_eq!(seen_exemplars(&ours), exemplars_seen_by_prost(&prost));
    let mut histograms = ours.histograms.iter();
    for message in prost.timeseries.iter().flat_map(|series| &series.histograms) {
        check(histograms.next().unwrap(), message);
    }
    assert_eq!(histograms.next(), None);
}

#[test]
fn a_series_of_the_encoder_is_decoded() {
    let mut request = V2::default();
    request.add([("__name__", "up"), ("job", "up")], [(5, 1.5), (7, f64::NAN)], b"");
    request.add([("__name__", "up")], [(-1, 0.0)], b"\x2a\x04\x08\x01\x18\x02");
    let body = request.message();
    check_agreement(&body);
    let decoded = decode(&body).unwrap();
    let (labels, samples, ..) = &seen(&decoded)[0];
    let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
    assert_eq!(labels.as_ref().unwrap()[..], [pair("__name__", "up"), pair("job", "up")]);
    assert_eq!(samples[0], Sample { timestamp_ms: 5, value: 1.5 });
    assert!(decoded.series.iter().all(|series| series.fault.is_none() && matches!(series.labels, Cow::Borrowed(_))));
}

#[test]
fn references_come_packed_or_one_by_one() {
    let symbols = b"\x22\x00\x22\x01a\x22\x01b";
    let sample = b"\x12\x02\x10\x05";
    for refs in [&b"\x0a\x02\x01\x02"[..], b"\x08\x01\x08\x02", b"\x0a\x01\x01\x08\x02", b"\x08\x01\x0a\x01\x02"] {
        let series = [refs, sample].concat();
        let body = [&symbols[..], &[0x2a, series.len() as u8], &series].concat();
        check_agreement(&body);
        assert_eq!(seen(&decode(&body).unwrap())[0].0, Some(vec![(b"a".to_vec(), b"b".to_vec())]), "{refs:?}");
        // Symbols may follow the series.
        check_agreement(&[&[0x2a, series.len() as u8], &series[..], symbols].concat());
    }
}

#[test]
fn a_bad_reference_is_the_fault_of_its_series() {
    for refs in [&b"\x0a\x02\x01\x09"[..], b"\x0a\x01\x01", b"\x0a\x02\x01\xff"] {
        let series = [refs, b"\x12\x02\x10\x05"].concat();
        let body = [&b"\x22\x00\x22\x01a"[..], &[0x2a, series.len() as u8], &series].concat();
        assert_eq!(seen(&decode(&body).unwrap())[0].0, None, "{refs:?}");
    }
    // Higher bits than a reference has are dropped.
    assert_eq!(next_ref(&mut &b"\x81\x80\x80\x80\x10"[..]), Ok(1));
}

#[test]
fn the_versions_are_told_apart() {
    let mut request = V2::default();
    assert!(is_version_2(&request.message()));
    request.add([("a", "b")], [(5, 1.5)], b"");
    let one = [0x0a, 2, 0x12, 0];
    assert!(is_version_2(&request.message()) && !is_version_1(&request.message()));
    assert!(is_version_1(&one) && !is_version_2(&one));
    assert!(decode(&one).unwrap().is_empty() && crate::wire::write::v1::decode(&request.message()).unwrap().is_empty());
}

#[test]
fn a_body_of_nothing_but_symbols_or_series_is_bounded() {
    let symbols = [0x22, 0].repeat(SYMBOLS_MAX + 1);
    assert!(decode(&symbols[2..]).is_ok());
    assert_eq!(decode(&symbols).unwrap_err().what, "more symbols than one request may have");
    let series = [0x2a, 0].repeat(SERIES_MAX + 1);
    assert_eq!(decode(&series).unwrap_err().what, "more series than one request may have");
}

/// Runs only where the captures are available.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn what_a_real_prometheus_sent_is_read_as_by_its_own_types() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-3.14");
    let folders: Vec<PathBuf> = captures.read_dir().into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    let name = |folder: &Path| folder.file_name().unwrap().to_string_lossy().into_owned();
    let of_2: Vec<&PathBuf> = folders.iter().filter(|folder| name(folder).starts_with("write-2.0")).collect();
    if of_2.is_empty() {
        eprintln!("skipped: no captures in {}", captures.display());
        return;
    }
    let mut samples = 0;
    for folder in of_2 {
        let expected = std::fs::read_to_string(folder.join("expected.jsonl")).unwrap();
        for line in expected.lines() {
            let line: Json = serde_json::from_str(line).unwrap();
            let file = folder.join(line["file"].as_str().unwrap());
            let body = snappy::decompress(&std::fs::read(&file).unwrap(), usize::MAX, Vec::new()).unwrap();
            check_agreement(&body);
            let decoded = decode(&body).unwrap();
            let series = line["series"].as_array().unwrap();
            assert_eq!(decoded.series.len(), series.len(), "{}", file.display());
            for (ours, theirs) in seen(&decoded).iter().zip(series) {
                let list = |key: &str| theirs[key].as_array().cloned().unwrap_or_default();
                let text = |value: &Json| value.as_str().unwrap().as_bytes().to_vec();
                let labels = list("labels").iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect();
                let sample = |sample: &Json| Sample {
                    timestamp_ms: sample["t"].as_i64().unwrap(),
                    value: f64::from_bits(u64::from_str_radix(sample["bits"].as_str().unwrap(), 16).unwrap()),
                };
                let all = list("samples").iter().map(sample).collect();
                samples += ours.1.len();
                assert_eq!(*ours, (Some(labels), all, list("exemplars").len(), list("histograms").len(), false));
            }
        }
    }
    assert!(samples > 1_000, "{samples}");
}

fn any_request() -> impl Strategy<Value = ProstRequest> {
    let sample = (any::<f64>(), any::<i64>(), any::<i64>())
        .prop_map(|(value, timestamp, start_timestamp)| ProstSample { value, timestamp, start_timestamp });
    let exemplar = (prop::collection::vec(0..9_u32, 0..5), any::<f64>(), any::<i64>())
        .prop_map(|(labels_refs, value, timestamp)| ProstExemplar { labels_refs, value, timestamp });
    let metadata = (0..9_i32, 0..9_u32, 0..9_u32).prop_map(|(kind, help_ref, unit_ref)| ProstMetadata {
        kind,
        help_ref,
        unit_ref,
    });
    let bytes = || prop_oneof![1 => Just(b"__name__".to_vec()), 3 => prop::collection::vec(any::<u8>(), 0..4)];
    let series =
        (
            prop::collection::vec(prop_oneof![9 => 0..9_u32, 1 => any::<u32>()], 0..7),
            prop::collection::vec(sample, 0..4),
            prop::collection::vec(any_histogram(), 0..2),
            prop::collection::vec(exemplar, 0..2),
            prop::option::of(metadata),
            any::<i64>(),
        )
            .prop_map(|(labels_refs, samples, histograms, exemplars, metadata, created_timestamp)| {
                ProstSeries { labels_refs, samples, histograms, exemplars, metadata, created_timestamp }
            });
    (prop::collection::vec(bytes(), 0..9), prop::collection::vec(series, 0..5))
        .prop_map(|(symbols, timeseries)| ProstRequest { symbols, timeseries })
}

proptest! {
    #[test]
    fn both_decoders_agree(request in any_request()) {
        check_agreement(&request.encode_to_vec());
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in any::<Vec<u8>>()) {
        if let Ok(request) = decode(&body) {
            seen(&request);
        }
    }

    #[test]
    fn a_flipped_byte_never_panics(request in any_request(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut body = request.encode_to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if let Ok(request) = decode(&body) {
            seen(&request);
        }
    }
}
