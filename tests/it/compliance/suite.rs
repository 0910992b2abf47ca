//! The cases that the suite names, in its order: what each sends is the same in kind, and no text of it is. Cases that the
//! suite sends by 2.0 are sent by 1.0 too, where 1.0 can say it.
//!
//! For valid requests the suite demands a 2xx with exact counts, or a 400 with counts not above them; here only 204 counts.
//! For others it demands no 2xx; here the answer is 400 with the exact count of what is stored all the same.

use super::case::{Case, refused, valid};
use super::message::Part::{Negative, Positive, Zero};
use super::message::Version::{One, Two};
use super::message::{Series, bad_count, custom_buckets, named, native, series};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// Values of samples. The suite converts the bits of its two NaNs to a float as if they were numbers, and sends 9.2e18.
pub(super) const VALUES: [(&str, f64); 5] = [
    ("StaleNaN", f64::from_bits(0x7ff0_0000_0000_0002)),
    ("1.0", 1.0),
    ("NaN", f64::from_bits(0x7ff8_0000_0000_0001)),
    ("Inf", f64::INFINITY),
    ("-Inf", f64::NEG_INFINITY),
];

const COUNTER: i32 = 1;
const GAUGE: i32 = 2;
const HISTOGRAM: i32 = 3;

pub(super) fn all() -> Vec<Case> {
    [requests(), metrics(), exemplars(), histograms(), metadata(), combined(), edges(), version_1()]
        .into_iter()
        .flatten()
        .collect()
}

fn requests() -> Vec<Case> {
    let one = |name: &str| refused(name, [0; 3], [named("asked").sample(0, 1.0).not_stored()]).corrupt(b'0');
    vec![
        one("TestBadContentTypes/application_json").header("content-type", "application/json").status(415),
        one("TestBadContentTypes/image_png").header("content-type", "image/png").status(415),
        one("TestBadContentEncodings/gzip").header("content-encoding", "gzip").status(415),
        one("TestBadContentEncodings/deflate").header("content-encoding", "deflate").status(415),
        one("TestCorruptRequestBody"),
    ]
}

fn metrics() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, value) in VALUES {
        let label_sets: [(&str, Series); 7] = [
            ("simple metric", named("alive")),
            ("simple metric with multiple labels", instance("1")),
            (
                "simple metric with newlines",
                series(&[("job", "one\ntwo\n"), ("__name__", "alive"), ("instance", "x:1")]),
            ),
            ("simple metric with dots", series(&[("host.id", "h"), ("__name__", "disk.io.time"), ("disk.id", "d")])),
            ("simple metric with spaces", series(&[("host id", "h"), ("__name__", "disk io time"), ("disk id", "d")])),
            ("simple metric without name label", nameless("1")),
            ("empty metric", series::<&str, &str>(&[])),
        ];
        for (which, series) in label_sets {
            let name = format!("TestSingleMetric/{what}/{which}");
            cases.push(match series.name() {
                Some(_) => valid(name, [1, 0, 0], [series.sample(0, value)]),
                None => refused(name, [0; 3], [series.sample(0, value).not_stored()]),
            });
        }
    }
    cases.push(valid(
        "TestCounterWithCreatedTimestamp",
        [1, 0, 0],
        [series(&[("job", "shop"), ("__name__", "orders_total")]).sample(0, 100.0).created(-HOUR)],
    ));
    for (what, value) in VALUES {
        let of = |n| instance(n).sample(0, value);
        let without = |n| nameless(n).sample(0, value).not_stored();
        let name = |which: &str| format!("TestMultipleMetrics/{what}/{which}");
        cases.extend([
            valid(name("multiple metrics"), [4, 0, 0], ["1", "2", "3", "4"].map(of)),
            refused(name("multiple metrics, without name label"), [0; 3], ["1", "2", "3", "4"].map(without)),
            refused(
                name("multiple metrics, 1 without name label"),
                [3, 0, 0],
                [without("1"), of("2"), of("3"), of("4")],
            ),
        ]);
    }
    cases
}

fn instance(n: &str) -> Series {
    series(&[("job", "probe"), ("__name__", "alive"), ("instance", n)])
}

