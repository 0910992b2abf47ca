//! Merges small chunks, in the same kind of transaction as sealing.

use std::collections::HashMap;

use tokio_postgres::types::{ToSql, Type};

use crate::model::time::as_ms;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::storage::layout::Layout;
use crate::storage::row::to_postgres_us;
use crate::storage::seal::chunk_batch::{ChunkBatch, SMALL_LENGTH};
use crate::storage::seal::chunks::ChunkKey;
use crate::storage::seal::outcome::Outcome;
use crate::storage::seal::{Sealer, TxOutcome, groups};
use crate::storage::segments::{self, Span};

/// Number of small chunks of a bucket from which they are merged: each sample is then encoded again at most once for
/// each such factor.
const SMALL_COUNT: i64 = 8;

impl Sealer<'_> {
    /// Merges small chunks of the last two segments if a series has many of them, in at most `buckets_max` buckets.
    /// Returns `None` if another adapter is sealing or merging.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection; nothing has changed then.
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

    async fn merge_locked(&self, buckets_max: usize, spans: &[Span]) -> Result<TxOutcome, Error> {
        // Buckets with the most small chunks come first, among those in which a series has many. Uses the index of
        // small chunks, because a segment may have gigabytes of others.
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
        let interval_ms = as_ms(self.interval);
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
        let mut buckets: Vec<i64> = by_bucket.keys().copied().collect();
        buckets.sort_unstable();
        for group in groups(&buckets) {
            let heads: Vec<&ChunkKey> =
                group.iter().filter_map(|bucket| by_bucket.get(bucket)).flatten().copied().collect();
            for (_, mut rows) in self.chunks().take(&heads, &mut made).await? {
                rows.sort_by_key(|row| (row.series_id, row.time_ms));
                made.encode(&rows)?;
            }
        }
        let outcome = Outcome { chunks: made.chunks.len(), replaced: made.replaced, ..Outcome::default() };
        self.chunks().store(made).await?;
        Ok(TxOutcome::Done(outcome))
    }
}
