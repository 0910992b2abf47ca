//! Samples that were acknowledged while the server was another one. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::handover::buffer::{Buffer, Buffered};
use crate::storage::identities::Identities;

/// Samples that were acknowledged in earlier epochs, with the identities of the series behind their ids.
#[derive(Debug, Default)]
pub(super) struct Stranded(Vec<(Arc<Identities>, Buffer)>);

impl Stranded {
    /// Adds samples that were acknowledged on a server that is gone.
    pub(super) fn push(&mut self, identities: Arc<Identities>, samples: Buffer) {
        self.0.push((identities, samples));
    }

    /// Adds samples that were taken out to be stored, and are not stored.
    pub(super) fn put_back(&mut self, identities: &Arc<Identities>, samples: &[Buffered]) {
        let known = self.0.iter().position(|(known, _)| Arc::ptr_eq(known, identities));
        let place = known.unwrap_or_else(|| {
            self.0.push((Arc::clone(identities), Buffer::new(0)));
            self.0.len() - 1
        });
        self.0[place].1.put_back(samples);
    }

    /// Takes out about `count` samples of one epoch.
    pub(super) fn take(&mut self, count: usize) -> Option<(Arc<Identities>, Vec<Buffered>)> {
        self.0.retain(|(_, samples)| samples.samples() > 0);
        let (identities, samples) = self.0.first_mut()?;
        Some((Arc::clone(identities), samples.take(count)))
    }

    /// Returns the number of samples.
    pub(super) fn samples(&self) -> usize {
        self.0.iter().map(|(_, samples)| samples.samples()).sum()
    }

    /// Returns the bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, samples)| samples.bytes()).sum()
    }
}

/// Splits `samples` into those whose series have an id in `found`, under that id, and the others. The found ones get
/// new request keys, because some samples of a request may be stored on this server, and others not.
pub(super) fn renumbered(samples: Vec<Buffered>, found: &HashMap<i64, i64>) -> (Vec<Buffered>, Vec<Buffered>) {
    let (mut known, mut unknown) = (Vec::with_capacity(samples.len()), Vec::new());
    let mut keys: HashMap<(Instant, Uuid), Uuid> = HashMap::new();
    for mut sample in samples {
        match found.get(&sample.row.series_id) {
            Some(id) => {
                sample.row.series_id = *id;
                sample.key = *keys.entry((sample.arrived, sample.key)).or_insert_with(Uuid::new_v4);
                known.push(sample);
            }
            None => unknown.push(sample),
        }
    }
    (known, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::sample::Value;
    use crate::storage::row::Row;

    fn samples(series_ids: &[i64], arrived: Instant) -> Vec<Buffered> {
        let sample = |series_id: &i64| Buffered {
            row: Row { series_id: *series_id, time_ms: 100 * series_id, value: Value::Float(0.5) },
            is_stamped: false,
            arrived,
            key: Uuid::nil(),
        };
        series_ids.iter().map(sample).collect()
    }

    fn ids(samples: &[Buffered]) -> Vec<i64> {
        samples.iter().map(|sample| sample.row.series_id).collect()
    }

    #[test]
    fn each_epoch_has_its_own_ids() {
        let now = Instant::now();
        let [first, second]: [Arc<Identities>; 2] = Default::default();
        let mut stranded = Stranded::default();
        stranded.put_back(&first, &samples(&[1, 2], now));
        stranded.put_back(&second, &samples(&[7], now));
        stranded.put_back(&first, &samples(&[3], now));
        assert_eq!(stranded.samples(), 4);
        let mut taken = [Vec::new(), Vec::new()];
        while let Some((identities, samples)) = stranded.take(100) {
            taken[usize::from(Arc::ptr_eq(&identities, &second))].extend(samples);
        }
        assert_eq!([ids(&taken[0]), ids(&taken[1])], [vec![1, 2, 3], vec![7]]);
        assert_eq!((stranded.samples(), stranded.0.len()), (0, 0));
        let [taken, _] = taken;
        let (found, lost) = renumbered(taken, &HashMap::from([(1, 11), (3, 2)]));
        assert_eq!((ids(&found), ids(&lost)), (vec![11, 2], vec![2]));
    }
}
