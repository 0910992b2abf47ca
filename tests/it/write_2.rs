//! Remote write 2.0: stored like 1.0, and the answer says how much of each kind.

use std::path::{Path, PathBuf};

use rig::remote_write::V2;
use serde_json::Value as Json;

use crate::election::candidate;
use crate::setup::{Body, Database, SOON, now_ms, send_v2, skipped, store};
use crate::write::{assert_named, written};

/// An exemplar without labels: value 1 at 1 ms.
const EXEMPLAR: &[u8] = b"\x22\x0b\x11\0\0\0\0\0\0\xf0\x3f\x18\x01";

/// A histogram of one observation that is in no bucket.
const BAD_HISTOGRAM: &[u8] = b"\x1a\x02\x08\x01";

/// A counter whose help is the second symbol.
const METADATA: &[u8] = b"\x2a\x04\x08\x01\x18\x01";

const NO_SAMPLE: [(i64, f64); 0] = [];

fn up(n: &str) -> [(&'static str, &str); 2] {
    [("__name__", "up"), ("n", n)]
}

#[tokio::test]
async fn the_versions_store_the_same_series() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    for step in 0..3 {
        let mut request = V2::default();
        request.add([("n", "1"), ("__name__", "up")], [(now + step, 1.0)], METADATA);
        request.add(up("2"), [(now + step, 2.0), (now + step + 10, 2.5)], EXEMPLAR);
        let answer = send_v2(&adapter, &request.message()).await;
        assert_eq!((answer.status, written(&answer)), (204, [Some("3"), Some("0"), Some("1")]), "{}", answer.text());
        let body = Body::new().series(&up("1"), &[crate::setup::at(now + step + 20, 1.0)]);
        store(&adapter, body).await;
    }
    assert_eq!(database.samples().await, 12);
    let series: Vec<String> = database.column("SELECT DISTINCT name || labels FROM metrics ORDER BY 1").await;
    assert_eq!(series, [r#"up{"n": "1"}"#, r#"up{"n": "2"}"#]);
}

#[tokio::test]
async fn the_answer_counts_what_is_written_on_leader_and_standby() {
    let database = Database::new().await;
    let uri = database.server.uri(&database.name);
    let now = now_ms();
    let good = || {
        let mut request = V2::default();
        request.add(up("1"), [(now, 1.0)], b"");
        request
    };
    let with = |labels: &[(&str, &str)], samples: &[(i64, f64)], others: &[u8]| {
        let mut request = good();
        request.add(labels.iter().copied(), samples.iter().copied(), others);
        request.message()
    };
    let cases: [(&str, Vec<u8>, &str, &str); 7] = [
        ("without sample", with(&up("2"), &NO_SAMPLE, METADATA), "1", "0"),
        ("no symbol", with(&up("2"), &[(now, 1.0)], b"\x2a\x02\x18\x63"), "1", "0"),
        ("buckets", with(&up("2"), &NO_SAMPLE, BAD_HISTOGRAM), "1", "0"),
        ("buckets", with(&up("2"), &[(now, 1.0)], &[EXEMPLAR, BAD_HISTOGRAM].concat()), "2", "1"),
        ("name", with(&[("n", "3")], &[(now, 1.0), (now + 1, 1.0)], b""), "1", "0"),
        ("out of bounds", with(&up("4"), &[(now, 1.0), (i64::MAX, 1.0)], b""), "2", "0"),
        ("odd number", [good().message(), b"\x2a\x07\x0a\x01\x01\x12\x02\x10\x05".to_vec()].concat(), "1", "0"),
    ];
    let leader = candidate(&uri, "leader").start().await;
    let send = async |adapter: &rig::adapter::Adapter, role: &str| {
        let is_taken = async || (send_v2(adapter, &good().message()).await.status == 204).then_some(());
        adapter.process().wait_until("it takes writes", SOON, is_taken).await;
        adapter.wait_role(role, SOON).await;
        for (what, message, samples, exemplars) in &cases {
            let answer = send_v2(adapter, message).await;
            assert_named(&answer, what);
            assert_eq!(written(&answer), [Some(*samples), Some("0"), Some(*exemplars)], "{what}: {}", answer.text());
        }
        for (message, counts) in [(with(&up("5"), &NO_SAMPLE, EXEMPLAR), ["1", "0", "1"]), (Vec::new(), ["0"; 3])] {
            let answer = send_v2(adapter, &message).await;
            assert_eq!((answer.status, written(&answer)), (204, counts.map(Some)), "{}", answer.text());
        }
        let answer = send_v2(adapter, b"\x2a\x05").await;
        assert_eq!((answer.status, written(&answer)), (400, [Some("0"); 3]), "{}", answer.text());
    };
    send(&leader, "leader").await;
    let standby = candidate(&uri, "standby").start().await;
    send(&standby, "standby").await;
}

#[tokio::test]
async fn a_message_without_its_parameter_is_read_as_what_it_is() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let mut request = V2::default();
    request.add(up("1"), [(now_ms(), 1.0)], b"");
    let answer = adapter.write(rig::remote_write::compress(&request.message())).await;
    assert_eq!((answer.status, written(&answer)), (204, [Some("1"), Some("0"), Some("0")]), "{}", answer.text());
    assert_eq!(database.samples().await, 1);
    // A message of 1.0 without samples, one with unknown fields, and one of which fields of 2.0 are.
    for body in [Body::new(), Body::new().raw(b"\x1a\x06\x08\x01\x12\x02up"), Body::new().raw(b"\x10\x01")] {
        store(&adapter, body).await;
    }
    store(&adapter, Body::new().raw(&request.message()).sample("down", now_ms(), 1.0)).await;
    assert_eq!(database.samples().await, 2);
    let answer = send_v2(&adapter, &Body::new().sample("up", now_ms(), 1.0).plain()).await;
    assert_named(&answer, "version 1.0");
}

/// Bits of a sum of 0, and of a stale marker.
const ZERO: &str = "0000000000000000";
const STALE: &str = "7ff0000000000002";

/// Answers that are not those of Prometheus' own receiver, and the reason.
const OTHERWISE: [(&str, u16, &str); 16] = [
    ("s_day_old", 204, "history is stored"),
    ("s_time_0", 204, "history is stored"),
    ("s_time_negative", 204, "history is stored"),
    ("s_out_of_order", 204, "history is stored"),
    ("s_duplicate_other", 204, "the first value counts, and the sender can do nothing about it"),
    ("s_ahead_11_minutes", 204, "it was ahead when it was captured"),
    ("l_value_nul", 400, "PostgreSQL stores no U+0000"),
    ("l_label_name_nul", 400, "PostgreSQL stores no U+0000"),
    ("h_timestamp_0", 204, "history is stored"),
    ("h_too_old", 204, "history is stored"),
    ("h_span_huge_offset", 400, "no bucket has such an index"),
    ("h_count_huge", 400, "a float does not hold such a count"),
    ("h_count_2_64_minus_1", 400, "a float does not hold such a count"),
    ("h_sum_of_buckets_overflows", 400, "the buckets have more observations than all together"),
    ("e_alone", 204, "Prometheus sends exemplars so"),
    ("e_own_series", 204, "Prometheus sends exemplars so"),
];

/// Runs only where the captures are available.
#[tokio::test]
async fn the_answers_are_at_least_as_strict_as_prometheus() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-3.14/cases");
    let Ok(cases) = std::fs::read_to_string(folder.join("cases.jsonl")) else {
        skipped(&format!("no captures in {}", folder.display()));
        return;
    };
    let database = Database::new().await;
    let adapter = database.leader().await;
    let cases: Vec<Json> = cases.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for case in &cases {
        let (name, version) = (case["case"].as_str().unwrap(), case["version"].as_i64().unwrap());
        for (place, theirs) in case["answers"].as_array().unwrap().iter().enumerate() {
            let file: PathBuf = folder.join(theirs["file"].as_str().unwrap());
            let body = std::fs::read(file).unwrap();
            let answer = match version {
                1 => adapter.write(body).await,
                _ => send_v2(&adapter, &snap::raw::Decoder::new().decompress_vec(&body).unwrap()).await,
            };
            let of_version_2 =
                cases.iter().find(|other| other["case"] == case["case"] && other["version"] == 2).unwrap_or(case);
            let otherwise = OTHERWISE.iter().find(|(other, ..)| *other == name);
            let expected = match (otherwise, theirs["status"].as_u64().unwrap()) {
                (Some((_, status, _)), _) => u64::from(*status),
                // Of version 1.0, Prometheus' own receiver drops bad series without a word.
                (None, 204) if case["group"] == "labels" => of_version_2["answers"][place]["status"].as_u64().unwrap(),
                (None, status) => status,
            };
            assert_eq!(u64::from(answer.status), expected, "{name}.v{version} {place}: {}", answer.text());
            if version == 2 || answer.status == 204 {
                assert_eq!(written(&answer)[0].is_some(), version == 2, "{name}.v{version}");
            }
            if version == 2 && answer.status == 204 {
                let at_least = theirs["written"]["samples"].as_str().unwrap();
                let numbers = [written(&answer)[0].unwrap(), at_least].map(|number| number.parse::<u64>().unwrap());
                assert!(numbers[0] >= numbers[1], "{name}: {numbers:?}");
            }
        }
        let is_refused =
            name.ends_with("_nul") || OTHERWISE.iter().any(|(other, status, _)| *other == name && *status == 400);
        let stored = || case["stored"].as_array().into_iter().flatten().filter(|_| !is_refused);
        for sample in stored().flat_map(|series| series["samples"].as_array()).flatten() {
            let (time_ms, bits) = (sample["t"].as_i64().unwrap(), sample["bits"].as_str().unwrap());
            let found: Vec<String> = database
                .column(&format!(
                    "SELECT encode(float8send(value), 'hex') FROM metrics WHERE time = to_timestamp({time_ms} / 1000.0) \
                     AND labels->>'c' = '{name}' AND coalesce(labels->>'v', '2') = '{version}'"
                ))
                .await;
            assert!(found.iter().any(|found| found == bits), "{name}.v{version} at {time_ms}: {found:?}, not {bits}");
        }
        // Decoding compares all of a histogram; a stale marker is none.
        for histogram in stored().flat_map(|series| series["histograms"].as_array()).flatten() {
            let (time_ms, sum) = (histogram["t"].as_i64().unwrap(), histogram["sum"].as_str().unwrap_or(ZERO));
            let found: Vec<String> = database
                .column(&format!(
                    "SELECT encode(float8send(sum), 'hex') FROM metrics_histograms WHERE time = to_timestamp({time_ms} / 1000.0) \
                     AND labels->>'c' = '{name}' AND coalesce(labels->>'v', '2') = '{version}'"
                ))
                .await;
            let expected: &[&str] = if sum == STALE { &[] } else { &[sum] };
            assert_eq!(found, expected, "{name}.v{version} at {time_ms}");
        }
    }
}
