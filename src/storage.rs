//! The store: schema, series, ingest, sealing, query, upkeep.
//!
//! [`Store`] is the only thing other rooms use. It knows nothing of who leads: a write shows a fence, and the database
//! decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use futures_util::future::try_join3;
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::clock::now_ms;
use crate::model::labels::Labels;
use crate::model::source::{NAME_BYTES_MAX, Source, SourceLabels, Unnamed};
use crate::postgres::error::{Class, Error};
use crate::postgres::timestamp::Timestamp;
use crate::postgres::{Connector, Pooled, within};
use crate::storage::fence::{Fence, Limits, WITHOUT_JIT};
use crate::storage::ingest::{Batch, Ingest, Right, Stored, Writer};
use crate::storage::layout::{Layout, UseTimescaledb};
use crate::storage::names::Names;
use crate::storage::position::Position;
use crate::storage::query::Reading;
use crate::storage::row::{Row, TIME_MIN_MS, from_postgres_us, sort_and_dedup};
use crate::storage::seal::{Outcome, Sealer};
use crate::storage::server::{Epoch, Server, read_state};
use crate::storage::server_clock::ServerClock;
use crate::storage::sources::{SourceId, Sources};
use crate::telemetry::metrics::Metrics;
use crate::wire::write::{Pair, Request, Series, label_pairs};

pub mod chunk;
pub mod fence;
pub mod hot;
pub mod hypertable;
pub mod identities;
pub mod ingest;
pub mod layout;
pub mod names;
pub mod observe;
pub mod position;
pub mod query;
pub mod reconcile;
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

/// What the cache knows of a request's series.
#[derive(Debug, Default)]
pub struct LookedUp {
    /// In which ids were looked up.
    epoch: Epoch,
    hashes: Vec<series::WireHash>,
    known: Vec<Option<series::CachedSeries>>,
    /// What it does not know, by identity.
    wanted: HashMap<Uuid, series::Wanted>,
    /// Where in the request that is, and who sends it.
    places: Vec<(usize, Uuid, SourceId)>,
    rejected: Rejected,
}

/// A request with its series found: ready to be stored.
#[derive(Debug, Default)]
pub struct Resolved {
    /// In which its series have the ids that they were found to have.
    pub epoch: Epoch,
    /// By who sent them; of most requests one.
    pub shares: Vec<Share>,
    /// What can never be stored.
    pub rejected: Rejected,
    /// Samples left out because the request has their series and time twice.
    pub duplicates: usize,
    /// Samples left out because they are older than the retention.
    pub expired: usize,
    /// Series that were not in the cache, and who sends them.
    pub found: Vec<(SourceId, i64)>,
}

/// What one source sent in a request.
#[derive(Debug, Default)]
pub struct Share {
    /// Who.
    pub source: SourceId,
    /// In the order of series and time, none twice.
    pub rows: Vec<Row>,
}

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

/// The part of a request that can never be stored.
#[derive(Debug, Default)]
pub struct Rejected {
    /// How many samples.
    pub samples: usize,
    /// Why, for the first few.
    pub reasons: Vec<String>,
}

/// Reasons an answer names; more are counted.
const REASONS_MAX: usize = 10;

/// Series known per generation of the cache; see [`series::Cache`].
const CACHED_SERIES_MAX: usize = 1_000_000;

/// A sample so far ahead of the server's clock is a mistake: stored, it would make a segment that lasts for ever.
const AHEAD_MAX_MS: i64 = 10 * 60 * 1000;

/// Buckets whose small chunks one round puts together.
const MERGED_BUCKETS_MAX: usize = 1024;

/// If hot rows take so many bytes for each sample of a round, six times what those need, they take room that is not wanted
/// again: after a backlog, or a session that stayed open and so kept what was sealed.
const SHRUNK_SAMPLE_BYTES: u64 = 96;

