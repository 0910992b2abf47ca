//! The server has become another one. What was acknowledged before goes by ids that may be those of other series there: it is set
//! aside until its series are found again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::handover::buffer::{Buffer, Buffered};
use crate::handover::sender::sort_and_dedup;
use crate::handover::{CHUNK_SAMPLES, Handover, TakenOut};
use crate::postgres::error::Error;
use crate::storage::fence::Fence;
use crate::storage::identities::Identities;
use crate::storage::ingest::Right;
use crate::storage::server::Epoch;

/// Samples that were acknowledged in earlier epochs.
#[derive(Debug, Default)]
pub(super) struct Stranded {
    /// Of an epoch each.
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    epoch: Epoch,
    /// When it ended.
    ended: Instant,
    identities: Arc<Identities>,
    /// Those whose series are to be found again.
    samples: Buffer,
    /// Those whose series were not found. They may be yet, once somebody sends them again.
    unknown: Buffer,
}

/// Series are looked for again for so long: those that go on are sent again in that time.
const SOUGHT: Duration = Duration::from_secs(120);

/// What cannot be stored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lost {
    count: usize,
    first_ms: i64,
    last_ms: i64,
}

impl Stranded {
    /// `epoch`, in which ids were those of `identities`, has ended; these samples were acknowledged in it.
    fn add(&mut self, epoch: Epoch, identities: Arc<Identities>, samples: Buffer, now: Instant) {
        self.parts.push(Part { epoch, ended: now, identities, samples, unknown: Buffer::new(0) });
    }

    /// Takes back samples of `epoch` that were taken out and are not known to be stored.
    pub(super) fn put_back(&mut self, epoch: Epoch, samples: &[Buffered]) {
        match self.part(epoch) {
            Some(part) => part.samples.put_back(samples),
            None => log::error!("{} samples are lost: the server was replaced long ago", samples.len()),
        }
    }

    /// Takes out about `count` samples of one epoch whose series are to be found again.
    fn take(&mut self, count: usize) -> Option<(Epoch, Arc<Identities>, Vec<Buffered>)> {
        let part = self.parts.iter_mut().find(|part| part.samples.samples() > 0)?;
        Some((part.epoch, Arc::clone(&part.identities), part.samples.take(count)))
    }

    /// The series of these were not found.
    fn not_found(&mut self, epoch: Epoch, samples: &[Buffered]) {
        if let Some(part) = self.part(epoch) {
            part.unknown.put_back(samples);
        }
    }

    /// Series that were not found are to be looked for again, or were for so long that their samples are given up.
    fn again(&mut self, now: Instant) -> Option<Lost> {
        let mut lost: Option<Lost> = None;
        self.parts.retain_mut(|part| {
            let is_over = now.saturating_duration_since(part.ended) >= SOUGHT;
            loop {
                let samples = part.unknown.take(CHUNK_SAMPLES);
                if samples.is_empty() {
                    break;
                }
                if !is_over {
                    // Taken out and put back whole, for there may be more of them than are to be copied at once.
                    part.samples.put_back(&samples);
                    continue;
                }
                for Buffered { row, .. } in samples {
                    let lost = lost.get_or_insert(Lost { count: 0, first_ms: row.time_ms, last_ms: row.time_ms });
                    lost.count += 1;
                    lost.first_ms = lost.first_ms.min(row.time_ms);
                    lost.last_ms = lost.last_ms.max(row.time_ms);
                }
            }
            !is_over || part.samples.samples() > 0
        });
        lost
    }

    fn part(&mut self, epoch: Epoch) -> Option<&mut Part> {
        self.parts.iter_mut().find(|part| part.epoch == epoch)
    }

    /// How many there are.
    pub(super) fn samples(&self) -> usize {
        self.parts.iter().map(|part| part.samples.samples() + part.unknown.samples()).sum()
    }

    /// How many bytes they take.
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.samples.bytes() + part.unknown.bytes()).sum()
    }
}

