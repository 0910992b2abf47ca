//! Cases that the suite lacks: what the specifications and Prometheus' own tests of its receiver demand, and what this
//! receiver decides otherwise.

use super::case::{Case, refused, valid};
use super::message::Version::{One, Two};
use super::message::{Series, custom_buckets, float_counts, named, native, series, stale, v2};

const MINUTE: i64 = 60_000;

const PROTO_1: &str = "application/x-protobuf;proto=prometheus.WriteRequest";
const PROTO_1_QUOTED: &str = "Application/X-Protobuf; Proto=\"prometheus.WriteRequest\"";
const PROTO_2_QUOTED: &str = "application/x-protobuf; proto=\"io.prometheus.write.v2.Request\"";

pub(super) fn all() -> Vec<Case> {
    [headers(), labels(), references(), samples(), histograms(), exemplars(), metadata()]
        .into_iter()
        .flatten()
        .collect()
}

/// A valid series that stands beside another one.
fn beside() -> Series {
    named("beside").sample(0, 1.0)
}

fn headers() -> Vec<Case> {
    let taken = |name| valid(name, [1, 0, 0], [beside()]);
    let unsupported = |name| refused(name, [0; 3], [beside().not_stored()]).status(415);
    let version = "x-prometheus-remote-write-version";
    vec![
        taken("no Content-Type").header("content-type", None).only(One),
        taken("Content-Type with the message of 1.0").header("content-type", PROTO_1).only(One),
        taken("Content-Type in another spelling").header("content-type", PROTO_1_QUOTED).only(One),
        taken("Content-Type of 2.0 in another spelling").header("content-type", PROTO_2_QUOTED).only(Two),
        taken("no Content-Encoding").header("content-encoding", None),
        taken("no version").header(version, None),
        taken("another version").header(version, "9.9.9"),
        taken("no User-Agent").header("user-agent", None),
        taken("a late attempt").header("retry-attempt", "1000"),
        unsupported("Content-Type of another message").header("content-type", "application/x-protobuf;proto=other"),
        unsupported("Content-Type whose parameter has no value").header("content-type", "application/x-protobuf;proto"),
        unsupported("Content-Encoding zstd").header("content-encoding", "zstd"),
        unsupported("Content-Encoding snappy twice").header("content-encoding", "snappy, snappy"),
        refused("a message of 1.0 whose Content-Type says 2.0", [0; 3], [beside().not_stored()])
            .header("content-type", PROTO_2_QUOTED)
            .only(One)
            .counts_as_version_2(),
        valid("nothing", [0; 3], []),
    ]
}

fn labels() -> Vec<Case> {
    let bad = |name, labels: &[(&[u8], &[u8])]| {
        refused(name, [1, 0, 0], [series(labels).sample(0, 1.0).not_stored(), beside()]).why(
            "by 1.0 Prometheus' own receiver leaves bad series out and answers 204, which the specification forbids",
        )
    };
    let nul = "PostgreSQL stores no U+0000";
    vec![
        bad("a label twice", &[(b"a", b"1"), (b"__name__", b"bad"), (b"a", b"1")]),
        bad("a label twice with two values", &[(b"a", b"1"), (b"__name__", b"bad"), (b"a", b"2")]),
        bad("the name twice", &[(b"__name__", b"bad"), (b"__name__", b"worse")]),
        bad("a label without name", &[(b"", b"1"), (b"__name__", b"bad")]),
        bad("a value that is no UTF-8", &[(b"a", b"caf\xe9"), (b"__name__", b"bad")]),
        bad("a label's name that is no UTF-8", &[(b"\xff", b"1"), (b"__name__", b"bad")]),
        bad("a metric's name that is no UTF-8", &[(b"__name__", b"\xc3")]),
        bad("U+0000 in a value", &[(b"a", b"1\0"), (b"__name__", b"bad")]).why(nul),
        bad("U+0000 in a label's name", &[(b"a\0", b"1"), (b"__name__", b"bad")]).why(nul),
        valid(
            "a label without value is none",
            [2, 0, 0],
            [
                series(&[("absent", ""), ("__name__", "labelled"), ("a", "1")]).sample(0, 1.0),
                series(&[("__name__", "labelled"), ("a", "1")]).sample(1, 2.0),
            ],
        ),
        valid(
            "labels of any text",
            [1, 0, 0],
            [series(&[("größe\n", "\u{feff}☃\t"), ("__name__", "{}")]).sample(0, 1.0)],
        ),
    ]
}

