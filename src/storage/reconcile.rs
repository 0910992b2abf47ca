//! Compares samples with what is stored around them, and stores the missing ones, in one transaction that excludes all
//! writers of their groups.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{try_join3, try_join4};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row as Record, RowStream};
use uuid::Uuid;

use crate::model::sender::SenderNo;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Pooled, within};
use crate::storage::Store;
use crate::storage::chunk::{Corrupt, Encoded, Places, bucket_of, series_at};
use crate::storage::fence::{BY_INDEX, Limits, NO_GROUP, begin, exclude};
use crate::storage::hot::{Elements, Gathered, ROW_SAMPLES_MAX, gather};
use crate::storage::ingest::Right;
use crate::storage::layout::Layout;
use crate::storage::reconcile::windows::{Span, Windows};
use crate::storage::row::{Row, from_postgres_us, to_postgres_us};
use crate::storage::server::Epoch;

mod windows;

/// Samples of one sender, around which stored ones are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Near<'a> {
    /// Rows in the order of series and time, without duplicates.
    pub rows: &'a [Row],
    /// Time in ms before and after each sample within which stored samples are looked for.
    pub window_ms: i64,
    /// Series whose last stored time is wanted too. Series that are not in `rows` are ignored.
    pub unbounded: &'a [i64],
}

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

/// A time at which a series has a stored sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredTime {
    /// Milliseconds since 1970.
    pub time_ms: i64,
    /// Sender of the sample, if known. The sender of a sealed sample is not known.
    pub sender: Option<SenderNo>,
    /// `true` for a stale marker. Not known, and `false`, for a last time that is sealed and not around the samples.
    pub is_marker: bool,
}

/// Stored samples around some samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Per series: the stored times within the window around one of the samples, ascending, without duplicates.
    pub times: HashMap<i64, Vec<StoredTime>>,
    /// Per series for which it was requested: the last stored time, unless it is before the window of the first sample.
    pub last_ms: HashMap<i64, StoredTime>,
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

