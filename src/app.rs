//! Builds every part, owns every task, and stops them in order.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::election::by_labels::clusters::Clusters;
use crate::election::by_labels::coordinator::Coordinator;
use crate::election::commands::{self, CommandQueue};
use crate::election::driver::Election;
use crate::election::liveness_monitor::LivenessMonitor;
use crate::election::role::{LockHolder, Role};
use crate::election::{self, PrometheusTimeout, WritePath};
use crate::handover::group::NO_GROUP;
use crate::handover::senders::Senders;
use crate::http::{self, Service};
use crate::postgres::{Connector, tls};
use crate::receiver::{Leaders, Receiver};
use crate::storage::{SealedRows, Store};
use crate::telemetry::metrics::Metrics;

/// The reason why the program cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is in use, or is not an address of this host.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The trusted certificates cannot be read.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// `-pg-db-connect-retries` attempts have failed.
    #[error("gave up after {attempts} attempts to open the store: {source}")]
    Store {
        /// The number of attempts.
        attempts: u32,
        /// The last failure.
        source: crate::postgres::error::Error,
    },
    /// A task that must never end has ended.
    #[error("{0} has ended unexpectedly; stopping rather than running on without it")]
    Headless(&'static str),
}

/// Time limit, when the program stops, for requests in flight and for each of the tasks to end.
const GRACE: Duration = Duration::from_secs(30);

/// Time limit, when the program stops, for the election by labels to go on until nothing acknowledged is buffered.
const STORED_WITHIN: Duration = Duration::from_secs(25);

/// Pause between attempts to open the store.
const RETRY: Duration = Duration::from_secs(1);

/// Pause between rounds of upkeep.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Pause between checks of the number of hot samples.
const SEAL_INTERVAL: Duration = Duration::from_secs(1);

/// Longest pause between these checks, used if a check takes long.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(5);

/// Pause after a round of sealing that failed.
const SEAL_RETRY: Duration = Duration::from_secs(10);

/// Runs the adapter until `stop` resolves, then stops it. It takes no new requests, requests in flight end, and writers
/// end. The lock is released last, so that the next leader finds everything committed.
///
/// # Errors
///
/// The adapter cannot start, or a part that must go on has ended.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let listen_failed = |source| Error::Listen { address: config.http.listen_address, source };
    let listener = TcpListener::bind(config.http.listen_address).await.map_err(listen_failed)?;
    run_on(listener, config, stop).await
}

/// Like [`run`], on a listener that exists already.
///
/// # Errors
///
/// Like [`run`].
pub async fn run_on(listener: TcpListener, config: Config, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::new());
    let connections = TaskTracker::new();
    let connector = Connector::new(config.postgres.clone(), connections.clone())?;
    let timeout = config.election.as_ref().map_or(PrometheusTimeout::Never, |election| election.prometheus_timeout);
    let heard = Arc::new(LivenessMonitor::new(timeout));
    let (role_sender, role) = watch::channel(Role::Unknown);
    let (lock_holder_sender, lock_holder) = watch::channel(None);
    let (orders, commands) = config.election.as_ref().map(commands::open).unzip();
    let stopping = CancellationToken::new();
    let requests = TaskTracker::new();
    let service = Arc::new(Service {
        config: config.http.clone(),
        replica_labels: config.storage.replica_labels.clone(),
        metrics: Arc::clone(&metrics),
        heard: Arc::clone(&heard),
        unsupported: parking_lot::Mutex::default(),
        clusters: config.by_labels.clone().map(|config| Arc::new(Clusters::new(config))),
        role: role.clone(),
        lock_holder,
        name: holder(&config),
        group: config.election.as_ref().map(election::Config::group),
        orders,
        receiver: OnceLock::new(),
        store: OnceLock::new(),
        read_only: config.storage.read_only,
        stopping: stopping.clone(),
        tracker: requests.clone(),
        bodies: Arc::default(),
        reads: Arc::new(Semaphore::new(http::READS_MAX)),
    });
    if let Ok(address) = listener.local_addr() {
        log::info!(address:% = address; "listening");
    }
    let server_stop = CancellationToken::new();
    let server = requests.spawn(http::serve(listener, Arc::clone(&service), server_stop.clone(), GRACE));
    tokio::pin!(stop);
    let opened = tokio::select! {
        opened = open_store(&config, &connector, &metrics, &requests) => Some(opened?),
        () = &mut stop => None,
    };
    let Some((store, writers)) = opened else {
        stopping.cancel();
        server_stop.cancel();
        let _ = server.await;
        return Ok(());
    };
    let writers_stop = CancellationToken::new();
    let mut writing: JoinSet<()> = writers.into_iter().map(|writer| writer.run(writers_stop.clone())).collect();
    let _ = service.store.set(Arc::clone(&store));
    let election_stop = CancellationToken::new();
    let parts = Parts {
        config: &config,
        connector: &connector,
        store: &store,
        metrics: &metrics,
        heard: &heard,
        connections: &connections,
    };
    let elected = match &service.clusters {
        Some(clusters) => parts.by_labels(clusters, role_sender, election_stop.clone()),
        None => parts.sidecar(role_sender, lock_holder_sender, commands, election_stop.clone()),
    };
    if !config.storage.read_only {
        let receiver = Receiver::new(&store, &elected.senders, elected.leaders, &metrics);
        let _ = service.receiver.set(Arc::new(receiver));
    }
    let senders = elected.senders;
    let observing_stop = CancellationToken::new();
    let observing = (!config.storage.read_only).then(|| {
        let stop = observing_stop.clone();
        connections.spawn(async move { senders.run(stop).await })
    });
    let mut electing = connections.spawn(elected.electing);
    let sealing = requests.spawn(keep_sealed(Arc::clone(&store), role.clone(), stopping.clone()));
    let upkeep = requests.spawn(keep_up(Arc::clone(&store), config.clone(), role, stopping.clone()));

    tokio::pin!(server);
    let ended = tokio::select! {
        () = &mut stop => Ok(()),
        _ = &mut electing => Err(Error::Headless("the election")),
        _ = &mut server => Err(Error::Headless("the HTTP server")),
        Some(_) = writing.join_next() => Err(Error::Headless("a writer")),
    };
    log::info!("stopping: finishing what is in flight");
    stopping.cancel();
    upkeep.abort();
    sealing.abort();
    server_stop.cancel();
    requests.close();
    if tokio::time::timeout(GRACE + Duration::from_secs(1), requests.wait()).await.is_err() {
        log::warn!(requests = requests.len(); "requests did not end in time");
    }
    // No more requests arrive. The samples that only this adapter has acknowledged are stored now.
    observing_stop.cancel();
    if service.clusters.is_some() {
        // Buffered samples may still be missing in the store, and must then be stored before the election ends.
        election_stop.cancel();
        await_end(&mut electing, "the rounds of the election").await;
    }
    if let Some(mut observing) = observing {
        await_end(&mut observing, "storing what is buffered").await;
        observing.abort();
    }
    let lost = metrics.standby_held_samples.get();
    if lost > 0 {
        log::error!(samples = lost; "acknowledged samples are buffered and could not be stored before the end");
    }
    writers_stop.cancel();
    if tokio::time::timeout(GRACE, async { while writing.join_next().await.is_some() {} }).await.is_err() {
        log::warn!(writers = writing.len(); "writers did not end in time");
    }
    // Released last, so that the next leader finds everything committed.
    election_stop.cancel();
    await_end(&mut electing, "the lock session").await;
    log::info!("stopped");
    ended
}

