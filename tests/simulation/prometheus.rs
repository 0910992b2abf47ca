//! A model of one replica's remote write: shards in order, one batch in flight each, retries for ever on 5xx and
//! silence, a backlog after an outage, and nothing old after a restart.

use std::collections::VecDeque;

use prometheus_postgresql_adapter::storage::row::Row;
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

impl Shard {
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
