//! Observes what was committed since the last look: which series have a sample at which time, and from which sender.

use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::{try_join, try_join5};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row as Record};
use uuid::Uuid;

use crate::clock::now_ms;
use crate::model::sender::SenderNo;
use crate::model::time::as_ms;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::fence::{BY_INDEX, array};
use crate::storage::hot::{Elements, SeriesAt};
use crate::storage::names::Names;
use crate::storage::position;
pub use crate::storage::position::Position;
use crate::storage::row::from_postgres_us;

/// Result of one observation, apart from the rows.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Position from which the next observation continues.
    pub position: Position,
    /// `true` if every row committed since the last position was seen. `false` at the first observation, if sealing has
    /// removed rows that were not seen, or if the server is another one with an older state.
    pub is_complete: bool,
    /// The requested groups, as far as they exist.
    pub groups: Vec<GroupState>,
    /// All senders of the requested groups.
    pub senders: Vec<SenderState>,
    /// Time by which this host's clock, halfway between query and answer, is ahead of the server's.
    pub clock_offset_ms: i64,
    /// Round-trip time of the query: half of it bounds the error of the offset.
    pub round_trip_ms: i64,
    /// Largest series id so far.
    pub newest_series_no: i64,
    /// Latest time of any sample that sealing has removed from the hot rows, ms since 1970.
    pub sealed_newest_ms: i64,
    /// Latest time of any hot row of the senders of the `fresh` groups, ms since 1970; [`i64::MIN`] if there is none.
    /// Without a position, of any hot row that is not read.
    pub fresh_newest_ms: i64,
}

/// A group's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Name of the group.
    pub group_name: String,
    /// Number of the group.
    pub group_no: i32,
    /// Counter of the group's leaders.
    pub term: i64,
    /// Token of the term in force.
    pub token: Option<Uuid>,
    /// Counter of writes of the group's samples by others than its leader.
    pub reconciled: i64,
    /// Sender that leads.
    pub sender_no: Option<SenderNo>,
}

/// One of a group's senders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderState {
    /// Number of the sender.
    pub sender: SenderNo,
    /// Name of its group.
    pub group_name: String,
    /// Time by which the clock of its adapter is ahead of the server's.
    pub clock_offset_ms: i64,
}

impl Store {
    /// Reads, in one snapshot, the rows committed since `from` by the senders of `groups` (all groups if `None`),
    /// except the senders in `except`. Without a position, reads all hot rows of these senders. Of the groups `fresh`,
    /// which have a sender for which rows before `from` were not read, finds the latest time. Calls `each` with each
    /// row, in no order. Rows of one transaction are observed at the same time, each of them once, as a rule. What this adapter has
    /// committed itself, where other adapters store samples of the same sender, it knows without reading it.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection. If the server is another one than that of the position, fails before
    /// `each` is called. After any other error `each` may have been called with rows that are read again from the same
    /// position.
    pub async fn observe(
        &self,
        from: Option<&Position>,
        groups: Option<&[String]>,
        fresh: &[&str],
        except: &[SenderNo],
        each: impl FnMut(SeriesAt),
    ) -> Result<Observed, Error> {
        self.counted(within(self.config.send_timeout, async {
            let client = Pooled::take(&self.pool).await?;
            let observed = self.observe_by(&client, from, groups, fresh, except, each).await?;
            self.publish(&client, &observed.position).await?;
            client.give_back();
            Ok(observed)
        }))
        .await
    }

