//! Series ids: a cache in front of the series table.

use std::collections::HashMap;

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::model::labels::{Labels, METRIC_NAME};
use crate::model::sample::Kind;
use crate::postgres::error::Error;
use crate::storage::names::Names;
use crate::storage::row::is_of_histograms;

pub use self::cache::{Cache, CachedSeries, TRUSTED, WireHash};

mod cache;

/// A label set whose id is requested.
#[derive(Debug)]
pub struct Wanted {
    /// Index of its first occurrence in the request.
    pub place: usize,
    /// The label set.
    pub labels: Labels,
    /// Kind of the series.
    pub kind: Kind,
    /// Identity of the series of native histograms with these labels: if there is one, it is meant.
    pub or_histogram: Option<Uuid>,
}

impl Wanted {
    /// Returns the id that was found for `key`, with the identity and the labels of its series.
    #[must_use]
    pub fn found(&self, id: i64, key: Uuid) -> (i64, Uuid, &Labels) {
        let of_histograms = self.or_histogram.filter(|_| is_of_histograms(id));
        (id, of_histograms.unwrap_or(key), &self.labels)
    }
}

/// Looks up label sets and creates the new ones, in the transaction that `client` has open. Returns the ids by
/// identity, and the number of new series.
///
/// Only one transaction at a time creates series, and it looks again once it has the lock. Both adapters of a pair
/// request the same series at the same time, and no id may be wasted, because series with neighbouring ids are stored
/// together. Ids are assigned in the order of the request: a sender keeps that order, so its samples usually arrive
/// sorted. Those of series of native histograms are negative.
///
/// # Errors
///
/// Errors of the server or of the connection; `Error::Misconfigured` if inserted series are not found in the table.
pub async fn resolve(
    client: &Client,
    names: &Names,
    wanted: &HashMap<Uuid, Wanted>,
) -> Result<(HashMap<Uuid, i64>, u64), Error> {
    let mut known = HashMap::with_capacity(wanted.len());
    look_up(client, names, wanted, &mut known).await?;
    if known.len() == wanted.len() {
        return Ok((known, 0));
    }
    client
        .batch_execute(&names.sql("SELECT pg_advisory_xact_lock({series:literal}::regclass::oid::integer, 0)"))
        .await?;
    look_up(client, names, wanted, &mut known).await?;
    // Some are those of native histograms that are about to be created.
    let is_created = |wanted_one: &Wanted| wanted_one.or_histogram.is_some_and(|key| wanted.contains_key(&key));
    let missing = wanted.iter().filter(|(key, _)| !known.contains_key(*key));
    let (later, mut missing): (Vec<_>, Vec<_>) = missing.partition(|(_, series)| is_created(series));
    missing.sort_by_key(|(_, series)| (series.kind == Kind::Histogram, series.place));
    let ids = new_ids(client, names, missing.len()).await?;
    let new: Vec<_> = missing.into_iter().zip(ids).collect();
    let keys: Vec<Uuid> = new.iter().map(|((key, _), _)| **key).collect();
    let metric_names: Vec<&str> = new.iter().map(|((_, series), _)| series.labels.metric_name()).collect();
    let labels: Vec<String> = new.iter().map(|((_, series), _)| to_json(&series.labels)).collect();
    let signed = |((_, series), id): &((_, &Wanted), i64)| if series.kind == Kind::Histogram { -id } else { *id };
    let ids: Vec<i64> = new.iter().map(signed).collect();
    let statement = names.sql(
        "INSERT INTO {series} (id, key, name, labels) OVERRIDING SYSTEM VALUE SELECT id, key, name, labels::jsonb \
         FROM unnest($1::bigint[], $2::uuid[], $3::text[], $4::text[]) AS new (id, key, name, labels) \
         ON CONFLICT (key) DO NOTHING RETURNING key, id",
    );
    let rows = client
        .query_typed(
            &statement,
            &[
                (&ids, Type::INT8_ARRAY),
                (&keys, Type::UUID_ARRAY),
                (&metric_names, Type::TEXT_ARRAY),
                (&labels, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    for row in &rows {
        known.insert(row.try_get(0)?, row.try_get(1)?);
    }
    for (key, series) in later {
        let id = series.or_histogram.and_then(|key| known.get(&key).copied());
        known.extend(id.map(|id| (*key, id)));
    }
    if known.len() < wanted.len() {
        // Caused by a foreign trigger or row-level security policy. Without an id the samples would be lost silently.
        return Err(Error::Misconfigured(format!(
            "series were inserted into {} and are not there",
            names.qualified("_series")
        )));
    }
    Ok((known, rows.len() as u64))
}

/// Returns the ids of existing series by the first halves of their keys, `prefixes`, and removes their mark as ended.
/// `check` fails on a server that is not the expected one.
///
/// # Errors
///
/// Errors of the server or of the connection, including the error of `check`.
pub async fn find_by_prefix(
    client: &Client,
    names: &Names,
    check: &str,
    prefixes: &[u64],
) -> Result<HashMap<u64, i64>, Error> {
    let least: Vec<Uuid> = prefixes.iter().map(|prefix| Uuid::from_u64_pair(*prefix, 0)).collect();
    let most: Vec<Uuid> = prefixes.iter().map(|prefix| Uuid::from_u64_pair(*prefix, u64::MAX)).collect();
    // Rows are locked in the order of keys, the same in all transactions.
    let statement = names.sql(&format!(
        "WITH found AS (SELECT s.id, s.key, s.ended_at FROM (SELECT {check}) AS checked, \
         unnest($1::uuid[], $2::uuid[]) AS w (low, high) JOIN {{series}} s ON s.key BETWEEN w.low AND w.high), \
         revived AS (UPDATE {{series}} s SET ended_at = NULL FROM \
         (SELECT id FROM {{series}} WHERE id IN (SELECT id FROM found WHERE ended_at IS NOT NULL) ORDER BY key FOR UPDATE) e \
         WHERE s.id = e.id RETURNING s.id) \
         SELECT key, id FROM found WHERE ended_at IS NULL OR id IN (SELECT id FROM revived)",
    ));
    let rows = client.query_typed(&statement, &[(&least, Type::UUID_ARRAY), (&most, Type::UUID_ARRAY)]).await?;
    rows.iter().map(|row| Ok((row.try_get::<_, Uuid>(0)?.as_u64_pair().0, row.try_get(1)?))).collect()
}

/// Returns the next ids of the table, ascending.
async fn new_ids(client: &Client, names: &Names, count: usize) -> Result<Vec<i64>, Error> {
    let statement = names.sql(
        "SELECT nextval(pg_get_serial_sequence({series:literal}, 'id')) AS id FROM generate_series(1, $1) ORDER BY id",
    );
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let rows = client.query_typed(&statement, &[(&count, Type::INT8)]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

async fn look_up(
    client: &Client,
    names: &Names,
    wanted: &HashMap<Uuid, Wanted>,
    known: &mut HashMap<Uuid, i64>,
) -> Result<(), Error> {
    let unknown = || wanted.iter().filter(|(key, _)| !known.contains_key(*key));
    let keys: Vec<Uuid> = unknown().flat_map(|(key, series)| [Some(*key), series.or_histogram]).flatten().collect();
    let mut found: HashMap<Uuid, i64> = HashMap::new();
    let statement = names.sql("SELECT key, id, ended_at IS NOT NULL FROM {series} WHERE key = ANY($1)");
    let mut ended: Vec<Uuid> = Vec::new();
    for row in client.query_typed(&statement, &[(&keys, Type::UUID_ARRAY)]).await? {
        match row.try_get(2)? {
            true => ended.push(row.try_get(0)?),
            false => {
                found.insert(row.try_get(0)?, row.try_get(1)?);
            }
        }
    }
    if !ended.is_empty() {
        // Rows are locked in the order of keys, the same in all transactions. Series deleted at this moment are not
        // returned, and are created again.
        let statement = names.sql(
            "UPDATE {series} s SET ended_at = NULL FROM \
             (SELECT id FROM {series} WHERE key = ANY($1) ORDER BY key FOR UPDATE) e WHERE s.id = e.id RETURNING s.key, s.id",
        );
        for row in client.query_typed(&statement, &[(&ended, Type::UUID_ARRAY)]).await? {
            found.insert(row.try_get(0)?, row.try_get(1)?);
        }
    }
    let of_either = |series: &Wanted| series.or_histogram.and_then(|key| found.get(&key));
    let ids = unknown().filter_map(|(key, series)| Some((*key, *of_either(series).or_else(|| found.get(key))?)));
    let ids: Vec<(Uuid, i64)> = ids.collect();
    known.extend(ids);
    Ok(())
}

/// Returns the labels in the form that SQL users see: an object without the metric name.
fn to_json(labels: &Labels) -> String {
    let object: serde_json::Map<String, serde_json::Value> = labels
        .iter()
        .filter(|label| label.name != METRIC_NAME)
        .map(|label| (label.name.clone(), label.value.clone().into()))
        .collect();
    serde_json::Value::Object(object).to_string()
}

/// Reverses `to_json`, and adds the metric name.
///
/// # Errors
///
/// [`Error::Corrupt`] if `json` is not an object of strings.
pub fn from_json(name: String, json: &str) -> Result<Labels, Error> {
    let object: HashMap<String, String> = serde_json::from_str(json)
        .map_err(|error| Error::Corrupt(format!("labels in the series table are no object of strings: {error}")))?;
    Ok(Labels::from_stored(object.into_iter().chain([(METRIC_NAME.to_owned(), name)])))
}
