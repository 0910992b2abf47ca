//! Compares samples with what is stored around them, and stores the missing ones, in one transaction that excludes all
//! writers of their groups.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{try_join3, try_join4};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::around::{Around, Near};
use crate::storage::fence::{Limits, NO_GROUP, begin, exclude};
use crate::storage::hot::{HotRow, gather};
use crate::storage::ingest::Right;
use crate::storage::row::{Row, to_postgres_us};

/// Samples of one sender to be compared with what is stored.
#[derive(Clone, Debug)]
pub struct Reconcile<'a> {
    /// The samples.
    pub near: Near<'a>,
    /// Sender of the rows and the right to write. The right is shown while the group's writers are locked out. Its
    /// `reconciled` counter is not compared.
    pub right: Right,
    /// `true` if the sender does not lead: if anything is stored, the group's counter is raised to inform the leader.
    pub is_told: bool,
}

/// Result of reconciling the samples of one sender.
#[derive(Clone, Debug)]
pub struct Reconciled {
    /// Samples that were missing and are now stored.
    pub inserted: Vec<Row>,
    /// Samples that were stored before, around those of all senders.
    pub around: Arc<Around>,
    /// Current value of the group's counter; 0 without an election.
    pub reconciled: i64,
}

/// Longest time that a frozen adapter keeps the leader waiting.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest time that a statement keeps the leader waiting; also the longest time that writers under way keep the
/// writers behind them waiting.
const PATIENCE: Duration = Duration::from_secs(5);

