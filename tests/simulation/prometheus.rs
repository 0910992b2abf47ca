//! A model of one replica's remote write: shards in order, one batch in flight each, retries for ever on 5xx and
//! silence, a backlog after an outage, and nothing old after a restart.

use std::collections::VecDeque;

use prometheus_postgresql_adapter::storage::row::{Row, sort_and_dedup};
use uuid::Uuid;

use crate::world::Ms;

/// A sample as it was scraped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scraped {
    pub(crate) time_ms: i64,
    /// Gone with the memory of a process that died: of the replica, or of its adapter after it had acknowledged.
    pub(crate) is_destroyed: bool,
}

/// What is sent again and again until it is acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) key: Uuid,
    pub(crate) rows: Vec<Row>,
}

#[derive(Debug, Default)]
pub(crate) struct Shard {
    pub(crate) queue: VecDeque<Row>,
    pub(crate) batch: Option<Batch>,
    pub(crate) attempt: u64,
    pub(crate) backoff_ms: Ms,
    pub(crate) is_scheduled: bool,
}

#[derive(Debug)]
pub(crate) struct Prometheus {
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    /// Alive, but nothing it sends arrives before this.
    pub(crate) silent_until: Ms,
    pub(crate) shards: Vec<Shard>,
    /// By series, in the order of time.
    pub(crate) scraped: Vec<Vec<Scraped>>,
}

/// Between two attempts, at least and at most.
const BACKOFF_MS: (Ms, Ms) = (30, 5_000);

impl Shard {
    /// When to send next, if there is something, and nobody has asked yet: at once with a full batch, else at the deadline.
    pub(crate) fn schedule(&mut self, batch_max: usize, deadline_ms: Ms) -> Option<Ms> {
        if self.is_scheduled || self.batch.is_some() || self.queue.is_empty() {
            return None;
        }
        self.is_scheduled = true;
        Some(if self.queue.len() >= batch_max { 1 } else { deadline_ms })
    }

    /// What is to be sent now, under the number of its attempt; a new batch has this key.
    pub(crate) fn begin(&mut self, key: Uuid, batch_max: usize) -> Option<(u64, Batch)> {
        self.is_scheduled = false;
        if self.batch.is_none() {
            let count = self.queue.len().min(batch_max);
            if count == 0 {
                return None;
            }
            let mut rows: Vec<Row> = self.queue.drain(..count).collect();
            sort_and_dedup(&mut rows);
            self.batch = Some(Batch { key, rows });
        }
        self.attempt += 1;
        Some((self.attempt, self.batch.clone()?))
    }

    /// Whether an answer to this attempt is waited for.
    pub(crate) fn awaits(&self, attempt: u64) -> bool {
        self.attempt == attempt && self.batch.is_some()
    }

    /// The batch is taken.
    pub(crate) fn accepted(&mut self) {
        self.batch = None;
        self.backoff_ms = BACKOFF_MS.0;
    }

    /// The attempt has failed; how long until the next.
    pub(crate) fn back_off(&mut self) -> Ms {
        self.attempt += 1;
        self.is_scheduled = true;
        let after = self.backoff_ms.max(BACKOFF_MS.0);
        self.backoff_ms = (after * 2).min(BACKOFF_MS.1);
        after
    }

    /// What is not acknowledged.
    pub(crate) fn unsent(&self) -> impl Iterator<Item = &Row> {
        self.batch.iter().flat_map(|batch| &batch.rows).chain(&self.queue)
    }
}

impl Prometheus {
    pub(crate) fn new(shards: usize, series: usize) -> Self {
        Self {
            life: 0,
            is_up: true,
            silent_until: 0,
            shards: (0..shards).map(|_| Shard::default()).collect(),
            scraped: vec![Vec::new(); series],
        }
    }

    /// Scrapes a sample, if it runs; the shard that is to send it.
    pub(crate) fn scrape(&mut self, row: Row) -> Option<usize> {
        if !self.is_up {
            return None;
        }
        let series = series_index(&row);
        self.scraped[series].push(Scraped { time_ms: row.time_ms, is_destroyed: false });
        let shard = series % self.shards.len();
        self.shards[shard].queue.push_back(row);
        Some(shard)
    }

    /// The process dies: what it had not got rid of is never sent again.
    pub(crate) fn die(&mut self) {
        self.life += 1;
        self.is_up = false;
        // Attempts count on, so that none of the dead process is taken for one of the next.
        let fresh = self.shards.iter().map(|shard| Shard { attempt: shard.attempt + 1, ..Shard::default() }).collect();
        for shard in std::mem::replace(&mut self.shards, fresh) {
            let rows = shard.batch.into_iter().flat_map(|batch| batch.rows).chain(shard.queue);
            rows.for_each(|row| self.destroy(&row));
        }
    }

    /// Notes that a sample exists nowhere any more, unless it is stored.
    pub(crate) fn destroy(&mut self, row: &Row) {
        let scraped = &mut self.scraped[series_index(row)];
        if let Ok(at) = scraped.binary_search_by_key(&row.time_ms, |sample| sample.time_ms) {
            scraped[at].is_destroyed = true;
        }
    }
}

pub(crate) fn series_index(row: &Row) -> usize {
    usize::try_from(row.series_id).unwrap_or(0)
}
