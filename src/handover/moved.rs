//! Change of the server: samples that were acknowledged on the server before are found again, and stored where they are
//! missing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::handover::Handover;
use crate::handover::buffer::Buffered;
use crate::handover::drain::{CHUNK_SAMPLES, TakenOut};
use crate::handover::stranded::renumbered;
use crate::postgres::error::Error;
use crate::storage::identities::Identities;
use crate::storage::server::Epoch;

impl Handover {
    /// Begins `epoch` on another server, where ids are those of `identities`. Samples that were acknowledged lately
    /// count as not stored.
    pub(super) fn moved(&self, epoch: Epoch, identities: Arc<Identities>) {
        let count = self.with_state(|state| {
            if state.epoch == epoch {
                return 0;
            }
            let samples = state.sender.moved(Instant::now());
            let count = samples.samples();
            state.stranded.push(std::mem::replace(&mut state.identities, identities), samples);
            state.epoch = epoch;
            count
        });
        self.is_fresh.store(true, Ordering::Relaxed);
        if count > 0 {
            log::info!(
                sender = self.name.as_str(), samples = count;
                "samples are looked for on the new server, and stored where they are missing"
            );
        }
    }

    /// Puts samples that were acknowledged on another server back into the buffer, under the present ids of their
    /// series.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection; the samples stay stranded until the next attempt.
    pub async fn find_again(&self) -> Result<(), Error> {
        // A take-over stores the whole buffer.
        let Ok(_taking_out) = self.taking_out.try_lock() else { return Ok(()) };
        self.find_stranded().await
    }

    /// Does the same, while the caller holds [`Handover::taking_out`].
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

    /// Reports samples as lost: their series are not on this server, and were created so long ago that their labels are
    /// no longer known.
    fn lost(&self, samples: &[Buffered]) {
        let times = || samples.iter().map(|sample| sample.row.time_ms);
        let Some((first_ms, last_ms)) = times().min().zip(times().max()) else { return };
        self.metrics.samples_lost_total.inc_by(samples.len() as u64);
        log::error!(
            sender = self.name.as_str(), samples = samples.len(), first_timestamp_ms = first_ms,
            last_timestamp_ms = last_ms;
            "samples are lost: the database server was replaced by one that lacks their series"
        );
    }
}