fn references() -> Vec<Case> {
    let one = |name| {
        let first = series(&[("a", "1"), ("__name__", "referring")]).sample(0, 1.0);
        refused(name, [1, 0, 0], [first.not_stored(), beside()])
    };
    let exemplar = || {
        let first = series(&[("b", "1"), ("__name__", "referring")]).sample(0, 1.0);
        [first.exemplar(0, 1.0, &[("trace_id", "4ef1")]), beside()]
    };
    vec![
        one("an odd number of references").changed(|request| request.timeseries[0].labels_refs.truncate(3)),
        one("a reference to no symbol").changed(|request| request.timeseries[0].labels_refs[1] = 99),
        one("a reference to no symbol, of 32 bits").changed(|request| request.timeseries[0].labels_refs[2] = u32::MAX),
        one("no references").changed(|request| request.timeseries[0].labels_refs.clear()),
        one("help that refers to no symbol").changed(|request| metadata_of(request).help_ref = 99),
        one("a unit that refers to no symbol").changed(|request| metadata_of(request).unit_ref = 99),
        one("a series without anything").changed(|request| request.timeseries[0].samples.clear()),
        refused("no symbols", [0; 3], [beside().not_stored()]).changed(|request| request.symbols.clear()),
        refused("an exemplar that refers to no symbol", [2, 0, 0], exemplar().map(Series::without_exemplars))
            .changed(|request| request.timeseries[0].exemplars = vec![v2::Exemplar::of(99)]),
        valid("an exemplar beside", [2, 0, 1], exemplar()),
        valid("a start timestamp", [1, 0, 0], [beside()])
            .changed(|request| request.timeseries[0].samples[0].start = 1_700_000_000_000),
    ]
}

fn metadata_of(request: &mut v2::Request) -> &mut v2::Metadata {
    request.timeseries[0].metadata.as_mut().expect("each series has metadata")
}

fn samples() -> Vec<Case> {
    let floats = [
        ("-0", -0.0),
        ("the least denormal", f64::from_bits(1)),
        ("the largest", f64::MAX),
        ("a NaN with a payload", f64::from_bits(0xfff8_0000_dead_beef)),
        ("a signalling NaN", f64::from_bits(0x7ff0_0000_0000_0001)),
        ("the bits of a stale marker as a number", 0x7ff0_0000_0000_0002_u64 as f64),
    ];
    let mut cases: Vec<Case> =
        floats.iter().map(|(name, value)| valid(*name, [1, 0, 0], [named("floats").sample(0, *value)])).collect();
    let ordered = || named("ordered");
    let first_counts = "the first value counts, and the sender can do nothing about it";
    cases.extend([
        valid("many samples of a series", [3, 0, 0], [ordered().sample(-2, 1.0).sample(-1, 2.0).sample(0, 3.0)]),
        valid("samples out of order", [3, 0, 0], [ordered().sample(0, 1.0).sample(-MINUTE, 2.0).sample(-7, 3.0)])
            .why("history is stored, also where Prometheus answers 400"),
        valid("a day-old sample", [1, 0, 0], [ordered().sample(-1440 * MINUTE, 1.0)])
            .why("history is stored; Prometheus answers 400"),
        valid("a sample twice", [2, 0, 0], [ordered().sample(0, 1.0), ordered().sample(0, 1.0).not_stored()]),
        valid("two samples at a time", [2, 0, 0], [ordered().sample(0, 1.0), ordered().sample(0, 2.0).not_stored()])
            .why(first_counts),
        refused("a sample far ahead", [1, 0, 0], [named("ahead").sample(60 * MINUTE, 1.0).not_stored(), beside()]),
        valid("a sample nine minutes ahead", [1, 0, 0], [named("ahead").sample(9 * MINUTE, 1.0)]),
    ]);
    cases
}

fn histograms() -> Vec<Case> {
    let sizes = || named("further_sizes");
    vec![
        valid("float counts", [0, 1, 0], [sizes().histogram(0, float_counts(-1.5))]),
        valid("a sum of -0", [0, 1, 0], [sizes().histogram(0, native(-0.0, &[]))]),
        valid(
            "many histograms of a series",
            [0, 2, 0],
            [sizes().histogram(-1, custom_buckets(f64::NEG_INFINITY)).histogram(0, float_counts(f64::INFINITY))],
        ),
        valid(
            "floats and histograms of a series",
            [1, 1, 0],
            [sizes().sample(-1, 0.5).histogram(0, float_counts(2.0))],
        ),
        valid("the end of a series of histograms", [0, 1, 0], [sizes().histogram(0, stale())]),
        refused(
            "a histogram far ahead",
            [0, 1, 0],
            [
                named("ahead_sizes").histogram(60 * MINUTE, float_counts(1.0)).not_stored(),
                sizes().histogram(0, float_counts(3.0)),
            ],
        ),
    ]
}

fn exemplars() -> Vec<Case> {
    let one = || named("exemplified").sample(0, 1.0);
    vec![
        valid("a label of an exemplar without value", [1, 0, 1], [one().exemplar(0, 2.0, &[("b", ""), ("a", "1")])]),
        valid("a label of an exemplar that is no UTF-8", [1, 0, 1], [one().exemplar(0, 3.0, &[("a", b"caf\xe9")])])
            .why("an exemplar is a hint, whose text is repaired"),
        valid(
            "an exemplar twice",
            [1, 0, 2],
            [one().exemplar(0, 4.0, &[("a", "1")]), named("exemplified").exemplar(1, 4.0, &[("a", "1")]).not_stored()],
        ),
        valid(
            "exemplars out of order",
            [1, 0, 2],
            [one().exemplar(0, 5.0, &[("a", "1")]).exemplar(-MINUTE, 6.0, &[("a", "1")])],
        ),
    ]
}

fn metadata() -> Vec<Case> {
    vec![
        valid("a type of an unknown number", [1, 0, 0], [beside().metadata(99, "Of some type.", "")]),
        valid("other metadata than before", [1, 0, 0], [beside().metadata(1, "Of another type.", "s")]),
    ]
}