fn nameless(n: &str) -> Series {
    series(&[("job", "probe"), ("instance", n)])
}

fn exemplars() -> Vec<Case> {
    let of = |name: &str, labels: &[(&str, &str)], value, own: &[(&str, &str)]| {
        valid(name, [1, 0, 1], [series(labels).sample(0, value).exemplar(0, value, own)])
    };
    let (calls, plain) = ([("job", "shop"), ("__name__", "calls_total")], [("__name__", "plain_total")]);
    let trace = |value| [("trace_id", value)];
    let mut cases = vec![
        of("TestExemplars/basic_exemplar", &calls, 1.0, &trace("0af1")),
        of("TestExemplars/exemplar_with_span_id", &calls, 0.125, &[("trace_id", "0af2"), ("span_id", "b7")]),
        of("TestExemplars/exemplar_without_trace_id", &calls, 0.75, &[("customer", "17")]),
        of("TestExemplars/exemplar_with_multiple_labels", &calls, 0.5, &[("b", "2"), ("trace_id", "0af3"), ("a", "1")]),
        of("TestExemplars/exemplar_no_labels", &plain, 1.0, &[]),
        of("TestExemplars/exemplar_with_special_chars", &plain, 42.0, &trace("a-b_c.d/9")),
        of(
            "TestExemplars/exemplar_with_unicode",
            &[("__name__", "plain_total"), ("zone", "🌊")],
            100.0,
            &trace("größe_☃_東"),
        ),
        valid(
            "TestExemplarWithCreatedTimestamp",
            [1, 0, 1],
            [series(&calls)
                .sample(0, 250.0)
                .exemplar(0, 250.0, &[("trace_id", "0af4"), ("span_id", "b8")])
                .created(-2 * HOUR)],
        ),
        valid(
            "TestMultipleExemplars",
            [3, 0, 3],
            [("took_seconds", "get", 0.125), ("took_seconds", "put", 0.25), ("failed_total", "pay", 1.0)].map(
                |(name, of, value)| {
                    let labels = [("of", of), ("__name__", name)];
                    series(&labels).sample(0, value).exemplar(0, value, &[("span_id", of), ("trace_id", "0af5")])
                },
            ),
        ),
        // Also by 2.0 a series may stand in a request many times, and in any order of time.
        valid(
            "TestExemplarTimestamps",
            [3, 0, 3],
            [(-HOUR, 0.125, "old"), (-MINUTE, 0.5, "later"), (0, 0.25, "now")].map(|(time, value, own)| {
                named("waited_seconds").sample(time, value).exemplar(time, value, &trace(own))
            }),
        ),
    ];
    for (which, labels, is_valid) in [
        ("exemplar_without_name_label", vec![("job", "probe")], false),
        ("exemplar_with_empty_name", vec![("__name__", "")], false),
        ("exemplar_with_valid_name", vec![("__name__", "named_total")], true),
    ] {
        let name = format!("TestExemplarValidation/{which}");
        let one = series(&labels).sample(0, 1.0).exemplar(0, 1.0, &trace("0af6"));
        cases.push(if is_valid { valid(name, [1, 0, 1], [one]) } else { refused(name, [0; 3], [one.not_stored()]) });
    }
    let [_, _, (_, nan), (_, infinity), (_, minus_infinity)] = VALUES;
    for (which, value) in [
        ("zero_value", 0.0),
        ("negative_value", -123.456),
        ("large_value", 1e10),
        ("small_value", 1e-10),
        ("nan_value", nan),
        ("inf_value", infinity),
        ("-inf_value", minus_infinity),
    ] {
        let labels = [("__name__", "special_total")];
        cases.push(of(&format!("TestExemplarSpecialValues/{which}"), &labels, value, &trace("0af7")));
    }
    cases
}

