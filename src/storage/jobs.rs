//! Rounds of sealing and upkeep, on sessions of their own, and the metrics they set.

use std::time::{Duration, Instant};

use futures_util::future::try_join3;
use tokio_postgres::Client;

use crate::allocator::return_free_memory;
use crate::model::time::as_ms;
use crate::postgres::error::Error;
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Pooled, within};
use crate::storage::fence::WITHOUT_JIT;
use crate::storage::layout::Layout;
use crate::storage::metadata;
use crate::storage::position::{self, Position};
use crate::storage::row::from_postgres_us;
use crate::storage::seal::Sealer;
use crate::storage::seal::outcome::Outcome;
use crate::storage::{Store, exemplars, hypertable, upkeep};

/// State of the hot rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hot {
    /// Number of samples.
    pub samples: u64,
    /// Age of the earliest of their times.
    pub age: Duration,
}

/// The hot rows that a round of sealing takes. It leaves those that an adapter has yet to observe: the adapter would have
/// to look up what they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealedRows {
    /// All rows that are hot at the start. Waits until they are observed, and returns their space to the operating
    /// system.
    All,
    /// The rows that are observed already.
    Observed,
}

/// Pause between looks at how far the adapters have observed.
const OBSERVED_AGAIN: Duration = Duration::from_millis(100);

/// Time since an adapter last published how far it has observed, by the server's clock, after which sealing does not
/// wait for it any more, as an interval of PostgreSQL. Adapters observe once a second.
const OBSERVES_WITHIN: &str = "10 seconds";

/// Time after which the row of an adapter that has ended is deleted, as an interval of PostgreSQL.
const OBSERVERS_KEPT: &str = "1 day";

/// Maximum number of buckets whose small chunks are merged in one round.
const MERGED_BUCKETS_MAX: usize = 1024;

/// Bytes of the hot rows per sample of a round from which their table is shrunk: six times what the samples need. The
/// table then has space that will not be used again, after a backlog, or after a session that stayed open and kept
/// VACUUM from removing sealed rows.
const SHRUNK_SAMPLE_BYTES: u64 = 96;

/// Timeout of a round of [`Store::upkeep`] or [`Store::seal`].
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(3600);

impl Store {
    /// Counts the hot samples and sets their metrics. A native histogram counts as much as it has numbers.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection.
    pub async fn hot(&self) -> Result<Hot, Error> {
        let statement = self.names.sql(
            "SELECT coalesce(sum(cardinality(value)), 0)::bigint, pg_relation_size({hot:literal}::regclass), \
             coalesce(extract(epoch FROM now() - min(\"time\")), 0)::float8 FROM {hot}",
        );
        let timeout = self.config.send_timeout;
        self.counted(within(timeout, async {
            let client = Pooled::take(&self.pool).await?;
            // The server has a timeout too: a statement that goes on would itself keep sealed rows from being removed.
            let begin = format!(
                "BEGIN READ ONLY; {WITHOUT_JIT}; SET LOCAL statement_timeout = {}",
                (timeout * 9 / 10).as_millis()
            );
            let ((), row, ()) = try_join3(
                client.batch_execute(&begin),
                client.query_typed_one(&statement, &[]),
                client.batch_execute("COMMIT"),
            )
            .await?;
            client.give_back();
            let (samples, bytes): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            self.metrics.hot_samples.set(samples);
            self.metrics.hot_bytes.set(bytes);
            let oldest: f64 = row.try_get(2)?;
            self.metrics.hot_oldest_seconds.set(oldest);
            // `oldest` is negative if all samples are in the future.
            let age = Duration::try_from_secs_f64(oldest).unwrap_or_default();
            Ok(Hot { samples: samples.unsigned_abs(), age })
        }))
        .await
    }

