//! Handles a change of the server: what was found on the old one is forgotten or found again. See
//! [`crate::storage::server`].

use std::collections::HashMap;
use std::time::Instant;

use uuid::Uuid;

use crate::postgres::error::Error;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::identities::Identities;
use crate::storage::row::kind_of;
use crate::storage::series::{Wanted, find_by_prefix};
use crate::storage::server::{Epoch, Server, read_state};

impl Store {
    /// Returns the current epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.server.epoch()
    }

    /// Returns the server as last seen.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Checks if the server is in the same state as before. If not, forgets what was found on it, begins a new epoch,
    /// and returns `true`.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub async fn look_at_server(&self) -> Result<bool, Error> {
        let state = self
            .counted(within(self.config.send_timeout, async {
                let client = Pooled::take(&self.pool).await?;
                let state = read_state(&client, &self.names).await?;
                client.give_back();
                Ok(state)
            }))
            .await?;
        Ok(self.server.found(state, || self.cache.clear()))
    }

    /// Returns the current ids of the series that had `ids` when `identities` were valid. Creates series that the
    /// server lacks and whose labels are still known. Leaves out series for which neither applies.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that `epoch` is over.
    pub async fn find_again(
        &self,
        ids: &[i64],
        identities: &Identities,
        epoch: Epoch,
    ) -> Result<HashMap<i64, i64>, Error> {
        let known: Vec<(i64, u64)> = ids.iter().filter_map(|id| Some((*id, identities.prefix(*id)?))).collect();
        let prefixes: Vec<u64> = known.iter().map(|(_, prefix)| *prefix).collect();
        let check = self.server.check(&self.names, epoch)?;
        let there = self
            .counted(within(self.config.send_timeout, async {
                let client = Pooled::take(&self.pool).await?;
                let there = find_by_prefix(&client, &self.names, &check, &prefixes).await?;
                client.give_back();
                Ok(there)
            }))
            .await?;
        let absent = known.iter().filter(|(_, prefix)| !there.contains_key(prefix));
        let labels = identities.labels(absent.map(|(id, _)| *id));
        let keys: Vec<(i64, Uuid)> =
            labels.iter().map(|(id, labels)| (*id, Uuid::from_bytes(labels.identity(kind_of(*id))))).collect();
        let wanted = labels.into_iter().enumerate();
        let wanted =
            wanted.map(|(place, (id, labels))| Wanted { place, labels, kind: kind_of(id), or_histogram: None });
        let wanted: HashMap<Uuid, Wanted> = keys.iter().map(|(_, key)| *key).zip(wanted).collect();
        let (made, _) =
            if wanted.is_empty() { Default::default() } else { self.find_series(wanted, None, epoch).await? };
        let there = known.iter().filter_map(|(id, prefix)| Some((*id, *there.get(prefix)?)));
        // Recorded here, because the server may change again before any request names these series.
        self.server.during(epoch, |now| now.take_over(identities, there.clone()))?;
        let made = keys.iter().filter_map(|(id, key)| Some((*id, *made.get(key)?)));
        Ok(there.chain(made).collect())
    }

    /// Records that no series has a larger number than `newest_no` at `now`.
    pub fn on_newest_series(&self, epoch: Epoch, newest_no: i64, now: Instant) {
        let _ = self.server.during(epoch, |identities| identities.on_newest(newest_no, now));
    }
}
