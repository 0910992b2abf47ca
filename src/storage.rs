//! The store: schema, series, ingest, sealing, query, upkeep.
//!
//! [`Store`] is the only thing other modules use. It knows nothing of who leads: a write shows a fence, and the database
//! decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::clock::now_ms;
use crate::model::source::SourceLabels;
use crate::postgres::error::{Class, Error};
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Connector, Pooled};
use crate::storage::ingest::{Batch, Ingest, Right, Stored, Writer};
use crate::storage::layout::{Layout, UseTimescaledb};
use crate::storage::names::Names;
use crate::storage::query::Reading;
use crate::storage::row::{Row, from_postgres_us};
use crate::storage::server::{Server, read_state};
use crate::storage::server_clock::ServerClock;
use crate::storage::sources::Sources;
use crate::telemetry::metrics::Metrics;

pub use self::jobs::{Hot, ObservedPosition};
pub use self::resolve::{LookedUp, Rejected, Resolved, Share};

pub mod chunk;
mod epoch;
pub mod fence;
pub mod hot;
pub mod hypertable;
pub mod identities;
pub mod ingest;
mod jobs;
pub mod layout;
pub mod names;
pub mod observe;
pub mod position;
pub mod query;
pub mod reconcile;
pub mod request_key;
mod resolve;
pub mod row;
pub mod schema;
pub mod seal;
pub mod segments;
pub mod senders;
pub mod series;
pub mod server;
pub mod server_clock;
pub mod sources;
pub mod upkeep;

/// What is stored, where, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-pg-schema`: the schema that holds everything; `None` is the first of the session's `search_path`.
    pub schema: Option<String>,
    /// `-pg-table`: the name of the view, and the first part of the name of everything else.
    pub table: String,
    /// `-pg-use-timescaledb`: where sealed samples go.
    pub use_timescaledb: UseTimescaledb,
    /// `-pg-prometheus-chunk-interval`: the span of time of one segment of sealed samples.
    pub chunk_interval: Duration,
    /// `-pg-seal-samples`: hot samples are sealed when they are so many.
    pub seal_samples: u64,
    /// `-pg-seal-after`: and after so long, if they are fewer.
    pub seal_after: Duration,
    /// `-pg-retention`: samples older than this are dropped, segment by segment; `None` keeps them.
    pub retention: Option<Duration>,
    /// `-pg-write-connections`: writers, each committing many requests in one transaction; 1 to 64.
    pub write_connections: usize,
    /// `-pg-prometheus-log-samples`: log each sample at info before it is stored.
    pub log_samples: bool,
    /// `-pg-read-only`: nothing is stored and no schema is made; reads only.
    pub read_only: bool,
    /// `-replica-labels`: names of labels that tell the replicas of a group apart, dropped before storing.
    pub replica_labels: Vec<String>,
    /// Whether series say who sends them, by which labels, and what becomes of those that do not.
    pub sources: Option<SourcesConfig>,
    /// `-adapter-send-timeout`, as the bound of one transaction.
    pub send_timeout: Duration,
}

/// How it is told who sends a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcesConfig {
    /// The labels that say so.
    pub labels: SourceLabels,
    /// Series without them are stored as they are, instead of refused.
    pub stores_unlabelled: bool,
}

/// One store in one database.
pub struct Store {
    config: Config,
    names: Arc<Names>,
    layout: Layout,
    connector: Connector,
    pool: Pool,
    /// The database's, where the names of those who send have to be ASCII for it.
    encoding: Option<String>,
    cache: series::Cache,
    sources: Sources,
    server: Arc<Server>,
    server_clock: ServerClock,
    ingest: Ingest,
    metrics: Arc<Metrics>,
    tracker: TaskTracker,
    /// Held during a round of sealing: the next one waits for it.
    sealing: Mutex<()>,
}

/// Series known per generation of the cache; see [`series::Cache`].
const CACHED_SERIES_MAX: usize = 1_000_000;

