//! Sealing: hot samples become chunks.
//!
//! One transaction takes out the hot rows stored first, and whatever chunks their samples reach into, and stores new chunks in
//! their stead. Every reader sees one or the other, at any isolation level; writers only ever add
//! hot rows, and wait for nothing. A crash at any point leaves what was there before.
//!
//! Late samples of any age, doubles (the first that was stored counts) and chunks that turned out small are all the
//! same case: a bucket's samples, decoded, put together and encoded anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures_util::StreamExt;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row as Record};

use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::chunk::{self, Encoded, Places};
use crate::storage::fence::WITHOUT_JIT;
use crate::storage::hot::Elements;
use crate::storage::hypertable;
use crate::storage::layout::Layout;
use crate::storage::names::Names;
use crate::storage::position::{self, Position};
use crate::storage::row::{Row, from_postgres_us, to_postgres_us};
use crate::storage::seal::hot_rows::{HotRows, Reach};
use crate::storage::segments::{self, Span};

mod hot_rows;

/// Samples that one transaction takes, of some ten bytes each in memory.
const SAMPLES_MAX: i64 = 2_000_000;

/// What the server may take for the rows of one transaction, which it gathers before it sends the first: else they go by way of a file.
const PART_MEMORY: &str = "64MB";

/// Times in a chunk at most: a query for a moment decodes so many.
const LENGTH_MAX: usize = 1024;

/// What rows and their pointers may take of a page.
const PAGE_BYTES: usize = 8168;

/// A chunk with fewer times than this is small, and worth being put together with others. `segments.sql` has an index of
/// these.
const SMALL_LENGTH: i16 = 64;

/// So many small chunks of a bucket are put together: each sample is then encoded anew at most once for each factor
/// of so many.
const SMALL_COUNT: i64 = 8;

/// Buckets whose chunks are taken apart at a time: bounds the memory of it.
const BUCKETS_AT_ONCE: usize = 64;

/// So often new segments are made for what came in since the last look.
const ATTEMPTS: usize = 10;

/// How long one statement may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// A sealer that idles so long within its transaction is frozen, and another takes its place.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What one transaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples that were hot.
    pub samples: usize,
    /// Chunks made.
    pub chunks: usize,
    /// Chunks taken apart for it.
    pub replaced: usize,
    /// Hot samples left out, being there already or older than the retention.
    pub dropped: usize,
}

impl std::ops::AddAssign for Outcome {
    fn add_assign(&mut self, more: Self) {
        self.samples += more.samples;
        self.chunks += more.chunks;
        self.replaced += more.replaced;
        self.dropped += more.dropped;
    }
}

/// One adapter's right to seal, for a round.
pub struct Sealer<'a> {
    /// A session of the job's own.
    pub client: &'a Client,
    /// The store's.
    pub names: &'a Names,
    /// Where sealed samples go.
    pub layout: Layout,
    /// The span of a segment to be made.
    pub interval: Duration,
    /// Now by the server's clock, in ms since 1970: an adapter's may be wrong, and would drop what is young.
    pub now_ms: i64,
    /// Samples older than this are dropped, in ms since 1970.
    pub expired_ms: Option<i64>,
    /// Hot rows that this does not see stay hot, for others have yet to observe them; `None` seals all.
    pub up_to: Option<&'a Position>,
    /// An SQL expression that fails on another server than `up_to` is of.
    pub check: String,
}

/// How a transaction ended.
enum TxOutcome {
    Done(Outcome),
    /// Another adapter is at it.
    Busy,
    /// Samples came in for which there is no segment yet, or another adapter has sealed these meanwhile.
    Again,
}

/// Hot rows that one transaction seals.
#[derive(Debug)]
pub struct HotRange {
    /// The number of the last of them.
    last: i64,
    /// Their times, in ms since 1970, each once.
    times_ms: Vec<i64>,
}

/// The hot rows of one transaction.
#[derive(Default)]
struct HotBatch {
    /// The time of the latest, in ms since 1970; `None` where there are none.
    newest_ms: Option<i64>,
    /// Samples in those that are older than the retention.
    expired: usize,
    /// The others.
    hot: HotRows,
}

/// What is known of a chunk without reading it.
struct ChunkKey {
    bucket: i64,
    first_ms: i64,
    last_ms: i64,
    places: Places,
}

