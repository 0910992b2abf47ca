//! Typed settings, and the rules between flags: the only reader of argv and environment.

use crate::{election, http, postgres, storage, telemetry};

/// Everything an operator can set, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Log level and format.
    pub log: telemetry::log::Config,
    /// The listener.
    pub http: http::Config,
    /// The server.
    pub postgres: postgres::Config,
    /// What is stored and where.
    pub storage: storage::Config,
    /// `None`: no election, this adapter always stores.
    pub election: Option<election::Config>,
}
