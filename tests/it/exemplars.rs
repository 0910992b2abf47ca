//! Exemplars are stored with their series, each once, whichever side sends it, and bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use rig::adapter::Adapter;
use rig::remote_write::labels;
use serde_json::Value as Json;

use crate::election::candidate;
use crate::setup::{Body, Database, SOON, now_ms, send_v2, skipped, start, store};
use crate::storage::library;
use crate::write::{assert_named, written};

/// Everything that SQL users see of exemplars.
const ALL: &str = "SELECT concat_ws('|', name, labels, (extract(epoch FROM time) * 1000)::bigint, value, exemplar_labels) \
    FROM metrics_exemplars ORDER BY time";

fn field(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, content.len() as u8], content].concat()
}

/// Value and time of an exemplar, whose fields begin with `value`.
fn value_and_time(first: u8, value: f64, time_ms: i64) -> Vec<u8> {
    let mut fields = [&[first << 3 | 1][..], &value.to_le_bytes(), &[(first + 1) << 3]].concat();
    let mut left = time_ms.cast_unsigned();
    while left >= 0x80 {
        fields.push(left.to_le_bytes()[0] | 0x80);
        left >>= 7;
    }
    fields.push(left.to_le_bytes()[0]);
    fields
}

/// A request of 1.0 with an exemplar of the series `up`.
pub(crate) fn exemplar(trace: &str, value: f64, time_ms: i64) -> Body {
    let message = [labels([("trace_id", trace)]), value_and_time(2, value, time_ms)].concat();
    let series = [labels([("__name__", "up"), ("n", "1")]), field(3, &message)].concat();
    Body::new().raw(&field(1, &series))
}

/// The same by 2.0.
fn exemplar_v2(trace: &str, value: f64, time_ms: i64) -> Vec<u8> {
    // The symbols are "", "__name__", "up", "n", "1", "trace_id" and its value.
    let message = [field(1, &[5, 6]), value_and_time(2, value, time_ms)].concat();
    let series = [field(1, &[1, 2, 3, 4]), field(4, &message)].concat();
    let symbols = ["", "__name__", "up", "n", "1", "trace_id", trace].map(|symbol| field(4, symbol.as_bytes()));
    [symbols.concat(), field(5, &series)].concat()
}

/// Starts an adapter that takes part in an election, and waits for its role.
pub(crate) async fn member(uri: &str, name: &str, role: &str) -> Adapter {
    let adapter = candidate(uri, name).start().await;
    let is_taken = async || (adapter.write(Body::new().compressed()).await.status == 204).then_some(());
    adapter.process().wait_until("it takes writes", SOON, is_taken).await;
    adapter.wait_role(role, SOON).await;
    adapter
}

#[tokio::test]
async fn an_exemplar_is_stored_once_whoever_sends_it() {
    let database = Database::new().await;
    let uri = database.server.uri(&database.name);
    let (leader, standby) = (member(&uri, "leader", "leader").await, member(&uri, "standby", "standby").await);
    let now = now_ms();
    // Without a time of its own, an exemplar has the time of the scrape.
    store(&leader, exemplar("a", 0.5, now)).await;
    store(&standby, exemplar("a", 0.5, now + 7_000)).await;
    // All are sent again after a reload.
    store(&leader, exemplar("a", 0.5, now)).await;
    // Older than the newest, and by version 2.0.
    for adapter in [&standby, &leader] {
        let answer = send_v2(adapter, &exemplar_v2("b", 0.25, now - 3_600_000)).await;
        assert_eq!((answer.status, written(&answer)), (204, [Some("0"), Some("0"), Some("1")]), "{}", answer.text());
    }
    let expected = [
        format!(r#"up|{{"n": "1"}}|{}|0.25|{{"trace_id": "b"}}"#, now - 3_600_000),
        format!(r#"up|{{"n": "1"}}|{now}|0.5|{{"trace_id": "a"}}"#),
    ];
    assert_eq!(database.column::<String>(ALL).await, expected);
    assert_eq!(leader.metric("exemplars_received_total").await, Some(3.0));
    let stored = [&leader, &standby].map(|adapter| adapter.metric("exemplars_stored_total"));
    let [one, other] = stored;
    assert_eq!(one.await.unwrap_or_default() + other.await.unwrap_or_default(), 2.0);
    assert_eq!(database.samples().await, 0, "a series may have exemplars alone");
}

#[tokio::test]
async fn both_sides_at_once_store_an_exemplar_once() {
    let database = Database::new().await;
    let uri = database.server.uri(&database.name);
    let (leader, standby) = (member(&uri, "leader", "leader").await, member(&uri, "standby", "standby").await);
    let now = now_ms();
    for n in 0..40 {
        let trace = n.to_string();
        tokio::join!(
            store(&leader, exemplar(&trace, 0.5, now)),
            store(&standby, exemplar(&trace, 0.5, now + 1)),
            store(&leader, exemplar(&trace, 0.5, now + 2)),
        );
    }
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_exemplars").await, 40);
}

#[tokio::test]
async fn an_exemplar_that_can_never_be_stored_is_named_and_counted() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    assert_named(&adapter.write(exemplar("a", 0.5, i64::MAX).compressed()).await, "an exemplar is out of bounds");
    let mut no_symbol = exemplar_v2("a", 0.5, now);
    let refs = no_symbol.windows(4).rposition(|four| four == [0x0a, 2, 5, 6]).unwrap();
    no_symbol[refs + 3] = 99;
    let answer = send_v2(&adapter, &no_symbol).await;
    assert_named(&answer, "an exemplar: a label refers to no symbol");
    assert_eq!(written(&answer), [Some("0"); 3]);
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_exemplars").await, 0);
    // Neither NaN nor bytes that are no text are a reason.
    store(&adapter, exemplar("\0", f64::NAN, now)).await;
    assert_eq!(database.one::<String>("SELECT exemplar_labels->>'trace_id' FROM metrics_exemplars").await, "\u{fffd}");
}

#[tokio::test]
async fn an_exemplar_is_not_acknowledged_before_it_is_stored() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    database.run("ALTER TABLE metrics_exemplar_rows RENAME TO elsewhere").await;
    let body = exemplar("a", 0.5, now).sample("up", now, 1.0);
    let answer = adapter.write(body.clone().compressed()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    database.run("ALTER TABLE elsewhere RENAME TO metrics_exemplar_rows").await;
    store(&adapter, body).await;
    assert_eq!(database.one::<i64>("SELECT count(*) FROM metrics_exemplars").await, 1);
    assert_eq!(database.samples().await, 1);
}

#[tokio::test]
async fn exemplars_are_dropped_by_age_and_by_number() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    let now = now_ms();
    let old = Body::new();
    let old = (0..5).fold(old, |body, n| {
        let one = exemplar(&n.to_string(), 0.5, now - 10_000 * n - if n == 4 { 15 * 86_400_000 } else { 0 }).plain();
        body.raw(&one)
    });
    store(&adapter, old).await;
    let count = "SELECT count(*) FROM metrics_exemplars";
    assert_eq!(database.one::<i64>(count).await, 4, "one is older than two weeks");
    let fill = "INSERT INTO metrics_exemplar_rows SELECT series, gen_random_uuid(), time - n * interval '1 minute', value, labels \
                FROM metrics_exemplar_rows, generate_series(1, 400) n WHERE labels->>'trace_id' IN ('0', '1', '2')";
    database.run(fill).await;
    library(&database, None).await.upkeep(Duration::ZERO).await.unwrap();
    assert_eq!(database.one::<i64>(count).await, 1_000);
    assert_eq!(
        database.one::<i64>("SELECT count(*) FROM metrics_exemplars WHERE exemplar_labels->>'trace_id' = '3'").await,
        1
    );
}