fn histograms() -> Vec<Case> {
    let all = [Positive, Negative, Zero];
    let one = |which: &str, labels: &[(&str, &str)], histogram| {
        let series = series(labels).histogram(0, histogram);
        valid(format!("TestHistograms/{which}"), [0, 1, 0], [series])
    };
    let sizes = [("__name__", "sizes")];
    vec![
        one("basic_histogram", &sizes, native(1.0, &all)),
        one("custom_buckets_histogram", &sizes, custom_buckets(1.0)),
        one("positive_only_histogram", &[("job", "a"), ("__name__", "sizes")], native(1.0, &[Positive, Zero])),
        one("negative_only_histogram", &[("job", "b"), ("__name__", "sizes")], native(1.0, &[Negative])),
        one("minimal_histogram", &[("__name__", "small_sizes")], native(1.0, &[Zero])),
        refused(
            "TestHistograms/bad_count_histogram",
            [0; 3],
            [named("small_sizes").histogram(0, bad_count()).not_stored()],
        ),
        valid(
            "TestHistogramWithCreatedTimestamp",
            [0, 1, 0],
            [series(&[("job", "c"), ("__name__", "sizes")]).histogram(0, native(1.5, &all)).created(-30 * MINUTE)],
        ),
        valid(
            "TestMultipleHistograms",
            [0, 2, 0],
            [
                series(&[("job", "d"), ("__name__", "sizes")]).histogram(0, native(10.5, &[Positive, Zero])),
                series(&[("job", "d"), ("__name__", "small_sizes")]).histogram(0, native(5.25, &[Negative])),
            ],
        ),
        valid("TestEmptyHistogram", [0, 1, 0], [named("no_sizes").histogram(0, native(0.0, &[]))]),
        valid(
            "TestHistogramWithMetadata",
            [0, 1, 0],
            [named("first_seconds").histogram(0, native(2.5, &all)).metadata(HISTOGRAM, "Of the first.", "seconds")],
        ),
        valid(
            "TestHistogramWithExemplar",
            [0, 1, 1],
            [series(&[("method", "get"), ("__name__", "second_seconds")])
                .histogram(0, native(1.25, &[Positive, Zero]))
                .exemplar(0, 1.25, &[("trace_id", "1bf1"), ("span_id", "c1")])],
        ),
        valid(
            "TestHistogramWithMetadataAndExemplar",
            [0, 1, 1],
            [series(&[("service", "up"), ("__name__", "third_bytes")])
                .histogram(0, native(10_485_760.0, &all))
                .metadata(HISTOGRAM, "Of the third.", "bytes")
                .exemplar(0, 10_485_760.0, &[("trace_id", "1bf2"), ("customer", "4")])],
        ),
        valid(
            "TestMultipleHistogramsWithMetadata",
            [0, 2, 0],
            [
                series(&[("host", "s1"), ("__name__", "fourth_ratio")])
                    .histogram(0, native(0.75, &[Positive, Zero]))
                    .metadata(HISTOGRAM, "Of the fourth.", "ratio"),
                series(&[("host", "s1"), ("__name__", "fifth_bytes")])
                    .histogram(0, native(8_589_934_592.0, &[Positive, Negative]))
                    .metadata(HISTOGRAM, "Of the fifth.", "bytes"),
            ],
        ),
    ]
}

