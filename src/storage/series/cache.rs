//! A cache of series ids. Pure.

use std::time::{Duration, Instant};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::model::sample::Kind;
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
