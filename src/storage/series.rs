//! Series ids: a cache in front of the series table.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::model::labels::{Labels, METRIC_NAME};
use crate::model::sample::Kind;
use crate::postgres::error::Error;
use crate::storage::names::Names;
use crate::storage::row::is_of_histograms;
use crate::storage::sources::SourceId;
use crate::wire::write::{LABELS_MAX, Request, Series, next_ref};

/// Hash of a series' labels as they stand on the wire: 128 bits with a random seed of this process. Two series with
/// equal hashes would be stored as one; without the seed nobody can search for such a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireHash([u64; 2]);

/// Time for which an id is used without another look at the table.
pub const TRUSTED: Duration = Duration::from_secs(3600);

/// Result of a look into the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedSeries {
    /// Id of the series.
    pub id: i64,
    /// Sender of the series with these labels. The labels of the replica itself are not stored.
    pub source: SourceId,
}

/// Cache from wire hash to series id. Bounded by two generations of about `generation_max` entries: an entry that is
/// not used during a whole generation is removed.
pub struct Cache {
    seed: u64,
    generation_max: usize,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    current: Generation,
    previous: Generation,
    /// Number of entries of `previous` that are in `current` too.
    promoted: usize,
    /// Time when the cache was last cleared because of its age.
    since: Option<Instant>,
}

/// Series in the order of their first request. A sender lists its series in nearly the same order each time, so the
/// next one is usually found next to the last, without a lookup in the index.
#[derive(Default)]
struct Generation {
    entries: Vec<CacheEntry>,
    /// Positions in `entries`, by hash.
    index: HashTable<u32>,
}

/// Entry of a series; without padding, because there are millions.
#[derive(Clone, Copy)]
#[repr(Rust, packed(4))]
struct CacheEntry {
    hash: WireHash,
    id: i64,
    source: SourceId,
}

impl WireHash {
    /// Returns the key of the series of native histograms with the labels of a series of floats.
    #[must_use]
    pub fn of_histograms(self) -> Self {
        Self(self.0.map(|half| !half))
    }

    fn of(self, kind: Kind) -> Self {
        match kind {
            Kind::Float => self,
            Kind::Histogram => self.of_histograms(),
        }
    }
}

impl CacheEntry {
    fn series(self) -> CachedSeries {
        CachedSeries { id: self.id, source: self.source }
    }
}

impl Generation {
    /// Returns the position of `hash`; tries `guess` first.
    fn find(&self, hash: WireHash, guess: usize) -> Option<usize> {
        if self.entries.get(guess).is_some_and(|known| { known.hash } == hash) {
            return Some(guess);
        }
        self.index.find(hash.0[0], |at| { self.entries[*at as usize].hash } == hash).map(|at| *at as usize)
    }

    /// Adds or replaces an entry; returns its position.
    fn insert(&mut self, hash: WireHash, series: CachedSeries) -> usize {
        let Self { entries, index } = self;
        let place = entries.len();
        let at = u32::try_from(place).expect("a generation is bounded far below 4 billion");
        let new = CacheEntry { hash, id: series.id, source: series.source };
        let equal = |at: &u32| { entries[*at as usize].hash } == hash;
        match index.entry(hash.0[0], equal, |at| { entries[*at as usize].hash }.0[0]) {
            Entry::Occupied(known) => {
                let at = *known.get() as usize;
                entries[at] = new;
                at
            }
            Entry::Vacant(vacant) => {
                vacant.insert(at);
                entries.push(new);
                place
            }
        }
    }
}

impl Cache {
    /// Creates an empty cache.
    #[must_use]
    pub fn new(generation_max: usize) -> Self {
        let seed = Uuid::new_v4().as_u64_pair().0;
        Self { seed, generation_max, generations: Mutex::default() }
    }

