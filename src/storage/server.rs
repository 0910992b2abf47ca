//! Which server the store is on, and since which start of it. A replica that is promoted, or an older copy that is started, may give to
//! other series the ids that were found before, and to other senders their numbers.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_postgres::Client;

use crate::postgres::error::Error;
use crate::storage::identities::Identities;
use crate::storage::names::{Names, literal};

/// Counts the states of the server that this adapter has seen. Ids of series and numbers of senders are worth something only in the
/// epoch in which they were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u64);

/// The server as it was seen last.
pub struct Server {
    now: Mutex<Now>,
    /// Whether it is another one is to be found out.
    is_doubtful: Notify,
}

struct Now {
    epoch: Epoch,
    /// What it says of itself: its system's identifier, its timeline, the store's tables, its start.
    state: String,
    identities: Arc<Identities>,
}

/// What a server says of itself now.
///
/// # Errors
///
/// What the server said.
pub async fn read_state(client: &Client, names: &Names) -> Result<String, Error> {
    Ok(client.query_typed_one(&names.sql("SELECT {server_state}()"), &[]).await?.try_get(0)?)
}

impl Server {
    /// A server in this state.
    #[must_use]
    pub fn new(state: String) -> Self {
        let now = Now { epoch: Epoch::default(), state, identities: Arc::default() };
        Self { now: Mutex::new(now), is_doubtful: Notify::new() }
    }

    /// The epoch there is.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    /// The same, and what the ids of it are ids of.
    #[must_use]
    pub fn identities(&self) -> (Epoch, Arc<Identities>) {
        let now = self.lock();
        (now.epoch, Arc::clone(&now.identities))
    }

    /// An SQL expression that is true on a server which is as it was in `epoch`, and fails on any other.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`] if that epoch is over.
    pub fn check(&self, names: &Names, epoch: Epoch) -> Result<String, Error> {
        self.in_epoch(epoch, |now| format!("{}({})", names.qualified("_same_server"), literal(&now.state)))
    }

    /// Does something, `epoch` not being over before it is done.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`] if it is over.
    pub fn during<T>(&self, epoch: Epoch, work: impl FnOnce(&Identities) -> T) -> Result<T, Error> {
        self.in_epoch(epoch, |now| work(&now.identities))
    }

    /// It said that it is not as it was.
    pub fn doubt(&self) {
        self.is_doubtful.notify_one();
    }

    /// Waits until that is so.
    pub async fn doubted(&self) {
        self.is_doubtful.notified().await;
    }

    /// It was found in this state. If that is another one a new epoch begins, with `forget`; returns whether it does.
    pub fn found(&self, state: String, forget: impl FnOnce()) -> bool {
        let mut now = self.lock();
        if now.state == state {
            return false;
        }
        *now = Now { epoch: Epoch(now.epoch.0 + 1), state, identities: Arc::default() };
        forget();
        true
    }

    fn in_epoch<T>(&self, epoch: Epoch, work: impl FnOnce(&Now) -> T) -> Result<T, Error> {
        let now = self.lock();
        if now.epoch == epoch { Ok(work(&now)) } else { Err(Error::Moved) }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_epoch_begins_with_each_state() {
        let server = Server::new("one".into());
        let first = server.epoch();
        assert!(!server.found("one".into(), || panic!("it is as before")));
        let mut is_forgotten = false;
        assert!(server.found("other".into(), || is_forgotten = true) && is_forgotten);
        assert!(server.during(first, |_| ()).is_err() && server.during(server.epoch(), |_| ()).is_ok());
        assert!(
            server.found("one".into(), || ()) && server.during(first, |_| ()).is_err(),
            "nor does an old one return"
        );
    }
}
