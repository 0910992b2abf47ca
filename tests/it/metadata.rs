//! What senders say of their metrics: one current row a metric, and a row for each thing that was said before.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rig::remote_write::V2;
use serde_json::Value as Json;

use crate::exemplars::{exemplar, member};
use crate::setup::{Body, Database, adapter_at, now_ms, one, send_v2, skipped, start, store};
use crate::storage::library;

const CURRENT: &str = "SELECT concat_ws('|', name, type, help, unit) FROM metrics_metadata ORDER BY 1";

/// A metadata entry of remote write 1.0.
fn entry(kind: u8, name: &str, help: &[u8], unit: &str) -> Body {
    let part = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
    let message = [&[8, kind][..], &part(2, name.as_bytes()), &part(4, help), &part(5, unit.as_bytes())].concat();
    Body::new().raw(&part(3, &message))
}

#[tokio::test]
async fn metadata_is_current_and_has_a_history() {
    let database = Database::new().await;
    let uri = database.server.uri(&database.name);
    let leader = member(&uri, "leader", "leader").await;
    let standby = member(&uri, "standby", "standby").await;
    for adapter in [&leader, &standby, &leader] {
        store(adapter, entry(1, "requests", b"Requests.", "")).await;
        store(adapter, entry(2, "heat", b"\xc2\xb0C\0\xff", "celsius")).await;
        store(adapter, entry(0, "nothing", b"", "")).await;
        store(adapter, entry(9, "odd", b"", "")).await;
    }
    let heat = "heat|gauge|\u{b0}C\u{fffd}\u{fffd}|celsius";
    assert_eq!(database.column::<String>(CURRENT).await, [heat, "odd|unknown||", "requests|counter|Requests.|"]);
    // By 2.0, and by the side that does not lead.
    let mut request = V2::default();
    request.add([("__name__", "requests"), ("Requests, all.", "")], [(now_ms(), 1.0)], b"\x2a\x04\x08\x01\x18\x03");
    assert_eq!(send_v2(&standby, &request.message()).await.status, 204);
    let expected = [heat, "odd|unknown||", "requests|counter|Requests, all.|"];
    assert_eq!(database.column::<String>(CURRENT).await, expected);
    let history = "SELECT help FROM metrics_metadata_history WHERE name = 'requests' ORDER BY first_seen";
    assert_eq!(database.column::<String>(history).await, ["Requests.", "Requests, all."]);
    assert_eq!(leader.metric("metadata_received_total").await, Some(6.0));
}

#[tokio::test]
async fn metadata_is_not_acknowledged_before_it_is_stored() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    store(&adapter, entry(1, "known", b"", "")).await;
    database.run("ALTER TABLE metrics_metadata_history RENAME TO elsewhere").await;
    let answer = adapter.write(entry(1, "new", b"", "").compressed()).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    store(&adapter, entry(1, "known", b"", "")).await;
    database.run("ALTER TABLE elsewhere RENAME TO metrics_metadata_history").await;
    store(&adapter, entry(1, "new", b"", "")).await;
    assert_eq!(database.column::<String>("SELECT name FROM metrics_metadata ORDER BY 1").await, ["known", "new"]);
}

#[tokio::test]
async fn text_that_the_database_lacks_keeps_nobody_waiting() {
    let database = Database::new().await;
    let name = format!("{}_latin1", database.name);
    database
        .run(&format!("CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"))
        .await;
    let adapter = start(&adapter_at(&database.server.uri(&name))).await;
    store(&adapter, entry(1, "up", "→ \u{e9}".as_bytes(), "").sample("up", now_ms(), 1.0)).await;
    store(&adapter, exemplar("→", 0.5, now_ms())).await;
    let client = database.server.connect(&name).await;
    let help: String = one(&client, "SELECT help FROM metrics_metadata").await;
    let trace: String = one(&client, "SELECT exemplar_labels->>'trace_id' FROM metrics_exemplars").await;
    assert_eq!((help.as_str(), trace.as_str()), ("? ?", "?"));
    drop((adapter, client));
    database.run(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
}

#[tokio::test]
async fn retention_drops_what_nobody_says_any_more() {
    let database = Database::new().await;
    let adapter = database.leader().await;
    store(&adapter, entry(1, "old", b"", "")).await;
    store(&adapter, entry(1, "new", b"", "")).await;
    database.run("UPDATE metrics_metadata_history SET last_seen = now() - interval '2 h' WHERE name = 'old'").await;
    library(&database, Some(Duration::from_secs(3600))).await.upkeep(Duration::ZERO).await.unwrap();
    assert_eq!(database.column::<String>("SELECT name FROM metrics_metadata").await, ["new"]);
}

/// Runs only where the captures are available.
#[tokio::test]
async fn what_a_real_prometheus_says_is_stored() {
    let captures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/captures/prometheus-3.14");
    if !captures.exists() {
        skipped(&format!("no captures in {}", captures.display()));
        return;
    }
    let database = Database::new().await;
    let adapter = database.leader().await;
    let mut expected = BTreeSet::new();
    for folder in ["write-1.0", "write-2.0-metadata", "write-2.0-type-unit"] {
        let lines = std::fs::read_to_string(captures.join(folder).join("expected.jsonl")).unwrap();
        for line in lines.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()) {
            let list = |of: &Json, key: &str| of[key].as_array().cloned().unwrap_or_default();
            let text = |of: &Json, key: &str| of[key].as_str().unwrap().to_owned();
            let mut add = |name: String, of: &Json| {
                let kind = text(of, "type").replace("METRIC_TYPE_", "").replace("UNSPECIFIED", "UNKNOWN");
                let (help, unit) = (text(of, "help"), text(of, "unit"));
                if kind != "UNKNOWN" || !help.is_empty() || !unit.is_empty() {
                    expected.insert(format!("{name}|{}|{help}|{unit}", kind.to_lowercase()));
                }
            };
            list(&line, "metadata").iter().for_each(|of| add(text(of, "metric_family_name"), of));
            for series in list(&line, "series").iter().filter(|series| series["metadata"].is_object()) {
                let labels = list(series, "labels");
                let name = labels.iter().find(|pair| pair[0] == "__name__").unwrap();
                add(name[1].as_str().unwrap().to_owned(), &series["metadata"]);
            }
            let body = std::fs::read(captures.join(folder).join(text(&line, "file"))).unwrap();
            let answer = match folder {
                "write-1.0" => adapter.write(body).await,
                _ => send_v2(&adapter, &snap::raw::Decoder::new().decompress_vec(&body).unwrap()).await,
            };
            // Histograms are refused.
            assert!([204, 400].contains(&answer.status), "{}", answer.text());
        }
    }
    let all = CURRENT.replace("metrics_metadata", "metrics_metadata_history");
    let stored: BTreeSet<String> = database.column(&all).await.into_iter().collect();
    assert_eq!(stored, expected);
    assert!(expected.len() > 20, "{expected:?}");
}
