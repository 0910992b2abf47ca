//! What a failed statement means for the caller.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

/// The state our fence function raises when another adapter has begun a new term.
pub const FENCED: &str = "PF001";

/// The state it raises when others than the leader have stored samples of the group since it last looked.
pub const OVERTAKEN: &str = "PF002";

/// The state our check of the server raises when it is another one than that on which ids were found.
pub const MOVED: &str = "PF003";

/// A statement, or a connection, that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server, or the way to it, failed.
    #[error("{}", describe(.0))]
    Server(#[source] tokio_postgres::Error),
    /// No connection came free or could be made in time.
    #[error("no connection from the pool: {0}")]
    Pool(String),
    /// No answer in time; whether the statement was carried out is unknown.
    #[error("no answer from PostgreSQL within {limit:?}")]
    Timeout {
        /// What it was given.
        limit: Duration,
    },
    /// Another adapter has begun a newer term than the one by right of which this was to be written.
    #[error("another adapter has begun a newer term")]
    Fenced,
    /// The server is another one than that on which the ids to be written were found, or may be.
    #[error("the database server was replaced or restarted meanwhile")]
    Moved,
    /// The same happened to others, too.
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
    /// The server can be reached and is not set up as is needed; the text says what to change.
    #[error("{0}")]
    Misconfigured(String),
    /// What is asked for is more than is answered at once; the text says how much that is.
    #[error("{0}")]
    TooLarge(String),
    /// What the store has cannot be what an adapter stored; the text says where it is.
    #[error("{0}")]
    Corrupt(String),
    /// Others are at it all the time: it is tried again in the next round.
    #[error("{0}")]
    Contended(String),
    /// A task of this adapter has ended, or is about to.
    #[error("{0}")]
    Stopping(String),
}

/// What the caller does about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The text can never be stored in this database, whose encoding has no room for it: refuse it, and it alone.
    /// Everything else a label set may be is checked before the server sees it, and samples are numbers; so whatever else
    /// the server says, classes 22, 23 and 54 included, is our trouble.
    Data,
    /// Another adapter leads: this term is over.
    Fenced,
    /// The server is another one, or was restarted: ids that were found on it are to be found again.
    Moved,
    /// The server no longer takes writes (demoted, or set read-only): every connection to it is worthless.
    ReadOnly,
    /// It may work later, on a new connection: keep the data.
    Transient,
}

impl Error {
    /// What to do about it. Everything unknown is [`Class::Transient`]: our trouble is never the sender's fault.
    #[must_use]
    pub fn class(&self) -> Class {
        let error = match self {
            Self::Server(error) => error,
            Self::Fenced => return Class::Fenced,
            Self::Moved => return Class::Moved,
            Self::Shared(error) => return error.class(),
            _ => return Class::Transient,
        };
        let Some(state) = error.code() else {
            return Class::Transient;
        };
        if state.code() == FENCED {
            return Class::Fenced;
        }
        if state.code() == MOVED {
            return Class::Moved;
        }
        if *state == SqlState::READ_ONLY_SQL_TRANSACTION {
            return Class::ReadOnly;
        }
        match *state {
            SqlState::CHARACTER_NOT_IN_REPERTOIRE | SqlState::UNTRANSLATABLE_CHARACTER => Class::Data,
            _ => Class::Transient,
        }
    }

    /// What the server called it; `None` where it did not get to say.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => error.code().map(SqlState::code),
            Self::Shared(error) => error.sqlstate(),
            _ => None,
        }
    }

    /// Whether the server said `state`.
    #[must_use]
    pub fn is(&self, state: &SqlState) -> bool {
        self.sqlstate() == Some(state.code())
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Server(error)
    }
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::Server(error),
            other => Self::Pool(other.to_string()),
        }
    }
}

/// The server's own words with their SQLSTATE, or the chain of causes: tokio-postgres' own text hides both.
fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let hint = db.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
        return format!("{}{hint} (SQLSTATE {})", db.message(), db.code().code());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