fn metadata() -> Vec<Case> {
    let mut cases = Vec::new();
    for (which, labels, kind, help, unit) in [
        ("counter_metadata", vec![("__name__", "sold_total")], COUNTER, "Sold.", "pieces"),
        ("gauge_metadata", vec![("__name__", "load_percent")], GAUGE, "Load.", "percent"),
        ("histogram_metadata", vec![("__name__", "load_seconds")], HISTOGRAM, "Time of load.", "seconds"),
        ("metadata_no_help_no_unit", vec![("__name__", "silent_total")], COUNTER, "", ""),
        (
            "metadata_with_special_chars",
            vec![("__name__", "quoted"), ("a", "b")],
            GAUGE,
            "Of\nlines, \"quoted\"",
            "b/s",
        ),
        ("unspecified_metadata_type", vec![("__name__", "untyped")], 0, "Of no type.", ""),
        ("info_metadata_type", vec![("__name__", "release_info")], 6, "Release.", ""),
        ("stateset_metadata_type", vec![("__name__", "door_state")], 7, "Doors.", ""),
        ("summary_metadata_type", vec![("__name__", "wait_summary")], 5, "Waits.", "seconds"),
        ("gauge_histogram_metadata_type", vec![("__name__", "heat")], 4, "Heat.", "celsius"),
    ] {
        let series = series(&labels).metadata(kind, help, unit);
        let (written, series) = match kind {
            HISTOGRAM => ([0, 1, 0], series.histogram(0, native(1.0, &[Positive, Negative, Zero]))),
            _ => ([1, 0, 0], series.sample(0, 1.0)),
        };
        cases.push(valid(format!("TestMetadata/{which}"), written, [series]));
    }
    let lent = series(&[("job", "a"), ("__name__", "lent_total")]).sample(0, 150.0).metadata(COUNTER, "Lent.", "books");
    let read = series(&[("job", "b"), ("__name__", "lent_total")]).sample(0, 42.0).metadata(COUNTER, "Read.", "books");
    let long = [("path", "/v1/a"), ("status", "200"), ("__name__", "path_seconds"), ("method", "get"), ("job", "web")];
    cases.extend([
        valid("TestCounterMetadataWithCreatedTimestamp", [1, 0, 0], [lent.created(-HOUR)]),
        valid("TestMetadataWithSamples", [1, 0, 0], [read]),
        valid(
            "TestMultipleMetadata",
            [3, 0, 0],
            [
                named("used_cpu").sample(0, 85.5).metadata(GAUGE, "Used CPU.", "percent"),
                named("used_memory").sample(0, 4_096_000_000.0).metadata(GAUGE, "Used memory.", "bytes"),
                series(&[("disk", "a"), ("__name__", "used_disk")])
                    .sample(0, 75.25)
                    .metadata(GAUGE, "Used.", "percent"),
            ],
        ),
        valid(
            "TestMetadataWithComplexLabels",
            [0, 1, 0],
            [series(&long)
                .histogram(0, native(0.25, &[Positive, Negative, Zero]))
                .metadata(HISTOGRAM, "By path.", "s")],
        ),
    ]);
    for (which, labels, is_valid) in [
        ("metadata_without_name_label", vec![("job", "probe")], false),
        ("metadata_with_empty_name", vec![("__name__", "")], false),
        ("metadata_with_valid_name", vec![("__name__", "valid_total")], true),
    ] {
        let name = format!("TestMetadataValidation/{which}");
        let one = series(&labels).sample(0, 1.0).metadata(COUNTER, which, "unit");
        cases.push(if is_valid { valid(name, [1, 0, 0], [one]) } else { refused(name, [0; 3], [one.not_stored()]) });
    }
    cases
}

fn own<'a>(trace: &'a str, other: &'a str) -> [(&'a str, &'a str); 2] {
    [("trace_id", trace), ("with", other)]
}

