//! The shipped configurations: the answers of a pair and its reader, the rule that no Prometheus of a pair reads what
//! the pair stores, and the rows of all flags in docs/operations.md.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prometheus_postgresql_adapter::config::{Config, Parsed};
use rig::configs::{ADAPTER_PORTS, Configs, NODE_PORT, PROMETHEUS_PORTS, READER_PORT};
use rig::prometheus::{self, Prometheus};
use rig::{node_exporter, port};
use serde_json::Value;

use crate::setup::{Database, SOON, now_ms};

/// Deadline for the scrapes that are queried: the longest range of [`QUESTIONS`], and the time to store the last
/// scrape.
const SCRAPING: Duration = Duration::from_secs(60);

/// Queries that the reader must answer like the leader's own Prometheus.
const QUESTIONS: [&str; 9] = [
    "count(up)",
    "sum(up)",
    "sum by (job) (count_over_time(up[20s]))",
    "count_over_time(up[20s])",
    "count_over_time(node_cpu_seconds_total[20s])",
    "rate(node_cpu_seconds_total[20s])",
    "sum by (instance) (rate(node_cpu_seconds_total{mode!=\"idle\"}[15s]))",
    "rate(process_cpu_seconds_total[10s])",
    "count_over_time(job:up:sum[20s])",
];

/// The earliest of the times up to which the queried series are stored, ms since 1970.
const STORED_UNTIL: &str = "
SELECT (extract(epoch FROM min(last)) * 1000)::bigint FROM (
    SELECT max(v.time) AS last FROM metrics_values v JOIN metrics_labels l ON l.id = v.labels_id
    WHERE l.metric_name IN ('up', 'job:up:sum', 'node_cpu_seconds_total', 'process_cpu_seconds_total') GROUP BY l.id) s";

/// The series of an answer with their values. The label `cluster`, which the pair adds when it sends, is removed.
type Answer = BTreeMap<BTreeMap<String, String>, f64>;

async fn ask(prometheus: &Prometheus, expression: &str, time: f64) -> Answer {
    let text = prometheus.query_at(expression, time).await;
    let parse = || {
        let json: Value = serde_json::from_str(&text).ok()?;
        if json.get("status")? != "success" || json.get("warnings").is_some() {
            return None;
        }
        let series = json.pointer("/data/result")?.as_array()?.iter().map(|series| {
            let mut labels: BTreeMap<String, String> = serde_json::from_value(series.get("metric")?.clone()).ok()?;
            labels.remove("cluster");
            Some((labels, series.pointer("/value/1")?.as_str()?.parse().ok()?))
        });
        let answers = series.collect::<Option<Vec<_>>>()?;
        let count = answers.len();
        // Two series that differ only by their cluster are two series.
        Some(Answer::from_iter(answers)).filter(|answer| answer.len() == count)
    };
    parse().unwrap_or_else(|| prometheus.process().fail(&format!("{expression} was answered {text}")))
}

/// True if two answers have the same series with the same values. Sums of the same numbers in another order count as
/// the same.
fn agree(one: &Answer, other: &Answer) -> bool {
    let same = |(labels, value): (&_, &f64)| {
        other.get(labels).is_some_and(|other| (value - other).abs() <= 1e-12 * value.abs().max(other.abs()))
    };
    one.len() == other.len() && one.iter().all(same)
}

#[tokio::test]
async fn a_reader_answers_as_the_leaders_own_prometheus() {
    let database = Database::new().await;
    let configs = Configs::new(|_| port::free());
    let _node_exporter = node_exporter::start(configs.port(NODE_PORT));
    let side = async |index: usize, replica: &str, role: &str| {
        // The adapter that starts first leads until the end.
        let options = database
            .adapter()
            .name(&format!("adapter {replica}"))
            .port(configs.port(ADAPTER_PORTS[index]))
            .arg("-leader-election.pg-advisory-lock-id=1")
            .arg("-leader-election.pg-advisory-lock.prometheus-timeout=0");
        let adapter = options.start().await;
        adapter.wait_role(role, SOON).await;
        let options = prometheus::Options::new(configs.text(&format!("prometheus-{replica}.yml")))
            .name(&format!("Prometheus {replica}"))
            .port(configs.port(PROMETHEUS_PORTS[index]))
            .file("rules.yml", configs.text("rules.yml"));
        (adapter, Prometheus::start(options).await)
    };
    let (leader, own) = side(0, "a", "leader").await;
    let (_standby, other) = side(1, "b", "standby").await;
    let options = prometheus::Options::new(configs.text("prometheus-reader.yml"));
    let reader = Prometheus::start(options.name("the reader").port(configs.port(READER_PORT))).await;

    for prometheus in [&own, &other] {
        let all_up = async || prometheus.query("sum(up) >= 5").await.contains("value").then_some(());
        prometheus.process().wait_until("it has scraped all five targets", SOON, all_up).await;
    }
    #[expect(clippy::cast_precision_loss, reason = "ms since 1970, which a double holds exactly")]
    let end = now_ms() as f64 / 1000.0 + 22.0;
    let stored = async || {
        let until: Option<i64> = database.one(STORED_UNTIL).await;
        #[expect(clippy::cast_precision_loss, reason = "ms since 1970, which a double holds exactly")]
        until.is_some_and(|until| until as f64 / 1000.0 > end).then_some(())
    };
    leader.process().wait_until("what was scraped is stored", SCRAPING, stored).await;

    for time in [end - 1.9, end - 0.6, end] {
        for question in QUESTIONS {
            let (read, own) = (ask(&reader, question, time).await, ask(&own, question, time).await);
            assert!(!read.is_empty() && agree(&read, &own), "{question} at {time}: {read:#?} by the reader, {own:#?}");
        }
        for prometheus in [&reader, &own, &other] {
            let who = prometheus.process().name();
            let only = async |question: &str| ask(prometheus, question, time).await.into_values().collect::<Vec<_>>();
            assert_eq!(only("count(up)").await, [5.0], "{who}");
            // One scrape per second makes at most 21 samples; a late scrape before a punctual one makes one more.
            let counts = only("count_over_time(up[20s])").await;
            assert!(counts.len() == 5 && counts.iter().all(|count| *count <= 22.0), "{who}: {counts:?}");
            // The result of the rules on these samples.
            let both = "max_over_time(job:up:sum{job=\"prometheus\"}[10s])";
            assert_eq!(only(both).await, [2.0], "{who}");
            let alert = "count_over_time(ALERTS{alertname=\"TwoAdaptersSayTheyLead\"}[20s])";
            assert_eq!(ask(prometheus, alert, time).await, Answer::new(), "{who}");
        }
    }
    assert_eq!(leader.role().await.as_deref(), Some("leader"), "nobody else has led");
}