    /// Returns the cache keys of all series of a request, made from their labels as they stand on the wire, and their
    /// kinds. A series has another key in each version of the message.
    #[must_use]
    pub fn hash_all(&self, request: &Request<'_>) -> Vec<WireHash> {
        let Some(symbols) = &request.symbols else {
            return request.series.iter().map(|series| self.hash(&series.labels).of(series.kind)).collect();
        };
        // Many series share their symbols, so each symbol is hashed once.
        let symbols: Vec<[u8; 16]> =
            symbols.iter().map(|symbol| xxh3_128_with_seed(symbol, self.seed).to_le_bytes()).collect();
        let mut labels = Vec::with_capacity(2 * LABELS_MAX);
        let mut hash = |series: &Series<'_>| -> Option<WireHash> {
            labels.clear();
            let mut refs = &*series.labels;
            while !refs.is_empty() && labels.len() < 2 * LABELS_MAX {
                labels.push(*symbols.get(next_ref(&mut refs).ok()? as usize)?);
            }
            refs.is_empty().then(|| self.hash(labels.as_flattened()))
        };
        // A series that is refused for its references is never cached, and its key is that of no other.
        let unlike_any = |series: &Series<'_>| wire_hash(&series.labels, !self.seed);
        let hash = |series: &Series<'_>| hash(series).unwrap_or_else(|| unlike_any(series)).of(series.kind);
        request.series.iter().map(hash).collect()
    }

    fn hash(&self, labels: &[u8]) -> WireHash {
        wire_hash(labels, self.seed)
    }

    /// Returns the entries of `hashes`, in their order.
    pub fn get_all(&self, hashes: impl Iterator<Item = WireHash>) -> Vec<Option<CachedSeries>> {
        let mut generations = self.generations.lock();
        let Generations { current, previous, promoted, .. } = &mut *generations;
        let (mut next, mut next_previous) = (0, 0);
        let known = hashes
            .map(|hash| {
                if let Some(at) = current.find(hash, next) {
                    next = at + 1;
                    return Some(current.entries[at].series());
                }
                let at = previous.find(hash, next_previous)?;
                next_previous = at + 1;
                let series = previous.entries[at].series();
                next = current.insert(hash, series) + 1;
                *promoted += 1;
                Some(series)
            })
            .collect();
        if *promoted > 0 && *promoted == previous.entries.len() {
            *previous = Generation::default();
            *promoted = 0;
        }
        known
    }

    /// Adds or replaces entries.
    pub fn insert_all(&self, entries: impl Iterator<Item = (WireHash, CachedSeries)>) {
        let mut generations = self.generations.lock();
        for (hash, series) in entries {
            generations.current.insert(hash, series);
        }
        if generations.current.entries.len() >= self.generation_max {
            generations.previous = std::mem::take(&mut generations.current);
            generations.promoted = 0;
        }
    }

    /// Removes all entries.
    pub fn clear(&self) {
        *self.generations.lock() = Generations::default();
    }

    /// Removes all entries if that was last done [`TRUSTED`] ago: series to which nothing refers any more are deleted
    /// after some time.
    pub fn clear_if_old(&self, now: Instant) {
        let mut generations = self.generations.lock();
        let since = *generations.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= TRUSTED {
            *generations = Generations { since: Some(now), ..Generations::default() };
        }
    }

    /// Returns the number of cached series.
    #[must_use]
    pub fn len(&self) -> usize {
        let generations = self.generations.lock();
        generations.current.entries.len() + generations.previous.entries.len() - generations.promoted
    }

    /// Returns `true` if no series is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn wire_hash(labels: &[u8], seed: u64) -> WireHash {
    let hash = xxh3_128_with_seed(labels, seed);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    WireHash([hash as u64, (hash >> 64) as u64])
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::Kind;

    fn known(id: i64) -> CachedSeries {
        CachedSeries { id, source: SourceId::NONE }
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new(100);
        let hash = |n: u64| cache.hash(&n.to_le_bytes());
        for n in 0..10_000 {
            cache.insert_all([(hash(n), known(i64::try_from(n).unwrap()))].into_iter());
            assert_eq!(cache.get_all([hash(0)].into_iter()), [Some(known(0))], "in use all the time");
            assert!(cache.len() <= 201);
        }
        assert_eq!(cache.get_all([hash(1), hash(9_999)].into_iter()), [None, Some(known(9_999))]);
    }

    #[test]
    fn a_series_is_not_taken_for_a_part_of_its_references() {
        let cache = Cache::new(100);
        let keys = |refs: &[&[u8]]| {
            let series = |refs: &&'static [u8]| Series {
                labels: (*refs).into(),
                kind: Kind::Float,
                samples: 0..0,
                exemplars: 0,
                histograms: 0..0,
                fault: None,
            };
            let refs: Vec<&'static [u8]> = refs.iter().map(|refs| &*refs.to_vec().leak()).collect();
            let symbols = Some(vec![&b""[..], b"__name__", b"up"]);
            cache.hash_all(&Request { symbols, series: refs.iter().map(series).collect(), ..Request::default() })
        };
        let long = [1, 2].repeat(LABELS_MAX);
        let longer = [1, 2].repeat(LABELS_MAX + 1);
        let all = keys(&[&[1, 2], &[1, 2, 0xff], &[1, 2, 9], &[1, 2, 1], &[], &long, &longer, &[2, 1]]);
        let different: std::collections::HashSet<_> = all.iter().map(|hash| hash.0).collect();
        assert_eq!(different.len(), all.len());
        assert!(keys(&[&[1, 2]]) == all[..1]);
    }

    #[test]
    fn the_order_of_series_is_only_a_hint() {
        let cache = Cache::new(100);
        let hash = |n: i64| cache.hash(&n.to_le_bytes());
        let ask = |order: &[i64]| cache.get_all(order.iter().map(|n| hash(*n)));
        let all_known = |order: &[i64]| order.iter().map(|n| Some(known(*n))).collect::<Vec<_>>();
        let all: Vec<i64> = (0..100).collect();
        let backwards: Vec<i64> = (0..100).rev().collect();
        cache.insert_all(all[..99].iter().map(|n| (hash(*n), known(*n))));
        assert_eq!(ask(&backwards[1..]), all_known(&backwards[1..]));
        assert_eq!(ask(&[5, 6, 99, 7, 7, 5]), [5, 6, -1, 7, 7, 5].map(|n| (n >= 0).then(|| known(n))));
        cache.insert_all([(hash(99), known(99))].into_iter());
        assert_eq!(ask(&backwards[..50]), all_known(&backwards[..50]), "from the previous generation");
        assert_eq!((ask(&all), cache.len()), (all_known(&all), 100), "each in one generation, half of them in either");
        assert_eq!((ask(&backwards), cache.len()), (all_known(&backwards), 100), "and all of them moved");
        cache.insert_all([(hash(3), known(-3))].into_iter());
        assert_eq!(ask(&[2, 3, 4]), [2, -3, 4].map(|n| Some(known(n))), "the last word counts");
    }
}