fn combined() -> Vec<Case> {
    let all = [Positive, Negative, Zero];
    let sample = |name: &'static str, of, value: f64, said: (i32, &str, &str)| {
        series(&[("of", of), ("__name__", name)]).sample(0, value).metadata(said.0, said.1, said.2)
    };
    let histogram = |name: &'static str, of, sum, parts: &[_], help: &str| {
        series(&[("of", of), ("__name__", name)]).histogram(0, native(sum, parts)).metadata(HISTOGRAM, help, "seconds")
    };
    let special = series(&[
        ("task", "a-b_c.d@e"),
        ("where", "rocket🚀"),
        ("__name__", "test_of_all"),
        ("instance", "localhost:1"),
    ]);
    let many = |is_histogram: bool| {
        std::array::from_fn::<_, 50, _>(|n| {
            let (value, n) = (n as f64 * 0.125, n.to_string());
            let kind = if is_histogram { "sizes" } else { "total" };
            let one = series(&[("series", n.clone()), ("__name__", format!("many_{n}_{kind}"))]);
            let one = match is_histogram {
                true => one.histogram(0, native(value, if value.fract() == 0.0 { &all } else { &[Positive, Zero] })),
                false => one.sample(0, value),
            };
            let said = if is_histogram { HISTOGRAM } else { COUNTER };
            one.metadata(said, &format!("One of many: {n}."), "pieces").exemplar(0, value, &own("2cf1", &n))
        })
    };
    vec![
        valid(
            "TestSamplesWithMetadataAndExemplars",
            [1, 0, 1],
            [sample("posts_total", "a", 1.0, (COUNTER, "Posts.", "posts")).exemplar(0, 1.0, &own("2cf2", "x"))],
        ),
        valid(
            "TestHistogramsWithMetadataAndExemplars",
            [0, 1, 1],
            [histogram("login_seconds", "a", 0.456, &all, "Logins.").exemplar(0, 0.456, &own("2cf3", "/login"))],
        ),
        valid(
            "TestComplexSamplesRequest",
            [2, 0, 1],
            [
                sample("cpu_ratio", "s1", 0.85, (GAUGE, "CPU.", "ratio")).exemplar(0, 0.85, &own("2cf4", "worker")),
                sample("memory_bytes", "s1", 8_589_934_592.0, (GAUGE, "Memory.", "bytes")),
            ],
        ),
        valid(
            "TestComplexHistogramsRequest",
            [0, 2, 1],
            [
                histogram("answer_seconds", "/v1", 0.125, &[Positive, Zero], "Answers.").exemplar(
                    0,
                    0.125,
                    &own("2cf5", "paid"),
                ),
                histogram("question_bytes", "post", 1024.0, &[Negative, Zero], "Questions."),
            ],
        ),
        valid(
            "TestMultipleMetricFamiliesSamples",
            [2, 0, 1],
            [
                sample("hits_total", "200", 1000.0, (COUNTER, "Hits.", "hits")).exemplar(0, 1000.0, &own("2cf6", "y")),
                sample("warmth_celsius", "cellar", 23.5, (GAUGE, "Warmth.", "celsius")),
            ],
        ),
        valid(
            "TestMultipleMetricFamiliesHistograms",
            [0, 1, 1],
            [histogram("scrape_seconds", "/metrics", 0.003, &[Positive, Zero], "Scrapes.").exemplar(
                0,
                0.003,
                &own("2cf7", "scraper"),
            )],
        ),
        valid("TestManySamples", [50, 0, 50], many(false)),
        valid("TestManyHistograms", [0, 50, 50], many(true)),
        valid(
            "TestSpecialCharactersCombined",
            [1, 0, 1],
            [special.sample(0, 42.0).metadata(GAUGE, "Öl, lines\nand \"quotes\"", "special/unit").exemplar(
                0,
                42.0,
                &[("trace_id", "Öl-1"), ("span_id", "a.b-c_d")],
            )],
        ),
        valid(
            "TestCustomBucketsHistogramWithExemplar",
            [0, 1, 1],
            [series(&[("version", "2"), ("__name__", "custom_seconds")])
                .histogram(0, custom_buckets(0.0625))
                .exemplar(0, 0.0625, &own("2cf8", "0.1"))],
        ),
    ]
}

fn edges() -> Vec<Case> {
    let orphan = named("orphan_total").metadata(COUNTER, "Of nothing.", "");
    let name = "TestEdgeCaseCombinations/metadata_without_data";
    vec![
        refused(name, [0; 3], [orphan.clone()]).only(Two).why(
            "the suite takes a 2xx without counts too, but that is a failure to Prometheus: 2.0 demands a sample of each \
             series, and Prometheus' own receiver answers 400; what is said of the metric is stored all the same",
        ),
        valid(name, [0; 3], [orphan]).only(One).why("by 1.0 metadata is always sent without samples"),
        valid(
            "TestEdgeCaseCombinations/exemplars_without_data",
            [0, 0, 1],
            [named("orphan_total").exemplar(0, 42.0, &[("trace_id", "3df1")])],
        )
        .why("Prometheus sends exemplars so, although its own receiver answers 400"),
        valid(
            "TestEdgeCaseCombinations/mixed_timestamp_data",
            [2, 0, 1],
            [
                named("old_total").sample(-HOUR, 1.0).exemplar(-30 * MINUTE, 1.0, &[("trace_id", "3df2")]),
                named("new_total").sample(0, 2.0),
            ],
        ),
    ]
}

fn version_1() -> Vec<Case> {
    let two = [instance("5").sample(0, 1.0), named("alive_total").sample(0, 100.0)];
    vec![
        valid("TestRW1BasicCompatibility", [2, 0, 0], two).only(One),
        refused("TestRW1ErrorHandling", [0; 3], [named("asked").sample(0, 1.0).not_stored()]).corrupt(0xff).only(One),
    ]
}