    /// Sets the metrics of the tables' contents to 0: only the leader reports them.
    pub fn forget_sizes(&self) {
        self.metrics.segments.set(0);
        self.metrics.sealed_samples.set(0);
        self.metrics.sealed_bytes.set(0);
        self.metrics.hot_samples.set(0);
        self.metrics.hot_bytes.set(0);
        self.metrics.hot_oldest_seconds.set(0.0);
    }

    /// Returns `true` if `samples` hot samples are to be sealed when `since` has passed since the last round.
    #[must_use]
    pub fn is_seal_due(&self, samples: u64, since: Duration) -> bool {
        samples >= self.config.seal_samples || (samples > 0 && since >= self.config.seal_after)
    }

    /// Seals `rows` of those that are hot at the start, and merges small chunks, on a session of its own.
    /// Returns `None` if another adapter is sealing.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection. Rows already sealed stay sealed, and the next round continues from
    /// there.
    pub async fn seal(&self, rows: SealedRows) -> Result<Option<Outcome>, Error> {
        let _round = self.sealing.lock().await;
        let started = Instant::now();
        let sealed = self
            .counted(within(UPKEEP_TIMEOUT, async {
                let session = self.connector.write_session().await?;
                let sealed = self.seal_by(session.client(), rows).await;
                session.close().await;
                sealed
            }))
            .await;
        // A round takes much memory for a short time.
        let _ = tokio::task::spawn_blocking(return_free_memory).await;
        match &sealed {
            Ok(Some(_)) => self.metrics.seal_duration_seconds.observe(started.elapsed().as_secs_f64()),
            Ok(None) => {}
            Err(_) => self.metrics.seal_failures_total.inc(),
        }
        sealed
    }

    async fn seal_by(&self, client: &Client, rows: SealedRows) -> Result<Option<Outcome>, Error> {
        let up_to = self.sealed_up_to(client, rows).await?;
        let now = client.query_typed_one("SELECT clock_timestamp()", &[]).await?;
        let Timestamp(now_us) = now.try_get(0)?;
        let now_ms = from_postgres_us(now_us);
        let sealer = Sealer {
            client,
            names: &self.names,
            layout: self.layout,
            interval: self.config.chunk_interval,
            now_ms,
            expired_ms: self.config.retention.map(|kept| now_ms.saturating_sub(as_ms(kept))),
            up_to,
        };
        let mut total = Outcome::default();
        for part in sealer.parts().await? {
            let Some(outcome) = sealer.seal(part).await? else { return Ok(None) };
            self.metrics.sealed_samples_total.inc_by(outcome.samples as u64);
            self.metrics.samples_duplicate_total.with_label_values(&["sealed"]).inc_by(outcome.dropped as u64);
            total += outcome;
        }
        // VACUUM cannot run in a transaction. Without it new rows would be added behind the space of deleted ones.
        let size = self.names.sql("SELECT pg_relation_size({hot:literal}::regclass)");
        let bytes: i64 = client.query_typed_one(&size, &[]).await?.try_get(0)?;
        let samples = self.config.seal_samples.max(total.samples as u64);
        let shrink = rows == SealedRows::All || bytes.unsigned_abs() > samples.saturating_mul(SHRUNK_SAMPLE_BYTES);
        // A VACUUM that truncates may skip no page. Otherwise it would ascribe the rows once counted in removed pages to
        // the few that are left, and the planner would expect hundreds of times too many rows.
        // The index is cleaned each time: rows fill their page to the last pointer.
        let vacuum = format!(
            "VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE {shrink}, DISABLE_PAGE_SKIPPING {shrink}) {{hot}}"
        );
        client.batch_execute(&self.names.sql(&vacuum)).await?;
        if let Some(outcome) = sealer.merge(MERGED_BUCKETS_MAX).await? {
            total += outcome;
        }
        Ok(Some(total))
    }