impl Handover {
    /// The server is another one, and `epoch` has begun; in that before ids were those of `identities`. What was acknowledged lately
    /// counts as not stored.
    pub(super) fn moved(&self, epoch: Epoch, identities: &Arc<Identities>) {
        let count = self.with_state(|state| {
            if state.epoch == epoch {
                return 0;
            }
            let samples = state.sender.moved(Instant::now());
            let count = samples.samples();
            state.stranded.add(state.epoch, Arc::clone(identities), samples, Instant::now());
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
        if let Some(Lost { count, first_ms, last_ms }) = self.with_state(|state| state.stranded.again(Instant::now())) {
            self.metrics.samples_lost_total.inc_by(count as u64);
            log::error!(
                "{count} samples of {} from {first_ms} to {last_ms} (ms since 1970) are lost: the database server was replaced by \
                 one that lacks their series, and nobody has sent those again",
                self.name
            );
        }
        // A take-over sees to all of it.
        let Ok(_taking_out) = self.taking_out.try_lock() else { return Ok(()) };
        self.find_stranded().await
    }

    /// The same, but for series that were looked for already; while [`Handover::taking_out`] is held.
    pub(super) async fn find_stranded(&self) -> Result<(), Error> {
        while let Some((of_epoch, identities, samples)) = self.with_state(|state| state.stranded.take(CHUNK_SAMPLES)) {
            let mut taken_out = TakenOut { handover: self, epoch: of_epoch, samples };
            let epoch = self.with_state(|state| state.epoch);
            let mut ids: Vec<i64> = taken_out.samples.iter().map(|sample| sample.row.series_id).collect();
            ids.sort_unstable();
            ids.dedup();
            let found = self.store.find_again(&ids, &identities, epoch).await?;
            self.in_epoch(epoch, |state| {
                let (found, not_found) = renumbered(std::mem::take(&mut taken_out.samples), &found);
                state.sender.put_back(&found);
                state.stranded.not_found(of_epoch, &not_found);
            })?;
        }
        Ok(())
    }

    /// This sender leads by right of `fence`, or there is no election, and has something buffered all the same, for the server is
    /// another one: reconciles it.
    ///
    /// # Errors
    ///
    /// As [`Handover::look`].
    pub(super) async fn restore(&self, fence: Option<Fence>) -> Result<(), Error> {
        let Ok(_taking_out) = self.taking_out.try_lock() else { return Ok(()) };
        loop {
            let (samples, epoch) = self.with_state(|state| (state.sender.take(CHUNK_SAMPLES), state.epoch));
            if samples.is_empty() {
                return Ok(());
            }
            let mut due = samples.clone();
            let taken_out = TakenOut { handover: self, epoch, samples };
            sort_and_dedup(&mut due);
            let right = Right { sender: self.number_in(epoch).await?, fence, reconciled: 0, epoch };
            self.reconcile(&due, right, self.is_shared).await?;
            taken_out.done()?;
        }
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
    use crate::storage::server::{Server, State};

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

    /// Two epochs.
    fn epochs() -> [Epoch; 2] {
        let state = |identity: &str| State { identity: identity.into(), started: String::new(), wal: None };
        let server = Server::new(state("one"));
        let first = server.epoch();
        let _ = server.found(state("other"), || ());
        [first, server.epoch()]
    }

    #[test]
    fn each_epoch_has_its_own_ids_and_what_is_not_found_is_given_up_in_time() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let [first, second] = epochs();
        let mut stranded = Stranded::default();
        let mut buffer = Buffer::new(usize::MAX);
        buffer.put_back(&samples(&[1, 2, 3], now));
        stranded.add(first, Arc::default(), buffer, now);
        stranded.add(second, Arc::default(), Buffer::new(0), after(60));
        stranded.put_back(second, &samples(&[7], now));
        assert_eq!(stranded.samples(), 4);
        let (epoch, _, taken) = stranded.take(100).unwrap();
        assert_eq!((epoch, ids(&taken)), (first, vec![1, 2, 3]));
        let (found, not_found) = renumbered(taken, &HashMap::from([(1, 11), (3, 2)]));
        assert_eq!((ids(&found), ids(&not_found)), (vec![11, 2], vec![2]));
        stranded.not_found(first, &not_found);
        let (epoch, _, taken) = stranded.take(100).unwrap();
        assert_eq!((epoch, ids(&taken)), (second, vec![7]));
        stranded.put_back(epoch, &taken);
        assert_eq!(stranded.again(after(119)), None);
        let (epoch, _, taken) = stranded.take(100).unwrap();
        assert_eq!((epoch, ids(&taken)), (first, vec![2]), "again");
        stranded.not_found(first, &taken);
        assert_eq!(stranded.again(after(120)), Some(Lost { count: 1, first_ms: 200, last_ms: 200 }));
        assert_eq!((stranded.samples(), stranded.parts.len()), (1, 1));
        assert!(stranded.again(after(180)).is_none());
        assert_eq!(stranded.samples(), 1, "not looked for yet");
        let (epoch, _, taken) = stranded.take(100).unwrap();
        assert_eq!((epoch, ids(&taken)), (second, vec![7]));
        assert!(stranded.again(after(180)).is_none() && stranded.parts.is_empty());
    }
}
