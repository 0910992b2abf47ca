//! Layout of sealed samples: chosen when a store is created, detected when it is opened.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::postgres::error::Error;
use crate::storage::hypertable;
use crate::storage::names::Names;

/// Value of `-pg-use-timescaledb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UseTimescaledb {
    /// Use TimescaleDB if the database has it.
    Auto,
    /// Use TimescaleDB, or do not create the store.
    Always,
    /// Do not use TimescaleDB, even if the database has it.
    Never,
}

/// Layout of sealed samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Chunks in partitions: plain PostgreSQL.
    Chunks,
    /// Rows of a hypertable.
    Hypertable,
}

impl Layout {
    /// Returns the layout of the existing store.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub async fn of(client: &Client, names: &Names) -> Result<Self, Error> {
        let statement = "SELECT to_regclass($1) IS NOT NULL";
        let row = client.query_typed_one(statement, &[(&names.qualified("_samples"), Type::TEXT)]).await?;
        Ok(if row.try_get(0)? { Self::Hypertable } else { Self::Chunks })
    }

    /// Returns the layout of a store to be created.
    ///
    /// # Errors
    ///
    /// [`Error::Misconfigured`] if TimescaleDB has to be used and cannot be; errors of the server or of the connection.
    pub async fn choose(client: &Client, wanted: UseTimescaledb) -> Result<Self, Error> {
        if wanted == UseTimescaledb::Never {
            return Ok(Self::Chunks);
        }
        if wanted == UseTimescaledb::Always {
            client
                .batch_execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
                .await
                .map_err(|error| missing(&Error::from(error)))?;
        }
        match hypertable::extension(client).await? {
            Some(_) => Ok(Self::Hypertable),
            None if wanted == UseTimescaledb::Auto => Ok(Self::Chunks),
            None => Err(missing(&"it is older")),
        }
    }

    /// Returns a warning if `wanted` disagrees with this layout of an existing store.
    #[must_use]
    pub fn disagreement(self, wanted: UseTimescaledb, names: &Names) -> Option<String> {
        let (is, flag) = match (self, wanted) {
            (Self::Chunks, UseTimescaledb::Always) => ("without", "true"),
            (Self::Hypertable, UseTimescaledb::Never) => ("with", "false"),
            _ => return None,
        };
        Some(format!(
            "-pg-use-timescaledb={flag} has no effect: {} was made {is} TimescaleDB and stays so; for another, set -pg-schema \
             or -pg-table",
            names.view()
        ))
    }
}

fn missing(why: &dyn std::fmt::Display) -> Error {
    Error::Misconfigured(format!(
        "-pg-use-timescaledb=true needs TimescaleDB {} or later in the database, and there is none ({why}): install it, name \
         it in the server's shared_preload_libraries, restart the server, and CREATE EXTENSION timescaledb as a superuser; or \
         leave the flag out",
        hypertable::VERSION_MIN
    ))
}
