//! Numbers under which senders' samples are stored, and the senders' clocks.

use tokio_postgres::types::{ToSql, Type};

use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::server::Epoch;

impl Store {
    /// Returns the number of the sender `name` of a group, a new one if necessary.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that the epoch is over.
    pub async fn sender_no(&self, group_name: &str, name: &str) -> Result<SenderNo, Error> {
        Ok(self.sender_numbers(self.epoch(), &[(group_name, name)]).await?[0])
    }

    /// Returns the numbers of senders, given by group and name, for use in `epoch`. Assigns new numbers if necessary.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that this epoch is over.
    pub async fn sender_numbers(&self, epoch: Epoch, senders: &[(&str, &str)]) -> Result<Vec<SenderNo>, Error> {
        let (groups, names): (Vec<&str>, Vec<&str>) = senders.iter().copied().unzip();
        self.counted(within(self.config.send_timeout, async {
            let check = self.server.check(&self.names, epoch)?;
            // Rows are added in the same order in all transactions.
            let statement = self.names.sql(&format!(
                "SELECT n, {{sender}}(of_group, called), {check} FROM (SELECT * FROM unnest($1::text[], $2::text[]) \
                 WITH ORDINALITY AS s (of_group, called, n) ORDER BY of_group, called) AS asked"
            ));
            let client = Pooled::take(&self.pool).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                [(&groups, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)];
            let mut rows = client.query_typed(&statement, &parameters).await?;
            client.give_back();
            rows.sort_by_key(|row| row.get::<_, i64>(0));
            rows.iter().map(|row| Ok(SenderNo(row.try_get(1)?))).collect()
        }))
        .await
    }

    /// Publishes the time by which the clock of the adapter that serves `sender` is ahead of the server's. The number
    /// of the sender was found in `epoch`.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that the epoch is over.
    pub async fn set_clock_offset(&self, sender: SenderNo, offset_ms: i64, epoch: Epoch) -> Result<(), Error> {
        self.counted(within(self.config.send_timeout, async {
            let check = self.server.check(&self.names, epoch)?;
            let statement = self
                .names
                .sql(&format!("UPDATE {{senders}} SET clock_offset_ms = $2 WHERE sender_no = $1 AND {check}"));
            let client = Pooled::take(&self.pool).await?;
            let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&sender.0, Type::INT4), (&offset_ms, Type::INT8)];
            client.execute_typed(&statement, &parameters).await?;
            client.give_back();
            Ok(())
        }))
        .await
    }
}