/// Collects the files below `folder` that may contain a configuration.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        let is_text = |ending| ["yml", "yaml", "md", "txt", "rs", "sh"].iter().any(|text| ending == *text);
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(is_text) {
            found.push(path);
        }
    }
}

/// Returns the parts of a file that contain at most one configuration each: documents of YAML; paragraphs of text for
/// people; source code as a whole.
fn parts<'a>(path: &Path, text: &'a str) -> Vec<&'a str> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("yml" | "yaml") => text.split("\n---").collect(),
        Some("md" | "txt") => text.split("\n\n").collect(),
        _ => vec![text],
    }
}

/// True if a text has one of these keys. Prometheus and its Operator spell them differently.
fn has(text: &str, keys: [&str; 2]) -> bool {
    keys.iter().any(|key| text.contains(&format!("{key}:")))
}

/// True if a Prometheus with this configuration reads stored samples.
fn reads(text: &str) -> bool {
    has(text, ["remote_read", "remoteRead"])
}

/// True if a Prometheus with this configuration sends its samples, or is a replica of a pair.
fn stores(text: &str) -> bool {
    has(text, ["remote_write", "remoteWrite"]) || text.contains("__replica__")
}

#[test]
fn no_prometheus_of_a_pair_reads_what_the_pair_stores() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![top.join("README.md")];
    // The text of -h is in help.txt.
    for folder in ["docs", "prometheus-configs", "examples", "tests", "src/config"] {
        files(&top.join(folder), &mut paths);
    }
    let (mut readers, mut writers) = (Vec::new(), Vec::new());
    for path in paths.iter().filter(|path| !path.ends_with("src/config/help.rs")) {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for part in parts(path, &text) {
            let at = path.strip_prefix(top).expect("it is below").display().to_string();
            assert!(!(reads(part) && stores(part)), "{at}: its own samples and stored ones interleave:\n{part}");
            readers.extend(reads(part).then(|| at.clone()));
            writers.extend(stores(part).then_some(at));
        }
    }
    for (found, expected) in [
        (&readers, ["docs/sql.md", "prometheus-configs/prometheus-reader.yml", "src/config/tests/help.txt"]),
        (&writers, ["README.md", "prometheus-configs/prometheus-a.yml", "examples/kubernetes/by-labels.yaml"]),
    ] {
        assert!(expected.iter().all(|name| found.iter().any(|found| found == name)), "{expected:?} of {found:?}");
    }
}

#[test]
fn every_flag_has_a_row_in_the_papers() {
    let Ok(Parsed::Help(help)) = Config::from([OsString::from("-h")], |_| None) else { panic!("no help") };
    let text = include_str!("../../docs/operations.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `-")).collect();
    // The lines of -h and -version have no value.
    let flags = help.lines().filter_map(|line| line.strip_prefix("  -")?.split_once('='));
    let wanted: Vec<String> = flags
        .map(|(name, rest)| match rest.split_once(" (default ") {
            Some((_, default)) => format!("| `-{name}` | `{}` | ", default.trim_end_matches(')')),
            None => format!("| `-{name}` | | "),
        })
        .collect();
    for wanted in &wanted {
        assert!(rows.iter().any(|row| row.starts_with(wanted)), "docs/operations.md has no row that begins {wanted:?}");
    }
    assert_eq!(rows.len(), wanted.len(), "rows of flags that there are not: {rows:#?}");
}
