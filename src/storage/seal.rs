//! Sealing: hot samples become chunks.
//!
//! One transaction deletes the hot rows stored first and the chunks that their samples reach into, and stores new
//! chunks instead. Every reader sees the state before or after it, at any isolation level. Writers only add hot rows,
//! and wait for nothing. A crash at any point leaves the state before the transaction.
//!
//! Late samples of any age, duplicates (the first stored counts) and chunks that turned out small are handled alike:
//! the samples of a bucket are decoded, merged and encoded again.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row as Record};

use crate::model::histogram::Numbers;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::fence::WITHOUT_JIT;
use crate::storage::hot::Elements;
use crate::storage::hypertable;
use crate::storage::layout::Layout;
use crate::storage::names::Names;
use crate::storage::position::{self, Position};
use crate::storage::row::{from_postgres_us, is_of_histograms, to_postgres_us};
use crate::storage::seal::chunk_batch::ChunkBatch;
use crate::storage::seal::chunks::{ChunkKey, Chunks};
use crate::storage::seal::hot_rows::{HotRows, TooMany};
use crate::storage::seal::outcome::Outcome;
use crate::storage::segments::{self, Span};

mod chunk_batch;
pub mod chunks;
mod hot_rows;
mod merge;
pub mod outcome;

/// Number of samples that one transaction takes, or up to half as many more, of some ten bytes each in memory.
const PART_SAMPLES: i64 = 2_000_000;

/// Memory of the server for sorting the rows of one transaction. The server collects them before it sends the first
/// one, and with less memory they would go through a temporary file.
const PART_MEMORY: &str = "64MB";

/// Number of buckets whose chunks are decoded at a time. Bounds the memory for them.
const BUCKETS_AT_ONCE: usize = 64;

/// The same for native histograms, which take many times as much.
const HISTOGRAM_BUCKETS_AT_ONCE: usize = 1;

/// Attempts at most; each attempt creates the segments that newly arrived samples need.
const ATTEMPTS: usize = 10;

/// Timeout of one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// A sealer that is idle in its transaction for this long is frozen: the server ends the transaction, and another
/// adapter can seal.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// One adapter's right to seal, for a round.
pub struct Sealer<'a> {
    /// A session used by this job only.
    pub client: &'a Client,
    /// Names of the store.
    pub names: &'a Names,
    /// Layout of the sealed samples.
    pub layout: Layout,
    /// Time span of a new segment.
    pub interval: Duration,
    /// Current time of the server's clock, in ms since 1970. An adapter's clock may be wrong, and young samples would
    /// be dropped.
    pub now_ms: i64,
    /// Samples older than this are dropped, in ms since 1970.
    pub expired_ms: Option<i64>,
    /// Hot rows that this position does not see stay hot, because other adapters have yet to observe them.
    pub up_to: Position,
}

/// Outcome of a transaction.
enum TxOutcome {
    Done(Outcome),
    /// Another adapter is sealing.
    Busy,
    /// Samples arrived for which no segment exists yet, or another adapter has sealed these rows meanwhile.
    Again,
}

/// Hot rows that one transaction seals.
#[derive(Debug)]
pub struct HotRange {
    /// Number of the last row.
    last: i64,
    /// Times of the rows, in ms since 1970, without duplicates.
    times_ms: Vec<i64>,
}

/// Hot rows of one transaction.
#[derive(Default)]
struct HotBatch {
    /// Latest time of any row, in ms since 1970; `None` if there are no rows.
    newest_ms: Option<i64>,
    /// Number of samples in rows older than the retention.
    expired: usize,
    /// Rows within the retention.
    hot: HotRows,
}