/// Maximum number of time spans in which hot rows are searched: each is a condition on every row.
const SPANS_MAX: usize = 8;

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
            let windows = Windows::new(parts.iter().map(|part| part.near));
            // Sent in this order without waiting for answers: the statements after a failed BEGIN only read.
            let ((), free, in_force, around) = try_join4(
                async { Ok(client.batch_execute(&begin(limits, &checks)).await?) },
                self.exclude_free(&client, parts),
                self.in_force(&client, parts),
                self.read_around(&client, &windows),
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

    /// Returns what is stored around samples now; their series ids were found in `epoch`.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that `epoch` is over.
    pub async fn around(&self, parts: &[Near<'_>], epoch: Epoch) -> Result<Around, Error> {
        self.counted(within(self.config.send_timeout, async {
            let check = self.server.check(&self.names, epoch)?;
            let client = Pooled::take(&self.pool).await?;
            let windows = Windows::new(parts.iter().copied());
            let begin = format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT set_config('statement_timeout', '{}', true), \
                 {BY_INDEX}, {check}",
                self.config.send_timeout.as_millis()
            );
            let ((), around, ()) = try_join3(
                async { Ok(client.batch_execute(&begin).await?) },
                self.read_around(&client, &windows),
                async { Ok(client.batch_execute("COMMIT").await?) },
            )
            .await?;
            client.give_back();
            Ok(around)
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
             SELECT min(\"time\"), array_agg(id ORDER BY id), array_agg(value ORDER BY id), min(sender) \
             FROM unnest($1::integer[], $2::timestamptz[], $3::bigint[], $4::float8[], $5::integer[]) AS u (row_no, \"time\", id, value, sender) \
             GROUP BY row_no",
        );
        let (mut row_nos, mut senders, mut times, mut ids, mut values) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut row_no = 0_i32;
        for Gathered { sender, time_ms, samples } in gather(rows.iter().copied()) {
            for samples in samples.chunks(ROW_SAMPLES_MAX) {
                row_no += 1;
                row_nos.extend(samples.iter().map(|_| row_no));
                senders.extend(samples.iter().map(|_| sender.0));
                times.extend(samples.iter().map(|_| Timestamp(to_postgres_us(time_ms))));
                ids.extend(samples.iter().map(|(series_id, _)| *series_id));
                values.extend(samples.iter().map(|(_, bits)| f64::from_bits(*bits)));
            }
        }
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&row_nos, Type::INT4_ARRAY),
            (&times, Type::TIMESTAMPTZ_ARRAY),
            (&ids, Type::INT8_ARRAY),
            (&values, Type::FLOAT8_ARRAY),
            (&senders, Type::INT4_ARRAY),
        ];
        client.execute_typed(&statement, &parameters).await?;
        Ok(())
    }

    /// Sends its statements at once, without waiting for answers in between. Each statement takes its own snapshot. Hot
    /// rows are read first, so that samples sealed meanwhile are read twice and never missed.
    async fn read_around(&self, client: &Client, windows: &Windows) -> Result<Around, Error> {
        let sealed = async {
            match self.layout {
                Layout::Chunks => self.chunks_around(client, windows).await,
                Layout::Hypertable => self.rows_around(client, windows).await,
            }
        };
        let (mut around, sealed, last) =
            try_join3(self.hot_around(client, windows), sealed, self.sealed_last(client, windows)).await?;
        for (series_id, stored) in sealed {
            around.times.entry(series_id).or_default().push(stored);
        }
        for times in around.times.values_mut() {
            // A sample sealed meanwhile is found twice; the entry that names its sender comes first and is kept.
            times.sort_unstable_by_key(|time| {
                (time.time_ms, time.sender.is_none(), time.is_marker, Reverse(time.sender))
            });
            times.dedup_by_key(|time| time.time_ms);
        }
        for (series_id, time_ms) in last {
            let times = around.times.get(&series_id).map_or(&[][..], Vec::as_slice);
            let place = times.binary_search_by_key(&time_ms, |stored| stored.time_ms);
            let is_marker = place.is_ok_and(|place| times[place].is_marker);
            around.later(series_id, StoredTime { time_ms, sender: None, is_marker });
        }
        Ok(around)
    }

    async fn hot_around(&self, client: &Client, windows: &Windows) -> Result<Around, Error> {
        let mut around = Around::default();
        let mut spans = windows.spans(SPANS_MAX);
        spans.extend(windows.unbounded().map(|(_, since_ms)| since_ms).min().map(|since_ms| (since_ms, i64::MAX)));
        let (lowers, uppers): (Vec<_>, Vec<_>) =
            spans.iter().map(|(from_ms, to_ms)| (at(*from_ms), at(*to_ms))).unzip();
        let ids = windows.ids();
        let (least, most): (Vec<i64>, Vec<i64>) = windows.ranges().iter().copied().unzip();
        if ids.is_empty() {
            return Ok(around);
        }
        let within = |n| format!("\"time\" >= ($1::timestamptz[])[{n}] AND \"time\" <= ($2::timestamptz[])[{n}]");
        let within: Vec<String> = (1..=spans.len()).map(within).collect();
        // The conditions on the first and last series skip rows cheaply; the arrays are searched only for a few series.
        let statement = self.names.sql(&format!(
            "SELECT \"time\", sender, series FROM {{hot}} WHERE ({}) AND EXISTS (SELECT FROM unnest($3::bigint[], $4::bigint[]) \
             AS r (least, most) WHERE series[1] <= r.most AND series[cardinality(series)] >= r.least) \
             AND (cardinality($5::bigint[]) > 8 OR series && $5)",
            within.join(" OR ")
        ));
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&lowers, Type::TIMESTAMPTZ_ARRAY),
            (&uppers, Type::TIMESTAMPTZ_ARRAY),
            (&least, Type::INT8_ARRAY),
            (&most, Type::INT8_ARRAY),
            (&ids, Type::INT8_ARRAY),
        ];
        let mut rows = pin!(client.query_typed_raw(&statement, parameters).await?);
        while let Some(row) = rows.next().await {
            let row = row?;
            let (Timestamp(time_us), sender): (_, i32) = (row.try_get(0)?, row.try_get(1)?);
            let series: Elements<'_> = row.try_get(2)?;
            let (sender, is_marker) = SenderNo(sender).split();
            let sender = Some(sender).filter(|sender| *sender != SenderNo::UNKNOWN);
            let stored = StoredTime { time_ms: from_postgres_us(time_us), sender, is_marker };
            windows.find(series.iter().map(i64::from_be_bytes), stored.time_ms, |series_id, is_near, is_last| {
                if is_near {
                    around.times.entry(series_id).or_default().push(stored);
                }
                if is_last {
                    around.later(series_id, stored);
                }
            });
        }
        Ok(around)
    }

    /// Returns series and times from chunks. Skips a chunk that cannot be decoded. Decodes values only of chunks that
    /// may have a stale marker.
    async fn chunks_around(&self, client: &Client, windows: &Windows) -> Result<Vec<(i64, StoredTime)>, Error> {
        let statement = self.names.sql(
            "SELECT c.bucket, c.first, c.last, c.places, c.times, n.data, n.floats FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) \
             AS w (bucket, lower, upper) JOIN {sealed} c ON c.bucket = w.bucket AND c.last >= w.lower AND c.first <= w.upper \
             LEFT JOIN LATERAL (SELECT c.data, c.floats WHERE 'NaN' = ANY (c.floats)) n ON true \
             WHERE c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} WHERE lower <= $4) AND c.first <= $5",
        );
        let mut found = Vec::new();
        let Some(mut rows) = self.in_windows(client, &statement, windows, bucket_of).await? else { return Ok(found) };
        while let Some(row) = rows.next().await {
            let row = row?;
            let (Timestamp(first_us), Timestamp(last_us)) = (row.try_get(1)?, row.try_get(2)?);
            let (bucket, places) = (row.try_get(0)?, Places(row.try_get(3)?));
            let chunk = Encoded {
                first_ms: from_postgres_us(first_us),
                last_ms: from_postgres_us(last_us),
                times: row.try_get(4)?,
                data: row.try_get::<_, Option<_>>(5)?.unwrap_or_default(),
                floats: row.try_get::<_, Option<_>>(6)?.unwrap_or_default(),
                places,
                ..Encoded::default()
            };
            let mut find = || {
                let times_ms = chunk.times()?;
                for place in places.iter() {
                    let series_id = series_at(bucket, place);
                    let mut near = windows.near(series_id, &times_ms).peekable();
                    let markers = match near.peek() {
                        Some(_) if !chunk.floats.is_empty() => chunk.markers(place, &times_ms)?,
                        _ => Vec::new(),
                    };
                    let stored = |time_ms| {
                        let is_marker = markers.binary_search(&time_ms).is_ok();
                        (series_id, StoredTime { time_ms, sender: None, is_marker })
                    };
                    found.extend(near.map(stored));
                }
                Ok::<_, Corrupt>(())
            };
            match find() {
                Ok(()) => {}
                Err(why) => log::error!(
                    first_series = series_at(bucket, 0), last_series = series_at(bucket + 1, 0) - 1, err:% = why;
                    "a chunk is corrupt, and samples are compared with what is stored without it"
                ),
            }
        }
        Ok(found)
    }

    /// Returns series and times from a hypertable.
    async fn rows_around(&self, client: &Client, windows: &Windows) -> Result<Vec<(i64, StoredTime)>, Error> {
        let statement = self.names.sql(
            "SELECT s.series_id, s.\"time\", s.value FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) \
             AS w (id, lower, upper) JOIN {samples} s ON s.series_id = w.id AND s.\"time\" >= w.lower AND s.\"time\" <= w.upper \
             WHERE s.\"time\" >= $4 AND s.\"time\" <= $5",
        );
        let mut found = Vec::new();
        let Some(mut rows) = self.in_windows(client, &statement, windows, |id| id).await? else { return Ok(found) };
        while let Some(row) = rows.next().await {
            let row = row?;
            let Timestamp(time_us) = row.try_get(1)?;
            let row = Row { series_id: row.try_get(0)?, time_ms: from_postgres_us(time_us), value: row.try_get(2)? };
            found.push((row.series_id, StoredTime { time_ms: row.time_ms, sender: None, is_marker: row.is_marker() }));
        }
        Ok(found)
    }

    /// Runs `statement` on the sealed samples in the windows, merged by `unit`. Its parameters are the units, the
    /// starts and ends of their windows, and the start and end of all windows. Returns `None` if there are no windows.
    async fn in_windows(
        &self,
        client: &Client,
        statement: &str,
        windows: &Windows,
        unit: impl Fn(i64) -> i64,
    ) -> Result<Option<Pin<Box<RowStream>>>, Error> {
        let Some((first_ms, last_ms)) = windows.spans(1).first().copied() else { return Ok(None) };
        let (units, spans): (Vec<i64>, Vec<Span>) = windows.by(unit).into_iter().unzip();
        let (lowers, uppers): (Vec<_>, Vec<_>) =
            spans.iter().map(|(from_ms, to_ms)| (at(*from_ms), at(*to_ms))).unzip();
        let (first, last) = (at(first_ms), at(last_ms));
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&units, Type::INT8_ARRAY),
            (&lowers, Type::TIMESTAMPTZ_ARRAY),
            (&uppers, Type::TIMESTAMPTZ_ARRAY),
            (&first, Type::TIMESTAMPTZ),
            (&last, Type::TIMESTAMPTZ),
        ];
        Ok(Some(Box::pin(client.query_typed_raw(statement, parameters).await?)))
    }

    /// Returns the last sealed times of the series for which they are wanted.
    async fn sealed_last(&self, client: &Client, windows: &Windows) -> Result<Vec<(i64, i64)>, Error> {
        let (ids, since): (Vec<i64>, Vec<Timestamp>) =
            windows.unbounded().map(|(id, since_ms)| (id, at(since_ms))).unzip();
        let Some(first) = since.iter().min() else { return Ok(Vec::new()) };
        // Reads the end of the index for each series.
        let statement = match self.layout {
            Layout::Chunks => {
                "SELECT w.id, l.last FROM unnest($1::bigint[], $2::timestamptz[]) AS w (id, since) CROSS JOIN LATERAL ( \
                 SELECT c.last FROM {sealed} c WHERE c.bucket = w.id >> 5 AND c.places >> (w.id & 31)::integer & 1 = 1 \
                 AND c.last >= w.since AND c.first >= (SELECT coalesce(max(lower), '-infinity') FROM {segments} \
                 WHERE lower <= $3) ORDER BY c.last DESC LIMIT 1) l"
            }
            Layout::Hypertable => {
                "SELECT w.id, l.last FROM unnest($1::bigint[], $2::timestamptz[]) AS w (id, since) CROSS JOIN LATERAL ( \
                 SELECT s.\"time\" AS last FROM {samples} s WHERE s.series_id = w.id AND s.\"time\" >= w.since \
                 AND s.\"time\" >= $3 ORDER BY s.\"time\" DESC LIMIT 1) l"
            }
        };
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&ids, Type::INT8_ARRAY), (&since, Type::TIMESTAMPTZ_ARRAY), (first, Type::TIMESTAMPTZ)];
        let rows = client.query_typed(&self.names.sql(statement), &parameters).await?;
        let last = |row: &Record| {
            let Timestamp(time_us) = row.try_get(1)?;
            Ok((row.try_get(0)?, from_postgres_us(time_us)))
        };
        rows.iter().map(last).collect()
    }
}

impl Around {
    /// Records a stored time of a series, which may be its last.
    fn later(&mut self, series_id: i64, stored: StoredTime) {
        let last = self.last_ms.entry(series_id).or_insert(stored);
        if last.time_ms < stored.time_ms {
            *last = stored;
        }
    }
}

fn at(time_ms: i64) -> Timestamp {
    Timestamp(to_postgres_us(time_ms))
}
