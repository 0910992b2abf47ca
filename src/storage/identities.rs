//! Identities of series ids: what is needed to find a series again by its labels. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::model::labels::Labels;

/// Identities of known series. Of each series the first half of its key: 8 bytes, because ids are assigned in order. Of
/// recently created series the labels too: a server that lags does not have them.
#[derive(Debug, Default)]
pub struct Identities(Mutex<KnownIdentities>);

#[derive(Debug, Default)]
struct KnownIdentities {
    /// First halves of keys, by id / [`PAGE`]; 0 means none.
    prefixes: HashMap<i64, Box<[u64; PAGE]>>,
    /// Labels of the series with larger ids than those that existed [`KEPT`] ago.
    labels: BTreeMap<i64, Labels>,
    /// Largest id at some times.
    newest: VecDeque<(Instant, i64)>,
    /// Series with larger ids were created recently.
    floor: i64,
}

/// Number of series in a page.
const PAGE: usize = 256;

/// Time for which labels are kept: twice as long as samples that may have to be stored again.
const KEPT: Duration = Duration::from_secs(120);

impl KnownIdentities {
    fn learn(&mut self, id: i64, prefix: u64, labels: Option<&Labels>) {
        let (page, place) = split(id);
        self.prefixes.entry(page).or_insert_with(|| Box::new([0; PAGE]))[place] = prefix;
        if let Some(labels) = labels.filter(|_| id > self.floor) {
            self.labels.insert(id, labels.clone());
        }
    }
}

impl Identities {
    /// Records ids of series with their keys and labels.
    pub fn learn<'a>(&self, series: impl Iterator<Item = (i64, Uuid, &'a Labels)>) {
        let mut known = self.0.lock();
        for (id, key, labels) in series {
            known.learn(id, key.as_u64_pair().0, Some(labels));
        }
    }

    /// Records the second id of each pair with the identity that `before` has for the first id.
    pub fn take_over(&self, before: &Self, ids: impl Iterator<Item = (i64, i64)>) {
        for (id_before, id) in ids {
            if let Some(prefix) = before.prefix(id_before) {
                self.0.lock().learn(id, prefix, before.labels(id_before).as_ref());
            }
        }
    }

    /// Records that no series has a larger id than `newest_id` at `now`.
    pub fn on_newest(&self, newest_id: i64, now: Instant) {
        let mut known = self.0.lock();
        known.newest.push_back((now, newest_id));
        while let Some((at, id)) = known.newest.front().copied()
            && now.saturating_duration_since(at) >= KEPT
        {
            known.newest.pop_front();
            known.floor = id;
        }
        let floor = known.floor;
        if known.labels.first_key_value().is_some_and(|(id, _)| *id <= floor) {
            known.labels = known.labels.split_off(&floor.saturating_add(1));
        }
    }

    /// Returns the first half of the key of a series.
    #[must_use]
    pub fn prefix(&self, id: i64) -> Option<u64> {
        let (page, place) = split(id);
        self.0.lock().prefixes.get(&page).map(|page| page[place]).filter(|prefix| *prefix != 0)
    }

    /// Returns the labels of a recently created series.
    #[must_use]
    pub fn labels(&self, id: i64) -> Option<Labels> {
        self.0.lock().labels.get(&id).cloned()
    }
}

/// Returns the page of a series, and its place in the page.
fn split(id: i64) -> (i64, usize) {
    #[expect(clippy::cast_possible_truncation, reason = "below 256")]
    (id.div_euclid(PAGE as i64), id.rem_euclid(PAGE as i64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(id: i64) -> Labels {
        Labels::from_stored([("__name__".to_owned(), format!("m{id}"))])
    }

    fn learn(identities: &Identities, id: i64) {
        let labels = labels(id);
        identities.learn([(id, Uuid::from_bytes(labels.identity()), &labels)].into_iter());
    }

    #[test]
    fn what_is_found_under_another_id_is_known_by_that() {
        let [before, now]: [Identities; 2] = Default::default();
        learn(&before, 5);
        now.take_over(&before, [(5, 70), (6, 71)].into_iter());
        assert_eq!((now.prefix(70), now.labels(70)), (before.prefix(5), Some(labels(5))));
        assert_eq!((now.prefix(71), now.prefix(5)), (None, None));
        let later = Identities::default();
        later.on_newest(100, Instant::now());
        later.on_newest(100, Instant::now() + KEPT);
        later.take_over(&before, [(5, 70)].into_iter());
        assert_eq!((later.prefix(70), later.labels(70)), (before.prefix(5), None), "it was there before");
    }

    #[test]
    fn keys_are_kept_and_labels_of_series_made_lately_too() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let identities = Identities::default();
        learn(&identities, 5);
        assert_eq!(identities.labels(5), Some(labels(5)), "nobody knows when it was made");
        identities.on_newest(10, start);
        identities.on_newest(400, after(60));
        learn(&identities, 300);
        identities.on_newest(500, after(119));
        assert_eq!([5, 300].map(|id| identities.labels(id)), [5, 300].map(|id| Some(labels(id))));
        identities.on_newest(500, after(121));
        assert_eq!([5, 300].map(|id| identities.labels(id)), [None, Some(labels(300))]);
        learn(&identities, 6);
        assert_eq!(identities.labels(6), None, "it was there before");
        identities.on_newest(500, after(181));
        assert_eq!(identities.labels(300), None);
        let prefix = |id| Uuid::from_bytes(labels(id).identity()).as_u64_pair().0;
        assert_eq!([5, 300, 6].map(|id| identities.prefix(id)), [5, 300, 6].map(|id| Some(prefix(id))));
        assert_eq!([4, 7, -1, 100_000].map(|id| identities.prefix(id)), [None; 4]);
    }
}