/// Waits at most `GRACE` for a task whose stop was requested.
async fn await_end(task: &mut JoinHandle<()>, part: &str) {
    if !task.is_finished() && tokio::time::timeout(GRACE, task).await.is_err() {
        log::warn!(part = part; "a part did not end in time");
    }
}

/// Opens the store. Retries without limit, or as often as the operator allows.
async fn open_store(
    config: &Config,
    connector: &Connector,
    metrics: &Arc<Metrics>,
    requests: &TaskTracker,
) -> Result<(Arc<Store>, Vec<crate::storage::ingest::Writer>), Error> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let opened =
            Store::open(config.storage.clone(), connector.clone(), Arc::clone(metrics), requests.clone()).await;
        match opened {
            Ok((store, writers)) => return Ok((Arc::new(store), writers)),
            Err(source) if config.postgres.connect_retries > 0 && attempts > config.postgres.connect_retries => {
                return Err(Error::Store { attempts, source });
            }
            Err(error) => {
                if attempts == 1 || attempts % 30 == 0 {
                    log::error!(err:% = error; "the store cannot be opened, trying on");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

struct Parts<'a> {
    config: &'a Config,
    connector: &'a Connector,
    store: &'a Arc<Store>,
    metrics: &'a Arc<Metrics>,
    heard: &'a Arc<LivenessMonitor>,
    connections: &'a TaskTracker,
}

/// The parts of an election that the write path uses, and the future that runs the election.
struct Elected {
    senders: Arc<Senders>,
    leaders: Leaders,
    electing: BoxFuture<'static, ()>,
}

impl Parts<'_> {
    /// Builds an election in which a replica leads in each cluster, until `stop`.
    fn by_labels(&self, clusters: &Arc<Clusters>, role: watch::Sender<Role>, stop: CancellationToken) -> Elected {
        let senders = Senders::by_labels(self.config.handover, Arc::clone(self.store), Arc::clone(self.metrics));
        let rounds = Coordinator {
            clusters: Arc::clone(clusters),
            pool: self.store.pool().clone(),
            names: self.store.names().clone(),
            adapter: self.store.adapter(),
            succession: Arc::clone(&senders),
            tracker: self.connections.clone(),
            role,
            metrics: Arc::clone(self.metrics),
        };
        let leaders = Leaders::ByLabels(Arc::clone(clusters));
        Elected { senders, leaders, electing: Box::pin(rounds.run(stop, STORED_WITHIN)) }
    }

    /// Builds an election in which this adapter or another one leads, until `stop`.
    fn sidecar(
        &self,
        role: watch::Sender<Role>,
        lock_holder: watch::Sender<Option<LockHolder>>,
        commands: Option<CommandQueue>,
        stop: CancellationToken,
    ) -> Elected {
        let group = self.config.election.as_ref().map_or(NO_GROUP.to_owned(), election::Config::group);
        let (store, metrics) = (Arc::clone(self.store), Arc::clone(self.metrics));
        let senders = Senders::own(self.config.handover, group, holder(self.config), store, metrics);
        let fenced = Arc::new(Notify::new());
        let write_path = Arc::new(WritePath::default());
        let leaders =
            Leaders::Own { role: role.subscribe(), write_path: Arc::clone(&write_path), fenced: Arc::clone(&fenced) };
        let electing = self.elect(Arc::clone(&senders), write_path, fenced, (role, lock_holder), commands, stop);
        Elected { senders, leaders, electing: Box::pin(electing) }
    }

    /// Returns the future that decides the role, until `stop`.
    fn elect(
        &self,
        senders: Arc<Senders>,
        write_path: Arc<WritePath>,
        fenced: Arc<Notify>,
        (role, lock_holder): (watch::Sender<Role>, watch::Sender<Option<LockHolder>>),
        commands: Option<CommandQueue>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let election = self.config.election.clone().map(|config| Election {
            config,
            connector: self.connector.clone(),
            names: self.store.names().clone(),
            holder: holder(self.config),
            heard: Arc::clone(self.heard),
            write_path,
            succession: senders,
            tracker: self.connections.clone(),
            fenced,
            role: role.clone(),
            lock_holder,
            metrics: Arc::clone(self.metrics),
        });
        let (metrics, read_only) = (Arc::clone(self.metrics), self.config.storage.read_only);
        async move {
            match election.zip(commands) {
                Some((election, commands)) => election.run(stop, commands).await,
                None => {
                    if !read_only {
                        log::info!(
                            "no election (-leader-election-pg-advisory-lock-id is 0): storing everything received"
                        );
                        role.send_replace(Role::Leader { fence: None, until: None });
                        metrics.set_role(role.borrow().word());
                    }
                    stop.cancelled().await;
                    role.send_replace(Role::Unknown);
                }
            }
        }
    }
}

/// Runs retention and other upkeep while this adapter keeps the store. Also logs the number of samples written.
async fn keep_up(store: Arc<Store>, config: Config, role: watch::Receiver<Role>, stop: CancellationToken) {
    let mut led_since: Option<Instant> = None;
    let mut last_count = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        store.trim_pool(config.postgres.max_idle_conns);
        let stored = store.samples_stored();
        if stored > last_count {
            let count = stored - last_count;
            let samples_per_second = count / UPKEEP_INTERVAL.as_secs();
            log::info!(samples = count, samples_per_second = samples_per_second; "samples written");
            last_count = stored;
        }
        if !role.borrow().at(Instant::now()).keeps_store() {
            led_since = None;
            continue;
        }
        let since = *led_since.get_or_insert_with(Instant::now);
        if let Err(error) = store.upkeep(since.elapsed()).await {
            log::warn!(retry_after:? = UPKEEP_INTERVAL, err:% = error; "upkeep failed");
            // After an outage, retried requests have yet to arrive, and their keys are needed. A segment locked by a
            // reader is no outage.
            if !error.is(&SqlState::LOCK_NOT_AVAILABLE) {
                led_since = None;
            }
        }
    }
}