impl Store {
    /// Reads what is stored around samples, each part of another group, lets `judge` decide which samples of each part
    /// are missing, stores those, and returns after COMMIT. No other transaction writes for these groups meanwhile. The
    /// result of a part is `None` if another term is in force, or if there are several parts and somebody just writes
    /// for its group: that must not hold the others up. Nothing of that part is stored then.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that the epoch is over. Then nothing is stored, or the next
    /// attempt finds the samples stored.
    pub async fn reconcile(
        &self,
        parts: &[Reconcile<'_>],
        mut judge: impl FnMut(usize, &Around) -> Vec<Row>,
    ) -> Result<Vec<Option<Reconciled>>, Error> {
        let limits = Limits { statement: PATIENCE, lock: PATIENCE, idle: IDLE_TIMEOUT };
        let Some(Right { epoch, .. }) = parts.first().map(|part| &part.right) else { return Ok(Vec::new()) };
        self.counted(within(self.config.send_timeout, async {
            let client = Pooled::take(&self.pool).await?;
            let mut checks = self.server.check(&self.names, *epoch)?;
            if let [one] = parts {
                checks = format!("{checks}, {}", exclude(&self.names, one.right.group_no()));
            }
            let near: Vec<Near<'_>> = parts.iter().map(|part| part.near).collect();
            // Sent in this order without waiting for answers: the statements after a failed BEGIN only read.
            let ((), free, in_force, around) = try_join4(
                async { Ok(client.batch_execute(&begin(limits, &checks)).await?) },
                self.exclude_free(&client, parts),
                self.in_force(&client, parts),
                self.read_around(&client, &near),
            )
            .await?;
            let around = Arc::new(around);
            let mut done: Vec<Option<Reconciled>> = Vec::with_capacity(parts.len());
            for (place, part) in parts.iter().enumerate() {
                let group_no = part.right.group_no();
                let is_free = free.as_ref().is_none_or(|free| free.contains(&group_no));
                let counter = if group_no == NO_GROUP { Some(&0) } else { in_force.get(&group_no) };
                done.push(counter.filter(|_| is_free).map(|reconciled| Reconciled {
                    inserted: judge(place, &around),
                    around: Arc::clone(&around),
                    reconciled: *reconciled,
                }));
            }
            let (mut rows, mut told): (Vec<(SenderNo, &Row)>, Vec<i32>) = Default::default();
            for (part, done) in parts.iter().zip(&mut done) {
                let Some(done) = done.as_mut().filter(|done| !done.inserted.is_empty()) else { continue };
                if part.is_told && part.right.group_no() != NO_GROUP {
                    told.push(part.right.group_no());
                    // Nobody else raises the counter meanwhile.
                    done.reconciled += 1;
                }
                rows.extend(done.inserted.iter().map(|row| (part.right.sender, row)));
            }
            if rows.is_empty() {
                client.batch_execute("ROLLBACK").await?;
            } else {
                let commit = async { Ok(client.batch_execute("COMMIT").await?) };
                // COMMIT rolls back after a failed statement.
                try_join3(self.insert(&client, &rows), self.tell(&client, &told), commit).await?;
                self.metrics.samples_stored_total.inc_by(rows.len() as u64);
            }
            client.give_back();
            Ok(done)
        }))
        .await
    }

    /// Takes the exclusive locks of several groups, as far as nobody holds them, and returns those groups. Never waits
    /// for one group while it holds up the writers of others. `None` if there is only one group: its lock was waited
    /// for.
    async fn exclude_free(&self, client: &Client, parts: &[Reconcile<'_>]) -> Result<Option<HashSet<i32>>, Error> {
        if parts.len() == 1 {
            return Ok(None);
        }
        let groups: Vec<i32> = parts.iter().map(|part| part.right.group_no()).collect();
        let statement = self.names.sql(
            "SELECT of_group FROM unnest($1::integer[]) AS g (of_group) \
             WHERE pg_try_advisory_xact_lock({leader:literal}::regclass::oid::integer, of_group)",
        );
        let rows = client.query_typed(&statement, &[(&groups, Type::INT4_ARRAY)]).await?;
        Ok(Some(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?))
    }

    /// Returns the counters of the groups whose token is in force.
    async fn in_force(&self, client: &Client, parts: &[Reconcile<'_>]) -> Result<HashMap<i32, i64>, Error> {
        let fences = || parts.iter().filter_map(|part| part.right.fence);
        let (groups, tokens): (Vec<i32>, Vec<Uuid>) = fences().map(|fence| (fence.group_no, fence.token)).unzip();
        let statement = self.names.sql(
            "SELECT l.group_no, l.reconciled FROM unnest($1::integer[], $2::uuid[]) AS asked (group_no, token) \
             JOIN {leader} l ON l.group_no = asked.group_no AND l.token = asked.token",
        );
        let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&groups, Type::INT4_ARRAY), (&tokens, Type::UUID_ARRAY)];
        let rows = client.query_typed(&statement, &parameters).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Raises the counters of groups.
    async fn tell(&self, client: &Client, groups: &[i32]) -> Result<(), Error> {
        if !groups.is_empty() {
            let statement = self.names.sql("UPDATE {leader} SET reconciled = reconciled + 1 WHERE group_no = ANY ($1)");
            client.execute_typed(&statement, &[(&groups, Type::INT4_ARRAY)]).await?;
        }
        Ok(())
    }

    /// Stores samples with a single message: the server bounds the idle time between messages, but not within COPY.
    async fn insert(&self, client: &Client, rows: &[(SenderNo, &Row)]) -> Result<(), Error> {
        let statement = self.names.sql(
            "INSERT INTO {hot} (\"time\", series, value, sender) \
             SELECT min(\"time\"), array_agg(id ORDER BY place) FILTER (WHERE id IS NOT NULL), \
             CASE WHEN bool_or(are_numbers) THEN ARRAY[array_agg(value ORDER BY place)] ELSE array_agg(value ORDER BY place) END, \
             min(sender) \
             FROM unnest($1::integer[], $2::timestamptz[], $3::bigint[], $4::float8[], $5::integer[], $6::boolean[]) WITH ORDINALITY \
             AS u (row_no, \"time\", id, value, sender, are_numbers, place) GROUP BY row_no",
        );
        let (mut row_nos, mut senders, mut times, mut ids) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut values, mut are_numbers) = (Vec::new(), Vec::new());
        let mut row_no = 0_i32;
        for gathered in gather(rows.iter().copied()) {
            for HotRow { series, bits, is_histogram } in gathered.rows() {
                row_no += 1;
                are_numbers.extend(bits.iter().map(|_| is_histogram));
                row_nos.extend(bits.iter().map(|_| row_no));
                senders.extend(bits.iter().map(|_| gathered.sender.0));
                times.extend(bits.iter().map(|_| Timestamp(to_postgres_us(gathered.time_ms))));
                // A histogram has one series and many numbers.
                ids.extend(series.into_iter().map(Some).chain(std::iter::repeat(None)).take(bits.len()));
                values.extend(bits.into_iter().map(f64::from_bits));
            }
        }
        let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
            (&row_nos, Type::INT4_ARRAY),
            (&times, Type::TIMESTAMPTZ_ARRAY),
            (&ids, Type::INT8_ARRAY),
            (&values, Type::FLOAT8_ARRAY),
            (&senders, Type::INT4_ARRAY),
            (&are_numbers, Type::BOOL_ARRAY),
        ];
        client.execute_typed(&statement, &parameters).await?;
        Ok(())
    }
}
