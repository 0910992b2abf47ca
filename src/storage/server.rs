//! Which server the store is on, and in which state. A replica that is promoted, or an older copy that is started, may give to other
//! series the ids that were found before, and to other senders their numbers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::model::labels::Labels;
use crate::postgres::error::Error;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::identities::Identities;
use crate::storage::names::{Names, literal};
use crate::storage::series::{Wanted, find_by_prefix};

/// Counts the states of the server that this adapter has seen. Ids of series and numbers of senders are worth something only in the
/// epoch in which they were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u64);

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What changes when it becomes another one: its system's identifier, its timeline, the store's tables.
    pub identity: String,
    /// When it was started.
    pub started: String,
    /// How far its log has been written; `None` where it does not say.
    pub wal: Option<i64>,
}

/// What a look at the server came to.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is as before, or was restarted and has all that it had.
    None,
    /// It is another one, or an earlier state of the same; with what the ids of the epoch before were ids of.
    Moved(Arc<Identities>),
}

/// The server as it was seen last.
pub struct Server {
    now: Mutex<Now>,
    /// Whether it is another one is to be found out.
    is_doubtful: Notify,
}

struct Now {
    epoch: Epoch,
    state: State,
    identities: Arc<Identities>,
}

impl State {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn read(client: &Client, names: &Names) -> Result<Self, Error> {
        let statement = names.fill("SELECT identity, started, wal FROM {server_state}()");
        let row = client.query_typed_one(&statement, &[]).await?;
        Ok(Self { identity: row.try_get(0)?, started: row.try_get(1)?, wal: row.try_get(2)? })
    }

    /// Whether `next` has all that this one had, as far as that can be told: restarted, perhaps, but not set back.
    fn is_continued_by(&self, next: &Self) -> bool {
        let is_behind = || self.wal.is_none() || next.wal < self.wal;
        self.identity == next.identity && (self.started == next.started || !is_behind())
    }
}

impl Server {
    /// A server in this state.
    #[must_use]
    pub fn new(state: State) -> Self {
        let now = Now { epoch: Epoch::default(), state, identities: Arc::default() };
        Self { now: Mutex::new(now), is_doubtful: Notify::new() }
    }

    /// The epoch there is.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    /// What the ids of `epoch` are ids of.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`] if that epoch is over.
    pub fn identities(&self, epoch: Epoch) -> Result<Arc<Identities>, Error> {
        self.in_epoch(epoch, |now| Arc::clone(&now.identities))
    }

    /// An SQL expression that fails on a server which is not as it was in `epoch`. Its value is how far the log has been written, a
    /// bigint of 0 or more, or NULL where the server does not tell.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`] if that epoch is over.
    pub fn check(&self, names: &Names, epoch: Epoch) -> Result<String, Error> {
        self.in_epoch(epoch, |now| {
            let (identity, started) = (literal(&now.state.identity), literal(&now.state.started));
            format!("{}({identity}, {started})", names.qualified("_same_server"))
        })
    }

    /// Does something, `epoch` not being over before it is done.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`] if it is over.
    pub fn during<T>(&self, epoch: Epoch, work: impl FnOnce() -> T) -> Result<T, Error> {
        self.in_epoch(epoch, |_| work())
    }

    /// The log was seen to be written as far as `wal`.
    pub fn written(&self, epoch: Epoch, wal: Option<i64>) {
        let mut now = self.lock();
        if now.epoch == epoch {
            now.state.wal = now.state.wal.max(wal);
        }
    }

    /// It said that it is not as it was, or a session was lost.
    pub fn doubt(&self) {
        self.is_doubtful.notify_one();
    }

    /// Waits until that is so.
    pub async fn doubted(&self) {
        self.is_doubtful.notified().await;
    }

    /// It was found in this state. If it is another one a new epoch begins, with `forget`.
    pub fn found(&self, state: State, forget: impl FnOnce()) -> Change {
        let mut now = self.lock();
        let is_continued = now.state.is_continued_by(&state);
        now.state = state;
        if is_continued {
            return Change::None;
        }
        now.epoch = Epoch(now.epoch.0 + 1);
        forget();
        Change::Moved(std::mem::take(&mut now.identities))
    }

