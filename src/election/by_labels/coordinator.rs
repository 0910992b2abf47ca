//! The task that exchanges reports with other adapters, and lets another replica lead if the leading one is silent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::election::by_labels::cluster::{self, ROUND, STALE};
use crate::election::by_labels::cluster_table;
use crate::election::by_labels::clusters::Clusters;
use crate::election::old_writers;
use crate::election::role::Role;
use crate::election::{Succession, Term};
use crate::postgres::error::Error;
use crate::postgres::{Pooled, within};
use crate::storage::names::Names;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// One adapter's part in the election by labels.
pub struct Coordinator<S> {
    /// The clusters that this adapter knows.
    pub clusters: Arc<Clusters>,
    /// The pool of connections.
    pub pool: Pool,
    /// Names of the tables.
    pub names: Names,
    /// Identity of this run of the adapter.
    pub adapter: Uuid,
    /// The hand-over.
    pub succession: Arc<S>,
    /// Owns the tasks that run beside the rounds.
    pub tracker: TaskTracker,
    /// Publishes that this adapter takes part.
    pub role: watch::Sender<Role>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Least interval of rounds, however urgent an event is. If many replicas fall silent at once, one round handles many
/// clusters.
const ROUNDS_APART: Duration = Duration::from_millis(50);

/// Pause before the next round if a take-over could not be done yet.
const TRY_AGAIN: Duration = Duration::from_millis(100);

/// Age from which a write that waits for its adapter is terminated, if a take-over is due in its group. Longer than
/// [`cluster_table::DRAINED_WITHIN`], in which healthy writes wait for the take-over.
const STUCK_FOR: Duration = Duration::from_millis(1_500);

/// Pause before a term that could not be begun is tried again.
const BEGIN_AGAIN: Duration = Duration::from_millis(500);

impl<S: Succession> Coordinator<S> {
    /// Takes part until `stop`, and then until nothing is buffered any more, for at most `grace`.
    pub async fn run(self, stop: CancellationToken, grace: Duration) {
        let mut trouble = LogThrottle::default();
        let mut ends_at = None;
        loop {
            let began = Instant::now();
            let mut next = began + ROUND;
            match within(STALE, self.round()).await {
                Ok(have_taken) => {
                    if !have_taken {
                        next = began + TRY_AGAIN;
                    }
                    if trouble.over() {
                        log::info!("the clusters' leaders are known again");
                    }
                    self.role.send_replace(Role::ByLabels { until: Instant::now() + STALE * 2 });
                }
                Err(error) => {
                    let why = error.to_string();
                    self.metrics.postgres_error(error.sqlstate());
                    if trouble.should_log(&why, Instant::now()) {
                        log::error!(err = why.as_str(); "who leads in the clusters cannot be told");
                    }
                }
            }
            self.clusters.changed();
            self.metrics.set_role(self.role.borrow().at(Instant::now()).word());
            if stop.is_cancelled() {
                let ends_at = *ends_at.get_or_insert(Instant::now() + grace);
                if self.succession.is_drained() || Instant::now() >= ends_at {
                    return;
                }
            }
            let next =
                self.clusters.next_check_at(Instant::now()).map_or(next, |next_check_at| next_check_at.min(next));
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.clusters.woken() => {}
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
            tokio::time::sleep_until((began + ROUNDS_APART).into()).await;
        }
    }

    /// Runs one round. Returns `true` if every take-over that was due is done.
    async fn round(&self) -> Result<bool, Error> {
        let mut have_taken = true;
        let clusters = &self.clusters;
        let client = Pooled::take(&self.pool).await?;
        let read = async |client: &Client, names: &[String]| {
            let asked = Instant::now();
            let rows = cluster_table::round(client, &self.names, self.adapter, &clusters.reports(asked), names).await?;
            // The hand-over goes before the roles: a write that finds the role standby must find its buffer open.
            for (cluster, seen) in rows.iter().filter_map(|row| Some((&row.cluster, row.seen.as_ref()?))) {
                self.succession.observed(&seen.term(cluster));
            }
            clusters.on_read(names, rows, asked, Instant::now());
            Ok::<_, Error>(())
        };
        read(&client, &clusters.names()).await?;
        let unwritten = clusters.unwritten();
        if !unwritten.is_empty() {
            for (no, given) in unwritten {
                cluster_table::order(&client, &self.names, &given).await?;
                clusters.on_written(no);
            }
            read(&client, &clusters.names()).await?;
        }
        let rowless = clusters.rowless();
        if !rowless.is_empty() {
            cluster_table::add(&client, &self.names, &rowless, clusters.config().clusters_max).await?;
            read(&client, &rowless).await?;
        }
        let successions = clusters.successions(Instant::now());
        if !successions.is_empty() {
            let taken = self.take_over(&client, &successions).await?;
            have_taken = taken.len() == successions.len();
            for (cluster, succession) in successions.iter().filter(|(_, one)| taken.contains(&one.group_no)) {
                log::info!(cluster = cluster.as_str(), replica = succession.replica.as_str(); "a replica leads now");
                self.metrics.cluster_leader_changes_total.inc();
            }
            let names: Vec<String> = successions.iter().map(|(cluster, _)| cluster.clone()).collect();
            read(&client, &names).await?;
        }
        client.give_back();
        let terms = clusters.to_begin();
        if !terms.is_empty() {
            self.begin(terms);
        }
        for source in clusters.forget(Instant::now()) {
            self.succession.forget(&source.cluster, &source.replica);
        }
        Ok(have_taken)
    }

    /// Does the take-overs, and returns the numbers of the groups whose term was raised.
    async fn take_over(
        &self,
        client: &Client,
        successions: &[(String, cluster::Succession)],
    ) -> Result<Vec<i32>, Error> {
        let (ordered, silent): (Vec<_>, Vec<_>) =
            successions.iter().map(|(_, one)| one).partition(|one| one.is_ordered);
        let mut taken = Vec::new();
        if !silent.is_empty() {
            taken = cluster_table::take_over(client, &self.names, &silent).await?;
        }
        let groups: Vec<i32> = ordered.iter().map(|succession| succession.group_no).collect();
        if !groups.is_empty() && cluster_table::drain(client, &self.names, &groups).await? {
            taken.extend(cluster_table::take_over(client, &self.names, &ordered).await?);
            client.batch_execute("COMMIT").await?;
        }
        let waiting = successions.iter().map(|(_, one)| one.group_no).filter(|group_no| !taken.contains(group_no));
        let waiting: Vec<i32> = waiting.collect();
        if !waiting.is_empty() {
            old_writers::terminate(client, &self.names, &waiting, Some(STUCK_FOR)).await?;
        }
        Ok(taken)
    }

    /// Begins terms, in a task beside the rounds: in one task, so that what they store is stored together.
    fn begin(&self, terms: Vec<(String, Term)>) {
        let begin = |(cluster, term): (String, Term)| {
            let (clusters, token) = (Arc::clone(&self.clusters), term.fence.token);
            let preparing = self.succession.prepare(term);
            async move {
                let prepared = preparing.await;
                if let Err(error) = &prepared {
                    log::warn!(
                        cluster = cluster.as_str(), retry_after:? = BEGIN_AGAIN, err:% = error;
                        "what is held of a cluster could not be stored"
                    );
                    tokio::time::sleep(BEGIN_AGAIN).await;
                }
                clusters.on_begun(&cluster, token, prepared.is_ok());
            }
        };
        self.tracker.spawn(join_all(terms.into_iter().map(begin).collect::<Vec<_>>()));
    }
}
