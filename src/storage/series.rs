//! Series ids: a cache in front of the series table.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Mutex;

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::model::labels::{Labels, METRIC_NAME};
use crate::postgres::error::Error;
use crate::storage::names::Names;

/// The hash of a series' labels as they stand on the wire. 128 bits under a seed of this process: two series that share
/// it would be stored as one, and nobody can search for such a pair without the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireHash([u64; 2]);

/// From wire hash to series id. Bounded: two generations of at most `generation_max` entries; what is not asked for
/// during a whole generation is forgotten.
pub struct Cache {
    seed: u64,
    generation_max: usize,
    generations: Mutex<Generations>,
}

type Map = HashMap<WireHash, i64, BuildHasherDefault<AlreadyHashed>>;

#[derive(Default)]
struct Generations {
    current: Map,
    previous: Map,
}

/// Takes the half of a [`WireHash`] as it is.
#[derive(Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a wire hash hashes as one u64");
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }
}

impl std::hash::Hash for WireHash {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0[0]);
    }
}

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(generation_max: usize) -> Self {
        let seed = Uuid::new_v4().as_u64_pair().0;
        Self { seed, generation_max, generations: Mutex::default() }
    }

    /// The key of `labels`, the Label fields of a series as they stand on the wire.
    #[must_use]
    pub fn hash(&self, labels: &[u8]) -> WireHash {
        let hash = xxh3_128_with_seed(labels, self.seed);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        WireHash([hash as u64, (hash >> 64) as u64])
    }

    /// The ids of `hashes`, in their order; `None` where unknown.
    pub fn get_all(&self, hashes: impl Iterator<Item = WireHash>) -> Vec<Option<i64>> {
        let mut generations = self.lock();
        let Generations { current, previous } = &mut *generations;
        hashes
            .map(|hash| {
                if let Some(id) = current.get(&hash) {
                    return Some(*id);
                }
                let id = previous.remove(&hash)?;
                current.insert(hash, id);
                Some(id)
            })
            .collect()
    }

    /// Remembers ids.
    pub fn insert_all(&self, entries: impl Iterator<Item = (WireHash, i64)>) {
        let mut generations = self.lock();
        generations.current.extend(entries);
        if generations.current.len() >= self.generation_max {
            generations.previous = std::mem::take(&mut generations.current);
        }
    }

    /// Forgets them all.
    pub fn clear(&self) {
        *self.lock() = Generations::default();
    }

    /// How many series are known.
    #[must_use]
    pub fn len(&self) -> usize {
        let generations = self.lock();
        generations.current.len() + generations.previous.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Looks label sets up and makes those that are new, all in the transaction that `client` has open. The answer is by
/// identity, with the number of new ones. Rows are inserted in the order of their labels, so that
/// two adapters that make the same series wait for each other and never deadlock, and that series alike are neighbours.
///
/// # Errors
///
/// What the server said.
pub async fn resolve(
    client: &Client,
    names: &Names,
    wanted: &HashMap<Uuid, Labels>,
) -> Result<(HashMap<Uuid, i64>, u64), Error> {
    let mut known = HashMap::with_capacity(wanted.len());
    look_up(client, names, wanted, &mut known).await?;
    let mut missing: Vec<_> = wanted.iter().filter(|(key, _)| !known.contains_key(*key)).collect();
    if missing.is_empty() {
        return Ok((known, 0));
    }
    missing.sort_unstable_by_key(|(_, labels)| *labels);
    let keys: Vec<Uuid> = missing.iter().map(|(key, _)| **key).collect();
    let metric_names: Vec<&str> = missing.iter().map(|(_, labels)| labels.metric_name()).collect();
    let labels: Vec<String> = missing.iter().map(|(_, labels)| to_json(labels)).collect();
    let statement = names.fill(
        "INSERT INTO {series} (key, name, labels) SELECT key, name, labels::jsonb \
         FROM unnest($1::uuid[], $2::text[], $3::text[]) AS new (key, name, labels) \
         ON CONFLICT (key) DO NOTHING RETURNING key, id",
    );
    let rows = client
        .query_typed(
            &statement,
            &[(&keys, Type::UUID_ARRAY), (&metric_names, Type::TEXT_ARRAY), (&labels, Type::TEXT_ARRAY)],
        )
        .await?;
    for row in &rows {
        known.insert(row.try_get(0)?, row.try_get(1)?);
    }
    if known.len() < wanted.len() {
        // Somebody else made them meanwhile, and has committed: a new statement sees them.
        look_up(client, names, wanted, &mut known).await?;
    }
    if known.len() < wanted.len() {
        // A trigger or a row policy of somebody's: without an id the samples would be lost unsaid.
        return Err(Error::Unfit(format!(
            "series were inserted into {} and are not there",
            names.qualified("_series")
        )));
    }
    Ok((known, rows.len() as u64))
}

async fn look_up(
    client: &Client,
    names: &Names,
    wanted: &HashMap<Uuid, Labels>,
    known: &mut HashMap<Uuid, i64>,
) -> Result<(), Error> {
    let keys: Vec<Uuid> = wanted.keys().filter(|key| !known.contains_key(*key)).copied().collect();
    let statement = names.fill("SELECT key, id FROM {series} WHERE key = ANY($1)");
    for row in client.query_typed(&statement, &[(&keys, Type::UUID_ARRAY)]).await? {
        known.insert(row.try_get(0)?, row.try_get(1)?);
    }
    Ok(())
}

/// The labels as the SQL contract has them: an object without the metric's name.
fn to_json(labels: &Labels) -> String {
    let object: serde_json::Map<String, serde_json::Value> = labels
        .iter()
        .filter(|label| label.name != METRIC_NAME)
        .map(|label| (label.name.clone(), label.value.clone().into()))
        .collect();
    serde_json::Value::Object(object).to_string()
}

/// The reverse of `to_json`, with the metric's name.
///
/// # Errors
///
/// [`Error::Unfit`] when `json` is no object of strings.
pub fn from_json(name: String, json: &str) -> Result<Labels, Error> {
    let object: HashMap<String, String> = serde_json::from_str(json)
        .map_err(|error| Error::Unfit(format!("labels in the series table are no object of strings: {error}")))?;
    Ok(Labels::from_stored(object.into_iter().chain([(METRIC_NAME.to_owned(), name)])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let cache = Cache::new(100);
        let hash = |n: u64| cache.hash(&n.to_le_bytes());
        for n in 0..10_000 {
            cache.insert_all([(hash(n), i64::try_from(n).unwrap())].into_iter());
            assert_eq!(cache.get_all([hash(0)].into_iter()), [Some(0)], "in use all the time");
            assert!(cache.len() <= 201);
        }
        assert_eq!(cache.get_all([hash(1), hash(9_999)].into_iter()), [None, Some(9_999)]);
    }
}