impl Sealer<'_> {
    /// Divides the hot rows to be sealed, in the order of storing, into equal parts of about two million samples each. A
    /// native histogram counts as much as it has numbers.
    /// Samples of a series in the next part are usually later, so no chunk is encoded twice. A small last part would
    /// make small chunks, which take more bytes per sample: every round of a few more than two million would have one.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub async fn parts(&self) -> Result<Vec<HotRange>, Error> {
        // OFFSET keeps the arrays out of the sort.
        let statement = self.names.sql(&format!(
            "SELECT max(no), array_agg(DISTINCT \"time\") FROM (SELECT no, \"time\", sum(samples) OVER (ORDER BY no) AS samples, \
             greatest(sum(samples) OVER (), 1) AS total \
             FROM (SELECT no, \"time\", cardinality(value) AS samples FROM {{hot}} WHERE {} OFFSET 0) h) h \
             GROUP BY (samples - 1) * greatest((total + $1 / 2) / $1, 1) / total ORDER BY 1",
            self.taken(i64::MAX)
        ));
        let records = self.client.query_typed(&statement, &[(&PART_SAMPLES, Type::INT8)]).await?;
        let part = |record: &Record| Ok(HotRange { last: record.try_get(0)?, times_ms: times_ms(record.try_get(1)?) });
        records.iter().map(part).collect()
    }

    /// Returns the condition on the hot rows to be sealed, up to the row with number `last`. Rows of future
    /// transactions are from another server's dump and are sealed too: nobody observes them.
    fn taken(&self, last: i64) -> String {
        // The first condition on `xid` is fast and holds for most rows: they are older than any transaction in progress.
        format!(
            "no <= {last} AND (xid < '{}' OR pg_visible_in_snapshot(xid, '{}') \
             OR xid >= (SELECT pg_snapshot_xmax(pg_current_snapshot())))",
            self.up_to.xmin(),
            self.up_to
        )
    }

    /// Seals a part, after the parts before it. Returns what was sealed; `None` if another adapter is sealing.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that all attempts were used up; the attempt that failed has
    /// changed nothing.
    pub async fn seal(&self, part: HotRange) -> Result<Option<Outcome>, Error> {
        let HotRange { last, mut times_ms } = part;
        for _ in 0..ATTEMPTS {
            let ended = match self.layout {
                Layout::Hypertable => self.transaction(self.seal_into_hypertable(last)).await?,
                Layout::Chunks => {
                    let times: BTreeSet<i64> =
                        times_ms.iter().copied().filter(|time_ms| !self.is_expired(*time_ms)).collect();
                    // Created before the transaction, whose snapshot would not include them otherwise.
                    let spans = segments::ensure(self.client, self.names, &times, self.now_ms, self.interval).await?;
                    self.transaction(self.seal_locked(last, &spans)).await?
                }
            };
            match ended {
                TxOutcome::Done(outcome) => return Ok(Some(outcome)),
                TxOutcome::Busy => return Ok(None),
                TxOutcome::Again => {}
            }
            let again = format!("SELECT array_agg(DISTINCT \"time\") FROM {{hot}} WHERE {}", self.taken(last));
            let record = self.client.query_typed_one(&self.names.sql(&again), &[]).await?;
            let Some(times) = record.try_get(0)? else { return Ok(Some(Outcome::default())) };
            times_ms = self::times_ms(times);
        }
        Err(Error::Contended(
            "others seal, or samples of ever more segments come in, faster than these are sealed".into(),
        ))
    }

    async fn transaction(&self, work: impl Future<Output = Result<TxOutcome, Error>>) -> Result<TxOutcome, Error> {
        // TimescaleDB compresses a segment by truncating it, which older snapshots notice. The lock waits for a running
        // compression to end, however long that takes, and keeps another from starting, before this transaction takes
        // its snapshot.
        let lock = match self.layout {
            Layout::Chunks => String::new(),
            Layout::Hypertable => self.names.sql("LOCK TABLE {samples} IN ROW EXCLUSIVE MODE; "),
        };
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; {WITHOUT_JIT}; SET LOCAL work_mem = '{PART_MEMORY}'; \
             SET LOCAL statement_timeout = {}; {lock}SET LOCAL lock_timeout = '10s'; SET LOCAL idle_in_transaction_session_timeout = {}",
            STATEMENT_TIMEOUT.as_millis(),
            IDLE_TIMEOUT.as_millis()
        );
        self.client.batch_execute(&begin).await?;
        let lock = self.names.sql("SELECT pg_try_advisory_xact_lock({hot:literal}::regclass::oid::integer, 0)");
        let ended = match self.client.query_typed_one(&lock, &[]).await?.try_get(0)? {
            true => match work.await {
                // Another adapter committed between the snapshot and the lock of this transaction.
                Err(error) if error.is(&SqlState::T_R_SERIALIZATION_FAILURE) => TxOutcome::Again,
                ended => ended?,
            },
            false => TxOutcome::Busy,
        };
        self.client.batch_execute(if matches!(ended, TxOutcome::Done(_)) { "COMMIT" } else { "ROLLBACK" }).await?;
        Ok(ended)
    }

    async fn seal_locked(&self, last: i64, spans: &[Span]) -> Result<TxOutcome, Error> {
        let HotBatch { newest_ms, expired, hot } = self.take_hot(last).await?;
        let Some(newest_ms) = newest_ms else { return Ok(TxOutcome::Again) };
        if hot.times_ms().any(|time_ms| segments::find(spans, time_ms).is_none()) {
            return Ok(TxOutcome::Again);
        }
        let heads = self.chunks().reached(&hot, spans).await?;
        let mut buckets: Vec<i64> = hot.buckets().collect();
        buckets.sort_unstable();
        let mut made = ChunkBatch::new(spans);
        made.dropped = expired;
        for group in groups(&buckets) {
            let heads: Vec<&ChunkKey> = group.iter().filter_map(|bucket| heads.get(bucket)).flatten().collect();
            let mut existing = self.chunks().take(&heads, &mut made).await?;
            for bucket in group {
                let mut rows = existing.remove(bucket).unwrap_or_default();
                hot.append_to(&mut rows, *bucket);
                let before = rows.len();
                // Stable sort: sealed samples stay before hot ones, and hot ones in the order of storing.
                if !rows.is_sorted_by_key(|row| (row.series_id, row.time_ms)) {
                    rows.sort_by_key(|row| (row.series_id, row.time_ms));
                }
                rows.dedup_by_key(|row| (row.series_id, row.time_ms));
                made.dropped += before - rows.len();
                made.encode(&rows)?;
            }
        }
        let samples = hot.len() + expired;
        drop(hot);
        let outcome = Outcome { samples, chunks: made.chunks.len(), replaced: made.replaced, dropped: made.dropped };
        self.chunks().store(made).await?;
        self.publish(newest_ms).await?;
        Ok(TxOutcome::Done(outcome))
    }

    /// Deletes the hot rows of a part up to the row with number `last`, and returns their samples.
    async fn take_hot(&self, last: i64) -> Result<HotBatch, Error> {
        let delete = format!("DELETE FROM {{hot}} WHERE {} RETURNING \"time\", series, value, no", self.taken(last));
        let no_parameters: [(i32, Type); 0] = [];
        let rows = self.client.query_typed_raw(&self.names.sql(&delete), no_parameters).await?;
        tokio::pin!(rows);
        let too_large = |error: TooMany| Error::TooLarge(error.to_string());
        let mut taken = HotBatch::default();
        while let Some(row) = rows.next().await {
            let row = row?;
            let Timestamp(time_us) = row.try_get(0)?;
            let time_ms = from_postgres_us(time_us);
            taken.newest_ms = taken.newest_ms.max(Some(time_ms));
            let (series, values): (Elements<'_>, Elements<'_>) = (row.try_get(1)?, row.try_get(2)?);
            if self.is_expired(time_ms) {
                taken.expired += series.iter().len();
                continue;
            }
            let no: i64 = row.try_get(3)?;
            let (ids, floats) = (series.iter().map(i64::from_be_bytes), values.iter().map(f64::from_be_bytes));
            if let Some(series_id) = ids.clone().next().filter(|id| values.are_numbers && is_of_histograms(*id)) {
                let numbers = Numbers::from_stored(floats.collect());
                match numbers.to_histogram() {
                    Ok(_) => taken.hot.push_histogram(time_ms, no, series_id, numbers).map_err(too_large)?,
                    Err(why) => log::error!(hot_row = no, err:% = why; "a native histogram is left out"),
                }
                continue;
            }
            if ids.len() != floats.len() {
                log::error!(
                    hot_row = no, series = ids.len(), values = floats.len();
                    "a hot row made by hand has unequal numbers of series and values: what has no partner is left out"
                );
            }
            let samples = ids.zip(floats);
            taken.hot.push(time_ms, no, samples).map_err(too_large)?;
        }
        taken.hot.sort();
        Ok(taken)
    }

    async fn seal_into_hypertable(&self, last: i64) -> Result<TxOutcome, Error> {
        let taken = self.taken(last);
        let (outcome, newest) = hypertable::seal(self.client, self.names, &taken, self.expired_ms).await?;
        let Some(Timestamp(newest_us)) = newest else { return Ok(TxOutcome::Again) };
        self.publish(from_postgres_us(newest_us)).await?;
        Ok(TxOutcome::Done(outcome))
    }

    /// Publishes for observers which hot rows may be removed: the snapshot that sees their transactions, and a time
    /// than which no removed row is later.
    async fn publish(&self, newest_ms: i64) -> Result<(), Error> {
        let read = self.names.sql("SELECT snapshot::text, pg_current_snapshot()::text FROM {sealed_to}");
        let row = self.client.query_typed_one(&read, &[]).await?;
        let (published, now) = (position::read(row.try_get(0)?)?, position::read(row.try_get(1)?)?);
        let removed = &self.up_to;
        // A published snapshot ahead of the server is from another server's dump.
        let snapshot = if published.covers(removed) && now.covers(&published) { &published } else { removed };
        let write =
            self.names.sql("UPDATE {sealed_to} SET snapshot = $1::text::pg_snapshot, newest = greatest(newest, $2)");
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&snapshot.to_string(), Type::TEXT), (&Timestamp(to_postgres_us(newest_ms)), Type::TIMESTAMPTZ)];
        self.client.execute_typed(&write, &parameters).await?;
        Ok(())
    }

    fn chunks(&self) -> Chunks<'_> {
        Chunks { client: self.client, names: self.names }
    }

    fn is_expired(&self, time_ms: i64) -> bool {
        self.expired_ms.is_some_and(|expired_ms| time_ms < expired_ms)
    }
}

/// Divides buckets, which ascend, into groups whose chunks are decoded together.
fn groups(buckets: &[i64]) -> impl Iterator<Item = &[i64]> {
    let (histograms, floats) = buckets.split_at(buckets.partition_point(|bucket| is_of_histograms(*bucket)));
    histograms.chunks(HISTOGRAM_BUCKETS_AT_ONCE).chain(floats.chunks(BUCKETS_AT_ONCE))
}

fn times_ms(times: Vec<Timestamp>) -> Vec<i64> {
    times.into_iter().map(|Timestamp(time_us)| from_postgres_us(time_us)).collect()
}
