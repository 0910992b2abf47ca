//! The store: schema, series, ingest, sealing, query, upkeep.
//!
//! Other modules do everything through [`Store`]. The store does not know who leads: a write shows a fence, and the database
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
use crate::storage::metadata::StoredMetadata;
use crate::storage::names::Names;
use crate::storage::own_transactions::OwnTransactions;
use crate::storage::query::Reading;
use crate::storage::row::{Row, from_postgres_us};
use crate::storage::server::{Server, read_state};
use crate::storage::server_clock::ServerClock;
use crate::storage::sources::Sources;
use crate::telemetry::metrics::Metrics;

pub use self::jobs::{Hot, SealedRows};
pub use self::rejected::{Counts, Rejected};
pub use self::resolve::{LookedUp, Resolved, Share};

pub mod around;
pub mod by_series;
pub mod chunk;
pub mod exemplars;
pub mod fence;
pub mod hot;
pub mod hypertable;
pub mod identities;
pub mod ingest;
mod jobs;
pub mod layout;
mod metadata;
pub mod names;
pub mod observe;
pub mod own_transactions;
pub mod position;
pub mod query;
pub mod reconcile;
mod rejected;
pub mod request_key;
mod resolve;
pub mod row;
pub mod schema;
pub mod seal;
pub mod segments;
pub mod senders;
pub mod series;
pub mod server;
mod server_change;
pub mod server_clock;
pub mod sources;
mod text;
pub mod upkeep;

/// Configuration of the store: what is stored, where, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `-pg-schema`: the schema that holds everything; `None` means the first schema of the session's `search_path`.
    pub schema: Option<String>,
    /// `-pg-table`: name of the view, and prefix of all other names.
    pub table: String,
    /// `-pg-use-timescaledb`: layout of sealed samples.
    pub use_timescaledb: UseTimescaledb,
    /// `-pg-prometheus-chunk-interval`: time span of one segment of sealed samples.
    pub chunk_interval: Duration,
    /// `-pg-seal-samples`: number of hot samples from which they are sealed.
    pub seal_samples: u64,
    /// `-pg-seal-after`: time after which fewer hot samples are sealed too.
    pub seal_after: Duration,
    /// `-pg-retention`: samples older than this are dropped, segment by segment; `None` keeps them.
    pub retention: Option<Duration>,
    /// `-pg-write-connections`: number of writers, 1 to 64; each commits many requests in one transaction.
    pub write_connections: usize,
    /// Limits of the exemplars that are kept.
    pub exemplars: exemplars::Config,
    /// `-pg-prometheus-log-samples`: log each sample at level info before it is stored.
    pub log_samples: bool,
    /// `-pg-read-only`: only reads; nothing is stored and no schema is created.
    pub read_only: bool,
    /// `-replica-labels`: names of labels that distinguish the replicas of a group; dropped before storing.
    pub replica_labels: Vec<String>,
    /// Rule by which labels name the sender of a series; `None` if labels do not name it.
    pub sources: Option<SourcesConfig>,
    /// `-adapter-send-timeout`: bound of one transaction.
    pub send_timeout: Duration,
}

/// Rule by which labels name the sender of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcesConfig {
    /// Labels that name the sender.
    pub labels: SourceLabels,
    /// `true` to store series without these labels as they are, `false` to refuse them.
    pub stores_unlabelled: bool,
}

/// One store in one database.
pub struct Store {
    config: Config,
    names: Arc<Names>,
    layout: Layout,
    connector: Connector,
    pool: Pool,
    /// Encoding of the database, if names of senders must be ASCII because of it.
    encoding: Option<String>,
    cache: series::Cache,
    sources: Sources,
    server: Arc<Server>,
    server_clock: ServerClock,
    /// This run of the adapter, among the adapters that use the store.
    adapter: Uuid,
    ingest: Ingest,
    own_transactions: Arc<OwnTransactions>,
    metadata: StoredMetadata,
    metrics: Arc<Metrics>,
    tracker: TaskTracker,
    /// Locked during a round of sealing, so that the next round waits.
    sealing: Mutex<()>,
}

/// Maximum number of series per generation of the cache; see [`series::Cache`].
const CACHED_SERIES_MAX: usize = 1_000_000;

impl Store {
    /// Finds the store, or creates it unless it is read-only. Returns it with the writers, which the caller has to run.
    ///
    /// # Errors
    ///
    /// If the server cannot be reached, the store is of a newer version, or (read-only) the store does not exist yet.
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
        // SQL_ASCII takes any bytes.
        let encoding = Some(encoding).filter(|encoding| !["UTF8", "SQL_ASCII"].contains(&encoding.as_str()));
        let state = match read_state(&client, &names).await {
            // The store may be of an earlier version. A read-only adapter writes nothing, so it does not need the
            // state.
            Err(_) if config.read_only => String::new(),
            state => state?,
        };
        client.give_back();
        let names = Arc::new(names);
        let server = Arc::new(Server::new(state));
        let own_transactions = Arc::<OwnTransactions>::default();
        let (timeout, own) = (config.send_timeout, &own_transactions);
        let (ingest, writers) = Ingest::new(&connector, &names, &server, &metrics, writers, own, timeout);
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
                adapter: Uuid::new_v4(),
                ingest,
                own_transactions,
                metadata: StoredMetadata::default(),
                metrics,
                tracker,
                sealing: Mutex::default(),
            },
            writers,
        ))
    }

    /// Returns the connection pool, for other statements on this database.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the identity of this run of the adapter among the adapters that use the store.
    #[must_use]
    pub fn adapter(&self) -> Uuid {
        self.adapter
    }

    /// Returns the names of the store's relations and functions.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Returns the sources that have sent series.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Stores rows under the key of their request, and returns after COMMIT.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection. It may be unknown then whether the rows are stored: retry with the
    /// same key.
    pub async fn commit(&self, key: Uuid, rows: impl Into<Arc<Vec<Row>>>, right: Right) -> Result<Stored, Arc<Error>> {
        self.ingest.store(Batch { key, rows: rows.into(), right }).await
    }

    /// Begins a read. With chunks it sees one consistent state. With a hypertable each statement takes its own
    /// snapshot.
    ///
    /// # Errors
    ///
    /// Errors of the server or of the connection, or that no connection is available.
    pub async fn read(&self) -> Result<Reading, Error> {
        self.counted(Reading::begin(&self.pool, &self.names, self.layout, &self.connector, &self.tracker)).await
    }

    /// Returns the time of the server's clock, ms since 1970, extrapolated from the last observation.
    #[must_use]
    pub fn server_ms(&self) -> i64 {
        self.server_clock.at(Instant::now())
    }

    /// Returns the time in ms by which this host's clock is ahead of the server's, according to the last observation.
    #[must_use]
    pub fn clock_offset_ms(&self) -> i64 {
        now_ms().saturating_sub(self.server_ms())
    }

    /// Returns the number of samples committed since the start.
    #[must_use]
    pub fn samples_stored(&self) -> u64 {
        self.metrics.samples_stored_total.get()
    }

    /// Closes idle connections, down to `keep`.
    pub fn trim_pool(&self, keep: usize) {
        let mut kept = 0;
        self.pool.retain(|_, metrics| {
            kept += 1;
            kept <= keep || metrics.last_used() < Duration::from_secs(30)
        });
    }

    /// Closes every pooled connection that is not in use: their server no longer takes writes.
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
