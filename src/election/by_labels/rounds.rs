//! The task that reads what other adapters told, tells them, and lets another replica lead where one is silent.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use tokio::sync::{Semaphore, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::election::Progress;
use crate::election::by_labels::board::{self, Beginning, Report};
use crate::election::by_labels::cluster::{ROUND, STALE, Seen, Succession};
use crate::election::by_labels::clusters::{Begin, Clusters};
use crate::election::role::Role;
use crate::model::source::Source;
use crate::postgres::error::Error;
use crate::postgres::{Pooled, within};
use crate::storage::names::Names;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trouble::Trouble;

/// The hand-over's side: what this adapter holds and has stored of each replica.
pub trait Shares: Send + Sync + 'static {
    /// How far this adapter has stored a leading replica.
    fn progress(&self, source: &Source) -> Progress;
    /// Stores what this adapter held of a replica that leads now. May be tried again.
    fn begin(
        &self,
        cluster: String,
        seen: Seen,
        beginning: Beginning,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static;
    /// What was read of a cluster: what is stored may be forgotten, and replicas that do not lead be held.
    fn observed(&self, cluster: &str, seen: &Seen);
    /// A replica has not been heard here for a long time.
    fn forget(&self, source: &Source);
    /// The server may be another one, with less in it.
    fn forget_series(&self);
    /// Whether nothing is held that is not stored.
    fn are_passed(&self) -> bool;
    /// The distance of a watermark from the newest sample stored, in ms.
    const MARGIN_MS: i64;
}

/// One adapter's part in the election by labels.
pub struct Rounds<S> {
    /// What is known of each cluster.
    pub clusters: Arc<Clusters>,
    /// Where connections come from.
    pub pool: Pool,
    /// Where the tables are.
    pub names: Names,
    /// What is held.
    pub shares: Arc<S>,
    /// Owns what goes on beside the rounds.
    pub tracker: TaskTracker,
    /// Where it is published that this adapter takes part.
    pub role: watch::Sender<Role>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// However often something cannot wait, rounds are so far apart: where many replicas go at once, one is for many clusters.
const ROUNDS_APART: Duration = Duration::from_millis(50);

/// Where another replica is to lead and cannot yet, it is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Terms that are begun at a time.
const BEGINNINGS: usize = 16;

/// A term that could not be begun is tried again after so long.
const BEGIN_AGAIN: Duration = Duration::from_millis(500);

impl<S: Shares> Rounds<S> {
    /// Takes part until `stop`, and then until nothing is held that is not stored, at most `grace` long.
    pub async fn run(self, stop: CancellationToken, grace: Duration) {
        let adapter = Uuid::new_v4();
        let beginnings = Arc::new(Semaphore::new(BEGINNINGS));
        let mut trouble = Trouble::default();
        let mut steady_at = Instant::now();
        let mut ends_at = None;
        loop {
            let began = Instant::now();
            let mut next = began + ROUND;
            match within(STALE, self.round(adapter, &beginnings)).await {
                Ok(have_taken) => {
                    if !have_taken {
                        next = began + TRY_AGAIN;
                    }
                    if began.saturating_duration_since(steady_at) > STALE * 2 {
                        self.shares.forget_series();
                    }
                    if trouble.over() {
                        log::info!("the clusters' leaders are known again");
                    }
                    steady_at = Instant::now();
                    self.role.send_replace(Role::ByLabels { until: steady_at + STALE * 2 });
                }
                Err(error) => {
                    let why = error.to_string();
                    self.metrics.postgres_error(error.sqlstate());
                    if trouble.is_news(&why, Instant::now()) {
                        log::error!("who leads in the clusters cannot be told: {why}");
                    }
                }
            }
            self.clusters.changed();
            self.metrics.set_role(self.role.borrow().at(Instant::now()).word());
            if stop.is_cancelled() {
                let ends_at = *ends_at.get_or_insert(Instant::now() + grace);
                if self.shares.are_passed() || Instant::now() >= ends_at {
                    return;
                }
            }
            let next = self.clusters.looks_at(Instant::now()).map_or(next, |looks_at| looks_at.min(next));
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.clusters.woken() => {}
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
            tokio::time::sleep_until((began + ROUNDS_APART).into()).await;
        }
    }

