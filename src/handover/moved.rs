//! The server has become another one: what was acknowledged on the one before is found again, and stored where it is missing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use uuid::Uuid;

use crate::handover::buffer::{Buffer, Buffered};
use crate::handover::{CHUNK_SAMPLES, Handover, TakenOut};
use crate::postgres::error::Error;
use crate::storage::identities::Identities;
use crate::storage::server::Epoch;

/// Samples that were acknowledged in earlier epochs, with what the ids of their series were ids of.
#[derive(Debug, Default)]
pub(super) struct Stranded(Vec<(Arc<Identities>, Buffer)>);

impl Stranded {
    /// Adds samples.
    pub(super) fn put_back(&mut self, identities: &Arc<Identities>, samples: &[Buffered]) {
        let known = self.0.iter().position(|(known, _)| Arc::ptr_eq(known, identities));
        let place = known.unwrap_or_else(|| {
            self.0.push((Arc::clone(identities), Buffer::new(0)));
            self.0.len() - 1
        });
        self.0[place].1.put_back(samples);
    }

    /// Takes out about `count` samples of one epoch.
    fn take(&mut self, count: usize) -> Option<(Arc<Identities>, Vec<Buffered>)> {
        self.0.retain(|(_, samples)| samples.samples() > 0);
        let (identities, samples) = self.0.first_mut()?;
        Some((Arc::clone(identities), samples.take(count)))
    }

    /// How many there are.
    pub(super) fn samples(&self) -> usize {
        self.0.iter().map(|(_, samples)| samples.samples()).sum()
    }

    /// How many bytes they take.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, samples)| samples.bytes()).sum()
    }
}

impl Handover {
    /// The server is another one, and `epoch` has begun, in which ids are those of `identities`. What was acknowledged lately counts as
    /// not stored.
    pub(super) fn moved(&self, epoch: Epoch, identities: Arc<Identities>) {
        let count = self.with_state(|state| {
            if state.epoch == epoch {
                return 0;
            }
            let samples = state.sender.moved(Instant::now());
            let count = samples.samples();
            state.stranded.0.push((std::mem::replace(&mut state.identities, identities), samples));
            state.epoch = epoch;
            count
        });
        self.is_fresh.store(true, Ordering::Relaxed);
        if count > 0 {
            log::info!(
                "{count} samples of {} are looked for on the new server, and stored where they are missing",
                self.name
            );
        }
    }

    /// Puts what was acknowledged on another server back into the buffer, under the ids that its series have now.
    ///
    /// # Errors
    ///
    /// What the server said; it is tried again then.
    pub async fn find_again(&self) -> Result<(), Error> {
        // A take-over sees to all of it.
        let Ok(_taking_out) = self.taking_out.try_lock() else { return Ok(()) };
        self.find_stranded().await
    }

    /// The same, while [`Handover::taking_out`] is held.
    pub(super) async fn find_stranded(&self) -> Result<(), Error> {
        while let Some((identities, samples)) = self.with_state(|state| state.stranded.take(CHUNK_SAMPLES)) {
            let mut taken_out = TakenOut { handover: self, identities, samples };
            let epoch = self.with_state(|state| state.epoch);
            let mut ids: Vec<i64> = taken_out.samples.iter().map(|sample| sample.row.series_id).collect();
            ids.sort_unstable();
            ids.dedup();
            let found = self.store.find_again(&ids, &taken_out.identities, epoch).await?;
            let lost = self.in_epoch(epoch, |state| {
                let (found, lost) = renumbered(std::mem::take(&mut taken_out.samples), &found);
                state.sender.put_back(&found);
                lost
            })?;
            self.lost(&lost);
        }
        Ok(())
    }

    /// The series of these are not there, and were made so long ago that their labels are not known any more.
    fn lost(&self, samples: &[Buffered]) {
        let times = || samples.iter().map(|sample| sample.row.time_ms);
        let Some((first_ms, last_ms)) = times().min().zip(times().max()) else { return };
        self.metrics.samples_lost_total.inc_by(samples.len() as u64);
        log::error!(
            "{} samples of {} from {first_ms} to {last_ms} (ms since 1970) are lost: the database server was replaced by one \
             that lacks their series",
            samples.len(),
            self.name
        );
    }
}

/// Those whose series have an id in `found`, under that; and the others. They go by keys of their own, for of a request some may be stored
/// there, and others not.
fn renumbered(samples: Vec<Buffered>, found: &HashMap<i64, i64>) -> (Vec<Buffered>, Vec<Buffered>) {
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
    use crate::storage::row::Row;

    fn samples(series_ids: &[i64], arrived: Instant) -> Vec<Buffered> {
        let sample = |series_id: &i64| Buffered {
            row: Row { series_id: *series_id, time_ms: 100 * series_id, value: 0.5 },
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
