//! Samples that are taken out of a buffer to be stored: those that stayed uncovered, and all of them at a take-over.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use futures_util::stream::{StreamExt, TryStreamExt, iter};
use tokio::sync::MutexGuard;
use uuid::Uuid;

use crate::handover::buffer::Buffered;
use crate::handover::by_request::ByRequest;
use crate::handover::group::NO_GROUP;
use crate::handover::reconciling::{Compared, Uncompared, fitting, reconcile};
use crate::handover::requests::InFlight;
use crate::handover::sender::{Sorted, sort_and_dedup};
use crate::handover::{Handover, State};
use crate::postgres::error::{Class, Error};
use crate::storage::fence::Fence;
use crate::storage::identities::Identities;
use crate::storage::ingest::Right;

/// Maximum samples of a buffer that are stored or compared at once: bounds the memory of that.
pub(super) const CHUNK_SAMPLES: usize = 20_000;

/// Maximum buffered requests that are on their way to the writers at once, at a take-over.
const REPLAY_REQUESTS: usize = 64;

/// Maximum samples of a sender that are compared together with those of other senders, and the maximum age of these
/// samples, ms. Comparing more of them, or history, may take seconds.
const QUICK_SAMPLES: usize = 1_000;
const RECENT_MS: i64 = 3_600_000;

/// Samples taken out of a buffer. They are put back on drop, unless [`TakenOut::done`] was called.
pub(super) struct TakenOut<'a> {
    pub(super) handover: &'a Handover,
    /// Identities of the series behind their ids.
    pub(super) identities: Arc<Identities>,
    pub(super) samples: Vec<Buffered>,
}

impl TakenOut<'_> {
    /// Marks all of them as stored or covered. Fails if the server became another one meanwhile: that one may lack
    /// them.
    pub(super) fn done(mut self) -> Result<(), Error> {
        self.handover.with_state(|state| {
            if !Arc::ptr_eq(&state.identities, &self.identities) {
                return Err(Error::Moved);
            }
            state.sender.keep(self.samples.drain(..), Instant::now());
            Ok(())
        })
    }
}

impl Drop for TakenOut<'_> {
    fn drop(&mut self) {
        if !self.samples.is_empty() {
            self.handover.with_state(|state| match Arc::ptr_eq(&state.identities, &self.identities) {
                true => state.sender.put_back(&self.samples),
                false => state.stranded.put_back(&self.identities, &self.samples),
            });
        }
    }
}

/// Samples of a sender that stayed uncovered. They are put back on drop, unless [`Due::reconcile`] stored them.
pub(super) struct Due<'a> {
    /// In the order of series and time.
    samples: Vec<Buffered>,
    right: Right,
    taken_out: TakenOut<'a>,
    /// A take-over waits until they are stored or put back.
    _taking_out: MutexGuard<'a, ()>,
}

impl Due<'_> {
    /// Returns the number of samples, where a native histogram counts as much as it has numbers.
    pub(super) fn count(&self) -> usize {
        self.samples.iter().map(|sample| sample.row.value.count()).sum()
    }

    /// Returns `true` if these samples are compared so quickly that writers of other groups may wait for it.
    pub(super) fn is_quick(&self) -> bool {
        let since_ms = self.taken_out.handover.store.server_ms() - RECENT_MS;
        self.count() <= QUICK_SAMPLES && self.samples.iter().all(|sample| sample.row.time_ms >= since_ms)
    }

    /// Compares samples of senders of different groups with what is stored, and stores those that are missing. Samples
    /// that could not be stored, for example because another term is in force, are in the buffer as before. A group
    /// that is just being written to, or for which something fails, affects no other group. Returns `true` if all of
    /// them are stored. `is_last` as in [`Handover::due`].
    ///
    /// # Errors
    ///
    /// The first of the errors of the server or of the connection; `Error::Moved` if the server is another one.
    pub(super) async fn reconcile(all: Vec<Self>, is_last: bool) -> Result<bool, Error> {
        let is_one = all.len() == 1;
        let compared = match reconcile(&all.iter().map(Due::uncompared).collect::<Vec<_>>()).await {
            // Each of them is tried alone.
            Err(error) if !is_one && error.sqlstate().is_some() => vec![None; all.len()],
            compared => compared?,
        };
        let (mut left, mut are_stored) = (Vec::new(), true);
        for (due, compared) in all.into_iter().zip(compared) {
            match compared {
                Some(compared) => due.done(compared)?,
                // It is put back for now, so that a take-over of its group does not wait for the writers of others.
                None if !is_one => left.push((due.taken_out.handover, due.right.fence)),
                None => are_stored = false,
            }
        }
        let mut first = Ok(());
        for (handover, fence) in left {
            let result = match handover.due(fence, is_last).await {
                Ok(Some(due)) => Box::pin(Self::reconcile(vec![due], is_last)).await,
                ended => ended.map(|_| true),
            };
            are_stored &= matches!(result, Ok(true));
            first = keep_first(first, result.map(drop))?;
        }
        first.map(|()| are_stored)
    }

    fn done(self, Compared { stored, .. }: Compared) -> Result<(), Error> {
        if stored > 0 {
            let Handover { group, name, .. } = self.taken_out.handover;
            log::info!(
                group = group.name(), sender = name.as_str(), samples = stored;
                "stored samples that the leader had missed"
            );
        }
        self.taken_out.done()
    }

    fn uncompared(&self) -> Uncompared<'_> {
        let Self { samples, right, taken_out, .. } = self;
        // A leader is told too: what it was about to store when its take-over was aborted may still be under way.
        Uncompared { handover: taken_out.handover, samples, right: right.clone(), is_told: true }
    }
}