    fn in_epoch<T>(&self, epoch: Epoch, work: impl FnOnce(&Now) -> T) -> Result<T, Error> {
        let now = self.lock();
        if now.epoch == epoch { Ok(work(&now)) } else { Err(Error::Moved) }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// The epoch there is.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.server.epoch()
    }

    /// The server, as it was seen last.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Finds out whether the server is as it was. If it is another one, what was found on it is forgotten.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn look_at_server(&self) -> Result<Change, Error> {
        let state = self
            .counted(within(self.config.send_timeout, async {
                let client = Pooled::take(&self.pool).await?;
                let state = State::read(&client, &self.names).await?;
                client.give_back();
                Ok(state)
            }))
            .await?;
        Ok(self.server.found(state, || {
            self.cache.clear();
            self.numbers.clear();
        }))
    }

    /// Makes sure that the server is still as it was.
    ///
    /// # Errors
    ///
    /// What the server said; [`Error::Moved`] or its kin if it is not.
    pub async fn check_server(&self) -> Result<(), Error> {
        self.counted(within(self.config.send_timeout, async {
            let check = self.server.check(&self.names, self.server.epoch())?;
            let client = Pooled::take(&self.pool).await?;
            client.query_typed_one(&format!("SELECT {check}"), &[]).await?;
            client.give_back();
            Ok(())
        }))
        .await
    }

    /// The ids that series have now which had `ids` when `identities` held; made anew where the server lacks them and their labels
    /// are known still. Series of which neither is so are left out.
    ///
    /// # Errors
    ///
    /// What the server said.
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
        let labelled = known.iter().filter(|(_, prefix)| !there.contains_key(prefix));
        let labelled: Vec<(i64, Uuid, Labels)> = labelled
            .filter_map(|(id, _)| {
                identities.labels(*id).map(|labels| (*id, Uuid::from_bytes(labels.identity()), labels))
            })
            .collect();
        let wanted = labelled.iter().enumerate();
        let wanted: HashMap<Uuid, Wanted> =
            wanted.map(|(place, (_, key, labels))| (*key, Wanted { place, labels: labels.clone() })).collect();
        let (made, _) =
            if wanted.is_empty() { Default::default() } else { self.find_series(wanted, None, epoch).await? };
        let there = known.iter().filter_map(|(id, prefix)| Some((*id, *there.get(prefix)?)));
        let made = labelled.iter().filter_map(|(id, key, _)| Some((*id, *made.get(key)?)));
        Ok(there.chain(made).collect())
    }

    /// No series has a larger id than `newest_id` at `now`.
    pub fn on_newest_series(&self, epoch: Epoch, newest_id: i64, now: Instant) {
        if let Ok(identities) = self.server.identities(epoch) {
            identities.on_newest(newest_id, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(identity: &str, started: &str, wal: Option<i64>) -> State {
        State { identity: identity.into(), started: started.into(), wal }
    }

    #[test]
    fn a_restart_is_no_other_server_and_a_state_of_before_is() {
        for (next, is_moved) in [
            (state("s", "1", Some(90)), false),
            (state("s", "2", Some(100)), false),
            (state("s", "2", Some(120)), false),
            (state("s", "2", Some(99)), true),
            (state("s", "2", None), true),
            (state("t", "1", Some(120)), true),
        ] {
            let server = Server::new(state("s", "1", Some(80)));
            let epoch = server.epoch();
            server.written(epoch, Some(100));
            server.written(epoch, None);
            server.written(epoch, Some(95));
            let mut is_forgotten = false;
            let change = server.found(next.clone(), || is_forgotten = true);
            assert_eq!((matches!(change, Change::Moved(_)), is_forgotten), (is_moved, is_moved), "{next:?}");
            assert_eq!(server.during(epoch, || ()).is_err(), is_moved);
            assert!(matches!(server.found(next, || ()), Change::None), "once");
        }
    }

    #[test]
    fn a_server_that_does_not_say_how_far_it_is_counts_as_another_once_it_was_restarted() {
        let server = Server::new(state("s", "1", None));
        assert!(matches!(server.found(state("s", "1", None), || ()), Change::None));
        assert!(matches!(server.found(state("s", "2", Some(5)), || ()), Change::Moved(_)));
    }
}