    /// Returns whether every replica that was to lead does.
    async fn round(&self, adapter: Uuid, beginnings: &Arc<Semaphore>) -> Result<bool, Error> {
        let client = Pooled::take(&self.pool).await?;
        let clusters = &self.clusters;
        let progress = |(source, report)| Report { progress: self.shares.progress(&source), ..report };
        let reports: Vec<Report> = clusters.reports(Instant::now()).into_iter().map(progress).collect();
        let read = async |reports: &[Report], names: &[String]| {
            let asked = Instant::now();
            let rows = board::round(&client, &self.names, adapter, reports, names, S::MARGIN_MS).await?;
            // First what is held, then who may be: what is told a standby can be held.
            for row in &rows {
                if let Some(seen) = &row.seen {
                    self.shares.observed(&row.cluster, seen);
                }
            }
            clusters.on_read(names, rows, asked, Instant::now());
            Ok::<_, Error>(())
        };
        read(&reports, &clusters.names()).await?;
        let unwritten = clusters.unwritten();
        if !unwritten.is_empty() {
            for (no, given) in unwritten {
                board::order(&client, &self.names, &given).await?;
                clusters.on_written(no);
            }
            read(&reports, &clusters.names()).await?;
        }
        let rowless = clusters.rowless();
        if !rowless.is_empty() {
            board::add(&client, &self.names, &rowless, clusters.config().clusters_max).await?;
            read(&reports, &rowless).await?;
        }
        let successions = clusters.successions(Instant::now());
        let mut have_taken = true;
        if !successions.is_empty() {
            let taken = self.take_over(&client, &successions).await?;
            have_taken = taken.len() == successions.len();
            for (cluster, succession) in successions.iter().filter(|(_, one)| taken.contains(&one.group_no)) {
                log::info!("replica {:?} leads cluster {cluster:?} now", succession.replica);
                self.metrics.cluster_leader_changes_total.inc();
            }
            let names: Vec<String> = successions.iter().map(|(cluster, _)| cluster.clone()).collect();
            read(&reports, &names).await?;
        }
        let undisputed = clusters.undisputed(&successions, Instant::now());
        if !undisputed.is_empty() {
            let seen: Vec<&Seen> = undisputed.iter().map(|(_, seen)| seen).collect();
            board::open_holes(&client, &self.names, &seen).await?;
            clusters.on_holes(&undisputed, Instant::now());
        }
        let to_begin = clusters.to_begin();
        if !to_begin.is_empty() {
            let tokens: Vec<Uuid> = to_begin.iter().map(|begin| begin.seen.fence.token).collect();
            let found = board::beginnings(&client, &self.names, &tokens).await;
            self.begin(to_begin, found, beginnings)?;
        }
        client.give_back();
        for source in clusters.forget(Instant::now()) {
            self.shares.forget(&source);
        }
        Ok(have_taken)
    }

    /// Returns the numbers of those groups in which another replica leads now.
    async fn take_over(&self, client: &Client, successions: &[(String, Succession)]) -> Result<Vec<i32>, Error> {
        let label = &self.clusters.config().cluster_label;
        let (ordered, silent): (Vec<_>, Vec<_>) =
            successions.iter().cloned().partition(|(_, succession)| succession.is_ordered);
        let mut taken = Vec::new();
        if !silent.is_empty() {
            taken = board::take_over(client, &self.names, label, &silent).await?;
        }
        let groups: Vec<i32> = ordered.iter().map(|(_, succession)| succession.group_no).collect();
        if !groups.is_empty() && board::drain(client, &self.names, &groups).await? {
            taken.extend(board::take_over(client, &self.names, label, &ordered).await?);
            client.batch_execute("COMMIT").await?;
        }
        Ok(taken)
    }

    /// Begins terms, beside the rounds.
    fn begin(
        &self,
        to_begin: Vec<Begin>,
        found: Result<Vec<Beginning>, Error>,
        beginnings: &Arc<Semaphore>,
    ) -> Result<(), Error> {
        let (found, failed) = match found {
            Ok(found) => (found, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        for Begin { cluster, seen } in to_begin {
            let token = seen.fence.token;
            // One that has no beginning is over already: the next read shows its successor.
            let Some(beginning) = found.iter().find(|beginning| beginning.token == token).cloned() else {
                self.clusters.on_begun(&cluster, token, false);
                continue;
            };
            let (clusters, permits) = (Arc::clone(&self.clusters), Arc::clone(beginnings));
            let work = self.shares.begin(cluster.clone(), seen, beginning);
            self.tracker.spawn(async move {
                let _permit = permits.acquire().await;
                let begun = work.await;
                if let Err(error) = &begun {
                    log::warn!("what is held of cluster {cluster:?} could not be stored, to be tried again: {error}");
                    tokio::time::sleep(BEGIN_AGAIN).await;
                }
                clusters.on_begun(&cluster, token, begun.is_ok());
            });
        }
        failed.map_or(Ok(()), Err)
    }
}
