//! Identities of series ids: what is needed to find a series again by its labels. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::model::labels::Labels;
use crate::storage::by_series::BySeries;
use crate::storage::row::creation_no;

/// Identities of known series. Of each series the first half of its key: 8 bytes, because ids are assigned in order. Of
/// recently created series the labels too, compressed: a server that lags does not have them.
#[derive(Debug, Default)]
pub struct Identities(Mutex<KnownIdentities>);

#[derive(Debug, Default)]
struct KnownIdentities {
    /// First halves of keys; 0 means none.
    prefixes: BySeries<u64>,
    /// Labels of the series with larger numbers than those that existed [`KEPT`] ago.
    labels: Vec<Arc<PackedLabels>>,
    /// Number of the newest series at some times.
    newest: VecDeque<(Instant, i64)>,
    /// Series with larger numbers were created recently.
    floor: i64,
}

/// Labels of series that were learned together. Their labels repeat each other: unpacked, a million label sets take
/// a gigabyte, and packed some megabytes.
#[derive(Debug)]
struct PackedLabels {
    /// Range of the series ids.
    ids: RangeInclusive<i64>,
    /// Number of the newest series.
    newest: i64,
    /// [`Table`]s as JSON, compressed by Snappy.
    packed: Box<[u8]>,
}

/// Series whose labels have the same names: the names, the step from each id to the next, and for each name the values
/// of all series. What stands together is alike.
type Table<Text> = (Vec<Text>, Vec<i64>, Vec<Vec<Text>>);

/// Time for which labels are kept: twice as long as samples that may have to be stored again.
const KEPT: Duration = Duration::from_secs(120);

impl Identities {
    /// Records ids of series with their keys and labels.
    pub fn learn<'a>(&self, series: impl Iterator<Item = (i64, Uuid, &'a Labels)> + Clone) {
        let prefixes = series.clone().map(|(id, key, _)| (id, key.as_u64_pair().0)).collect();
        self.record(prefixes, series.map(|(id, _, labels)| (id, labels)));
    }

    /// Records the second id of each pair with the identity that `before` has for the first id.
    pub fn take_over(&self, before: &Self, ids: impl Iterator<Item = (i64, i64)> + Clone) {
        let labels = before.labels(ids.clone().map(|(id_before, _)| id_before));
        let prefixes = ids.clone().filter_map(|(id_before, id)| Some((id, before.prefix(id_before)?))).collect();
        self.record(prefixes, ids.filter_map(|(id_before, id)| Some((id, labels.get(&id_before)?))));
    }

    fn record<'a>(&self, prefixes: Vec<(i64, u64)>, labels: impl Iterator<Item = (i64, &'a Labels)>) {
        let floor = self.0.lock().floor;
        // Packed without the lock, for which requests wait.
        let packed = PackedLabels::pack(labels.filter(|(id, _)| creation_no(*id) > floor));
        let mut known = self.0.lock();
        for (id, prefix) in prefixes {
            *known.prefixes.entry(id) = prefix;
        }
        known.labels.extend(packed.map(Arc::new));
    }

    /// Records that no series has a larger number than `newest_no` at `now`.
    pub fn on_newest(&self, newest_no: i64, now: Instant) {
        let mut known = self.0.lock();
        known.newest.push_back((now, newest_no));
        while let Some((at, number)) = known.newest.front().copied()
            && now.saturating_duration_since(at) >= KEPT
        {
            known.newest.pop_front();
            known.floor = number;
        }
        let floor = known.floor;
        known.labels.retain(|packed| packed.newest > floor);
    }

    /// Returns the first half of the key of a series.
    #[must_use]
    pub fn prefix(&self, id: i64) -> Option<u64> {
        self.0.lock().prefixes.get(id).copied().filter(|prefix| *prefix != 0)
    }

    /// Returns the labels of those of the series that were created recently, by id.
    pub fn labels(&self, ids: impl Iterator<Item = i64>) -> BTreeMap<i64, Labels> {
        let wanted: BTreeSet<i64> = ids.collect();
        let (packed, floor) = {
            let known = self.0.lock();
            let of_wanted = |packed: &&Arc<PackedLabels>| wanted.range(packed.ids.clone()).next().is_some();
            (known.labels.iter().filter(of_wanted).cloned().collect::<Vec<_>>(), known.floor)
        };
        let labels = packed.iter().flat_map(|packed| packed.unpack());
        labels.filter(|(id, _)| creation_no(*id) > floor && wanted.contains(id)).collect()
    }
}