/// Returns the first error of two results; but the second at once if it says that the database cannot be reached, or
/// that it is another one.
pub(super) fn keep_first(first: Result<(), Error>, second: Result<(), Error>) -> Result<Result<(), Error>, Error> {
    match second {
        Err(error) if error.sqlstate().is_none() || error.class() == Class::Moved => Err(error),
        second => Ok(first.and(second)),
    }
}

impl Handover {
    /// Drops samples that were observed to be covered, and takes out those that stayed uncovered, about
    /// [`CHUNK_SAMPLES`] of them, to be reconciled by right of the leader's `fence`, or without an election. `is_last`:
    /// the adapter is about to end, so due samples do not wait.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub(super) async fn due(&self, fence: Option<Fence>, is_last: bool) -> Result<Option<Due<'_>>, Error> {
        // A take-over stores the whole buffer.
        let Ok(taking_out) = self.taking_out.try_lock() else { return Ok(None) };
        // A leader has buffered samples after the server became another one; nobody else is about to store them.
        let leads = match fence {
            Some(fence) => self.leads() == Some(fence.token),
            None => self.group.name() == NO_GROUP,
        };
        let count = if leads || fence.is_some() { CHUNK_SAMPLES } else { 0 };
        let look = |state: &mut State| {
            let mut looked = state.sender.look(count, leads || is_last, Instant::now());
            let excess = looked.due.split_off(fitting(&looked.due));
            state.sender.put_back(&excess);
            (looked, state.epoch, Arc::clone(&state.identities))
        };
        let (looked, epoch, identities) = self.with_state(look);
        self.covered("buffer", looked.covered);
        if looked.due.is_empty() {
            return Ok(None);
        }
        let mut samples = looked.due.clone();
        sort_and_dedup(&mut samples);
        let taken_out = TakenOut { handover: self, identities, samples: looked.due };
        let right = self.right(self.number_in(epoch).await?, fence, epoch);
        Ok(Some(Due { samples, right, taken_out, _taking_out: taking_out }))
    }

    /// Stores what is buffered, in bounded memory, because this sender leads now, by right of `fence`. After it nothing
    /// is buffered.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection; `Error::Fenced` if a newer term has begun; `Error::Moved` if the
    /// server is another one. Samples that are not stored are in the buffer as before.
    pub async fn drain(&self, fence: Fence) -> Result<(), Error> {
        if let Some(shared) = self.shared.upgrade() {
            shared.idle().await;
        }
        let _taking_out = self.taking_out.lock().await;
        *self.leads.lock() = Some(fence.token);
        self.observe().await?;
        // Only now, so that all senders that came to lead together share an observation.
        let _storing = self.memory.taking_out().await;
        self.find_stranded().await?;
        let (epoch, identities) = self.with_state(|state| (state.epoch, Arc::clone(&state.identities)));
        let sender = self.number_in(epoch).await?;
        let (mut stored, mut count, mut parts) = (0, 0, ByRequest::default());
        while let Some(samples) = self.in_epoch(epoch, |state| state.sender.drain(CHUNK_SAMPLES))? {
            let (by_request, mut late) = parts.divide(&samples);
            count += samples.len();
            let taken_out = TakenOut { handover: self, identities: Arc::clone(&identities), samples };
            let mut right = self.right(sender, Some(fence), epoch);
            let mut requests = Vec::new();
            // In the order of arrival, and under the keys of the requests, so that a request that another adapter has
            // buffered too is stored once.
            self.in_epoch(epoch, |state| {
                for (key, mut samples) in by_request {
                    sort_and_dedup(&mut samples);
                    let mut sorted = state.sender.sort_buffered(&samples);
                    late.append(&mut sorted.late);
                    requests.push((key, sorted, self.requests.begin()));
                }
            })?;
            self.covered("buffer", requests.iter().map(|(_, sorted, _)| sorted.covered).sum());
            if !late.is_empty() {
                // What came again is about to be appended.
                let appended = requests.iter().flat_map(|(_, sorted, _)| sorted.append.iter());
                let appended: HashSet<(i64, i64)> = appended.map(|row| (row.series_id, row.time_ms)).collect();
                late.retain(|Buffered { row, .. }| !appended.contains(&(row.series_id, row.time_ms)));
                sort_and_dedup(&mut late);
                self.reconcile_late(&late, &mut right).await?;
            }
            let store = async |(key, sorted, in_flight): (Uuid, Sorted, InFlight<'_>)| {
                let appended = sorted.append.len();
                self.store_sorted(key, sorted, right.clone(), Some(&in_flight)).await?;
                Ok::<_, Error>(appended)
            };
            let stored_now = iter(requests).map(store).buffer_unordered(REPLAY_REQUESTS);
            stored += stored_now.try_fold(0, async |sum, stored| Ok(sum + stored)).await?;
            taken_out.done()?;
            // Lets heartbeats and other requests run meanwhile.
            tokio::task::yield_now().await;
        }
        self.metrics.samples_replayed_total.inc_by(stored as u64);
        if count > 0 {
            log::info!(
                group = self.group.name(), sender = self.name.as_str(), samples = count, appended = stored,
                compared = count - stored;
                "took over from a buffer"
            );
        }
        Ok(())
    }
}