impl Sealer<'_> {
    /// Divides the hot rows that are to be sealed, in the order of storing, into parts of about two million samples each. What a
    /// series has in the next part is later, so no chunk is made twice.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn parts(&self) -> Result<Vec<HotRange>, Error> {
        // OFFSET keeps the arrays out of what is sorted.
        let statement = self.names.sql(&format!(
            "SELECT max(no), array_agg(DISTINCT \"time\") FROM (SELECT no, \"time\", sum(samples) OVER (ORDER BY no) AS samples \
             FROM (SELECT no, \"time\", cardinality(series) AS samples FROM {{hot}} WHERE {} OFFSET 0) h) h \
             GROUP BY (samples - 1) / $1 ORDER BY 1",
            self.taken(i64::MAX)
        ));
        let records = self.client.query_typed(&statement, &[(&SAMPLES_MAX, Type::INT8)]).await?;
        let part = |record: &Record| Ok(HotRange { last: record.try_get(0)?, times_ms: times_ms(record.try_get(1)?) });
        records.iter().map(part).collect()
    }

    /// The condition on the hot rows to be sealed, those up to the one numbered `last`. Rows of transactions that are yet to come
    /// are out of another server's dump, and nobody observes them.
    fn taken(&self, last: i64) -> String {
        let observed = self.up_to.map_or_else(String::new, |up_to| {
            // Most are older than any transaction that was in progress, which is quickly seen.
            format!(
                " AND (xid < '{}' OR pg_visible_in_snapshot(xid, '{up_to}') \
                 OR xid >= (SELECT pg_snapshot_xmax(pg_current_snapshot())))",
                up_to.xmin()
            )
        });
        format!("no <= {last}{observed}")
    }

    /// Seals a part, once those before it are sealed, and says whether anything was left of it. `None`: another adapter is at it.
    ///
    /// # Errors
    ///
    /// What the server said; nothing has changed then.
    pub async fn seal(&self, part: HotRange) -> Result<Option<Outcome>, Error> {
        let HotRange { last, mut times_ms } = part;
        for _ in 0..ATTEMPTS {
            let ended = match self.layout {
                Layout::Hypertable => self.transaction(self.seal_into_hypertable(last)).await?,
                Layout::Chunks => {
                    let times: BTreeSet<i64> =
                        times_ms.iter().copied().filter(|time_ms| !self.is_expired(*time_ms)).collect();
                    // Before the transaction, which would not see them.
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
        Err(Error::Unfit("others seal, or samples of ever more segments come in, faster than these are sealed".into()))
    }

    /// Puts small chunks of the last two segments together where a series has many, in so many buckets at most. `None`:
    /// another adapter is at it.
    ///
    /// # Errors
    ///
    /// What the server said; nothing has changed then.
    pub async fn merge(&self, buckets_max: usize) -> Result<Option<Outcome>, Error> {
        if self.layout == Layout::Hypertable {
            return Ok(Some(Outcome::default()));
        }
        let spans = segments::list(self.client, self.names).await?;
        match self.transaction(self.merge_locked(buckets_max, &spans)).await? {
            TxOutcome::Done(outcome) => Ok(Some(outcome)),
            TxOutcome::Busy | TxOutcome::Again => Ok(None),
        }
    }

    async fn transaction(&self, work: impl Future<Output = Result<TxOutcome, Error>>) -> Result<TxOutcome, Error> {
        // TimescaleDB compresses a segment by truncating it, which older snapshots see. So no snapshot is taken before it
        // has ended, however long that takes, and none begins.
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
        let lock = self.names.sql(&format!(
            "SELECT pg_try_advisory_xact_lock({{hot:literal}}::regclass::oid::integer, 0), {}",
            self.check
        ));
        let ended = match self.client.query_typed_one(&lock, &[]).await?.try_get(0)? {
            true => match work.await {
                // Another adapter committed between this transaction's first look and its lock.
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
        let heads = self.reached(&hot, spans).await?;
        let mut buckets: Vec<i64> = hot.buckets().collect();
        buckets.sort_unstable();
        let mut made = ChunkBatch::new(spans);
        made.dropped = expired;
        for group in buckets.chunks(BUCKETS_AT_ONCE) {
            let heads: Vec<&ChunkKey> = group.iter().filter_map(|bucket| heads.get(bucket)).flatten().collect();
            let mut existing = self.take(&heads, &mut made).await?;
            for bucket in group {
                let mut rows = existing.remove(bucket).unwrap_or_default();
                hot.append_to(&mut rows, *bucket);
                let before = rows.len();
                // Stable: what was sealed comes before what is hot, and of that, what was stored first.
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
        self.store(made).await?;
        self.publish(newest_ms).await?;
        Ok(TxOutcome::Done(outcome))
    }

    async fn seal_into_hypertable(&self, last: i64) -> Result<TxOutcome, Error> {
        let taken = self.taken(last);
        let (outcome, newest) = hypertable::seal(self.client, self.names, &taken, self.expired_ms).await?;
        let Some(Timestamp(newest_us)) = newest else { return Ok(TxOutcome::Again) };
        self.publish(from_postgres_us(newest_us)).await?;
        Ok(TxOutcome::Done(outcome))
    }

    /// Tells those who observe which hot rows may be gone: of which transactions at most, and that none is later than `newest_ms`.
    async fn publish(&self, newest_ms: i64) -> Result<(), Error> {
        let read = self.names.sql("SELECT snapshot::text, pg_current_snapshot()::text FROM {sealed_to}");
        let row = self.client.query_typed_one(&read, &[]).await?;
        let (published, now) = (position::read(row.try_get(0)?)?, position::read(row.try_get(1)?)?);
        let removed = self.up_to.unwrap_or(&now);
        // What is ahead of the server is out of another one's dump.
        let snapshot = if published.covers(removed) && now.covers(&published) { &published } else { removed };
        let write =
            self.names.sql("UPDATE {sealed_to} SET snapshot = $1::text::pg_snapshot, newest = greatest(newest, $2)");
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&snapshot.to_string(), Type::TEXT), (&Timestamp(to_postgres_us(newest_ms)), Type::TIMESTAMPTZ)];
        self.client.execute_typed(&write, &parameters).await?;
        Ok(())
    }

    async fn merge_locked(&self, buckets_max: usize, spans: &[Span]) -> Result<TxOutcome, Error> {
        // Buckets with the most small chunks first, of those in which a series has many. By the index of small chunks, for a
        // segment may have gigabytes of others.
        let small = format!("length < {SMALL_LENGTH} AND first >= $1");
        let statement = self.names.sql(&format!(
            "SELECT c.bucket, c.first, c.last, c.places FROM {{sealed}} c JOIN (SELECT * FROM \
             (SELECT tableoid AS segment, bucket FROM {{sealed}} WHERE {small} \
              GROUP BY 1, 2 HAVING count(*) >= $2 ORDER BY count(*) DESC) b \
             WHERE EXISTS (SELECT FROM {{sealed}} p, generate_series(0, 31) place WHERE p.tableoid = b.segment \
              AND p.bucket = b.bucket AND {small} AND places >> place & 1 = 1 GROUP BY place HAVING count(*) >= $2) LIMIT $3) s \
             ON s.bucket = c.bucket AND s.segment = c.tableoid WHERE {small}",
        ));
        self.client.batch_execute("SET LOCAL enable_seqscan = off").await?;
        let limit = i64::try_from(buckets_max).unwrap_or(i64::MAX);
        let interval_ms = i64::try_from(self.interval.as_millis()).unwrap_or(i64::MAX);
        let since = Timestamp(to_postgres_us(self.now_ms.saturating_sub(interval_ms.saturating_mul(2))));
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&since, Type::TIMESTAMPTZ), (&SMALL_COUNT, Type::INT8), (&limit, Type::INT8)];
        let records = self.client.query_typed(&statement, &parameters).await?;
        let heads: Vec<ChunkKey> = records.iter().map(ChunkKey::read).collect::<Result<_, _>>()?;
        let mut made = ChunkBatch::new(spans);
        let mut by_bucket: HashMap<i64, Vec<&ChunkKey>> = HashMap::new();
        for head in &heads {
            by_bucket.entry(head.bucket).or_default().push(head);
        }
        let buckets: Vec<i64> = by_bucket.keys().copied().collect();
        for group in buckets.chunks(BUCKETS_AT_ONCE) {
            let heads: Vec<&ChunkKey> =
                group.iter().filter_map(|bucket| by_bucket.get(bucket)).flatten().copied().collect();
            for (_, mut rows) in self.take(&heads, &mut made).await? {
                rows.sort_by_key(|row| (row.series_id, row.time_ms));
                made.encode(&rows)?;
            }
        }
        let outcome = Outcome { chunks: made.chunks.len(), replaced: made.replaced, ..Outcome::default() };
        self.store(made).await?;
        Ok(TxOutcome::Done(outcome))
    }

    fn is_expired(&self, time_ms: i64) -> bool {
        self.expired_ms.is_some_and(|expired_ms| time_ms < expired_ms)
    }

    /// Deletes the hot rows of a part, of which the one numbered `last` is the last, and returns what they had.
    async fn take_hot(&self, last: i64) -> Result<HotBatch, Error> {
        let delete = format!("DELETE FROM {{hot}} WHERE {} RETURNING \"time\", series, value, no", self.taken(last));
        let no_parameters: [(i32, Type); 0] = [];
        let rows = self.client.query_typed_raw(&self.names.sql(&delete), no_parameters).await?;
        tokio::pin!(rows);
        let mut taken = HotBatch::default();
        while let Some(row) = rows.next().await {
            let row = row?;
            let Timestamp(time_us) = row.try_get(0)?;
            let time_ms = from_postgres_us(time_us);
            taken.newest_ms = taken.newest_ms.max(Some(time_ms));
            let (series, values): (Elements<'_>, Elements<'_>) = (row.try_get(1)?, row.try_get(2)?);
            if self.is_expired(time_ms) {
                taken.expired += values.iter().len();
                continue;
            }
            let no: i64 = row.try_get(3)?;
            let (ids, floats) = (series.iter().map(i64::from_be_bytes), values.iter().map(f64::from_be_bytes));
            if ids.len() != floats.len() {
                log::error!(
                    "the hot row {no}, made by hand, has {} series and {} values: what has no partner is left out",
                    ids.len(),
                    floats.len()
                );
            }
            let samples = ids.zip(floats);
            taken.hot.push(time_ms, no, samples).map_err(|error| Error::Unfit(error.to_string()))?;
        }
        taken.hot.sort();
        Ok(taken)
    }

    /// The chunks into which hot samples reach: those of a series that both have, with times in common or between.
    async fn reached(&self, hot: &HotRows, spans: &[Span]) -> Result<HashMap<i64, Vec<ChunkKey>>, Error> {
        let mut reached: HashMap<i64, Vec<ChunkKey>> = HashMap::new();
        let (Some(earliest_ms), Some(latest_ms)) = (hot.times_ms().min(), hot.times_ms().max()) else {
            return Ok(reached);
        };
        let lower_ms = segments::find(spans, earliest_ms).map_or(i64::MIN, |span| span.lower_ms);
        let reaches: HashMap<i64, Reach> = hot.buckets().map(|bucket| (bucket, hot.reach(bucket))).collect();
        let ids: Vec<i64> = reaches.keys().copied().collect();
        let ends = |of: fn(&Reach) -> i64| -> Vec<Timestamp> {
            ids.iter().map(|bucket| Timestamp(to_postgres_us(of(&reaches[bucket])))).collect()
        };
        let (firsts, lasts) = (ends(|reach| reach.first_ms), ends(|reach| reach.last_ms));
        let (lower, upper) = (Timestamp(to_postgres_us(lower_ms)), Timestamp(to_postgres_us(latest_ms)));
        let statement = self.names.sql(
            "SELECT c.bucket, c.first, c.last, c.places \
             FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[]) AS w (bucket, first, last) \
             JOIN {sealed} c ON c.bucket = w.bucket AND c.last >= w.first AND c.first <= w.last \
             WHERE c.first >= $4 AND c.first <= $5",
        );
        let parameters: [(&(dyn ToSql + Sync), Type); 5] = [
            (&ids, Type::INT8_ARRAY),
            (&firsts, Type::TIMESTAMPTZ_ARRAY),
            (&lasts, Type::TIMESTAMPTZ_ARRAY),
            (&lower, Type::TIMESTAMPTZ),
            (&upper, Type::TIMESTAMPTZ),
        ];
        for record in self.client.query_typed(&statement, &parameters).await? {
            let head = ChunkKey::read(&record)?;
            let is_reached = |reach: &Reach| reach.is_into(head.places, head.first_ms, head.last_ms);
            if reaches.get(&head.bucket).is_some_and(is_reached) {
                reached.entry(head.bucket).or_default().push(head);
            }
        }
        Ok(reached)
    }

    /// Takes chunks out, and returns their samples by bucket. One that cannot be decoded goes back as it was.
    async fn take(&self, heads: &[&ChunkKey], made: &mut ChunkBatch<'_>) -> Result<HashMap<i64, Vec<Row>>, Error> {
        let mut rows: HashMap<i64, Vec<Row>> = HashMap::new();
        if heads.is_empty() {
            return Ok(rows);
        }
        let times = |of: fn(&ChunkKey) -> i64| -> Vec<Timestamp> {
            heads.iter().map(|head| Timestamp(to_postgres_us(of(head)))).collect()
        };
        let (buckets, places): (Vec<i64>, Vec<i32>) = heads.iter().map(|head| (head.bucket, head.places.0)).unzip();
        let (firsts, lasts) = (times(|head| head.first_ms), times(|head| head.last_ms));
        let statement = self.names.sql(&format!(
            "DELETE FROM {{sealed}} c USING \
             (SELECT DISTINCT * FROM unnest($1::bigint[], $2::timestamptz[], $3::timestamptz[], $4::integer[]) \
             AS u (bucket, first, last, places)) w \
             WHERE c.bucket = w.bucket AND c.first = w.first AND c.last = w.last AND c.places = w.places RETURNING {CHUNK_COLUMNS}"
        ));
        let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
            (&buckets, Type::INT8_ARRAY),
            (&firsts, Type::TIMESTAMPTZ_ARRAY),
            (&lasts, Type::TIMESTAMPTZ_ARRAY),
            (&places, Type::INT4_ARRAY),
        ];
        for record in self.client.query_typed(&statement, &parameters).await? {
            let encoded = read_chunk(&record)?;
            made.replaced += 1;
            match encoded.decode() {
                Ok(chunk) => {
                    made.count(chunk.times_ms.first().copied().unwrap_or_default(), &chunk, -1);
                    let rows = rows.entry(chunk.bucket).or_default();
                    for (place, values) in &chunk.series {
                        let series_id = chunk::series_at(chunk.bucket, *place);
                        let samples = chunk.times_ms.iter().zip(values);
                        rows.extend(samples.map(|(time_ms, value)| Row {
                            series_id,
                            time_ms: *time_ms,
                            value: *value,
                        }));
                    }
                }
                Err(why) => {
                    log::error!(
                        "a chunk of series {} to {} is corrupt, and left as it is: {why}",
                        chunk::series_at(encoded.bucket, 0),
                        chunk::series_at(encoded.bucket + 1, 0) - 1
                    );
                    made.chunks.push((encoded, record.try_get(4)?));
                }
            }
        }
        Ok(rows)
    }

    async fn store(&self, mut made: ChunkBatch<'_>) -> Result<(), Error> {
        made.fill_pages();
        let copy = self.names.sql(&format!("COPY {{sealed}} ({CHUNK_COLUMNS_BARE}) FROM STDIN BINARY"));
        let sink = self.client.copy_in(&copy).await?;
        let types = [
            Type::INT8,
            Type::TIMESTAMPTZ,
            Type::TIMESTAMPTZ,
            Type::INT4,
            Type::INT2,
            Type::VARBIT,
            Type::VARBIT,
            Type::FLOAT8_ARRAY,
        ];
        let writer = BinaryCopyInWriter::new(sink, &types);
        tokio::pin!(writer);
        for (chunk, length) in &made.chunks {
            let (first, last) = (Timestamp(to_postgres_us(chunk.first_ms)), Timestamp(to_postgres_us(chunk.last_ms)));
            let floats = (!chunk.floats.is_empty()).then_some(&chunk.floats);
            let row: [&(dyn ToSql + Sync); 8] =
                [&chunk.bucket, &first, &last, &chunk.places.0, length, &chunk.times, &chunk.data, &floats];
            writer.as_mut().write(&row).await?;
        }
        writer.finish().await?;
        let (uppers, counts): (Vec<Timestamp>, Vec<i64>) =
            made.counts.iter().map(|(upper_ms, count)| (Timestamp(to_postgres_us(*upper_ms)), *count)).unzip();
        let statement = self.names.sql(
            "UPDATE {segments} s SET samples = s.samples + w.count \
             FROM unnest($1::timestamptz[], $2::bigint[]) AS w (upper, count) WHERE s.upper = w.upper",
        );
        self.client
            .execute_typed(&statement, &[(&uppers, Type::TIMESTAMPTZ_ARRAY), (&counts, Type::INT8_ARRAY)])
            .await?;
        Ok(())
    }
}

/// Chunks to be stored, and what is to be said of them.
struct ChunkBatch<'a> {
    spans: &'a [Span],
    chunks: Vec<(Encoded, i16)>,
    replaced: usize,
    dropped: usize,
    /// Samples more or less, by the upper bound of the segment.
    counts: HashMap<i64, i64>,
}

