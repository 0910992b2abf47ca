//! Errors of statements and connections, and their meaning for the caller.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

/// SQLSTATE that the fence function raises if another adapter has begun a new term.
pub const FENCED: &str = "PF001";

/// SQLSTATE that the fence function raises if others than the leader have stored samples of the group since the leader
/// last observed it.
pub const OVERTAKEN: &str = "PF002";

/// SQLSTATE that the check of the server raises if it is not the server on which ids were found.
pub const MOVED: &str = "PF003";

/// Error of a statement or of a connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server or the connection to it failed.
    #[error("{}", describe(.0))]
    Server(#[source] tokio_postgres::Error),
    /// No connection became free or could be opened in time.
    #[error("no connection from the pool: {0}")]
    Pool(String),
    /// No answer in time; it is unknown whether the statement was carried out.
    #[error("no answer from PostgreSQL within {limit:?}")]
    Timeout {
        /// The timeout that passed.
        limit: Duration,
    },
    /// Another adapter has begun a newer term than the one whose right this write used.
    #[error("another adapter has begun a newer term")]
    Fenced,
    /// The server is not, or may not be, the one on which the ids of this write were found.
    #[error("the database server was replaced or restarted meanwhile")]
    Moved,
    /// An error that occurred for several callers together.
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
    /// The server can be reached, but its setup is not suitable; the text says what to change.
    #[error("{0}")]
    Misconfigured(String),
    /// More is asked for than this program does at once; the text says of what.
    #[error("{0}")]
    TooLarge(String),
    /// The store contains something that no adapter stored; the text says where.
    #[error("{0}")]
    Corrupt(String),
    /// Others interfere faster than this can finish; the next round tries again.
    #[error("{0}")]
    Contended(String),
    /// A task of this adapter has ended, or is about to end.
    #[error("{0}")]
    Stopping(String),
}

/// Class of an [`Error`] by what the caller does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The text can never be stored in this database, because its encoding lacks a character: refuse this text alone.
    /// All other properties of a label set are checked before the server sees it, and samples are numbers. So any other
    /// error of the server, classes 22, 23 and 54 included, is not the sender's fault.
    Data,
    /// Another adapter leads: this term is over.
    Fenced,
    /// The server is another one, or was restarted: the ids that were found on it must be found again.
    Moved,
    /// The server no longer accepts writes (it was demoted or set read-only): all connections to it are useless.
    ReadOnly,
    /// It may succeed later, on a new connection: keep the data.
    Transient,
}

impl Error {
    /// Returns the class. Every unknown error is [`Class::Transient`]: such an error is never the sender's fault.
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

    /// Returns the SQLSTATE of the server; `None` if the server reported none.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server(error) => error.code().map(SqlState::code),
            Self::Shared(error) => error.sqlstate(),
            _ => None,
        }
    }

    /// Returns `true` if the server reported `state`.
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

/// Returns the server's message with its SQLSTATE, or the chain of causes: tokio-postgres' own text has neither.
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
