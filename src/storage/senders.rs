//! The numbers under which senders' samples are stored, and their clocks.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::names::Names;
use crate::storage::server::Epoch;

/// The numbers that were asked for, by group and name.
#[derive(Debug, Default)]
pub(super) struct Numbers(Mutex<HashMap<(String, String), SenderNo>>);

impl Numbers {
    /// Forgets them all.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), SenderNo>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// The number of the sender `name` of a group; a new one if need be.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn sender_no(&self, group_name: &str, name: &str) -> Result<SenderNo, Error> {
        self.sender_no_in(self.epoch(), group_name, name).await
    }

    /// The same, for use in `epoch`.
    ///
    /// # Errors
    ///
    /// What the server said, or that this epoch is over.
    pub async fn sender_no_in(&self, epoch: Epoch, group_name: &str, name: &str) -> Result<SenderNo, Error> {
        let key = (group_name.to_owned(), name.to_owned());
        if let Some(sender) = self.server.during(epoch, || self.numbers.lock().get(&key).copied())? {
            return Ok(sender);
        }
        let sender = self
            .counted(within(self.config.send_timeout, async {
                let check = self.server.check(&self.names, epoch)?;
                let client = Pooled::take(&self.pool).await?;
                let sender = find(&client, &self.names, &check, group_name, name).await?;
                client.give_back();
                Ok(sender)
            }))
            .await?;
        self.server.during(epoch, || self.numbers.lock().insert(key, sender))?;
        Ok(sender)
    }

    /// Publishes how far the clock of the adapter that `sender`, a number found in `epoch`, sends to is ahead of the server's.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn set_clock_offset(&self, sender: SenderNo, offset_ms: i64, epoch: Epoch) -> Result<(), Error> {
        self.counted(within(self.config.send_timeout, async {
            let check = self.server.check(&self.names, epoch)?;
            let statement = self.names.fill(&format!(
                "UPDATE {{senders}} SET clock_offset_ms = $2 WHERE sender_no = $1 AND coalesce({check}, 0) >= 0"
            ));
            let client = Pooled::take(&self.pool).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&sender.0, Type::INT4), (&offset_ms, Type::INT8)];
            client.execute_typed(&statement, &parameters).await?;
            client.give_back();
            Ok(())
        }))
        .await
    }
}

async fn find(client: &Client, names: &Names, check: &str, group_name: &str, name: &str) -> Result<SenderNo, Error> {
    // Looked for first, so that no number is taken for nothing.
    let statement = names.fill(&format!(
        "WITH found AS (SELECT sender_no FROM {{senders}} WHERE group_name = $1 AND name = $2), \
         added AS (INSERT INTO {{senders}} (group_name, name) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM found) \
         ON CONFLICT DO NOTHING RETURNING sender_no) \
         SELECT sender_no, {check} FROM (SELECT sender_no FROM found UNION ALL SELECT sender_no FROM added) AS either",
    ));
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&group_name, Type::TEXT), (&name, Type::TEXT)];
    loop {
        // Not found and not added: another session has just added it.
        if let Some(found) = client.query_typed_opt(&statement, &parameters).await? {
            return Ok(SenderNo(found.try_get(0)?));
        }
    }
}