    /// Returns the position of the rows that are sealed: every living adapter has observed them.
    async fn sealed_up_to(&self, client: &Client, rows: SealedRows) -> Result<Position, Error> {
        // A time in the future was published before the server's clock was set back.
        let statement = self.names.sql(&format!(
            "SELECT pg_current_snapshot()::text, ARRAY(SELECT position::text FROM {{observers}} \
             WHERE observed_at BETWEEN clock_timestamp() - interval '{OBSERVES_WITHIN}' AND clock_timestamp())"
        ));
        let mut start: Option<Position> = None;
        loop {
            let row = client.query_typed_one(&statement, &[]).await?;
            let (now, published): (_, Vec<String>) = (position::read(row.try_get(0)?)?, row.try_get(1)?);
            let published = published.iter().map(|text| position::read(text)).collect::<Result<Vec<_>, Error>>()?;
            let start = start.get_or_insert_with(|| now.clone());
            let observed = published.into_iter().fold(now, |one, other| if one.covers(&other) { other } else { one });
            match rows {
                SealedRows::Observed => return Ok(observed),
                SealedRows::All if observed.covers(start) => return Ok(start.clone()),
                SealedRows::All => tokio::time::sleep(OBSERVED_AGAIN).await,
            }
        }
    }

    /// Runs one round of retention on a session of its own, unless another adapter does. Deletes old request keys too
    /// if this adapter has `led` long enough to have seen every retry that an outage delayed.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection; the next round continues from there.
    pub async fn upkeep(&self, led: Duration) -> Result<(), Error> {
        let work = within(UPKEEP_TIMEOUT, async {
            // Some of the work cannot run in a transaction, so another session holds the lock.
            let lock = Pooled::take(&self.pool).await?;
            if upkeep::lock(&lock, &self.names).await? {
                let session = self.connector.write_session().await?;
                tokio::select! {
                    done = self.upkeep_by(session.client(), led) => done?,
                    error = upkeep::hold_lock(&lock) => return Err(error),
                }
                session.close().await;
            }
            lock.batch_execute("COMMIT").await?;
            lock.give_back();
            Ok(())
        });
        let done = self.counted(work).await;
        if done.is_err() {
            self.metrics.upkeep_failures_total.inc();
        }
        done
    }

    async fn upkeep_by(&self, client: &Client, led: Duration) -> Result<(), Error> {
        client.batch_execute("SET statement_timeout = 0; SET lock_timeout = '10s'").await?;
        // Steps that may fail because of a reader's lock, or take long, come last.
        let kept = upkeep::REQUESTS_KEPT + self.config.send_timeout;
        if led >= kept {
            upkeep::forget_requests(client, &self.names, kept).await?;
        }
        if self.config.sources.is_some() {
            upkeep::forget_clusters(client, &self.names).await?;
        }
        let ended = format!("DELETE FROM {{observers}} WHERE observed_at < now() - interval '{OBSERVERS_KEPT}'");
        client.batch_execute(&self.names.sql(&ended)).await?;
        upkeep::shrink_hot(client, &self.names).await?;
        let sizes = upkeep::sizes(client, &self.names).await?;
        self.metrics.segments.set(sizes.segments);
        self.metrics.sealed_samples.set(sizes.samples);
        self.metrics.sealed_bytes.set(sizes.bytes);
        if let Some(retention) = self.config.retention {
            metadata::forget(client, &self.names, retention).await?;
            let dropped = match self.layout {
                Layout::Chunks => upkeep::drop_expired(client, &self.names, retention).await?,
                Layout::Hypertable => hypertable::drop_expired(client, &self.names, retention).await?,
            };
            if !dropped.is_empty() {
                log::info!(tables = dropped.join(", ").as_str(); "retention: dropped tables");
                upkeep::mark_ended(client, &self.names).await?;
            }
        }
        let deleted = upkeep::delete_ended(client, &self.names).await?;
        if deleted > 0 {
            log::info!(series = deleted; "deleted series that nothing stored refers to");
            if upkeep::rebuild_labels_index(client, &self.names).await? {
                log::info!("built the index of labels anew");
            }
        }
        exemplars::forget(client, &self.names, self.config.exemplars).await?;
        Ok(())
    }
}