impl PackedLabels {
    /// Packs the labels of some series; `None` if there is no series.
    fn pack<'a>(series: impl Iterator<Item = (i64, &'a Labels)>) -> Option<Self> {
        let series: BTreeMap<i64, &Labels> = series.collect();
        let ids = *series.first_key_value()?.0..=*series.last_key_value()?.0;
        let newest = creation_no(*ids.start()).max(creation_no(*ids.end()));
        let mut by_names: BTreeMap<Vec<&str>, Vec<(i64, &Labels)>> = BTreeMap::new();
        for (id, labels) in series {
            let names = labels.iter().map(|label| label.name.as_str()).collect();
            by_names.entry(names).or_default().push((id, labels));
        }
        let table = |(names, series): (Vec<&'a str>, Vec<(i64, &'a Labels)>)| -> Table<&'a str> {
            let ids = series.iter().map(|(id, _)| *id);
            let steps = ids.clone().zip([0].into_iter().chain(ids)).map(|(id, before)| id - before).collect();
            let mut values: Vec<_> =
                series.iter().map(|(_, labels)| labels.iter().map(|label| &*label.value)).collect();
            let columns = names.iter().map(|_| values.iter_mut().filter_map(Iterator::next).collect()).collect();
            (names, steps, columns)
        };
        let tables: Vec<Table<&str>> = by_names.into_iter().map(table).collect();
        let json = serde_json::to_vec(&tables).expect("text and numbers are JSON");
        let packed = snap::raw::Encoder::new().compress_vec(&json).expect("a request is below 4 GiB");
        Some(Self { ids, newest, packed: packed.into_boxed_slice() })
    }

    fn unpack(&self) -> impl Iterator<Item = (i64, Labels)> + use<> {
        let json = snap::raw::Decoder::new().decompress_vec(&self.packed).expect("it was packed here");
        let tables: Vec<Table<String>> = serde_json::from_slice(&json).expect("it was packed here");
        tables.into_iter().flat_map(|(names, steps, columns)| {
            let mut columns: Vec<_> = columns.into_iter().map(Vec::into_iter).collect();
            steps.into_iter().scan(0, move |id, step| {
                *id += step;
                let values = columns.iter_mut().filter_map(Iterator::next);
                Some((*id, Labels::from_stored(names.iter().cloned().zip(values))))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::sample::Kind;

    fn labels(id: i64) -> Labels {
        Labels::from_stored([("__name__".to_owned(), format!("m{id}"))])
    }

    fn learn(identities: &Identities, id: i64) {
        let labels = labels(id);
        identities.learn([(id, Uuid::from_bytes(labels.identity(Kind::Float)), &labels)].into_iter());
    }

    fn labels_of(identities: &Identities, id: i64) -> Option<Labels> {
        identities.labels([id].into_iter()).remove(&id)
    }

    proptest! {
        #[test]
        fn packed_labels_come_out_as_they_were(
            series in prop::collection::btree_map(
                -9_i64..1_000_000, prop::collection::btree_map("[a-d]", "[a-é\"]{0,3}", 0..4), 1..40
            )
        ) {
            let of = |labels: BTreeMap<String, String>| Labels::from_stored(labels);
            let series: BTreeMap<i64, Labels> = series.into_iter().map(|(id, labels)| (id, of(labels))).collect();
            let packed = PackedLabels::pack(series.iter().map(|(id, labels)| (*id, labels))).unwrap();
            prop_assert_eq!(packed.unpack().collect::<BTreeMap<_, _>>(), series);
        }
    }

    #[test]
    fn what_is_found_under_another_id_is_known_by_that() {
        let [before, now]: [Identities; 2] = Default::default();
        learn(&before, 5);
        now.take_over(&before, [(5, 70), (6, 71)].into_iter());
        assert_eq!((now.prefix(70), labels_of(&now, 70)), (before.prefix(5), Some(labels(5))));
        assert_eq!((now.prefix(71), now.prefix(5)), (None, None));
        let later = Identities::default();
        later.on_newest(100, Instant::now());
        later.on_newest(100, Instant::now() + KEPT);
        later.take_over(&before, [(5, 70)].into_iter());
        assert_eq!((later.prefix(70), labels_of(&later, 70)), (before.prefix(5), None), "it was there before");
    }

    #[test]
    fn keys_are_kept_and_labels_of_series_made_lately_too() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let identities = Identities::default();
        learn(&identities, 5);
        assert_eq!(labels_of(&identities, 5), Some(labels(5)), "nobody knows when it was made");
        identities.on_newest(10, start);
        identities.on_newest(400, after(60));
        learn(&identities, 300);
        identities.on_newest(500, after(119));
        assert_eq!([5, 300].map(|id| labels_of(&identities, id)), [5, 300].map(|id| Some(labels(id))));
        identities.on_newest(500, after(121));
        assert_eq!([5, 300].map(|id| labels_of(&identities, id)), [None, Some(labels(300))]);
        learn(&identities, 6);
        assert_eq!(labels_of(&identities, 6), None, "it was there before");
        identities.on_newest(500, after(181));
        assert_eq!(labels_of(&identities, 300), None);
        let prefix = |id| Uuid::from_bytes(labels(id).identity(Kind::Float)).as_u64_pair().0;
        assert_eq!([5, 300, 6].map(|id| identities.prefix(id)), [5, 300, 6].map(|id| Some(prefix(id))));
        assert_eq!([4, 7, -1, 100_000].map(|id| identities.prefix(id)), [None; 4]);
    }
}
