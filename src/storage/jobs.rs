//! Rounds of sealing and upkeep, by sessions of their own, and what they measure.

use std::time::{Duration, Instant};

use futures_util::future::try_join3;
use tokio_postgres::Client;

use crate::model::time::as_ms;
use crate::postgres::error::{Class, Error};
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Pooled, within};
use crate::storage::fence::WITHOUT_JIT;
use crate::storage::layout::Layout;
use crate::storage::position::{self, Position};
use crate::storage::row::from_postgres_us;
use crate::storage::seal::Sealer;
use crate::storage::seal::outcome::Outcome;
use crate::storage::server::Epoch;
use crate::storage::{Store, hypertable, upkeep};

/// What is hot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hot {
    /// Samples.
    pub samples: u64,
    /// How long ago the earliest of their times was.
    pub age: Duration,
    /// What this look saw; for [`Store::seal`], once whoever observes has had the time to see it too.
    pub seen: ObservedPosition,
}

/// What a look saw. On another server the same position is of other transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPosition {
    /// Which transactions.
    pub position: Position,
    /// On which server.
    pub epoch: Epoch,
}

/// Buckets whose small chunks one round puts together.
const MERGED_BUCKETS_MAX: usize = 1024;

/// If hot rows take so many bytes for each sample of a round, six times what those need, they take room that is not wanted
/// again: after a backlog, or a session that stayed open and so kept what was sealed.
const SHRUNK_SAMPLE_BYTES: u64 = 96;

/// A round of [`Store::upkeep`] or [`Store::seal`] may take this long.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(3600);

impl Store {
    /// Counts what is hot; its meters are set by it.
    ///
    /// # Errors
    ///
    /// What the server said.
    pub async fn hot(&self) -> Result<Hot, Error> {
        let epoch = self.epoch();
        let check = self.server.check(&self.names, epoch)?;
        let statement = self.names.sql(&format!(
            "SELECT coalesce(sum(cardinality(series)), 0)::bigint, pg_relation_size({{hot:literal}}::regclass), \
             coalesce(extract(epoch FROM now() - min(\"time\")), 0)::float8, pg_current_snapshot()::text, {check} FROM {{hot}}",
        ));
        let timeout = self.config.send_timeout;
        self.counted(within(timeout, async {
            let client = Pooled::take(&self.pool).await?;
            // By the server too: one that went on would itself keep what is sealed.
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
            // A sample may be of an hour to come.
            let age = Duration::try_from_secs_f64(oldest).unwrap_or_default();
            let seen = ObservedPosition { position: position::read(row.try_get(3)?)?, epoch };
            Ok(Hot { samples: samples.unsigned_abs(), age, seen })
        }))
        .await
    }

    /// Sets the meters of what the tables hold to nothing: they are the leader's.
    pub fn forget_sizes(&self) {
        self.metrics.segments.set(0);
        self.metrics.sealed_samples.set(0);
        self.metrics.sealed_bytes.set(0);
        self.metrics.hot_samples.set(0);
        self.metrics.hot_bytes.set(0);
        self.metrics.hot_oldest_seconds.set(0.0);
    }

    /// Whether so many samples are to be sealed, `since` the last time.
    #[must_use]
    pub fn is_seal_due(&self, samples: u64, since: Duration) -> bool {
        samples >= self.config.seal_samples || (samples > 0 && since >= self.config.seal_after)
    }

