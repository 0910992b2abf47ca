//! Identifies the server that the store is on, and its start. A promoted replica, or an older copy that is started, may
//! assign known series ids to other series, and known sender numbers to other senders.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_postgres::Client;

use crate::postgres::error::Error;
use crate::storage::identities::Identities;
use crate::storage::names::{Names, literal};

/// Number of a state of the server that this adapter has seen. Series ids and sender numbers are valid only in the
/// epoch in which they were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(u64);

impl Epoch {
    /// Returns the epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The server as last seen.
pub struct Server {
    now: Mutex<Now>,
    /// Notified when the server may be another one, which has to be checked.
    is_doubtful: Notify,
}

struct Now {
    epoch: Epoch,
    /// The server's description of itself: system identifier, timeline, the store's tables, and start.
    state: String,
    identities: Arc<Identities>,
}

/// Returns a server's current description of itself.
///
/// # Errors
///
/// Errors of the server or of the connection.
pub async fn read_state(client: &Client, names: &Names) -> Result<String, Error> {
    Ok(client.query_typed_one(&names.sql("SELECT {server_state}()"), &[]).await?.try_get(0)?)
}

impl Server {
    /// Creates a server in this state.
    #[must_use]
    pub fn new(state: String) -> Self {
        let now = Now { epoch: Epoch::default(), state, identities: Arc::default() };
        Self { now: Mutex::new(now), is_doubtful: Notify::new() }
    }

    /// Returns the current epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.now.lock().epoch
    }

    /// Returns the current epoch and the identities of its series ids.
    #[must_use]
    pub fn identities(&self) -> (Epoch, Arc<Identities>) {
        let now = self.now.lock();
        (now.epoch, Arc::clone(&now.identities))
    }

    /// Returns an SQL expression that is true on a server in the state of `epoch`, and fails on any other.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`] if that epoch is over.
    pub fn check(&self, names: &Names, epoch: Epoch) -> Result<String, Error> {
        self.in_epoch(epoch, |now| format!("{}({})", names.qualified("_same_server"), literal(&now.state)))
    }

    /// Runs `work`, during which `epoch` cannot end.
    ///
    /// # Errors
    ///
    /// [`Error::Moved`] if the epoch is over.
    pub fn during<T>(&self, epoch: Epoch, work: impl FnOnce(&Arc<Identities>) -> T) -> Result<T, Error> {
        self.in_epoch(epoch, |now| work(&now.identities))
    }

    /// Records that the server reported another state than expected.
    pub fn doubt(&self) {
        self.is_doubtful.notify_one();
    }

    /// Waits until `doubt` is called.
    pub async fn doubted(&self) {
        self.is_doubtful.notified().await;
    }

    /// Records the state in which the server was found. If that is another state, begins a new epoch, calls `forget`,
    /// and returns `true`.
    pub fn found(&self, state: String, forget: impl FnOnce()) -> bool {
        let mut now = self.now.lock();
        if now.state == state {
            return false;
        }
        *now = Now { epoch: now.epoch.next(), state, identities: Arc::default() };
        forget();
        true
    }

    fn in_epoch<T>(&self, epoch: Epoch, work: impl FnOnce(&Now) -> T) -> Result<T, Error> {
        let now = self.now.lock();
        if now.epoch == epoch { Ok(work(&now)) } else { Err(Error::Moved) }
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