impl Store {
    /// Finds the store, or makes it, unless it is only read. Returns it with the writers, which are to be run.
    ///
    /// # Errors
    ///
    /// When the server cannot be reached, or the store is of a newer version, or (read-only) not there yet.
    pub async fn open(
        config: Config,
        connector: Connector,
        metrics: Arc<Metrics>,
        tracker: TaskTracker,
    ) -> Result<(Self, Vec<Writer>), Error> {
        let writers = if config.read_only { 0 } else { config.write_connections };
        let pool = connector.pool(writers, config.read_only);
        let client = Pooled::take(&pool).await?;
        let names = schema::locate(&client, config.schema.as_deref(), &config.table).await?;
        let layout = if config.read_only {
            match schema::version(&client, &names).await? {
                Some(version) if version <= schema::VERSION => {}
                Some(version) => {
                    return Err(Error::Misconfigured(format!(
                        "the tables of {} have version {version}, made by a newer adapter",
                        names.view()
                    )));
                }
                None => {
                    return Err(Error::Misconfigured(format!(
                        "there is no store at {} yet: start an adapter that writes",
                        names.view()
                    )));
                }
            }
            Layout::of(&client, &names).await?
        } else {
            let by_labels = config.sources.is_some();
            let layout = schema::migrate(&client, &names, config.use_timescaledb, by_labels, schema::VERSION).await?;
            if layout == Layout::Hypertable {
                hypertable::adjust(&client, &names, config.chunk_interval, config.seal_after).await?;
            }
            if let Some(disagreement) = layout.disagreement(config.use_timescaledb, &names) {
                log::warn!("{disagreement}");
            }
            layout
        };
        let row = client.query_typed_one("SELECT clock_timestamp()", &[]).await?;
        let Timestamp(server_us) = row.try_get(0)?;
        let server_clock = ServerClock::new(from_postgres_us(server_us), Instant::now());
        let encoding =
            client.query_typed_one("SELECT getdatabaseencoding()::text", &[]).await?.try_get::<_, String>(0)?;
        // The latter takes any bytes.
        let encoding = Some(encoding).filter(|encoding| !["UTF8", "SQL_ASCII"].contains(&encoding.as_str()));
        let state = match read_state(&client, &names).await {
            // Of an earlier version, perhaps; and nothing is written by what is known of it.
            Err(_) if config.read_only => String::new(),
            state => state?,
        };
        client.give_back();
        let names = Arc::new(names);
        let server = Arc::new(Server::new(state));
        let (ingest, writers) = Ingest::new(&connector, &names, &server, &metrics, writers, config.send_timeout);
        let cache = series::Cache::new(CACHED_SERIES_MAX);
        let sources = Sources::default();
        Ok((
            Self {
                config,
                names,
                layout,
                connector,
                pool,
                encoding,
                cache,
                sources,
                server,
                server_clock,
                ingest,
                metrics,
                tracker,
                sealing: Mutex::default(),
            },
            writers,
        ))
    }

    /// Its connections, for what else there is to say to its database.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The names of everything in it.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Those who send series.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Stores rows under the key of their request, and returns after COMMIT.
    ///
    /// # Errors
    ///
    /// What the server said. Whether it was stored may be unknown then: try again with the same key.
    pub async fn commit(&self, key: Uuid, rows: impl Into<Arc<Vec<Row>>>, right: Right) -> Result<Stored, Arc<Error>> {
        self.ingest.store(Batch { key, rows: rows.into(), right }).await
    }

    /// Begins a read of one consistent state.
    ///
    /// # Errors
    ///
    /// What the server said, or that there is no connection.
    pub async fn read(&self) -> Result<Reading, Error> {
        self.counted(Reading::begin(&self.pool, &self.names, self.layout, &self.connector, &self.tracker)).await
    }

    /// What the server's clock shows, ms since 1970, going by the last observation.
    #[must_use]
    pub fn server_ms(&self) -> i64 {
        self.server_clock.at(Instant::now())
    }

    /// How far this host's clock is ahead of the server's, ms, going by the last observation.
    #[must_use]
    pub fn clock_offset_ms(&self) -> i64 {
        now_ms().saturating_sub(self.server_ms())
    }

    /// Samples committed since the start.
    #[must_use]
    pub fn samples_stored(&self) -> u64 {
        self.metrics.samples_stored_total.get()
    }

    /// Closes connections that have idled, down to `keep`.
    pub fn trim_pool(&self, keep: usize) {
        let mut kept = 0;
        self.pool.retain(|_, metrics| {
            kept += 1;
            kept <= keep || metrics.last_used() < Duration::from_secs(30)
        });
    }

    /// Closes every pooled connection that is not in use: the server they lead to no longer takes writes.
    pub fn drop_connections(&self) {
        self.pool.retain(|_, _| false);
    }

    async fn counted<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let result = work.await;
        if let Err(error) = &result {
            self.metrics.postgres_error(error.sqlstate());
            match error.class() {
                Class::ReadOnly => self.drop_connections(),
                Class::Moved => self.server.doubt(),
                _ => {}
            }
        }
        result
    }
}