    /// Seals what is hot when it begins, of that only what `up_to` sees, and puts small chunks together; by sessions of its own.
    /// Who observes has had the time since `up_to` to see what is sealed; without it everything is. `shrink` gives the room that
    /// hot rows took back to the system too. `None`: another adapter is at it.
    ///
    /// # Errors
    ///
    /// What the server said, or that it is another one than `up_to` is of; what is sealed already stays so, and the next round goes on
    /// from there.
    pub async fn seal(&self, up_to: Option<&ObservedPosition>, shrink: bool) -> Result<Option<Outcome>, Error> {
        let _round = self.sealing.lock().await;
        let started = Instant::now();
        let sealed = self
            .counted(within(UPKEEP_TIMEOUT, async {
                let session = self.connector.write_session().await?;
                let sealed = self.seal_by(session.client(), up_to, shrink).await;
                session.close().await;
                sealed
            }))
            .await;
        match &sealed {
            Ok(Some(_)) => self.metrics.seal_duration_seconds.observe(started.elapsed().as_secs_f64()),
            Ok(None) => {}
            Err(error) if error.class() == Class::Moved => {}
            Err(_) => self.metrics.seal_failures_total.inc(),
        }
        sealed
    }

    async fn seal_by(
        &self,
        client: &Client,
        up_to: Option<&ObservedPosition>,
        shrink: bool,
    ) -> Result<Option<Outcome>, Error> {
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
            up_to: up_to.map(|seen| &seen.position),
            check: up_to.map_or(Ok("true".to_owned()), |seen| self.server.check(&self.names, seen.epoch))?,
        };
        let mut total = Outcome::default();
        for part in sealer.parts().await? {
            let Some(outcome) = sealer.seal(part).await? else { return Ok(None) };
            self.metrics.sealed_samples_total.inc_by(outcome.samples as u64);
            self.metrics.samples_duplicate_total.with_label_values(&["sealed"]).inc_by(outcome.dropped as u64);
            total += outcome;
        }
        // Outside a transaction, so by itself. Without it the next rows would go behind those that are gone.
        let size = self.names.sql("SELECT pg_relation_size({hot:literal}::regclass)");
        let bytes: i64 = client.query_typed_one(&size, &[]).await?.try_get(0)?;
        let samples = self.config.seal_samples.max(total.samples as u64);
        let shrink = shrink || bytes.unsigned_abs() > samples.saturating_mul(SHRUNK_SAMPLE_BYTES);
        // If pages go, none may be skipped: the rows once counted in those would be ascribed to the few that are left, and
        // the planner would expect hundreds of times as many as there are.
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

    /// One round of retention, by a session of its own, unless another adapter is at it; the keys of old requests too, if
    /// this adapter has `led` so long that it has seen every retry which an outage held up.
    ///
    /// # Errors
    ///
    /// What the server said; the next round goes on from there.
    pub async fn upkeep(&self, led: Duration) -> Result<(), Error> {
        let work = within(UPKEEP_TIMEOUT, async {
            // Some of it cannot be in a transaction, so the lock is another session's.
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
        // What may fail for a reader's lock, or take long, comes last.
        let kept = upkeep::REQUESTS_KEPT + self.config.send_timeout;
        if led >= kept {
            upkeep::forget_requests(client, &self.names, kept).await?;
        }
        if self.config.sources.is_some() {
            upkeep::forget_clusters(client, &self.names).await?;
        }
        let sizes = upkeep::sizes(client, &self.names).await?;
        self.metrics.segments.set(sizes.segments);
        self.metrics.sealed_samples.set(sizes.samples);
        self.metrics.sealed_bytes.set(sizes.bytes);
        if let Some(retention) = self.config.retention {
            let dropped = match self.layout {
                Layout::Chunks => upkeep::drop_expired(client, &self.names, retention).await?,
                Layout::Hypertable => hypertable::drop_expired(client, &self.names, retention).await?,
            };
            if !dropped.is_empty() {
                log::info!("retention: dropped {}", dropped.join(", "));
                upkeep::mark_ended(client, &self.names).await?;
            }
        }
        let deleted = upkeep::delete_ended(client, &self.names).await?;
        if deleted > 0 {
            log::info!("deleted {deleted} series that nothing stored refers to");
            if upkeep::rebuild_labels_index(client, &self.names).await? {
                log::info!("built the index of labels anew");
            }
        }
        Ok(())
    }
}
