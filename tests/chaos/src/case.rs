//! What a case is, and what it is given.

use std::path::Path;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use rig::network::Network;

use crate::pooler::Pooler;
use crate::stage::{Outcome, Setup, Stage};
use rig::random::Random;

/// A case.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What happens, for the table.
    pub(crate) what: &'static str,
    /// Whether it is in the short form.
    pub(crate) short: bool,
    /// What it cannot do without.
    pub(crate) needs: Needs,
    /// Plays it.
    pub(crate) run: for<'a, 'b> fn(&'a Context<'b>) -> LocalBoxFuture<'a, Outcome>,
}

/// What a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// What every case has.
    Nothing,
    /// Hosts of their own.
    Network,
    /// libfaketime.
    Clock,
    /// pgbouncer.
    Pooler,
    /// A file system of its own.
    Disk,
}

impl Case {
    /// Whether it goes on for as long as there is time.
    pub(crate) fn is_mixture(&self) -> bool {
        self.name.ends_with("mixture")
    }
}

/// What every case is given.
pub(crate) struct Context<'a> {
    /// Hosts of their own, if this machine has them.
    pub(crate) network: Option<&'a Network>,
    /// The adapter.
    pub(crate) binary: &'a Path,
    /// Whether to be quick.
    pub(crate) short: bool,
    /// Chance.
    pub(crate) random: Random,
    /// How long a mixture goes on.
    pub(crate) mixture: Duration,
}

impl Context<'_> {
    /// The stage that most cases are played on.
    pub(crate) async fn usual(&self) -> Stage<'_> {
        self.set(Setup::default()).await
    }

    /// Any other stage.
    pub(crate) async fn set(&self, setup: Setup) -> Stage<'_> {
        Stage::set(self.network, self.binary, setup, self.random.clone()).await
    }
}

/// Why this machine cannot play a case.
pub(crate) fn obstacle(needs: Needs, network: &Result<Network, String>) -> Option<String> {
    match (needs, network) {
        (Needs::Network, Err(why)) => Some(why.clone()),
        (Needs::Clock, _) if rig::clock::wrong_by(0).is_none() => Some("needs libfaketime".to_owned()),
        (Needs::Pooler, _) if !Pooler::is_installed() => Some("needs pgbouncer".to_owned()),
        (Needs::Disk, _) if !rig::network::is_root() => Some("needs root for a file system of its own".to_owned()),
        _ => None,
    }
}
