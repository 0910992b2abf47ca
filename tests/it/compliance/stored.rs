//! What is stored of a case, as it must be and as it is read back.

use std::collections::{BTreeMap, BTreeSet};

use prometheus_postgresql_adapter::model::sample::{Point, Value};
use rig::adapter::Adapter;

use super::message::{Labels, Series};
use crate::reader::{points, query};
use crate::setup::Database;

type Pairs = BTreeMap<String, String>;

/// All that is stored at the times of a case, and the metadata that is new since the case before.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Stored {
    /// By remote read, in both forms of an answer.
    points: Vec<(Pairs, Point)>,
    /// In the view of floats: name, labels, time, and the bits of the value.
    floats: Vec<(String, Pairs, i64, u64)>,
    /// In the view of exemplars: name, labels, time, bits of the value, and the exemplar's own labels.
    exemplars: Vec<(String, Pairs, i64, u64, Pairs)>,
    /// In the view of metadata: name, type, help and unit.
    metadata: BTreeSet<[String; 4]>,
}

/// Names of the types by their numbers.
const TYPES: [&str; 8] = ["unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"];

/// Returns labels as text. An empty value is the absence of a label.
fn pairs(labels: &Labels) -> Pairs {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let labels = labels.iter().filter(|(_, value)| !value.is_empty());
    labels.map(|(name, value)| (text(name), text(value))).collect()
}

/// Returns a label set as SQL shows it: the name apart.
fn without_name(mut labels: Pairs) -> (String, Pairs) {
    (labels.remove("__name__").unwrap_or_default(), labels)
}

impl Stored {
    /// Returns what must be stored of the series of a case at `time_ms`.
    pub(super) fn expected(all: &[Series], time_ms: i64) -> Self {
        let mut stored = Self::default();
        for series in all {
            // By 2.0 too, metadata is about a metric, and may be stored although the series is not.
            if let (Some(said), Some(name)) = (&series.metadata, series.name()) {
                let kind = usize::try_from(said.kind).ok().and_then(|kind| TYPES.get(kind)).unwrap_or(&TYPES[0]);
                let name = String::from_utf8_lossy(name).into_owned();
                stored.metadata.insert([name, (*kind).to_owned(), said.help.clone(), said.unit.clone()]);
            }
            if !series.is_stored {
                continue;
            }
            let labels = pairs(&series.labels);
            let (name, others) = without_name(labels.clone());
            for (time, value) in &series.samples {
                let timestamp_ms = time_ms + time;
                stored.points.push((labels.clone(), Point { timestamp_ms, value: Value::Float(*value) }));
                stored.floats.push((name.clone(), others.clone(), timestamp_ms, value.to_bits()));
            }
            for (time, histogram) in &series.histograms {
                let point = Point { timestamp_ms: time_ms + time, value: histogram.stored.clone() };
                stored.points.push((labels.clone(), point));
            }
            for exemplar in &series.exemplars {
                let (time, own) = (time_ms + exemplar.time, pairs(&exemplar.labels));
                stored.exemplars.push((name.clone(), others.clone(), time, exemplar.value.to_bits(), own));
            }
        }
        stored.sorted()
    }

    /// Reads what is stored at the times of the series of a case at `time_ms`, of whatever series. `said` has the metadata
    /// that was there before, and gets the rest.
    pub(super) async fn read(
        database: &Database,
        adapter: &Adapter,
        all: &[Series],
        time_ms: i64,
        said: &mut BTreeSet<[String; 4]>,
    ) -> Self {
        let times: BTreeSet<i64> = all.iter().flat_map(times_of).chain([0]).map(|time| time_ms + time).collect();
        let mut stored = Self::default();
        for time in &times {
            for (labels, points) in points(adapter, query(*time, *time, &[("__name__", "=~", ".*")])).await {
                let labels: Pairs = labels.into_iter().collect();
                stored.points.extend(points.into_iter().map(|point| (labels.clone(), point)));
            }
        }
        let times: Vec<i64> = times.into_iter().collect();
        let json = |text: &str| -> Pairs { serde_json::from_str(text).expect("labels are an object of texts") };
        let bits = |bytes: Vec<u8>| u64::from_be_bytes(bytes.try_into().expect("a float has eight bytes"));
        let (time, value) = ("(extract(epoch FROM time) * 1000)::bigint", "float8send(value)");
        let sql = format!("SELECT name, labels::text, {time}, {value} FROM metrics WHERE {time} = ANY($1)");
        for row in database.client.query(&sql, &[&times]).await.unwrap() {
            stored.floats.push((row.get(0), json(row.get(1)), row.get(2), bits(row.get(3))));
        }
        let sql = format!(
            "SELECT name, labels::text, {time}, {value}, exemplar_labels::text FROM metrics_exemplars WHERE {time} = ANY($1)"
        );
        for row in database.client.query(&sql, &[&times]).await.unwrap() {
            stored.exemplars.push((row.get(0), json(row.get(1)), row.get(2), bits(row.get(3)), json(row.get(4))));
        }
        let sql = "SELECT name, type, help, unit FROM metrics_metadata";
        for row in database.client.query(sql, &[]).await.unwrap() {
            let row = [0, 1, 2, 3].map(|column| row.get(column));
            if said.insert(row.clone()) {
                stored.metadata.insert(row);
            }
        }
        stored.sorted()
    }

    /// Returns the same without floats and histograms.
    pub(super) fn without_samples(self) -> Self {
        Self { points: Vec::new(), floats: Vec::new(), ..self }
    }

    /// Returns `true` if both have the same floats and histograms.
    pub(super) fn has_samples_of(&self, other: &Self) -> bool {
        self.points == other.points && self.floats == other.floats
    }

    fn sorted(mut self) -> Self {
        self.points.sort_by(|(one, a), (other, b)| (one, a.timestamp_ms).cmp(&(other, b.timestamp_ms)));
        self.floats.sort();
        self.exemplars.sort();
        self
    }
}

fn times_of(series: &Series) -> impl Iterator<Item = i64> {
    let samples = series.samples.iter().map(|(time, _)| *time);
    let histograms = series.histograms.iter().map(|(time, _)| *time);
    samples.chain(histograms).chain(series.exemplars.iter().map(|exemplar| exemplar.time))
}