impl<'a> ChunkBatch<'a> {
    fn new(spans: &'a [Span]) -> Self {
        Self { spans, chunks: Vec::new(), replaced: 0, dropped: 0, counts: HashMap::new() }
    }

    /// Makes chunks of a bucket's samples, which are in the order of series and time, without doubles.
    fn encode(&mut self, rows: &[Row]) -> Result<(), Error> {
        let mut by_span: BTreeMap<Span, Vec<&[Row]>> = BTreeMap::new();
        for mut rest in rows.chunk_by(|one, next| one.series_id == next.series_id) {
            while let Some(first) = rest.first() {
                let span = segments::find(self.spans, first.time_ms)
                    .ok_or_else(|| Error::Unfit(format!("there is no segment for the time {}", first.time_ms)))?;
                let (run, later) = rest.split_at(rest.partition_point(|row| span.contains(row.time_ms)));
                by_span.entry(span).or_default().push(run);
                rest = later;
            }
        }
        for series in by_span.into_values() {
            for chunk in chunk::group(series, LENGTH_MAX) {
                self.count(chunk.times_ms[0], &chunk, 1);
                let length = i16::try_from(chunk.times_ms.len()).unwrap_or(i16::MAX);
                self.chunks.extend(chunk::encode(&chunk).into_iter().map(|row| (row, length)));
            }
        }
        Ok(())
    }