/// A round of [`Store::upkeep`] or [`Store::seal`] may take this long.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(3600);

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
                    return Err(Error::Unfit(format!(
                        "the tables of {} have version {version}, made by a newer adapter",
                        names.view()
                    )));
                }
                None => {
                    return Err(Error::Unfit(format!(
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

    /// Finds the series of `request` in the cache, and reads the labels of the others.
    ///
    /// # Errors
    ///
    /// When there are more senders than can be told apart.
    pub fn look_up(&self, request: &Request<'_>) -> Result<LookedUp, Error> {
        self.cache.clear_if_old(Instant::now());
        // First: what is found after it is of it, or of a later one.
        let epoch = self.server.epoch();
        let hashes: Vec<_> = request.series.iter().map(|series| self.cache.hash(&series.labels)).collect();
        let known = self.cache.get_all(hashes.iter().copied());
        let mut looked_up = LookedUp { epoch, hashes, known, ..LookedUp::default() };
        for (place, series) in request.series.iter().enumerate() {
            if looked_up.known[place].is_some() {
                continue;
            }
            match self.read_labels(series)? {
                Ok((source, labels)) => {
                    let key = Uuid::from_bytes(labels.identity());
                    looked_up.places.push((place, key, source));
                    looked_up.wanted.entry(key).or_insert(series::Wanted { place, labels });
                }
                Err(why) => looked_up.rejected.add(series.samples.len(), || format!("{why} in {}", show(series))),
            }
        }
        Ok(looked_up)
    }

    /// Finds or makes the series of `request` that were not looked up in the cache, and checks its samples.
    ///
    /// # Errors
    ///
    /// What the server said; nothing is wrong with the request then.
    pub async fn resolve(
        &self,
        request: &Request<'_>,
        looked_up: LookedUp,
        fence: Option<Fence>,
    ) -> Result<Resolved, Error> {
        let LookedUp { epoch, hashes, mut known, wanted, places, rejected } = looked_up;
        let mut resolved = Resolved { epoch, rejected, ..Resolved::default() };
        if !wanted.is_empty() {
            let (found, refused) = self.find_series(wanted, fence, epoch).await?;
            for (place, key, source) in &places {
                known[*place] = found.get(key).map(|id| series::CachedSeries { id: *id, source: *source });
                if let Some(why) = refused.get(key) {
                    resolved.rejected.add(request.series[*place].samples.len(), || why.clone());
                }
            }
            let found = places.iter().filter_map(|(place, ..)| Some((hashes[*place], known[*place]?)));
            resolved.found = found.clone().map(|(_, known)| (known.source, known.id)).collect();
            self.server.during(epoch, |_| self.cache.insert_all(found))?;
            self.metrics.series_cached.set(i64::try_from(self.cache.len()).unwrap_or(i64::MAX));
        }
        let now_ms = self.server_ms();
        let latest_ms = now_ms.saturating_add(AHEAD_MAX_MS);
        let expired_ms = self.config.retention.map(|kept| now_ms.saturating_sub(millis(kept)));
        let mut at = 0;
        for (series, known) in request.series.iter().zip(&known) {
            let Some(series::CachedSeries { id, source }) = *known else { continue };
            if resolved.shares.get(at).is_none_or(|share| share.source != source) {
                at = resolved.share(source, request.samples.len());
            }
            for sample in request.samples_of(series) {
                if sample.timestamp_ms < TIME_MIN_MS || sample.timestamp_ms > latest_ms {
                    resolved.rejected.add(1, || {
                        let ahead_ms = sample.timestamp_ms.saturating_sub(now_ms);
                        let series = show(series);
                        format!(
                            "timestamp {} of {series} is out of bounds: {ahead_ms} ms from now",
                            sample.timestamp_ms
                        )
                    });
                    continue;
                }
                if expired_ms.is_some_and(|expired_ms| sample.timestamp_ms < expired_ms) {
                    resolved.expired += 1;
                    continue;
                }
                if self.config.log_samples {
                    log::info!("sample {} {} @ {}", show(series), sample.value, sample.timestamp_ms);
                }
                let row = Row { series_id: id, time_ms: sample.timestamp_ms, value: sample.value };
                resolved.shares[at].rows.push(row);
            }
        }
        resolved.duplicates = resolved.shares.iter_mut().map(|share| sort_and_dedup(&mut share.rows)).sum();
        Ok(resolved)
    }

    /// Who sends a series, and its labels; or why it can never be stored.
    fn read_labels(&self, series: &Series<'_>) -> Result<Result<(SourceId, Labels), String>, Error> {
        let read = || -> Result<(Option<Source>, Labels), String> {
            let pairs =
                label_pairs(&series.labels).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
            let source = match &self.config.sources {
                None => replica(&pairs, &self.config.replica_labels),
                Some(config) => match config.labels.source(&pairs, self.encoding.as_deref()) {
                    Err(Unnamed::Missing(_)) if config.stores_unlabelled => None,
                    source => Some(source.map_err(|unnamed| unnamed.to_string())?),
                },
            };
            let labels = Labels::new(pairs, &self.config.replica_labels).map_err(|error| error.to_string())?;
            Ok((source, labels))
        };
        let (source, labels) = match read() {
            Ok(read) => read,
            Err(why) => return Ok(Err(why)),
        };
        let number = source.map_or(Some(SourceId::NONE), |source| self.sources.number(source));
        // Without an election by labels a sender that has no number is served all the same.
        let number = number.or(self.config.sources.is_none().then_some(SourceId::NONE));
        let too_many = || Error::Unfit("there are too many clusters and replicas to tell apart".into());
        number.map(|number| Ok((number, labels))).ok_or_else(too_many)
    }

    /// Those who send series.
    #[must_use]
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Ids by key; and, by key too, why the server will have none of a series. A refusal in a set of many is narrowed
    /// down by halves, so that one series never sinks its neighbours.
    async fn find_series(
        &self,
        wanted: HashMap<Uuid, series::Wanted>,
        fence: Option<Fence>,
        epoch: Epoch,
    ) -> Result<(HashMap<Uuid, i64>, HashMap<Uuid, String>), Error> {
        let (mut found, mut refused) = (HashMap::new(), HashMap::new());
        let mut pending = vec![wanted];
        while let Some(part) = pending.pop() {
            if part.is_empty() {
                continue;
            }
            match self.find_part(&part, fence, epoch).await {
                Ok(ids) => {
                    let series = part.iter().filter_map(|(key, wanted)| Some((*ids.get(key)?, *key, &wanted.labels)));
                    self.server.during(epoch, |identities| identities.learn(series))?;
                    found.extend(ids);
                }
                Err(error) if error.class() == Class::Data && part.len() > 1 => {
                    let mut part: Vec<_> = part.into_iter().collect();
                    let rest = part.split_off(part.len() / 2);
                    pending.extend([part.into_iter().collect(), rest.into_iter().collect()]);
                }
                Err(error) if error.class() == Class::Data => {
                    refused.extend(part.into_keys().map(|key| (key, error.to_string())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((found, refused))
    }

    async fn find_part(
        &self,
        wanted: &HashMap<Uuid, series::Wanted>,
        fence: Option<Fence>,
        epoch: Epoch,
    ) -> Result<HashMap<Uuid, i64>, Error> {
        let timeout = self.config.send_timeout;
        self.counted(within(timeout, async {
            let client = Pooled::take(&self.pool).await?;
            let check = self.server.check(&self.names, epoch)?;
            let mut begin = fence::begin(Limits::of(timeout), &check);
            if fence.is_some() {
                begin = format!("{begin}; {}", fence::show(&self.names, fence, None));
            }
            client.batch_execute(&begin).await?;
            let (found, created) = series::resolve(&client, &self.names, wanted).await?;
            client.batch_execute("COMMIT").await?;
            client.give_back();
            self.metrics.series_created_total.inc_by(created);
            Ok(found)
        }))
        .await
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
        let now_ms = row::from_postgres_us(now_us);
        let sealer = Sealer {
            client,
            names: &self.names,
            layout: self.layout,
            interval: self.config.chunk_interval,
            now_ms,
            expired_ms: self.config.retention.map(|kept| now_ms.saturating_sub(millis(kept))),
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

impl LookedUp {
    /// Who sends samples in `request`.
    #[must_use]
    pub fn senders(&self, request: &Request<'_>) -> Vec<SourceId> {
        let known = self.known.iter().enumerate().filter_map(|(place, known)| Some((place, (*known)?.source)));
        let others = self.places.iter().map(|(place, _, source)| (*place, *source));
        let mut senders: Vec<SourceId> = Vec::new();
        for (place, source) in known.chain(others) {
            if senders.last() != Some(&source)
                && !request.samples_of(&request.series[place]).is_empty()
                && !senders.contains(&source)
            {
                senders.push(source);
            }
        }
        senders
    }
}

impl Resolved {
    /// Takes out what `source` sent.
    pub fn take_rows(&mut self, source: SourceId) -> Vec<Row> {
        let share = self.shares.iter_mut().find(|share| share.source == source);
        share.map(|share| std::mem::take(&mut share.rows)).unwrap_or_default()
    }

    /// Where the share of `source` is, made if need be with room for `samples`.
    fn share(&mut self, source: SourceId, samples: usize) -> usize {
        let at = self.shares.iter().position(|share| share.source == source);
        at.unwrap_or_else(|| {
            self.shares.push(Share { source, rows: Vec::with_capacity(samples) });
            self.shares.len() - 1
        })
    }
}

impl Rejected {
    /// Counts `samples` more, for a reason.
    pub fn add(&mut self, samples: usize, why: impl FnOnce() -> String) {
        self.samples += samples;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(why());
        }
    }

    /// Whether everything can be stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// The key of a request: the same for the same bytes. Cryptographic, so that nobody can make a second body that counts
/// as stored. BLAKE3, for it is fast on processors without instructions for SHA-256 too.
#[must_use]
pub fn request_key(body: &[u8]) -> Uuid {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(body).as_bytes()[..16]);
    Uuid::from_bytes(key)
}

/// The key of what one of several senders has in the request `key`.
#[must_use]
pub fn part_key(key: Uuid, Source { cluster, replica }: &Source) -> Uuid {
    let mut part = key.as_bytes().to_vec();
    for label in [cluster, replica] {
        part.extend_from_slice(&label.len().to_be_bytes());
        part.extend_from_slice(label.as_bytes());
    }
    request_key(&part)
}

/// Which replica sends a series, where labels do not say who leads; `None` if it does not say, in words of a usual length.
fn replica(pairs: &[Pair<'_>], labels: &[String]) -> Option<Source> {
    let value = |label: &String| pairs.iter().find(|(name, _)| *name == label.as_bytes()).map(|(_, value)| *value);
    let replica = std::str::from_utf8(labels.iter().find_map(value)?).ok()?;
    let is_usual = (1..=NAME_BYTES_MAX).contains(&replica.len());
    is_usual.then(|| Source { cluster: String::new(), replica: replica.to_owned() })
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A series for a message: what can be read of its labels, cut short.
fn show(series: &Series<'_>) -> String {
    let mut text = String::from("{");
    for (name, value) in label_pairs(&series.labels).map_while(Result::ok) {
        let separator = if text.len() > 1 { ", " } else { "" };
        text.push_str(&format!("{separator}{}={:?}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        if text.len() > 200 {
            let cut = (0..=200).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
            text.push('…');
            break;
        }
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_request_is_the_same_in_every_adapter() {
        assert_eq!(request_key(b"").to_string(), "af1349b9-f5f9-a1a6-a040-4dea36dcc949");
        let part = part_key(request_key(b""), &Source { cluster: "c".into(), replica: "r".into() });
        assert_ne!(part, part_key(request_key(b""), &Source { cluster: "cr".into(), replica: String::new() }));
    }
}