/// Seals hot samples when they are many or old, while this adapter keeps the store.
async fn keep_sealed(store: Arc<Store>, role: watch::Receiver<Role>, stop: CancellationToken) {
    let mut sealed_at: Option<Instant> = None;
    let mut pause = SEAL_INTERVAL;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        if !role.borrow().at(Instant::now()).keeps_store() {
            store.forget_sizes();
            (sealed_at, pause) = (None, SEAL_INTERVAL);
            continue;
        }
        let looked_at = Instant::now();
        if let Ok(hot) = store.hot().await {
            // Before the first sealing, the age of the oldest hot sample counts.
            let since = *sealed_at.get_or_insert(looked_at.checked_sub(hot.age).unwrap_or(looked_at));
            if !store.is_seal_due(hot.samples, since.elapsed()) {
                // A check also reads sealed rows as long as an old session prevents their removal, so it may take long.
                pause = (looked_at.elapsed() * 10).clamp(SEAL_INTERVAL, LOOK_INTERVAL_MAX);
                continue;
            }
        }
        // A failed check is no reason to seal nothing: the hot samples may be too many to count in time.
        pause = SEAL_INTERVAL;
        match store.seal(SealedRows::Observed).await {
            Ok(Some(outcome)) => {
                sealed_at = Some(Instant::now());
                log::debug!(samples = outcome.samples, chunks = outcome.chunks; "sealed samples into chunks");
            }
            Ok(None) => {}
            Err(error) => {
                log::warn!(retry_after:? = SEAL_RETRY, err:% = error; "sealing failed");
                pause = SEAL_RETRY;
            }
        }
    }
}

/// Returns this adapter's name in the group's row: host and port.
fn holder(config: &Config) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown host".into());
    format!("{}:{}", host.trim(), config.http.listen_address.port())
}
