//! What this adapter holds and stores of each replica, where leaders are found by labels.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::Notify;

use crate::clock::now_ms;
use crate::election::Progress;
use crate::election::by_labels::board::Beginning;
use crate::election::by_labels::cluster::Seen;
use crate::election::by_labels::clusters::Clusters;
use crate::election::by_labels::rounds;
use crate::handover::cut::Cut;
use crate::handover::ledger::{Ledger, Term};
use crate::handover::watermark::{FAILED_ELSEWHERE_MS, MARGIN_MS};
use crate::handover::{Config, Handover, Memory, fill_some};
use crate::model::source::Source;
use crate::postgres::error::Error;
use crate::storage::Store;
use crate::telemetry::metrics::Metrics;

/// What one replica may take of the memory there is: one with much to send must not keep others from being held.
const PART_OF_MEMORY: usize = 4;

/// A [`Handover`] for each replica.
pub struct Shares {
    bytes_max: usize,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    memory: Arc<Memory>,
    clusters: Arc<Clusters>,
    /// By cluster and replica.
    handovers: RwLock<HashMap<String, BTreeMap<String, Arc<Handover>>>>,
    /// Watermarks may have passed something that is in doubt.
    passed: Notify,
}

impl Shares {
    /// None yet.
    #[must_use]
    pub fn new(config: Config, store: Arc<Store>, clusters: Arc<Clusters>, metrics: Arc<Metrics>) -> Self {
        let memory = Arc::new(Memory::new(config, Arc::clone(&metrics)));
        let bytes_max = config.memory_bytes_max / PART_OF_MEMORY;
        Self { bytes_max, store, metrics, memory, clusters, handovers: RwLock::default(), passed: Notify::new() }
    }

    /// That of `source`.
    #[must_use]
    pub fn of(&self, source: &Source) -> Arc<Handover> {
        let found = |handovers: &HashMap<String, BTreeMap<_, _>>| {
            handovers.get(&source.cluster)?.get(&source.replica).map(Arc::clone)
        };
        if let Some(handover) = found(&self.handovers.read().unwrap_or_else(PoisonError::into_inner)) {
            return handover;
        }
        let mut handovers = self.handovers.write().unwrap_or_else(PoisonError::into_inner);
        let replicas = handovers.entry(source.cluster.clone()).or_default();
        let new = || Handover {
            store: Arc::clone(&self.store),
            metrics: Arc::clone(&self.metrics),
            memory: Arc::clone(&self.memory),
            ledger: Mutex::new(Ledger::new(self.bytes_max, FAILED_ELSEWHERE_MS)),
            passed: Notify::new(),
        };
        Arc::clone(replicas.entry(source.replica.clone()).or_insert_with(|| Arc::new(new())))
    }

    /// As [`Handover::fill`], for all.
    pub async fn fill(&self) {
        loop {
            self.passed.notified().await;
            let all = self.all();
            let all: Vec<&Handover> = all.iter().map(Arc::as_ref).collect();
            while fill_some(&all, &self.store, &self.metrics).await {}
        }
    }

    fn all(&self) -> Vec<Arc<Handover>> {
        let handovers = self.handovers.read().unwrap_or_else(PoisonError::into_inner);
        handovers.values().flat_map(BTreeMap::values).map(Arc::clone).collect()
    }

    fn term(&self, cluster: &str, replica: &str, seen: &Seen) -> Term {
        let clock_offset_ms = self.clusters.ahead_ms(cluster, replica);
        Term { fence: seen.fence, clock_offset_ms, watermark_ms: seen.watermark_ms }
    }
}

impl rounds::Shares for Shares {
    const MARGIN_MS: i64 = MARGIN_MS;

    fn progress(&self, source: &Source) -> Progress {
        self.of(source).with(|ledger| ledger.progress(now_ms()))
    }

    fn begin(
        &self,
        cluster: String,
        seen: Seen,
        Beginning { last_ms, others_ms, .. }: Beginning,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let term = self.term(&cluster, &seen.replica, &seen);
        let handover = self.of(&Source { cluster, replica: seen.replica });
        async move { handover.begin(term, seen.holes, Cut::given(last_ms, others_ms)).await }
    }

    fn observed(&self, cluster: &str, seen: &Seen) {
        let handovers = self.handovers.read().unwrap_or_else(PoisonError::into_inner);
        for (replica, handover) in handovers.get(cluster).into_iter().flatten() {
            let term = self.term(cluster, replica, seen);
            if *replica == seen.replica {
                handover.with(|ledger| ledger.led(term.watermark_ms, term.clock_offset_ms, seen.holes.clone()));
            } else {
                handover.with(|ledger| ledger.observed(term, seen.holes.clone(), Instant::now()));
            }
        }
        self.passed.notify_one();
    }

    fn forget(&self, source: &Source) {
        let mut handovers = self.handovers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(replicas) = handovers.get_mut(&source.cluster) {
            if let Some(handover) = replicas.remove(&source.replica) {
                handover.with(Ledger::forget);
            }
            if replicas.is_empty() {
                handovers.remove(&source.cluster);
            }
        }
    }

    fn forget_series(&self) {
        self.store.forget();
    }

    fn are_passed(&self) -> bool {
        self.all().iter().all(|handover| handover.with(|ledger| ledger.is_passed()))
    }
}