    /// Publishes how far this adapter has observed: sealing leaves later rows to it.
    async fn publish(&self, client: &Client, position: &Position) -> Result<(), Error> {
        // Worth nothing after a crash, so it need not be durable.
        let statement = self.names.sql(
            "WITH quick AS (SELECT set_config('synchronous_commit', 'off', true)) \
             INSERT INTO {senders} (sender_no, group_name, name, observed_at, observed) OVERRIDING SYSTEM VALUE \
             SELECT 0, 'observers', $1, clock_timestamp(), $2::text::pg_snapshot FROM quick \
             ON CONFLICT (group_name, name) DO UPDATE SET observed_at = excluded.observed_at, observed = excluded.observed",
        );
        let (adapter, position) = (self.adapter.to_string(), position.to_string());
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&adapter, Type::TEXT), (&position, Type::TEXT)];
        client.execute_typed(&statement, &parameters).await?;
        Ok(())
    }

    async fn observe_by(
        &self,
        client: &Client,
        from: Option<&Position>,
        groups: Option<&[String]>,
        fresh: &[&str],
        except: &[SenderNo],
        mut each: impl FnMut(SeriesAt),
    ) -> Result<Observed, Error> {
        // Uses the index: few of the hot rows are new.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT {BY_INDEX}, set_config('statement_timeout', '{}', true)",
            self.config.send_timeout.as_millis()
        );
        let epoch = self.server.epoch();
        let check = self.server.check(&self.names, epoch)?;
        let unread = match from {
            // Restored from another server's dump, or stored before senders were recorded.
            None => "$1::text[] IS NOT NULL AND (xid >= pg_snapshot_xmax(pg_current_snapshot()) OR sender = 0)",
            Some(_) => {
                "sender = ANY (ARRAY(SELECT unnest(ARRAY[sender_no, -sender_no]) FROM {senders} WHERE group_name = ANY ($1)))"
            }
        };
        let now = self.names.sql(&format!(
            "SELECT pg_current_snapshot()::text, clock_timestamp(), (SELECT snapshot::text FROM {{sealed_to}}), \
             greatest((SELECT max(id) FROM {{series}}), -(SELECT min(id) FROM {{series}}), 0), (SELECT newest FROM {{sealed_to}}), \
             (SELECT max(\"time\") FROM {{hot}} WHERE {unread}), {check}",
        ));
        let states = self.names.sql(
            "SELECT group_name, group_no, term, token, reconciled, sender_no FROM {leader} WHERE ($1 IS NULL OR group_name = ANY ($1))",
        );
        let of_groups = self.names.sql(
            "SELECT sender_no, group_name, clock_offset_ms FROM {senders} WHERE sender_no > 0 AND ($1 IS NULL OR group_name = ANY ($1))",
        );
        let by_name: [(&(dyn ToSql + Sync), Type); 1] = [(&groups, Type::TEXT_ARRAY)];
        let except: Vec<i32> = except.iter().map(|sender| sender.0).collect();
        let by_sender: [(&(dyn ToSql + Sync), Type); 2] = [(&groups, Type::TEXT_ARRAY), (&except, Type::INT4_ARRAY)];
        let (asked_ms, asked_at) = (now_ms(), Instant::now());
        let answered = async {
            let row = client.query_typed_one(&now, &[(&fresh, Type::TEXT_ARRAY)]).await?;
            Ok((row, now_ms(), asked_at.elapsed()))
        };
        // Taken before the snapshot, so the snapshot sees these transactions. If this fails, the next observation reads
        // them.
        let own = self.own_transactions.take(epoch);
        let new = new_rows(&self.names, from, own.keys());
        let rows = async {
            let rows = client.query_typed_raw(&new, by_sender).await?;
            tokio::pin!(rows);
            while let Some(row) = rows.next().await {
                let row = row?;
                let Timestamp(time_us) = row.try_get(1)?;
                let series: Elements<'_> = row.try_get(2)?;
                each(SeriesAt {
                    sender: SenderNo(row.try_get(0)?),
                    time_ms: from_postgres_us(time_us),
                    series: series.iter().map(i64::from_be_bytes).collect(),
                });
            }
            Ok(())
        };
        // Sent in this order without waiting for answers in between.
        let read = try_join5(
            client.batch_execute(&begin),
            answered,
            client.query_typed(&states, &by_name),
            client.query_typed(&of_groups, &by_name),
            rows,
        );
        let (((), (row, answered_ms, round_trip), groups, senders, ()), ()) =
            try_join(read, client.batch_execute("COMMIT")).await?;
        let (position, sealed_to) = (position::read(row.try_get(0)?)?, position::read(row.try_get(2)?)?);
        own.into_values().flatten().for_each(each);
        self.own_transactions.observed(epoch, &position);
        let Timestamp(server_us) = row.try_get(1)?;
        let server_ms = from_postgres_us(server_us);
        let Timestamp(newest_us) = row.try_get(4)?;
        let fresh_newest: Option<Timestamp> = row.try_get(5)?;
        self.server_clock.set(server_ms, asked_at + round_trip / 2);
        let newest_series_no = row.try_get(3)?;
        self.on_newest_series(epoch, newest_series_no, asked_at);
        Ok(Observed {
            is_complete: from.is_some_and(|from| from.is_followed(&position, &sealed_to)),
            position,
            groups: groups.iter().map(GroupState::read).collect::<Result<_, _>>()?,
            senders: senders.iter().map(SenderState::read).collect::<Result<_, _>>()?,
            clock_offset_ms: asked_ms.midpoint(answered_ms) - server_ms,
            round_trip_ms: as_ms(round_trip),
            newest_series_no,
            sealed_newest_ms: from_postgres_us(newest_us),
            fresh_newest_ms: fresh_newest.map_or(i64::MIN, |Timestamp(newest_us)| from_postgres_us(newest_us)),
        })
    }
}

/// Returns the statement that reads sender, time and series of the rows stored since `from`, except by the transactions
/// `own`. Its parameters are the names of groups and the numbers of senders to be excluded.
fn new_rows<'a>(names: &Names, from: Option<&Position>, own: impl ExactSizeIterator<Item = &'a u64>) -> String {
    // The condition on `xid` excludes only rows restored from another server's dump: no other row is of a future
    // transaction.
    let mut select = names.sql(
        "SELECT sender, \"time\", series FROM {hot} \
         WHERE sender = ANY (ARRAY(SELECT unnest(ARRAY[sender_no, -sender_no]) FROM {senders} \
         WHERE sender_no > 0 AND ($1 IS NULL OR group_name = ANY ($1)) AND sender_no <> ALL ($2))) \
         AND xid < pg_snapshot_xmax(pg_current_snapshot())",
    );
    if own.len() > 0 {
        select.push_str(&format!(" AND xid <> ALL ({}::xid8[])", array(own)));
    }
    let Some(Position { xmax, xip }) = from else { return select };
    let mut statement = format!("{select} AND xid >= '{xmax}'");
    if !xip.is_empty() {
        let xip: Vec<String> = xip.iter().map(|xid| format!("'{xid}'::xid8")).collect();
        statement.push_str(&format!(" UNION ALL {select} AND xid IN ({})", xip.join(", ")));
    }
    statement
}

impl GroupState {
    fn read(row: &Record) -> Result<Self, Error> {
        Ok(Self {
            group_name: row.try_get(0)?,
            group_no: row.try_get(1)?,
            term: row.try_get(2)?,
            token: row.try_get(3)?,
            reconciled: row.try_get(4)?,
            sender_no: row.try_get::<_, Option<i32>>(5)?.map(SenderNo),
        })
    }
}

impl SenderState {
    fn read(row: &Record) -> Result<Self, Error> {
        Ok(Self { sender: SenderNo(row.try_get(0)?), group_name: row.try_get(1)?, clock_offset_ms: row.try_get(2)? })
    }
}