/// Runs only where the captures are available.
#[tokio::test]
async fn what_a_real_prometheus_sends_is_stored_once() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-3.14");
    if !captures.exists() {
        skipped(&format!("no captures in {}", captures.display()));
        return;
    }
    let database = Database::new().await;
    // The external labels are changed by the reload.
    let adapter = start(&database.adapter().arg("-replica-labels=none")).await;
    let mut expected = BTreeSet::new();
    for folder in ["write-1.0", "write-1.0-reload", "write-2.0"] {
        let lines = std::fs::read_to_string(captures.join(folder).join("expected.jsonl")).unwrap();
        for line in lines.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()) {
            let list = |of: &Json, key: &str| of[key].as_array().cloned().unwrap_or_default();
            for series in list(&line, "series") {
                let text = |pair: &Json, at: usize| pair[at].as_str().unwrap().to_owned();
                let all: Vec<(String, String)> =
                    list(&series, "labels").iter().map(|pair| (text(pair, 0), text(pair, 1))).collect();
                let name = &all.iter().find(|(name, _)| name == "__name__").unwrap().1;
                let others = all.iter().filter(|(name, _)| name != "__name__");
                let others: BTreeMap<_, _> = others.cloned().collect();
                for exemplar in list(&series, "exemplars") {
                    let own: BTreeMap<String, String> =
                        list(&exemplar, "labels").iter().map(|pair| (text(pair, 0), text(pair, 1))).collect();
                    let bits = exemplar["bits"].as_str().unwrap();
                    expected.insert(format!("{name}|{others:?}|{bits}|{own:?}"));
                }
            }
            let body = std::fs::read(captures.join(folder).join(line["file"].as_str().unwrap())).unwrap();
            let answer = match folder {
                "write-2.0" => send_v2(&adapter, &snap::raw::Decoder::new().decompress_vec(&body).unwrap()).await,
                _ => adapter.write(body).await,
            };
            // Histograms are refused.
            assert!([204, 400].contains(&answer.status), "{}", answer.text());
        }
    }
    let rows = "SELECT name || chr(1) || labels || chr(1) || encode(float8send(value), 'hex') || chr(1) || exemplar_labels \
                FROM metrics_exemplars";
    let stored: Vec<String> = database.column(rows).await;
    let stored: BTreeSet<String> = stored
        .iter()
        .map(|row| {
            let parts: Vec<&str> = row.split('\u{1}').collect();
            let map = |json: &str| serde_json::from_str::<BTreeMap<String, String>>(json).unwrap();
            format!("{}|{:?}|{}|{:?}", parts[0], map(parts[1]), parts[2], map(parts[3]))
        })
        .collect();
    assert_eq!(stored, expected);
    assert!(expected.len() > 5, "{expected:?}");
    let twice = "SELECT count(*) FROM metrics_exemplar_rows a JOIN metrics_exemplar_rows b USING (series, key) \
                 WHERE a.time < b.time AND b.time - a.time < interval '1 minute'";
    assert_eq!(database.one::<i64>(twice).await, 0);
}