    /// Puts the rows in an order in which pages are filled: always the largest that fits what is left.
    fn fill_pages(&mut self) {
        let mut by_size: BTreeMap<(usize, usize), (Encoded, i16)> = BTreeMap::new();
        for (number, chunk) in self.chunks.drain(..).enumerate() {
            by_size.insert((chunk.0.bytes(), number), chunk);
        }
        let mut left = PAGE_BYTES;
        while let Some(largest) = by_size.keys().next_back().copied() {
            let fitting = by_size.range(..=(left, usize::MAX)).next_back().map(|(key, _)| *key);
            let key = fitting.unwrap_or(largest);
            left = if fitting.is_some() { left - key.0 } else { PAGE_BYTES.saturating_sub(key.0) };
            self.chunks.extend(by_size.remove(&key));
        }
    }

    fn count(&mut self, time_ms: i64, chunk: &chunk::Chunk, sign: i64) {
        let samples = i64::try_from(chunk.times_ms.len() * chunk.series.len()).unwrap_or_default();
        if let Some(span) = segments::find(self.spans, time_ms) {
            *self.counts.entry(span.upper_ms).or_default() += sign * samples;
        }
    }
}

impl ChunkKey {
    fn read(record: &Record) -> Result<Self, Error> {
        let (Timestamp(first), Timestamp(last)) = (record.try_get(1)?, record.try_get(2)?);
        Ok(Self {
            bucket: record.try_get(0)?,
            first_ms: from_postgres_us(first),
            last_ms: from_postgres_us(last),
            places: Places(record.try_get(3)?),
        })
    }
}

/// What [`read_chunk`] reads, of a table called `c`.
pub const CHUNK_COLUMNS: &str = "c.bucket, c.first, c.last, c.places, c.length, c.times, c.data, c.floats";

const CHUNK_COLUMNS_BARE: &str = "bucket, first, last, places, length, times, data, floats";

fn times_ms(times: Vec<Timestamp>) -> Vec<i64> {
    times.into_iter().map(|Timestamp(time_us)| from_postgres_us(time_us)).collect()
}

/// A chunk as it is stored.
///
/// # Errors
///
/// When a column is not of its type.
pub fn read_chunk(record: &Record) -> Result<Encoded, Error> {
    let (Timestamp(first), Timestamp(last)) = (record.try_get(1)?, record.try_get(2)?);
    Ok(Encoded {
        bucket: record.try_get(0)?,
        first_ms: from_postgres_us(first),
        last_ms: from_postgres_us(last),
        places: Places(record.try_get(3)?),
        times: record.try_get(5)?,
        data: record.try_get(6)?,
        floats: record.try_get::<_, Option<_>>(7)?.unwrap_or_default(),
    })
}
